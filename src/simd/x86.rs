//! Sixteen lanes on x86-64: one AVX-512 register, or two of AVX2.
//!
//! The intrinsics are unsafe to call outside functions compiled for them. Each value of [`Avx512`] and [`Avx2`]
//! comes from `detect`, so their instructions are there wherever a `self` is.

use super::aligned::LINE;
use super::{Kernel, LANES, Simd};
use half::bf16;
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ and VL are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

/// AVX2 and FMA are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && Avx2::detect().is_some())
        .then_some(Avx512(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the features are there.
        unsafe { compiled(self, kernel) }
    }
}

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the features are there.
        unsafe { compiled(self, kernel) }
    }
}

/// Calls one intrinsic, or an expression of them.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: the method's `self` proves that the instructions are there; loads and stores take their
        // address from a reference to sixteen numbers and need no alignment, but for those past the caches, which look at it.
        unsafe { $call }
    };
}

impl Simd for Avx512 {
    type V = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        intrinsic!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::V {
        intrinsic!(_mm512_loadu_ps(values.as_ptr()))
    }
    #[inline(always)]
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::V {
        intrinsic!({
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        })
    }
    #[inline(always)]
    fn store(self, vector: Self::V, values: &mut [f32; LANES]) {
        intrinsic!(_mm512_storeu_ps(values.as_mut_ptr(), vector))
    }
    #[inline(always)]
    fn store_past_caches(self, vector: Self::V, values: &mut [f32; LANES]) {
        if !values.as_ptr().addr().is_multiple_of(LINE) {
            return self.store(vector, values);
        }
        intrinsic!(_mm512_stream_ps(values.as_mut_ptr(), vector))
    }
    #[inline(always)]
    fn settle(self) {
        intrinsic!(_mm_sfence())
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        intrinsic!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        intrinsic!(_mm512_roundscale_ps::<0>(a))
    }
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        intrinsic!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn select_greater(self, x: Self::V, y: Self::V, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, y), b, a))
    }
    #[inline(always)]
    fn greater(self, a: Self::V, b: Self::V) -> u32 {
        u32::from(intrinsic!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b)))
    }
    #[inline(always)]
    fn keep(self, a: Self::V, bits: u32) -> Self::V {
        intrinsic!(_mm512_maskz_mov_ps(bits as u16, a))
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        intrinsic!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        intrinsic!(_mm512_reduce_max_ps(a))
    }
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [intrinsic!(_mm256_set1_ps(value)); 2]
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::V {
        intrinsic!([_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))])
    }
    #[inline(always)]
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::V {
        let eight = |from: usize| {
            intrinsic!({
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(values.as_ptr().add(from).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            })
        };
        [eight(0), eight(8)]
    }
    #[inline(always)]
    fn store(self, vector: Self::V, values: &mut [f32; LANES]) {
        intrinsic!(_mm256_storeu_ps(values.as_mut_ptr(), vector[0]));
        intrinsic!(_mm256_storeu_ps(values.as_mut_ptr().add(8), vector[1]));
    }
    #[inline(always)]
    fn store_past_caches(self, vector: Self::V, values: &mut [f32; LANES]) {
        if !values.as_ptr().addr().is_multiple_of(LINE) {
            return self.store(vector, values);
        }
        intrinsic!(_mm256_stream_ps(values.as_mut_ptr(), vector[0]));
        intrinsic!(_mm256_stream_ps(values.as_mut_ptr().add(8), vector[1]));
    }
    #[inline(always)]
    fn settle(self) {
        intrinsic!(_mm_sfence())
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        intrinsic!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        a.map(|a| intrinsic!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)))
    }
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        let half = |a, n| {
            intrinsic!({
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            })
        };
        [half(a[0], n[0]), half(a[1], n[1])]
    }
    #[inline(always)]
    fn select_greater(self, x: Self::V, y: Self::V, a: Self::V, b: Self::V) -> Self::V {
        intrinsic!([
            _mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_GT_OQ>(x[0], y[0])),
            _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_GT_OQ>(x[1], y[1])),
        ])
    }
    #[inline(always)]
    fn greater(self, a: Self::V, b: Self::V) -> u32 {
        let half = |a, b| intrinsic!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b))) as u32;
        half(a[0], b[0]) | half(a[1], b[1]) << 8
    }
    #[inline(always)]
    fn keep(self, a: Self::V, bits: u32) -> Self::V {
        intrinsic!({
            let all = _mm256_set1_epi32(bits as i32);
            let half = |a, bit_of_lane| {
                let kept = _mm256_cmpeq_epi32(_mm256_and_si256(all, bit_of_lane), bit_of_lane);
                _mm256_and_ps(a, _mm256_castsi256_ps(kept))
            };
            let low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            [half(a[0], low), half(a[1], _mm256_slli_epi32::<8>(low))]
        })
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        intrinsic!({
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        intrinsic!({
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }
}
