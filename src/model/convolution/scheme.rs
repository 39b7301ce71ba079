//! Convolutions along one axis as products between few sums, and along both axes of a square of pixels, sixteen channels at
//! a time.
//!
//! Outputs `y` of a tile of inputs `d` with weights `g` are `y = Aᵀ[(G g) ⊙ (Bᵀ d)]` (Lavin & Gray 2016, §4.1), and `A`, `G` and `B`
//! follow from as many points as there are products. Along both axes each matrix is applied from both sides.

use crate::simd::Simd;

/// A step, which takes `from` vectors to `to`, along both axes of a square: `M x Mᵀ`.
macro_rules! both_axes {
    ($scheme:ident.$step:ident($simd:ident), $square:ident, $from:ident to $to:ident) => {{
        let zero = $simd.splat(0.0);
        let mut across = [[zero; $to]; $from];
        for i in 0..$from {
            across[i] = $scheme.$step($simd, $square[i]);
        }
        let mut out = [[zero; $to]; $to];
        for j in 0..$to {
            let mut column = [zero; $from];
            for i in 0..$from {
                column[i] = across[i][j];
            }
            let column = $scheme.$step($simd, column);
            for i in 0..$to {
                out[i][j] = column[i];
            }
        }
        out
    }};
}

/// What becomes of a tile of maps before it is multiplied, along one axis: `POINTS` factors of `INPUTS` numbers.
pub(super) trait Factored<const INPUTS: usize, const POINTS: usize>: Copy + Send + Sync {
    /// Inputs from the first of one tile to the first of the next.
    const STEP: usize;
    /// Inputs that a tile needs before the place where it begins.
    const BEFORE: usize;

    /// `Bᵀ d`.
    fn input<S: Simd>(self, simd: S, d: [S::V; INPUTS]) -> [S::V; POINTS];

    /// `Bᵀ d B`: the factors of a tile.
    #[inline(always)]
    fn input_tile<S: Simd>(self, simd: S, square: &[[S::V; INPUTS]; INPUTS]) -> [[S::V; POINTS]; POINTS] {
        both_axes!(self.input(simd), square, INPUTS to POINTS)
    }
}

/// How a tile of `OUTPUTS` comes from `POINTS` products, along one axis.
pub(super) trait Scheme<const POINTS: usize, const OUTPUTS: usize>: Copy + Send + Sync {
    /// `Aᵀ m`.
    fn output<S: Simd>(self, simd: S, m: [S::V; POINTS]) -> [S::V; OUTPUTS];

    /// `Aᵀ m A`: a tile's outputs.
    #[inline(always)]
    fn output_tile<S: Simd>(self, simd: S, square: &[[S::V; POINTS]; POINTS]) -> [[S::V; OUTPUTS]; OUTPUTS] {
        both_axes!(self.output(simd), square, POINTS to OUTPUTS)
    }
}

/// What a [`Scheme`] makes of its `SIZE` weights: `FACTORS`, of which the last belongs to all points from there on.
pub(super) trait Weighted<const SIZE: usize, const FACTORS: usize>: Copy + Send + Sync {
    /// `G g`.
    fn kernel<S: Simd>(self, simd: S, g: [S::V; SIZE]) -> [S::V; FACTORS];
    /// `Gᵀ u`, the transpose of [`kernel`](Self::kernel).
    fn kernel_transposed<S: Simd>(self, simd: S, u: [S::V; FACTORS]) -> [S::V; SIZE];

    /// `G g Gᵀ`: the factors of the weights.
    #[inline(always)]
    fn kernel_tile<S: Simd>(self, simd: S, square: &[[S::V; SIZE]; SIZE]) -> [[S::V; FACTORS]; FACTORS] {
        both_axes!(self.kernel(simd), square, SIZE to FACTORS)
    }
    /// `Gᵀ u G`: the gradients of weights from those of their factors.
    #[inline(always)]
    fn kernel_gradient_tile<S: Simd>(
        self,
        simd: S,
        square: &[[S::V; FACTORS]; FACTORS],
    ) -> [[S::V; SIZE]; SIZE] {
        both_axes!(self.kernel_transposed(simd), square, FACTORS to SIZE)
    }
}

/// `a·x + b`.
#[inline(always)]
fn fma<S: Simd>(simd: S, a: f32, x: S::V, b: S::V) -> S::V {
    simd.mul_add(simd.splat(a), x, b)
}

/// `a·x`.
#[inline(always)]
fn scaled<S: Simd>(simd: S, a: f32, x: S::V) -> S::V {
    simd.mul(simd.splat(a), x)
}

mod halved;
mod point;
mod same;

pub(super) use halved::{Doubled, Halved, HalvedGradient};
pub(super) use point::{Point, Spread};
pub(super) use same::{Same, SameGradient};
