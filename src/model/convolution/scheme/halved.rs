//! Three weights, stride 2: every other input meets the middle weight only, the ones between the two outer weights.
//!
//! The latter are a convolution of stride 1 with two weights: F(4, 2), five products instead of eight. Its points are ±1/2,
//! ±3/2 and infinity, with which the error is twice that of adding up products in their order. Nine products in all
//! instead of twelve, 81 instead of 144 for a square. The four that share the middle weight share its factor.

use super::{Factored, Scheme, Weighted, fma, scaled};
use crate::simd::Simd;

const A: f32 = 0.5;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// What `G` divides by at A and B, and at −A and −B with the other sign.
const NA: f32 = 2.0 * A * (A2 - B2);
const NB: f32 = 2.0 * B * (B2 - A2);

/// `Bᵀ d` of F(4, 2).
#[inline(always)]
fn input<S: Simd>(s: S, d: [S::V; 5]) -> [S::V; 5] {
    let even_a = fma(s, -B2, d[0], d[2]);
    let odd_a = fma(s, -B2, d[1], d[3]);
    let even_b = fma(s, -A2, d[0], d[2]);
    let odd_b = fma(s, -A2, d[1], d[3]);
    [
        fma(s, A, even_a, odd_a),
        fma(s, -A, even_a, odd_a),
        fma(s, B, even_b, odd_b),
        fma(s, -B, even_b, odd_b),
        fma(s, A2 * B2, d[0], fma(s, -(A2 + B2), d[2], d[4])),
    ]
}

/// `Aᵀ m` of F(4, 2).
#[inline(always)]
fn output<S: Simd>(s: S, m: [S::V; 5]) -> [S::V; 4] {
    let (sum_a, difference_a) = (s.add(m[0], m[1]), s.sub(m[0], m[1]));
    let (sum_b, difference_b) = (s.add(m[2], m[3]), s.sub(m[2], m[3]));
    [
        s.add(sum_a, sum_b),
        fma(s, A, difference_a, scaled(s, B, difference_b)),
        fma(s, A2, sum_a, scaled(s, B2, sum_b)),
        fma(s, A * A2, difference_a, fma(s, B * B2, difference_b, m[4])),
    ]
}

/// Half as many outputs as inputs, rounded up.
#[derive(Clone, Copy)]
pub(in super::super) struct Halved;

impl Factored<9, 9> for Halved {
    const STEP: usize = 8;
    const BEFORE: usize = 1;

    #[inline(always)]
    fn input<S: Simd>(self, s: S, d: [S::V; 9]) -> [S::V; 9] {
        let [a, b, c, e, f] = input(s, [d[0], d[2], d[4], d[6], d[8]]);
        [a, b, c, e, f, d[1], d[3], d[5], d[7]]
    }
}

impl Scheme<9, 4> for Halved {
    #[inline(always)]
    fn output<S: Simd>(self, s: S, m: [S::V; 9]) -> [S::V; 4] {
        let outer = output(s, [m[0], m[1], m[2], m[3], m[4]]);
        [s.add(outer[0], m[5]), s.add(outer[1], m[6]), s.add(outer[2], m[7]), s.add(outer[3], m[8])]
    }
}

impl Weighted<3, 6> for Halved {
    #[inline(always)]
    fn kernel<S: Simd>(self, s: S, g: [S::V; 3]) -> [S::V; 6] {
        let (first_a, first_b) = (scaled(s, 1.0 / NA, g[0]), scaled(s, 1.0 / NB, g[0]));
        let (last_a, last_b) = (scaled(s, A / NA, g[2]), scaled(s, B / NB, g[2]));
        [
            s.add(last_a, first_a),
            s.sub(last_a, first_a),
            s.add(last_b, first_b),
            s.sub(last_b, first_b),
            g[2],
            g[1],
        ]
    }

    #[inline(always)]
    fn kernel_transposed<S: Simd>(self, s: S, u: [S::V; 6]) -> [S::V; 3] {
        let (sum_a, difference_a) = (s.add(u[0], u[1]), s.sub(u[0], u[1]));
        let (sum_b, difference_b) = (s.add(u[2], u[3]), s.sub(u[2], u[3]));
        [
            fma(s, 1.0 / NA, difference_a, scaled(s, 1.0 / NB, difference_b)),
            u[5],
            fma(s, A / NA, sum_a, fma(s, B / NB, sum_b, u[4])),
        ]
    }
}

/// The gradient of [`Halved`]'s outputs, whose factors are multiplied by the inputs' in the gradient of the weights': the transpose
/// of its [`output`](Scheme::output).
#[derive(Clone, Copy)]
pub(in super::super) struct HalvedGradient;

impl Factored<4, 9> for HalvedGradient {
    const STEP: usize = 4;
    const BEFORE: usize = 0;

    #[inline(always)]
    fn input<S: Simd>(self, s: S, y: [S::V; 4]) -> [S::V; 9] {
        let even_a = fma(s, A2, y[2], y[0]);
        let odd_a = fma(s, A2, y[3], y[1]);
        let even_b = fma(s, B2, y[2], y[0]);
        let odd_b = fma(s, B2, y[3], y[1]);
        [
            fma(s, A, odd_a, even_a),
            fma(s, -A, odd_a, even_a),
            fma(s, B, odd_b, even_b),
            fma(s, -B, odd_b, even_b),
            y[3],
            y[0],
            y[1],
            y[2],
            y[3],
        ]
    }
}

/// The gradient of [`Halved`]'s inputs from that of its outputs, with the weights in reverse order: twice as many.
#[derive(Clone, Copy)]
pub(in super::super) struct Doubled;

impl Factored<5, 9> for Doubled {
    const STEP: usize = 4;
    const BEFORE: usize = 0;

    #[inline(always)]
    fn input<S: Simd>(self, s: S, d: [S::V; 5]) -> [S::V; 9] {
        let [a, b, c, e, f] = input(s, d);
        [a, b, c, e, f, d[0], d[1], d[2], d[3]]
    }
}

impl Scheme<9, 8> for Doubled {
    #[inline(always)]
    fn output<S: Simd>(self, s: S, m: [S::V; 9]) -> [S::V; 8] {
        let outer = output(s, [m[0], m[1], m[2], m[3], m[4]]);
        [m[5], outer[0], m[6], outer[1], m[7], outer[2], m[8], outer[3]]
    }
}
