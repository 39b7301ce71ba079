//! Full softmax over N instances in one pass over the bank: attention whose keys and values are the bank's rows.
//!
//! The bank is cut into spans, a number that depends on N alone; each span yields its largest logit, its sum and its
//! weighted rows, and the spans are joined in order. So the result does not depend on the threads, and beside the
//! bank there are only some B·D numbers for each span and a B × 128 tile of scores for each thread, with the tile's rows as
//! f32 where they are stored in bf16.

use super::{LossAndGradient, Problem, RowLoss};
use crate::bank::kernels::tile::{GROUP, Left, Panel, STRIP, TILE, Transposed, padded, product};
use crate::bank::{MemoryBank, Rows};
use crate::simd::{Aligned, Element, Kernel, LANES, Simd};
use rayon::prelude::*;
use std::ops::Range;

/// Batch rows handled together: their scores against a tile stay in the cache.
const BLOCK: usize = 256;
/// At most this many spans: enough for as many threads, and their sums stay small.
const MAX_SPANS: usize = 32;

/// Cross-entropy of `v·Mᵀ/T` against the own row, mean over B (Wu et al. 2018, Eq. 2; `--nce-k 0`).
///
/// `features` `[B, D]`, `indices` `[B]`; `excluded` lists rows that are no candidates (quarantined), sorted.
///
/// # Panics
/// If the shapes disagree with the bank's, an index is not `< N`, the batch is empty, the temperature is not
/// positive, or `excluded` is not sorted.
pub fn full(
    features: &[f32],
    bank: &MemoryBank,
    indices: &[u32],
    temperature: f64,
    excluded: &[u32],
) -> LossAndGradient {
    full_of(&Problem::new(features, bank, indices, temperature), excluded)
}

fn full_of(problem: &Problem, excluded: &[u32]) -> LossAndGradient {
    assert!(excluded.is_sorted(), "excluded rows are sorted");
    let (bank, dim) = (problem.bank, problem.bank.dim());
    let mut gradient = Vec::with_capacity(problem.features.len());
    let mut row_losses = Vec::with_capacity(problem.batch());
    for (block, features) in problem.features.chunks(BLOCK * dim).enumerate() {
        let sums: Vec<Sums> = spans(bank.len())
            .into_par_iter()
            .map(|rows| {
                let inverse_temperature = (1.0 / problem.temperature) as f32;
                match bank.stored() {
                    Rows::Fp32(bank) => {
                        problem.isa.run(Span { features, bank, dim, rows, excluded, inverse_temperature })
                    }
                    Rows::Bf16(bank) => {
                        problem.isa.run(Span { features, bank, dim, rows, excluded, inverse_temperature })
                    }
                }
            })
            .collect();
        let first = block * BLOCK;
        for row in 0..features.len() / dim {
            row_losses.push(join(problem, &sums, first + row, row, &mut gradient));
        }
    }
    LossAndGradient::mean(&row_losses, gradient)
}

/// The bank's rows in spans of whole tiles, as even as that allows.
fn spans(n: usize) -> Vec<Range<usize>> {
    let tiles = n.div_ceil(TILE);
    // A span shorter than a few tiles would not repay its sums.
    let count = tiles.div_ceil(8).min(MAX_SPANS);
    let start = |span: usize| (tiles * span / count * TILE).min(n);
    (0..count).map(|span| start(span)..start(span + 1)).collect()
}

/// Joins the spans of batch row `b`, which is row `row` of its block, and appends its gradient.
fn join(problem: &Problem, spans: &[Sums], b: usize, row: usize, gradient: &mut Vec<f32>) -> RowLoss {
    let dim = problem.bank.dim();
    // NaN sums keep the loss NaN whatever becomes of the maximum.
    let largest = spans.iter().map(|span| span.largest[row]).fold(f32::NEG_INFINITY, f32::max);
    let factors: Vec<f64> = spans.iter().map(|span| f64::from(span.largest[row] - largest).exp()).collect();
    let sum: f64 = spans.iter().zip(&factors).map(|(span, factor)| span.sum[row] * factor).sum();
    let mut weighted = vec![0.0f64; dim];
    for (span, factor) in spans.iter().zip(&factors) {
        for (total, part) in weighted.iter_mut().zip(&span.rows[row * span.stride..]) {
            *total += factor * f64::from(*part);
        }
    }
    let positive = problem.positive(b);
    let scale = 1.0 / (problem.temperature * problem.batch() as f64);
    gradient.extend(weighted.iter().zip(&*positive).map(|(g, m)| ((g / sum - f64::from(*m)) * scale) as f32));
    let similarity = problem.positive_similarity(b);
    let loss = f64::from(largest) + sum.ln() - similarity / problem.temperature;
    RowLoss { loss, positive_similarity: similarity, positive_probability: (-loss).exp() }
}

