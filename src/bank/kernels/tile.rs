//! Dense products of a block of queries with a tile of bank rows: what full softmax and nearest neighbours are
//! made of. A tile is used for all queries while it is in the cache.

use crate::simd::{Aligned, Element, LANES, Simd};

/// Rows of a tile: scores of 256 queries, the tile and its transpose stay within a core's second-level cache.
pub(crate) const TILE: usize = 128;
/// Columns of the micro-kernel: two vectors.
pub(crate) const STRIP: usize = 2 * LANES;
/// Rows of the micro-kernel; blocks of queries are padded to a multiple of it.
pub(crate) const GROUP: usize = 8;

/// A right-hand matrix `[depth, columns]`, read in strips of 32 columns.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// The numbers, sixteen at a time.
    pub chunks: &'a [[f32; LANES]],
    /// Chunks from one depth to the next.
    pub depth_step: usize,
    /// Chunks from one strip to the next.
    pub strip_step: usize,
}

/// A left-hand matrix `[rows, depth]`; `rows` is a multiple of [`GROUP`].
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    /// The numbers, row by row.
    pub values: &'a [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// How many rows.
    pub rows: usize,
}

/// `out[rows, 32·strips] = left·panel`, or `+=` with `ACCUMULATE`; `out` has `out_stride` numbers a row.
#[inline(always)]
pub(crate) fn product<S: Simd, const ACCUMULATE: bool>(
    simd: S,
    left: Left,
    panel: Panel,
    depth: usize,
    strips: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    for strip in 0..strips {
        let chunks = &panel.chunks[strip * panel.strip_step..];
        for row in (0..left.rows).step_by(GROUP) {
            let a = &left.values[row * left.stride..];
            let c = &mut out[row * out_stride + strip * STRIP..];
            if S::WIDE {
                micro::<S, 8, 2, ACCUMULATE>(
                    simd,
                    a,
                    left.stride,
                    chunks,
                    panel.depth_step,
                    depth,
                    c,
                    out_stride,
                );
            } else {
                for half in 0..2 {
                    for column in 0..2 {
                        let (a, c) =
                            (&a[half * 4 * left.stride..], &mut c[half * 4 * out_stride..][column * LANES..]);
                        let chunks = &chunks[column..];
                        micro::<S, 4, 1, ACCUMULATE>(
                            simd,
                            a,
                            left.stride,
                            chunks,
                            panel.depth_step,
                            depth,
                            c,
                            out_stride,
                        );
                    }
                }
            }
        }
    }
}

/// `c[ROWS, 16·COLUMNS] (+)= a[ROWS, depth]·b[depth, 16·COLUMNS]`, all sums in registers.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // Three matrices and their strides.
fn micro<S: Simd, const ROWS: usize, const COLUMNS: usize, const ACCUMULATE: bool>(
    simd: S,
    a: &[f32],
    a_stride: usize,
    b: &[[f32; LANES]],
    b_step: usize,
    depth: usize,
    c: &mut [f32],
    c_stride: usize,
) {
    let mut sums = [[simd.splat(0.0); COLUMNS]; ROWS];
    // Slices of one known length: the inner loop then needs no check for them.
    let a: [&[f32]; ROWS] = std::array::from_fn(|row| &a[row * a_stride..][..depth]);
    for k in 0..depth {
        let b = &b[k * b_step..][..COLUMNS];
        let mut columns = [simd.splat(0.0); COLUMNS];
        for column in 0..COLUMNS {
            columns[column] = simd.load(&b[column]);
        }
        for row in 0..ROWS {
            let factor = simd.splat(a[row][k]);
            for column in 0..COLUMNS {
                sums[row][column] = simd.mul_add(factor, columns[column], sums[row][column]);
            }
        }
    }
    for row in 0..ROWS {
        let (c, _) = c[row * c_stride..][..COLUMNS * LANES].as_chunks_mut::<LANES>();
        for column in 0..COLUMNS {
            let sum = if ACCUMULATE {
                simd.add(simd.load(&c[column]), sums[row][column])
            } else {
                sums[row][column]
            };
            simd.store(sum, &mut c[column]);
        }
    }
}

/// A block of queries `[n, dim]` copied into a multiple of [`GROUP`] rows of `stride ≥ dim` numbers, zero-padded.
pub(crate) fn padded(queries: &[f32], dim: usize, stride: usize) -> (Aligned, usize) {
    let rows = queries.len() / dim;
    let padded_rows = rows.next_multiple_of(GROUP);
    let mut block = Aligned::zeros(padded_rows * stride);
    for (from, to) in queries.chunks_exact(dim).zip(block.chunks_exact_mut(stride)) {
        to[..dim].copy_from_slice(from);
    }
    (block, padded_rows)
}

