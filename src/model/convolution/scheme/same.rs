//! Three weights, stride 1: Winograd's F(4, 3), six products instead of twelve.
//!
//! Its points are 0, ±3/4, ±3/2 and infinity. With these the error is twice that of adding up products in their order, with
//! Lavin and Gray's points (0, ±1, ±2) four times; and their squares and products are exact in binary.

use super::{Factored, Scheme, Weighted, fma, scaled};
use crate::simd::Simd;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// What `G` divides by at 0, ±A and ±B: the product of the point's distances from the other finite ones.
const N0: f32 = A2 * B2;
const NA: f32 = 2.0 * A2 * (A2 - B2);
const NB: f32 = 2.0 * B2 * (B2 - A2);

/// As many outputs as inputs.
#[derive(Clone, Copy)]
pub(in super::super) struct Same;

impl Factored<6, 6> for Same {
    const STEP: usize = 4;
    const BEFORE: usize = 1;

    #[inline(always)]
    fn input<S: Simd>(self, s: S, d: [S::V; 6]) -> [S::V; 6] {
        let even_a = fma(s, -B2, d[2], d[4]);
        let odd_a = fma(s, -B2, d[1], d[3]);
        let even_b = fma(s, -A2, d[2], d[4]);
        let odd_b = fma(s, -A2, d[1], d[3]);
        [
            fma(s, N0, d[0], fma(s, -(A2 + B2), d[2], d[4])),
            fma(s, A, odd_a, even_a),
            fma(s, -A, odd_a, even_a),
            fma(s, B, odd_b, even_b),
            fma(s, -B, odd_b, even_b),
            fma(s, N0, d[1], fma(s, -(A2 + B2), d[3], d[5])),
        ]
    }
}

impl Scheme<6, 4> for Same {
    #[inline(always)]
    fn output<S: Simd>(self, s: S, m: [S::V; 6]) -> [S::V; 4] {
        let (sum_a, difference_a) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
        let (sum_b, difference_b) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
        [
            s.add(m[0], s.add(sum_a, sum_b)),
            fma(s, A, difference_a, scaled(s, B, difference_b)),
            fma(s, A2, sum_a, scaled(s, B2, sum_b)),
            fma(s, A * A2, difference_a, fma(s, B * B2, difference_b, m[5])),
        ]
    }
}

impl Weighted<3, 6> for Same {
    #[inline(always)]
    fn kernel<S: Simd>(self, s: S, g: [S::V; 3]) -> [S::V; 6] {
        let even_a = fma(s, A2 / NA, g[2], scaled(s, 1.0 / NA, g[0]));
        let even_b = fma(s, B2 / NB, g[2], scaled(s, 1.0 / NB, g[0]));
        [
            scaled(s, 1.0 / N0, g[0]),
            fma(s, A / NA, g[1], even_a),
            fma(s, -A / NA, g[1], even_a),
            fma(s, B / NB, g[1], even_b),
            fma(s, -B / NB, g[1], even_b),
            g[2],
        ]
    }

    #[inline(always)]
    fn kernel_transposed<S: Simd>(self, s: S, u: [S::V; 6]) -> [S::V; 3] {
        let (sum_a, difference_a) = (s.add(u[1], u[2]), s.sub(u[1], u[2]));
        let (sum_b, difference_b) = (s.add(u[3], u[4]), s.sub(u[3], u[4]));
        [
            fma(s, 1.0 / N0, u[0], fma(s, 1.0 / NA, sum_a, scaled(s, 1.0 / NB, sum_b))),
            fma(s, A / NA, difference_a, scaled(s, B / NB, difference_b)),
            fma(s, A2 / NA, sum_a, fma(s, B2 / NB, sum_b, u[5])),
        ]
    }
}

/// The gradient of [`Same`]'s outputs, whose factors are multiplied by the inputs' in the gradient of the weights': the transpose
/// of its [`output`](Scheme::output).
#[derive(Clone, Copy)]
pub(in super::super) struct SameGradient;

impl Factored<4, 6> for SameGradient {
    const STEP: usize = 4;
    const BEFORE: usize = 0;

    #[inline(always)]
    fn input<S: Simd>(self, s: S, y: [S::V; 4]) -> [S::V; 6] {
        let even_a = fma(s, A2, y[2], y[0]);
        let odd_a = fma(s, A2, y[3], y[1]);
        let even_b = fma(s, B2, y[2], y[0]);
        let odd_b = fma(s, B2, y[3], y[1]);
        [
            y[0],
            fma(s, A, odd_a, even_a),
            fma(s, -A, odd_a, even_a),
            fma(s, B, odd_b, even_b),
            fma(s, -B, odd_b, even_b),
            y[3],
        ]
    }
}