/// A span's part of the softmax, for each row of the block: `sum = Σ exp(logit − largest)` and, `stride` numbers a
/// row, `rows = Σ exp(logit − largest)·M[j]`.
struct Sums {
    largest: Vec<f32>,
    sum: Vec<f64>,
    rows: Aligned,
    stride: usize,
}

/// One block of features against one span of the bank.
struct Span<'a, E> {
    features: &'a [f32],
    bank: &'a [E],
    dim: usize,
    rows: Range<usize>,
    excluded: &'a [u32],
    inverse_temperature: f32,
}

impl<E: Element> Kernel for Span<'_, E> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Sums {
        let dim = self.dim;
        let stride = dim.next_multiple_of(STRIP);
        let (queries, rows) = padded(self.features, dim, dim);
        let mut sums = Sums {
            largest: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            rows: Aligned::zeros(rows * stride),
            stride,
        };
        let mut transposed = Transposed::new(dim);
        let mut scores = Aligned::<f32>::zeros(rows * TILE);
        // Rows that are not f32, or no multiple of 32 wide, are copied into such.
        let as_they_are = stride == dim && E::as_f32(&[]).is_some();
        let mut copied = Aligned::<f32>::zeros(if as_they_are { 0 } else { TILE * stride });
        for start in self.rows.clone().step_by(TILE) {
            let count = TILE.min(self.rows.end - start);
            let tile = &self.bank[start * dim..][..count * dim];
            transposed.fill(tile);
            let left = Left { values: &queries, stride: dim, rows };
            let (panel, strips) = (transposed.panel(), transposed.strips());
            product::<S, false>(simd, left, panel, dim, strips, &mut scores, TILE);

            let first = self.excluded.partition_point(|&row| (row as usize) < start);
            let last = self.excluded.partition_point(|&row| (row as usize) < start + count);
            let excluded = &self.excluded[first..last];
            for row in 0..rows {
                let scores = &mut scores[row * TILE..][..TILE];
                scores[count..].fill(f32::NEG_INFINITY);
                for &j in excluded {
                    scores[j as usize - start] = f32::NEG_INFINITY;
                }
                self.weigh(simd, scores, row, &mut sums);
            }

            let values = match E::as_f32(tile) {
                Some(tile) if as_they_are => tile,
                _ => {
                    for (to, from) in copied.chunks_exact_mut(stride).zip(tile.chunks_exact(dim)) {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
                    }
                    &*copied
                }
            };
            let panel =
                Panel { chunks: values.as_chunks().0, depth_step: stride / LANES, strip_step: STRIP / LANES };
            let left = Left { values: &scores, stride: TILE, rows };
            product::<S, true>(simd, left, panel, count, stride / STRIP, &mut sums.rows, stride);
        }
        debug_assert_eq!(rows % GROUP, 0);
        sums
    }
}

