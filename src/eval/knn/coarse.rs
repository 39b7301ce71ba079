//! Exact search for one query at a time through a copy of the rows in 8 bits a number.
//!
//! A single query is bound by how fast rows come from memory; a quarter of the bytes take a quarter of the time. Each
//! row is kept as `scale·codes`, with the length of what that leaves out. Cauchy and Schwarz then bound how far the
//! coarse similarity is from the true one, so that most rows cannot be among the k nearest, whatever was rounded.
//! Those that can are scored again in full. The result is [`nearest`]'s, to the bit.

use rayon::prelude::*;

use super::search::{Best, Neighbors, SearchOptions, index_of, key, nearest, similarity_of};
use crate::bank::kernels::rows::Dot;
use crate::simd::{Isa, Kernel, Simd};

/// Levels of a row's numbers on either side of 0: what 8 bits hold.
const ROW_LEVELS: f32 = 127.0;
/// Levels of a query's numbers. Products of both fit 32 bits for all widths up to [`MAX_DIM`].
const QUERY_LEVELS: f32 = 1023.0;
const MAX_DIM: usize = 16_000;
/// Rows of one task.
const SPAN: usize = 1 << 14;
/// The bounds are computed in `f32`; they are widened by this share of the lengths, many times what that rounds.
const ROUNDING: f32 = 1e-5;

/// Rows in 8 bits, beside the exact ones, which the caller keeps.
pub struct CoarseRows {
    dim: usize,
    /// `[N, D]`.
    codes: Vec<i8>,
    bounds: Vec<RowBounds>,
}

/// What is known of a row besides its codes.
#[derive(Clone, Copy)]
struct RowBounds {
    /// The row is `scale·codes` and a remainder.
    scale: f32,
    /// Length of the remainder.
    remainder: f32,
    /// Length of the row.
    length: f32,
}

impl CoarseRows {
    /// Codes of `rows` `[N, dim]`: N·(dim + 12) bytes. None if a number is not finite or a length would not be, or the
    /// rows are wider than any encoder's: [`nearest`] takes those, too.
    ///
    /// # Panics
    /// If `dim` is 0 or `rows` is not `[N, dim]`.
    pub fn new(rows: &[f32], dim: usize) -> Option<Self> {
        assert!(dim > 0 && rows.len().is_multiple_of(dim), "{} numbers are no rows of {dim}", rows.len());
        let mut codes = vec![0i8; rows.len()];
        let mut bounds = vec![RowBounds { scale: 0.0, remainder: 0.0, length: 0.0 }; rows.len() / dim];
        codes.par_chunks_mut(dim).zip(rows.par_chunks(dim)).zip(&mut bounds).for_each(
            |((codes, row), bounds)| {
                let scale = largest(row) / ROW_LEVELS;
                let mut remainder = 0.0;
                for (code, &x) in codes.iter_mut().zip(row) {
                    *code = if scale > 0.0 { (x / scale).round() as i8 } else { 0 };
                    let left = f64::from(x) - f64::from(scale) * f64::from(*code);
                    remainder += left * left;
                }
                *bounds = RowBounds { scale, remainder: remainder.sqrt() as f32, length: length(row) };
            },
        );
        let fine = |bounds: &RowBounds| bounds.length < 1e15 && bounds.scale.is_finite();
        (dim <= MAX_DIM && bounds.iter().all(fine)).then_some(CoarseRows { dim, codes, bounds })
    }

    /// [`nearest`] for the single query `query` `[dim]`; `rows` are those that this was made of.
    ///
    /// # Panics
    /// As [`nearest`], and if `rows` has another number of rows or another width.
    pub fn nearest(&self, query: &[f32], rows: &[f32], k: usize, options: SearchOptions) -> Neighbors {
        self.nearest_on(Isa::best(), query, rows, k, options)
    }

