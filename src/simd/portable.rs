//! Sixteen lanes in plain Rust: the path of every machine without a better one, and the twin that Miri can run.

use super::{Element, LANES, Simd};
use half::bf16;

/// No instructions beyond the target's own. On aarch64 those include NEON with fused multiplication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Portable {
    #[inline(always)]
    fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Simd for Portable {
    type V = [f32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::V {
        *values
    }
    #[inline(always)]
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::V {
        values.map(Element::to_f32)
    }
    #[inline(always)]
    fn store(self, vector: Self::V, values: &mut [f32; LANES]) {
        *values = vector;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Where there is no such instruction `mul_add` would be a slow library call.
        if cfg!(target_arch = "aarch64") {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // Adding and taking away 1.5·2^23 rounds anything this module rounds, without a library call.
        const MAGIC: f32 = 12_582_912.0;
        a.map(|a| (a + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        Self::map2(a, n, |a, n| a * f32::from_bits(((n as i32).wrapping_add(127) << 23) as u32))
    }
    #[inline(always)]
    fn select_greater(self, x: Self::V, y: Self::V, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if x[i] > y[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn greater(self, a: Self::V, b: Self::V) -> u32 {
        let mut mask = 0;
        for i in 0..LANES {
            mask |= u32::from(a[i] > b[i]) << i;
        }
        mask
    }
    #[inline(always)]
    fn keep(self, a: Self::V, bits: u32) -> Self::V {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { a[i] } else { 0.0 })
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let mut a = a;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] += a[i + half];
            }
        }
        a[0]
    }
    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |largest, &a| if a > largest { a } else { largest })
    }
}