impl<E> Span<'_, E> {
    /// Turns a row of similarities into `exp(logit − largest)`, after rescaling what the row has gathered if a
    /// larger logit has come.
    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, scores: &mut [f32], row: usize, sums: &mut Sums) {
        let scores = scores.as_chunks_mut::<LANES>().0;
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for chunk in scores.iter() {
            largest = simd.max(simd.load(chunk), largest);
        }
        let largest = simd.largest(largest) * self.inverse_temperature;
        if largest > sums.largest[row] {
            let factor = (sums.largest[row] - largest).exp();
            sums.sum[row] *= f64::from(factor);
            sums.rows[row * sums.stride..][..sums.stride].iter_mut().for_each(|g| *g *= factor);
            sums.largest[row] = largest;
        }
        if sums.largest[row] == f32::NEG_INFINITY && largest == f32::NEG_INFINITY {
            // Nothing but excluded rows (or NaN, which has to stay visible).
            for chunk in scores.iter_mut() {
                for score in chunk {
                    *score = if score.is_nan() { f32::NAN } else { 0.0 };
                    sums.sum[row] += f64::from(*score);
                }
            }
            return;
        }
        let scale = simd.splat(self.inverse_temperature);
        let offset = simd.splat(-sums.largest[row]);
        let mut total = simd.splat(0.0);
        for chunk in scores {
            let e = simd.exp(simd.mul_add(simd.load(chunk), scale, offset));
            total = simd.add(total, e);
            simd.store(e, chunk);
        }
        sums.sum[row] += f64::from(simd.sum(total));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::simd::Isa;

    fn naive(case: &Case, t: f64, excluded: &[u32]) -> (f64, Vec<f64>) {
        let batch = case.indices.len();
        let candidates = || (0..case.bank.len() as u32).filter(|j| !excluded.contains(j));
        let mut loss = 0.0;
        let mut weights = Vec::new();
        for b in 0..batch {
            let exps: Vec<f64> = candidates().map(|j| (similarity(case, b, j) / t).exp()).collect();
            let total: f64 = exps.iter().sum();
            loss += total.ln() - similarity(case, b, case.indices[b]) / t;
            let scale = 1.0 / (t * batch as f64);
            let mut row: Vec<_> = candidates().zip(exps).map(|(j, e)| (j, e / total * scale)).collect();
            row.push((case.indices[b], -scale));
            weights.push(row);
        }
        (loss / batch as f64, gradient(case, |b| weights[b].clone()))
    }

    fn run(case: &Case, isa: Isa, t: f64, excluded: &[u32]) -> LossAndGradient {
        let problem = Problem { isa, ..Problem::new(&case.features, &case.bank, &case.indices, t) };
        full_of(&problem, excluded)
    }

    #[test]
    fn equals_the_naive_cross_entropy_on_every_path() {
        for (n, dim, batch) in
            [(50, 16, 3), (1, 4, 1), (129, 128, 9), (4000, 32, 17), (1025, 13, 2), (300, 40, 300)]
        {
            let case = case(n, dim, batch, 0);
            for t in [0.01, 0.07, 0.5] {
                let (loss, gradient) = naive(&case, t, &[]);
                for isa in Isa::available() {
                    let found = run(&case, isa, t, &[]);
                    // Logits are rounded relative to their size, 1/T.
                    let tolerance = 1e-5 * loss + 2e-7 / t;
                    assert!((found.loss - loss).abs() < tolerance, "{isa:?} {n}: {} or {loss}", found.loss);
                    if gradient.iter().any(|g| g.abs() > 1e-3) {
                        assert_close(&found.gradient, &gradient, 5e-5, &format!("{isa:?} {n} T={t}"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_bank_in_bf16_gives_the_bits_of_its_numbers_in_fp32_on_every_path() {
        for (n, dim, batch) in [(1, 4, 1), (129, 128, 9), (4000, 32, 17), (1025, 13, 2), (300, 40, 300)] {
            let cases = in_both_precisions(n, dim, batch, 0);
            let excluded: Vec<u32> =
                (0..n as u32).filter(|i| i % 7 == 3 && !cases[0].indices.contains(i)).collect();
            for isa in Isa::available() {
                let [found, expected] = cases.each_ref().map(|case| run(case, isa, 0.07, &excluded));
                assert_eq!(found, expected, "{isa:?} {n} {dim}");
            }
        }
    }

    #[test]
    fn excluded_rows_are_no_candidates_even_where_they_fill_spans() {
        let case = case(3000, 20, 4, 0);
        // The first two spans in full, the ends, and some in between; none of the batch's own rows.
        let excluded: Vec<u32> = (0..3000)
            .filter(|i| !case.indices.contains(i) && (*i < 2100 || *i > 2990 || *i % 5 == 0))
            .collect();
        for excluded in [&excluded[..], &[2000, 2999]] {
            let (loss, gradient) = naive(&case, 0.1, excluded);
            for isa in Isa::available() {
                let found = run(&case, isa, 0.1, excluded);
                assert!((found.loss - loss).abs() < 1e-5 * loss, "{isa:?}: {} or {loss}", found.loss);
                assert_close(&found.gradient, &gradient, 3e-5, &format!("{isa:?}"));
            }
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_threads() {
        let case = case(5000, 24, 10, 0);
        let all = full(&case.features, &case.bank, &case.indices, 0.07, &[]);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(all, pool.install(|| full(&case.features, &case.bank, &case.indices, 0.07, &[])));
        }
    }

    #[test]
    fn spans_cover_every_row_once() {
        for n in [1, 127, 128, 129, 1024, 1025, 50_000, 1_281_167] {
            let spans = spans(n);
            assert_eq!((spans[0].start, spans[spans.len() - 1].end), (0, n));
            assert!(spans.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(spans.iter().all(|span| !span.is_empty()) && spans.len() <= MAX_SPANS);
        }
    }

    #[test]
    fn nan_anywhere_reaches_the_loss() {
        for isa in Isa::available() {
            for row in [0, 700, 1499] {
                let mut broken = case(1500, 16, 2, 0);
                broken.bank.set_row(row, &[f32::NAN; 16]);
                assert!(run(&broken, isa, 0.1, &[]).loss.is_nan(), "{isa:?} {row}");
            }
            let mut broken = case(1500, 16, 2, 0);
            broken.features[17] = f32::NAN;
            assert!(run(&broken, isa, 0.1, &[]).loss.is_nan(), "{isa:?}");
        }
    }
}