    fn nearest_on(
        &self,
        isa: Isa,
        query: &[f32],
        rows: &[f32],
        k: usize,
        options: SearchOptions,
    ) -> Neighbors {
        let dim = self.dim;
        assert!(query.len() == dim && rows.len() == self.codes.len(), "the rows that the codes are of");
        let scale = largest(query) / QUERY_LEVELS;
        let length = length(query);
        let n_searched = self.bounds.len() - options.excluded_rows.len().min(self.bounds.len());
        // Where most rows are neighbours there is nothing to be gained.
        if k > n_searched / 8 || !(length > 1e-15 && length < 1e15) {
            return nearest(query, rows, dim, k, options);
        }
        let codes: Vec<i16> = query.iter().map(|x| (x / scale).round() as i16).collect();
        let left =
            query.iter().zip(&codes).map(|(&x, &code)| f64::from(x) - f64::from(scale) * f64::from(code));
        let remainder = left.map(|x| x * x).sum::<f64>().sqrt() as f32;
        let own = options.own_rows.map(|own| own[0]);
        let skipped = |index: u32| own == Some(index) || options.excluded_rows.binary_search(&index).is_ok();
        let spans: Vec<(Best, Vec<(u32, f32)>)> = self
            .codes
            .par_chunks(SPAN * dim)
            .enumerate()
            .map(|(span, rows)| {
                let first = span * SPAN;
                let bounds = &self.bounds[first..][..rows.len() / dim];
                // |q·r − (scale·codes)·(scale'·codes')| ≤ |scale·codes|·|r's remainder| + |q's remainder|·|r|
                let query = CoarseQuery {
                    codes: &codes,
                    scale,
                    per_remainder: (length + remainder) * (1.0 + ROUNDING),
                    per_length: remainder * (1.0 + ROUNDING) + ROUNDING * (1.0 + dim as f32 / 64.0) * length,
                };
                isa.run(Scan { query, rows, bounds, first: first as u32, k, skipped: &skipped })
            })
            .collect();
        // The k-th largest of what similarities are at least: what cannot reach it is out.
        let mut lowest: Vec<f32> = Vec::new();
        for (best, _) in &spans {
            lowest.extend(best.keys.iter().map(|&key| similarity_of(key)));
        }
        lowest.sort_unstable_by(|a, b| b.total_cmp(a));
        let threshold = lowest.get(k.wrapping_sub(1)).copied().unwrap_or(f32::NEG_INFINITY);
        let candidates = spans.iter().flat_map(|(_, candidates)| candidates);
        let candidates: Vec<u32> =
            candidates.filter(|(_, highest)| *highest >= threshold).map(|(index, _)| *index).collect();
        let mut keys: Vec<u64> = candidates
            .par_iter()
            .with_min_len(256)
            .map(|&index| {
                let row = &rows[index as usize * dim..][..dim];
                key(isa.run(Dot(query, row)).max(f32::MIN), index)
            })
            .collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys.truncate(k);
        Neighbors {
            queries: 1,
            k: keys.len(),
            indices: keys.iter().map(|&key| index_of(key)).collect(),
            similarities: keys.iter().map(|&key| similarity_of(key)).collect(),
        }
    }
}

fn largest(values: &[f32]) -> f32 {
    // A NaN must not get lost, as it does in `max`.
    values.iter().fold(0.0, |largest, x| if x.abs() <= largest { largest } else { x.abs() })
}

fn length(values: &[f32]) -> f32 {
    values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32
}

/// A query in 16 bits a number, and how uncertain its coarse similarities are.
struct CoarseQuery<'a> {
    codes: &'a [i16],
    scale: f32,
    /// Uncertainty for each unit of a row's remainder.
    per_remainder: f32,
    /// Uncertainty for each unit of a row's length.
    per_length: f32,
}

/// A span of rows, the first of which has the number `first`. Gives the k largest of what similarities are at least,
/// and the rows that may be among the nearest with what their similarity is at most.
struct Scan<'a, F> {
    query: CoarseQuery<'a>,
    rows: &'a [i8],
    bounds: &'a [RowBounds],
    first: u32,
    k: usize,
    skipped: &'a F,
}

