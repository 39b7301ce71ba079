//! Cross-entropy over instances: against all of them (Wu et al. 2018, Eq. 2), or against a sample (the authors'
//! updated model of 2020).

use super::gather::{Visitor, gather};
use super::{LossAndGradient, Problem, RowLoss};
use crate::bank::{MemoryBank, Negatives};
use crate::simd::{LANES, Simd};
use rayon::prelude::*;

pub use super::full::full;

/// Cross-entropy over `[positive, K negatives]` with logits `v·M[j]/T`, mean over B. No Z.
///
/// `features` `[B, D]`, `indices` `[B]`, `negatives` `[B, K]`. One pass over the negatives yields loss and gradient:
/// sums are relative to the largest logit so far and rescaled when a larger one comes.
///
/// # Panics
/// If the shapes disagree with the bank's, an index is not `< N`, the batch is empty, or the temperature is not
/// positive.
pub fn sampled(
    features: &[f32],
    bank: &MemoryBank,
    indices: &[u32],
    negatives: &Negatives,
    temperature: f64,
) -> LossAndGradient {
    sampled_of(&Problem::new(features, bank, indices, temperature), negatives)
}

fn sampled_of(problem: &Problem, negatives: &Negatives) -> LossAndGradient {
    let dim = problem.bank.dim();
    let mut gradient = vec![0.0; problem.batch() * dim];
    let row_losses: Vec<RowLoss> = gradient
        .par_chunks_exact_mut(dim)
        .enumerate()
        .map(|(b, gradient)| row_loss(problem, negatives, b, gradient))
        .collect();
    LossAndGradient::mean(&row_losses, gradient)
}

fn row_loss(problem: &Problem, negatives: &Negatives, b: usize, gradient: &mut [f32]) -> RowLoss {
    let inverse_temperature = (1.0 / problem.temperature) as f32;
    let positive = problem.positive(b);
    let similarity = problem.positive_similarity(b);
    let logit = similarity as f32 * inverse_temperature;
    // The positive is the largest so far, with weight exp(0).
    gradient.copy_from_slice(&positive);
    let visitor = Candidates { inverse_temperature, largest: logit, sum: 1.0 };
    let end = gather(problem, negatives, b, visitor, gradient);
    let scale = 1.0 / (problem.temperature * problem.batch() as f64);
    for (g, m) in gradient.iter_mut().zip(&*positive) {
        *g = ((f64::from(*g) / end.sum - f64::from(*m)) * scale) as f32;
    }
    let loss = f64::from(end.largest) - f64::from(logit) + end.sum.ln();
    RowLoss { loss, positive_similarity: similarity, positive_probability: (-loss).exp() }
}

/// A running softmax: `sum = Σ exp(logit − largest)`.
struct Candidates {
    inverse_temperature: f32,
    largest: f32,
    sum: f64,
}

impl Visitor for Candidates {
    const GRADIENT: bool = true;

    #[inline(always)]
    fn visit<S: Simd>(
        &mut self,
        simd: S,
        similarities: &[f32; LANES],
        indices: &[u32],
        weights: &mut [f32; LANES],
    ) -> f32 {
        let mut logits = [f32::NEG_INFINITY; LANES];
        for i in 0..indices.len() {
            logits[i] = similarities[i] * self.inverse_temperature;
        }
        let logits = simd.load(&logits);
        let mut factor = 1.0;
        let largest = simd.largest(logits);
        if largest > self.largest {
            factor = (self.largest - largest).exp();
            self.sum *= f64::from(factor);
            self.largest = largest;
        }
        let e = simd.exp(simd.sub(logits, simd.splat(self.largest)));
        simd.store(e, weights);
        self.sum += f64::from(simd.sum(e));
        factor
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::simd::Isa;

    fn naive(case: &Case, k: usize, t: f64) -> (f64, Vec<f64>) {
        let batch = case.indices.len();
        let candidates = |b: usize| {
            let mut all = vec![case.indices[b]];
            all.extend_from_slice(&case.negatives[b * k..][..k]);
            all
        };
        let exp = |b: usize, j: u32| (similarity(case, b, j) / t).exp();
        let total = |b: usize| candidates(b).iter().map(|&j| exp(b, j)).sum::<f64>();
        let loss = (0..batch).map(|b| (total(b) / exp(b, case.indices[b])).ln()).sum::<f64>() / batch as f64;
        let gradient = gradient(case, |b| {
            let scale = 1.0 / (t * batch as f64);
            let mut weights: Vec<_> =
                candidates(b).into_iter().map(|j| (j, exp(b, j) / total(b) * scale)).collect();
            weights.push((case.indices[b], -scale));
            weights
        });
        (loss, gradient)
    }

    fn run(case: &Case, isa: Isa, t: f64) -> LossAndGradient {
        let problem = Problem { isa, ..Problem::new(&case.features, &case.bank, &case.indices, t) };
        sampled_of(&problem, &Negatives::Given(&case.negatives))
    }

    #[test]
    fn sampled_equals_the_naive_cross_entropy_on_every_path() {
        for (n, dim, batch, k) in
            [(50, 16, 3, 16), (40, 128, 5, 100), (7, 13, 2, 33), (300, 24, 4, 1), (9, 8, 2, 0)]
        {
            let case = case(n, dim, batch, k);
            for t in [0.01, 0.07, 0.5] {
                let (loss, gradient) = naive(&case, k, t);
                for isa in Isa::available() {
                    let found = run(&case, isa, t);
                    assert!(
                        (found.loss - loss).abs() < 1e-5 * loss.max(0.1),
                        "{isa:?}: {} or {loss}",
                        found.loss
                    );
                    let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
                    if largest > 1e-3 {
                        assert_close(&found.gradient, &gradient, 3e-5, &format!("{isa:?} T={t}"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_bank_in_bf16_gives_the_bits_of_its_numbers_in_fp32_on_every_path() {
        for (n, dim, batch, k) in [(50, 16, 3, 16), (40, 128, 5, 100), (7, 13, 2, 33), (300, 40, 4, 1)] {
            let cases = in_both_precisions(n, dim, batch, k);
            for isa in Isa::available() {
                let [found, expected] = cases.each_ref().map(|case| run(case, isa, 0.07));
                assert_eq!(found, expected, "{isa:?} {n} {dim}");
            }
        }
    }

    #[test]
    fn nan_anywhere_reaches_the_loss() {
        for isa in Isa::available() {
            let mut broken = case(20, 16, 2, 32);
            let row = broken.negatives[9] as usize;
            broken.bank.set_row(row, &[f32::NAN; 16]);
            assert!(run(&broken, isa, 0.1).loss.is_nan(), "{isa:?}");
        }
    }
}