/// A tile of up to [`TILE`] rows, transposed into strips of 32 rows: `[strip][dim][32]`, missing rows zero.
pub(crate) struct Transposed {
    values: Aligned,
    dim: usize,
    rows: usize,
}

impl Transposed {
    /// Room for tiles of rows of `dim` numbers.
    pub(crate) fn new(dim: usize) -> Self {
        Transposed { values: Aligned::zeros(TILE * dim), dim, rows: 0 }
    }

    /// Takes the rows `tile` `[≤ TILE, dim]`.
    #[inline(always)]
    pub(crate) fn fill<E: Element>(&mut self, tile: &[E]) {
        let dim = self.dim;
        self.rows = tile.len() / dim;
        for (strip, rows) in self.values.chunks_exact_mut(STRIP * dim).zip(tile.chunks(STRIP * dim)) {
            if rows.len() == STRIP * dim {
                for d in 0..dim {
                    let column: &mut [f32] = &mut strip[d * STRIP..][..STRIP];
                    for (r, value) in column.iter_mut().enumerate() {
                        *value = rows[r * dim + d].to_f32();
                    }
                }
            } else {
                strip.fill(0.0);
                for (r, row) in rows.chunks_exact(dim).enumerate() {
                    for (d, value) in row.iter().enumerate() {
                        strip[d * STRIP + r] = value.to_f32();
                    }
                }
            }
        }
    }

    /// Strips that hold rows.
    pub(crate) fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// For [`product`], with `depth` = `dim`.
    pub(crate) fn panel(&self) -> Panel<'_> {
        Panel { chunks: self.values.as_chunks().0, depth_step: 2, strip_step: 2 * self.dim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, stream};
    use crate::simd::{Isa, Kernel};
    use rand::RngExt;

    /// Scores of all queries, then `scores·tile` added to ones.
    struct Twice<'a> {
        queries: &'a [f32],
        tile: &'a [f32],
        dim: usize,
    }
    impl Kernel for Twice<'_> {
        type Output = (Vec<f32>, Vec<f32>);
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let (queries, rows) = padded(self.queries, self.dim, self.dim);
            let mut transposed = Transposed::new(self.dim);
            transposed.fill(&vec![9.0; TILE * self.dim]);
            transposed.fill(self.tile);
            let mut scores = vec![0.0; rows * TILE];
            let left = Left { values: &queries, stride: self.dim, rows };
            let (panel, strips) = (transposed.panel(), transposed.strips());
            product::<S, false>(simd, left, panel, self.dim, strips, &mut scores, TILE);
            let stride = self.dim.next_multiple_of(STRIP);
            let (wide, _) = padded(self.tile, self.dim, stride);
            let panel =
                Panel { chunks: wide.as_chunks().0, depth_step: stride / LANES, strip_step: STRIP / LANES };
            let mut sums = vec![1.0; rows * stride];
            let left = Left { values: &scores, stride: TILE, rows };
            let depth = self.tile.len() / self.dim;
            product::<S, true>(simd, left, panel, depth, stride / STRIP, &mut sums, stride);
            (scores, sums)
        }
    }

    #[test]
    fn tile_products_equal_the_naive_ones_on_every_path() {
        for isa in Isa::available() {
            for (n, rows, dim) in [(1, 1, 1), (3, 33, 17), (8, 128, 32), (21, 127, 128), (16, 64, 40)] {
                let mut rng = stream(4, Purpose::Test, dim as u64, 0);
                let mut draw =
                    |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
                let (queries, tile) = (draw(n * dim), draw(rows * dim));
                let (scores, sums) = isa.run(Twice { queries: &queries, tile: &tile, dim });
                let stride = dim.next_multiple_of(STRIP);
                for q in 0..n {
                    let exact: Vec<f64> = (0..rows)
                        .map(|r| (0..dim).map(|d| f64::from(queries[q * dim + d] * tile[r * dim + d])).sum())
                        .collect();
                    for r in 0..rows {
                        assert!((f64::from(scores[q * TILE + r]) - exact[r]).abs() < 1e-5, "{isa:?}");
                    }
                    for d in 0..dim {
                        let sum: f64 =
                            1.0 + (0..rows).map(|r| exact[r] * f64::from(tile[r * dim + d])).sum::<f64>();
                        assert!((f64::from(sums[q * stride + d]) - sum).abs() < 2e-4, "{isa:?}");
                    }
                }
            }
        }
    }
}
