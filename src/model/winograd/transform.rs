//! The three bilinear steps of Winograd's F(4×4, 3×3) and their transposes, sixteen channels at a time.
//!
//! Four outputs `y` of a row's correlation of six inputs `d` with three weights `g` are `y = Aᵀ[(G g) ⊙ (Bᵀ d)]`
//! (Lavin & Gray 2016, §4.1): six products instead of twelve, and 36 instead of 144 for a tile. The matrices follow from
//! six points, here 0, ±3/4, ±3/2 and infinity. With these the error is twice that of adding up products in their order, with
//! Lavin and Gray's points (0, ±1, ±2) four times; and their squares and products are exact in binary.

use crate::model::channels_last::Chunk;
use crate::simd::Simd;

/// Outputs along one side of a tile, and inputs that it needs.
pub(super) const OUTPUTS: usize = 4;
pub(super) const INPUTS: usize = 6;
/// Products for a tile.
pub(super) const POINTS: usize = INPUTS * INPUTS;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// What `G` divides by at 0, ±A and ±B: the product of the point's distances from the other finite ones.
const N0: f32 = A2 * B2;
const NA: f32 = 2.0 * A2 * (A2 - B2);
const NB: f32 = 2.0 * B2 * (B2 - A2);

/// `a·x + b`.
#[inline(always)]
fn fma<S: Simd>(simd: S, a: f32, x: S::V, b: S::V) -> S::V {
    simd.mul_add(simd.splat(a), x, b)
}

