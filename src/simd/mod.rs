//! Arithmetic on rows, sixteen numbers at a time, with the instructions this machine has.
//!
//! A [`Kernel`] is written once, in safe code, over a [`Simd`] type of 16 lanes; [`Isa::run`] compiles it for
//! AVX-512, AVX2 and plain Rust (which on aarch64 becomes NEON) and picks at run time. All paths agree to
//! rounding, not to the bit: they group and fuse additions differently.

mod aligned;
mod element;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use aligned::Aligned;
pub(crate) use element::Element;
pub(crate) use portable::Portable;

use half::bf16;

/// Numbers in a vector.
pub(crate) const LANES: usize = 16;

/// Sixteen `f32` lanes. A value of an implementing type proves that the machine has its instructions.
pub(crate) trait Simd: Copy + Send + Sync {
    /// The vector.
    type V: Copy;
    /// Whether there are registers for 8 × 2 accumulators.
    const WIDE: bool;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, values: &[f32; LANES]) -> Self::V;
    /// bf16 is the upper half of an `f32`.
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::V;
    fn store(self, vector: Self::V, values: &mut [f32; LANES]);
    /// [`store`](Self::store) that does not bring `values` into the caches, where they lie on a cache line of their own. Nobody else may
    /// read them before [`settle`](Self::settle).
    #[inline(always)]
    fn store_past_caches(self, vector: Self::V, values: &mut [f32; LANES]) {
        self.store(vector, values);
    }
    /// Waits for all that was stored past the caches.
    #[inline(always)]
    fn settle(self) {}
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`, fused where the machine can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a` where `a > b`, otherwise `b`: so `b` where `a` is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    fn round(self, a: Self::V) -> Self::V;
    /// `a·2^n` for integral `n` in −126..=127.
    fn scale(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a` where `x > y`, otherwise `b`.
    fn select_greater(self, x: Self::V, y: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Bit `i` says whether `a[i] > b[i]`.
    fn greater(self, a: Self::V, b: Self::V) -> u32;
    /// `a[i]` where bit `i` is set, otherwise zero.
    fn keep(self, a: Self::V, bits: u32) -> Self::V;
    /// The sum of all lanes.
    fn sum(self, a: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::V) -> f32;

    /// `exp(x)` for `x ≤ 88`, to 2 units in the last place; 0 below −87, NaN for NaN.
    ///
    /// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, then seven terms of the series: the next one is below 6e-9.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // ln 2 in two parts; the first has so few bits that its product with n is exact.
        const LN2_HIGH: f32 = 355.0 / 512.0;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-LN2_HIGH), x);
        let r = self.mul_add(n, self.splat(-LN2_LOW), r);
        let mut p = self.splat(1.0 / 5040.0);
        p = self.mul_add(p, r, self.splat(1.0 / 720.0));
        p = self.mul_add(p, r, self.splat(1.0 / 120.0));
        p = self.mul_add(p, r, self.splat(1.0 / 24.0));
        p = self.mul_add(p, r, self.splat(1.0 / 6.0));
        p = self.mul_add(p, r, self.splat(0.5));
        p = self.mul_add(p, r, self.splat(1.0));
        p = self.mul_add(p, r, self.splat(1.0));
        let low = self.splat(-87.0);
        self.select_greater(low, x, self.splat(0.0), self.scale(p, n))
    }
}

/// A computation over whichever [`Simd`] the machine offers. `run` and all that it calls must be
/// `#[inline(always)]`: only then are they compiled with the instructions in question.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set known to be there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    Portable(Portable),
}

impl Isa {
    /// What this machine has, best first.
    pub(crate) fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(x86::Avx512::detect().map(Isa::Avx512));
            found.extend(x86::Avx2::detect().map(Isa::Avx2));
        }
        found.push(Isa::Portable(Portable));
        found
    }

    /// The best that this machine has.
    pub(crate) fn best() -> Isa {
        Self::available()[0]
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => simd.run(kernel),
            Isa::Portable(simd) => kernel.run(simd),
        }
    }
}

