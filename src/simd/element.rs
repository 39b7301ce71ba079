//! What rows are stored in, `f32` or bf16; arithmetic is `f32` for either.

use half::bf16;

use super::{LANES, Simd};

/// A number as it is stored.
///
/// # Safety
/// Any bits must be a number, those of 0 the number 0, and a cache line must be filled by whole numbers without gaps.
pub(crate) unsafe trait Element: Copy + PartialEq + Send + Sync {
    /// The nearest number there is, of two the even one. NaN stays NaN.
    fn from_f32(value: f32) -> Self;
    /// The same number: `f32` holds all of them exactly.
    fn to_f32(self) -> f32;
    /// Sixteen numbers in a vector.
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::V;
    /// The numbers themselves, where they are `f32`.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;

    /// At most sixteen numbers in a vector, then zeros.
    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, values: &[Self]) -> S::V {
        let mut padded = [0.0; LANES];
        padded.iter_mut().zip(values).for_each(|(to, from)| *to = from.to_f32());
        simd.load(&padded)
    }
}

// SAFETY: any bits are an `f32`, zero bits are 0, and its size divides a line's.
unsafe impl Element for f32 {
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[f32; LANES]) -> S::V {
        simd.load(values)
    }
    #[inline(always)]
    fn as_f32(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
}

// SAFETY: it is a `u16` in a `repr(transparent)` struct: any bits are one, zero bits are 0, and its size divides a line's.
unsafe impl Element for bf16 {
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        // The upper half of an `f32`, without the crate's detour for signalling NaNs.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[bf16; LANES]) -> S::V {
        simd.load_bf16(values)
    }
    #[inline(always)]
    fn as_f32(_: &[bf16]) -> Option<&[f32]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Kernel};
    use super::*;

    struct Load<'a>(&'a [bf16]);
    impl Kernel for Load<'_> {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            let mut out = [9.0; LANES];
            let vector = match self.0.try_into() {
                Ok(values) => bf16::load(simd, values),
                Err(_) => bf16::load_partial(simd, self.0),
            };
            simd.store(vector, &mut out);
            out
        }
    }

    #[test]
    fn every_bf16_is_loaded_exactly_on_every_path() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        for isa in Isa::available() {
            for values in all.chunks(LANES).chain(all[0x3f80..].chunks(7).take(40)) {
                let found = isa.run(Load(values));
                for (found, value) in found.iter().zip(values) {
                    assert_eq!(found.to_bits(), u32::from(value.to_bits()) << 16, "{isa:?}");
                    assert_eq!(Element::to_f32(*value).to_bits(), found.to_bits());
                }
                assert!(found[values.len()..].iter().all(|x| x.to_bits() == 0), "{isa:?}: zeros follow");
            }
        }
    }

    #[test]
    fn rounding_goes_to_the_nearest_of_two_to_the_even_one_and_keeps_nan() {
        let round = |bits: u32| <bf16 as Element>::from_f32(f32::from_bits(bits)).to_bits();
        // 1 and what lies above it: below half, half (down to even, up to even), above half.
        for (bits, expected) in [
            (0x3f80_0000, 0x3f80),
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0xbf81_8000, 0xbf82),
            (0x0000_8001, 0x0001),
            (0x7f7f_ffff, 0x7f80),
            (0x7f80_0000, 0x7f80),
        ] {
            assert_eq!(round(bits), expected, "{bits:x}");
        }
        // Also where all the bits that make it one are below the cut.
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, f32::NAN.to_bits()] {
            assert!(f32::from_bits(u32::from(round(bits)) << 16).is_nan(), "{bits:x}");
        }
    }
}
