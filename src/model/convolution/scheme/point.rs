//! One weight: a product for every pixel.

use super::{Factored, Scheme, Weighted};
use crate::simd::Simd;

/// Every `STRIDE`th pixel.
#[derive(Clone, Copy)]
pub(in super::super) struct Point<const STRIDE: usize>;

impl<const STRIDE: usize> Factored<1, 1> for Point<STRIDE> {
    const STEP: usize = STRIDE;
    const BEFORE: usize = 0;

    #[inline(always)]
    fn input<S: Simd>(self, _: S, d: [S::V; 1]) -> [S::V; 1] {
        d
    }
}

impl<const STRIDE: usize> Scheme<1, 1> for Point<STRIDE> {
    #[inline(always)]
    fn output<S: Simd>(self, _: S, m: [S::V; 1]) -> [S::V; 1] {
        m
    }
}

impl<const STRIDE: usize> Weighted<1, 1> for Point<STRIDE> {
    #[inline(always)]
    fn kernel<S: Simd>(self, _: S, g: [S::V; 1]) -> [S::V; 1] {
        g
    }
    #[inline(always)]
    fn kernel_transposed<S: Simd>(self, _: S, u: [S::V; 1]) -> [S::V; 1] {
        u
    }
}

/// The gradient of the inputs of [`Point<2>`](Point) from that of its outputs: zeros between them.
#[derive(Clone, Copy)]
pub(in super::super) struct Spread;

impl Factored<1, 1> for Spread {
    const STEP: usize = 1;
    const BEFORE: usize = 0;

    #[inline(always)]
    fn input<S: Simd>(self, _: S, d: [S::V; 1]) -> [S::V; 1] {
        d
    }
}

impl Scheme<1, 2> for Spread {
    #[inline(always)]
    fn output<S: Simd>(self, simd: S, m: [S::V; 1]) -> [S::V; 2] {
        [m[0], simd.splat(0.0)]
    }
}