/// Asks for `row` to be brought into the nearest cache.
#[inline(always)]
pub(crate) fn prefetch<E: Element>(row: &[E]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(aligned::LINE / size_of::<E>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching reads nothing architecturally, and the address lies inside `row`.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, stream};
    use rand::RngExt;

    struct Exp([f32; LANES]);
    impl Kernel for Exp {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            simd.store(simd.exp(simd.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn exp_is_accurate_on_every_path() {
        for isa in Isa::available() {
            let mut rng = stream(5, Purpose::Test, 0, 0);
            for _ in 0..20_000 {
                let x: [f32; LANES] = rng.random();
                let x = x.map(|unit| 174.9 * unit - 86.9);
                for (x, y) in x.iter().zip(isa.run(Exp(x))) {
                    let exact = f64::from(*x).exp();
                    let error = (f64::from(y) - exact).abs() / exact;
                    assert!(error < 2.4e-7, "{isa:?}: exp({x}) is off by {error:e}");
                }
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero_and_of_nan_is_nan() {
        for isa in Isa::available() {
            let mut x = [-1e4; LANES];
            (x[0], x[1], x[2]) = (f32::NEG_INFINITY, f32::NAN, 0.0);
            let y = isa.run(Exp(x));
            assert_eq!((y[0], y[2], y[3]), (0.0, 1.0, 0.0), "{isa:?}");
            assert!(y[1].is_nan(), "{isa:?}");
        }
    }

    struct Ops([f32; LANES], [f32; LANES]);
    impl Kernel for Ops {
        type Output = (u32, f32, f32, [[f32; LANES]; 3]);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let (a, b) = (s.load(&self.0), s.load(&self.1));
            let mut vectors = [[0.0; LANES]; 3];
            let [max, select, kept] = &mut vectors;
            s.store(s.max(a, b), max);
            s.store(s.select_greater(a, b, s.splat(1.0), s.splat(2.0)), select);
            s.store(s.keep(a, s.greater(a, b)), kept);
            (s.greater(a, b), s.sum(a), s.largest(b), vectors)
        }
    }

    #[test]
    fn comparisons_and_reductions_mean_the_same_on_every_path() {
        let a: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 7.0) % 5.0);
        let mut b: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 3.0) % 4.0);
        for isa in Isa::available() {
            let (mask, sum, largest, [max, select, kept]) = isa.run(Ops(a, b));
            for i in 0..LANES {
                assert_eq!(mask >> i & 1 == 1, a[i] > b[i], "{isa:?}");
                assert_eq!(max[i], a[i].max(b[i]), "{isa:?}");
                assert_eq!(select[i], if a[i] > b[i] { 1.0 } else { 2.0 }, "{isa:?}");
                assert_eq!(kept[i], if a[i] > b[i] { a[i] } else { 0.0 }, "{isa:?}");
            }
            assert_eq!(sum, a.iter().sum::<f32>(), "{isa:?}");
            assert_eq!(largest, 3.0, "{isa:?}");
        }
        b[3] = f32::NAN;
        for isa in Isa::available() {
            assert!(isa.run(Ops(a, b)).3[0][3].is_nan(), "{isa:?}: the second operand wins");
            assert_eq!(isa.run(Ops(b, a)).3[0][3], a[3], "{isa:?}: the second operand wins");
        }
    }

    struct PastCaches<'a>([f32; LANES], &'a mut [f32; LANES]);
    impl Kernel for PastCaches<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            simd.store_past_caches(simd.load(&self.0), self.1);
            simd.settle();
        }
    }

    #[test]
    fn what_is_stored_past_the_caches_arrives_wherever_it_is_stored() {
        let numbers: [f32; LANES] = std::array::from_fn(|lane| lane as f32 + 0.5);
        for isa in Isa::available() {
            let mut memory = Aligned::zeros(4 * LANES);
            for first in 0..2 * LANES {
                memory.fill(0.0);
                isa.run(PastCaches(numbers, memory[first..].first_chunk_mut().unwrap()));
                assert_eq!(memory[first..first + LANES], numbers, "{isa:?} from {first}");
                assert_eq!(
                    memory.iter().filter(|number| **number != 0.0).count(),
                    LANES,
                    "{isa:?} from {first}"
                );
            }
        }
    }
}