/// `Bᵀ d`.
#[inline(always)]
fn input<S: Simd>(s: S, d: [S::V; 6]) -> [S::V; 6] {
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

/// `Aᵀ m`.
#[inline(always)]
fn output<S: Simd>(s: S, m: [S::V; 6]) -> [S::V; 4] {
    let (sum_a, difference_a) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
    let (sum_b, difference_b) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
    [
        s.add(m[0], s.add(sum_a, sum_b)),
        fma(s, A, difference_a, s.mul(s.splat(B), difference_b)),
        fma(s, A2, sum_a, s.mul(s.splat(B2), sum_b)),
        fma(s, A * A2, difference_a, fma(s, B * B2, difference_b, m[5])),
    ]
}

/// `A y`, the transpose of [`output`].
#[inline(always)]
fn output_transposed<S: Simd>(s: S, y: [S::V; 4]) -> [S::V; 6] {
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

/// `G g`.
#[inline(always)]
fn kernel<S: Simd>(s: S, g: [S::V; 3]) -> [S::V; 6] {
    let scaled = |factor: f32, x| s.mul(s.splat(factor), x);
    let even_a = fma(s, A2 / NA, g[2], scaled(1.0 / NA, g[0]));
    let even_b = fma(s, B2 / NB, g[2], scaled(1.0 / NB, g[0]));
    [
        scaled(1.0 / N0, g[0]),
        fma(s, A / NA, g[1], even_a),
        fma(s, -A / NA, g[1], even_a),
        fma(s, B / NB, g[1], even_b),
        fma(s, -B / NB, g[1], even_b),
        g[2],
    ]
}

/// `Gᵀ u`, the transpose of [`kernel`].
#[inline(always)]
fn kernel_transposed<S: Simd>(s: S, u: [S::V; 6]) -> [S::V; 3] {
    let scaled = |factor: f32, x| s.mul(s.splat(factor), x);
    let (sum_a, difference_a) = (s.add(u[1], u[2]), s.sub(u[1], u[2]));
    let (sum_b, difference_b) = (s.add(u[3], u[4]), s.sub(u[3], u[4]));
    [
        fma(s, 1.0 / N0, u[0], fma(s, 1.0 / NA, sum_a, scaled(1.0 / NB, sum_b))),
        fma(s, A / NA, difference_a, scaled(B / NB, difference_b)),
        fma(s, A2 / NA, sum_a, fma(s, B2 / NB, sum_b, u[5])),
    ]
}

/// A one-dimensional step along both axes of a square: `M x Mᵀ`.
macro_rules! both_axes {
    ($(#[$doc:meta])* $name:ident, $step:ident, $from:literal, $to:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<S: Simd>(simd: S, square: &[[S::V; $from]; $from]) -> [[S::V; $to]; $to] {
            let zero = simd.splat(0.0);
            let mut across = [[zero; $to]; $from];
            for i in 0..$from {
                across[i] = $step(simd, square[i]);
            }
            let mut out = [[zero; $to]; $to];
            for j in 0..$to {
                let mut column = [zero; $from];
                for i in 0..$from {
                    column[i] = across[i][j];
                }
                let column = $step(simd, column);
                for i in 0..$to {
                    out[i][j] = column[i];
                }
            }
            out
        }
    };
}

both_axes!(
    /// `Bᵀ d B` of a tile's 6×6 inputs: its 36 factors.
    input_tile, input, 6, 6
);
both_axes!(
    /// `Aᵀ m A` of a tile's 36 products: its 4×4 outputs.
    output_tile, output, 6, 4
);
both_axes!(
    /// `A y Aᵀ` of a tile's 4×4 output gradients: those of its 36 products.
    output_gradient_tile, output_transposed, 4, 6
);
both_axes!(
    /// `G g Gᵀ` of 3×3 weights: their 36 factors.
    kernel_tile, kernel, 3, 6
);
both_axes!(
    /// `Gᵀ u G` of 36 factors' gradients: those of the 3×3 weights.
    kernel_gradient_tile, kernel_transposed, 6, 3
);

/// A square of vectors that lie `step` chunks apart, row by row.
#[inline(always)]
pub(super) fn load_square<S: Simd, const N: usize>(simd: S, values: &[Chunk], step: usize) -> [[S::V; N]; N] {
    let mut square = [[simd.splat(0.0); N]; N];
    for i in 0..N {
        for j in 0..N {
            square[i][j] = simd.load(&values[(i * N + j) * step]);
        }
    }
    square
}

/// The reverse of [`load_square`].
#[inline(always)]
pub(super) fn store_square<S: Simd, const N: usize>(
    simd: S,
    square: [[S::V; N]; N],
    values: &mut [Chunk],
    step: usize,
) {
    for i in 0..N {
        for j in 0..N {
            simd.store(square[i][j], &mut values[(i * N + j) * step]);
        }
    }
}

/// Feature maps `[batch, height, width, 16·chunks]`, the channels last, cut into tiles row by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    /// Channels, in chunks of sixteen.
    pub chunks: usize,
}

impl Maps {
    /// Tiles from left to right.
    pub fn tiles_across(&self) -> usize {
        self.width.div_ceil(OUTPUTS)
    }

    /// Tiles from top to bottom.
    pub fn tiles_down(&self) -> usize {
        self.height.div_ceil(OUTPUTS)
    }

    /// Rows of tiles in all images.
    pub fn tile_rows(&self) -> usize {
        self.batch * self.tiles_down()
    }

    /// Image, first row of pixels, and number of rows of pixels, of a row of tiles.
    pub fn tile_row(&self, index: usize) -> (usize, usize, usize) {
        let (image, down) = (index / self.tiles_down(), index % self.tiles_down());
        let top = down * OUTPUTS;
        (image, top, OUTPUTS.min(self.height - top))
    }

    /// Where the chunks of a row of pixels begin.
    pub fn row(&self, image: usize, y: usize) -> usize {
        (image * self.height + y) * self.width * self.chunks
    }

    /// The square of `N` by `N` vectors of channels `chunk`, row `y` and column `x` its first; zeros outside of the image.
    #[inline(always)]
    pub fn load<S: Simd, const N: usize>(
        &self,
        simd: S,
        maps: &[Chunk],
        [image, chunk]: [usize; 2],
        [y, x]: [isize; 2],
    ) -> [[S::V; N]; N] {
        let mut square = [[simd.splat(0.0); N]; N];
        for (i, vectors) in square.iter_mut().enumerate() {
            let y = y + i as isize;
            if y < 0 || y >= self.height as isize {
                continue;
            }
            let row = &maps[self.row(image, y as usize)..][..self.width * self.chunks];
            for (j, vector) in vectors.iter_mut().enumerate() {
                let x = x + j as isize;
                if x >= 0 && x < self.width as isize {
                    *vector = simd.load(&row[x as usize * self.chunks + chunk]);
                }
            }
        }
        square
    }
}