impl<F: Fn(u32) -> bool> Kernel for Scan<'_, F> {
    type Output = (Best, Vec<(u32, f32)>);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        let Scan { query, rows, bounds, first, k, skipped } = self;
        let mut best = Best { keys: Vec::new(), threshold: f32::NEG_INFINITY };
        let mut candidates = Vec::new();
        for (row, (codes, bounds)) in rows.chunks_exact(query.codes.len()).zip(bounds).enumerate() {
            // Integers: the compiler makes vectors of them, for whichever instructions this is compiled. They fit 32
            // bits (see `MAX_DIM`); checks for that would keep them scalar.
            let product = query
                .codes
                .iter()
                .zip(codes)
                .fold(0i32, |sum, (&q, &c)| sum.wrapping_add(i32::from(q).wrapping_mul(i32::from(c))));
            let similarity = product as f32 * (query.scale * bounds.scale);
            let uncertain = query.per_remainder * bounds.remainder + query.per_length * bounds.length;
            // Numbers that small lose digits.
            let uncertain = uncertain + f32::MIN_POSITIVE;
            if similarity + uncertain < best.threshold {
                continue;
            }
            let index = first + row as u32;
            if skipped(index) {
                continue;
            }
            candidates.push((index, similarity + uncertain));
            if similarity - uncertain > best.threshold {
                best.offer(similarity - uncertain, index, k);
            }
        }
        best.cut(k);
        candidates.retain(|(_, highest)| *highest >= best.threshold);
        (best, candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::MemoryBank;

    /// Compares with [`nearest`], which has its own oracle.
    fn check(rows: &[f32], queries: &[f32], dim: usize, k: usize) {
        let n = rows.len() / dim;
        let coarse = CoarseRows::new(rows, dim).unwrap();
        let excluded: Vec<u32> = (0..n as u32).filter(|i| i % 11 == 3).collect();
        for (q, query) in queries.chunks_exact(dim).enumerate() {
            let own = [(q * 7 % n) as u32];
            for options in
                [SearchOptions::default(), SearchOptions { own_rows: Some(&own), excluded_rows: &excluded }]
            {
                let expected = nearest(query, rows, dim, k, options);
                assert_eq!(coarse.nearest(query, rows, k, options), expected, "N={n} D={dim} k={k}");
            }
        }
    }

    #[test]
    fn equals_the_search_in_full_to_the_bit() {
        for (n, dim, k) in [(40_000, 16, 20), (3000, 128, 5), (2000, 33, 200), (900, 1, 3), (50, 7, 40)] {
            let rows = MemoryBank::random(n, dim, 1);
            check(&rows.rows(), &MemoryBank::random(6, dim, 2).rows(), dim, k);
            // Queries that are rows, and rows of very different lengths.
            let stretched: Vec<f32> = rows
                .rows()
                .iter()
                .enumerate()
                .map(|(i, x)| x * 1.5f32.powi((i / dim % 40) as i32 - 20))
                .collect();
            check(&stretched, &stretched[..3 * dim], dim, k);
        }
    }

    #[test]
    fn rows_that_hardly_differ_and_rows_that_are_equal_are_told_apart_as_in_full() {
        let (n, dim) = (5000, 64);
        let noise = MemoryBank::random(n, dim, 1);
        // All similarities within far less than 8 bits can tell.
        let close: Vec<f32> =
            noise.rows().iter().enumerate().map(|(i, x)| ((i % dim) as f32 * 0.7).sin() + 1e-4 * x).collect();
        check(&close, &close[..4 * dim], dim, 30);
        let equal: Vec<f32> = (0..n * dim).map(|i| if i % dim == i / dim % 3 { 1.0 } else { 0.0 }).collect();
        check(&equal, &equal[..3 * dim], dim, 100);
        check(&vec![0.0; 100 * dim], &equal[..dim], dim, 5);
    }

    #[test]
    fn what_has_no_bounds_is_left_to_the_search_in_full() {
        let mut rows = MemoryBank::random(100, 8, 1).rows().to_vec();
        let coarse = CoarseRows::new(&rows, 8).unwrap();
        for strange in [0.0, f32::NAN, f32::INFINITY, 1e30] {
            let found = coarse.nearest(&[strange; 8], &rows, 5, SearchOptions::default());
            assert_eq!(found.indices, nearest(&[strange; 8], &rows, 8, 5, SearchOptions::default()).indices);
        }
        for strange in [f32::NAN, f32::NEG_INFINITY, 1e30] {
            rows[77] = strange;
            assert!(CoarseRows::new(&rows, 8).is_none(), "{strange}");
        }
    }

    #[test]
    fn the_largest_products_fit_32_bits() {
        let product = i64::from(QUERY_LEVELS as i32) * i64::from(ROW_LEVELS as i32) * MAX_DIM as i64;
        assert!(product <= i64::from(i32::MAX), "{product}");
    }
}
