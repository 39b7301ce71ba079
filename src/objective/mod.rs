//! The objectives of instance discrimination (Wu et al. 2018, §3): pure functions from features and bank to a loss
//! and its gradient. They hold no state, and the gradient flows to the features only, never into the bank.
//!
//! - [`softmax::full`]: cross-entropy against every row of the bank;
//! - [`nce::loss`]: noise-contrastive estimation against K negatives, with the [`normalizer`] Z;
//! - [`softmax::sampled`]: cross-entropy against the positive and K negatives;
//! - [`proximal`]: a pull toward the own row, added to any of them.
//!
//! Shapes: B batch, N images, D embedding width, K negatives. Rows of the bank are gathered as they are needed, and become
//! f32 as they are read if they are stored in bf16: nothing of size B·K·D or N·B exists, and no second bank. Each batch row
//! is one task, so results do not depend on the threads.
//!
//! [`device`] has the same for a bank that lies on a GPU.

pub mod device;
mod full;
mod gather;
pub mod nce;
pub mod normalizer;
pub mod softmax;

pub use normalizer::{Entries, Normalizer, NormalizerMode};

use crate::bank::MemoryBank;
use crate::bank::kernels::rows::Dot;
use crate::simd::Isa;
use std::borrow::Cow;

/// A loss, the mean over the batch, and what training wants to know along with it.
#[derive(Clone, Debug, PartialEq)]
pub struct LossAndGradient {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to the features, `[B, D]`.
    pub gradient: Vec<f32>,
    /// Mean of `v·M[i]` over the batch: how close features are to their own rows.
    pub positive_similarity: f64,
    /// Mean probability that the objective gives to the truth: of the own row among all candidates (softmax), or
    /// of the own row being data rather than noise (NCE).
    pub positive_probability: f64,
}

/// What every objective is given.
#[derive(Clone, Copy)]
struct Problem<'a> {
    isa: Isa,
    features: &'a [f32],
    bank: &'a MemoryBank,
    indices: &'a [u32],
    temperature: f64,
}

impl<'a> Problem<'a> {
    /// Checks the shapes, once.
    fn new(features: &'a [f32], bank: &'a MemoryBank, indices: &'a [u32], temperature: f64) -> Self {
        assert!(!indices.is_empty(), "an empty batch has no loss");
        assert_eq!(
            features.len(),
            indices.len() * bank.dim(),
            "features are [B, D] with B = {}",
            indices.len()
        );
        let n = bank.len();
        assert!(indices.iter().all(|&i| (i as usize) < n), "an index is not below {n}");
        assert!(temperature > 0.0 && temperature.is_finite(), "temperature {temperature}");
        Problem { isa: Isa::best(), features, bank, indices, temperature }
    }

    /// B.
    fn batch(&self) -> usize {
        self.indices.len()
    }

    /// v of batch row `b`, `[D]`.
    fn feature(&self, b: usize) -> &'a [f32] {
        &self.features[b * self.bank.dim()..][..self.bank.dim()]
    }

    /// The own row of batch row `b`, `[D]`.
    fn positive(&self, b: usize) -> Cow<'a, [f32]> {
        self.bank.row(self.indices[b] as usize)
    }

    /// `v·M[i]` of batch row `b`.
    fn positive_similarity(&self, b: usize) -> f64 {
        f64::from(self.isa.run(Dot(self.feature(b), &self.positive(b))))
    }
}

/// One batch row's share, before the mean is taken.
#[derive(Clone, Copy)]
struct RowLoss {
    loss: f64,
    positive_similarity: f64,
    positive_probability: f64,
}

impl LossAndGradient {
    /// The mean over `rows`, added up in order; `gradient` is complete already.
    fn mean(rows: &[RowLoss], gradient: Vec<f32>) -> Self {
        let mean = |of: fn(&RowLoss) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
        LossAndGradient {
            loss: mean(|row| row.loss),
            gradient,
            positive_similarity: mean(|row| row.positive_similarity),
            positive_probability: mean(|row| row.positive_probability),
        }
    }

    /// Adds the loss and gradient of another term, for example [`proximal`]; the diagnostics stay.
    pub fn add(&mut self, (loss, gradient): (f64, Vec<f32>)) {
        self.loss += loss;
        self.gradient.iter_mut().zip(gradient).for_each(|(sum, term)| *sum += term);
    }
}

/// The proximal term `λ·mean_b ‖v_b − M[i_b]‖²` and its gradient `[B, D]` (the paper's Eq. 9). The published code
/// leaves it out because the bank's momentum does the same work.
///
/// `features` `[B, D]`, `indices` `[B]`.
/// # Panics
/// If the shapes disagree with the bank's, an index is not `< N`, or the batch is empty.
pub fn proximal(features: &[f32], bank: &MemoryBank, indices: &[u32], lambda: f64) -> (f64, Vec<f32>) {
    let problem = Problem::new(features, bank, indices, 1.0);
    let scale = lambda / problem.batch() as f64;
    let mut loss = 0.0;
    let mut gradient = Vec::with_capacity(features.len());
    for b in 0..problem.batch() {
        for (v, m) in problem.feature(b).iter().zip(&*problem.positive(b)) {
            let difference = f64::from(*v) - f64::from(*m);
            loss += scale * difference * difference;
            gradient.push((2.0 * scale * difference) as f32);
        }
    }
    (loss, gradient)
}

#[cfg(test)]
pub(crate) mod testing {
    //! Inputs and naive oracles shared by the objectives' tests.
    use super::*;
    use crate::bank::{Noise, draw_negatives};
    use crate::model::Precision;

    /// Unit features near their rows, a bank, indices and negatives.
    #[derive(Clone)]
    pub(crate) struct Case {
        pub features: Vec<f32>,
        pub bank: MemoryBank,
        pub indices: Vec<u32>,
        pub negatives: Vec<u32>,
    }

    pub(crate) fn case(n: usize, dim: usize, batch: usize, k: usize) -> Case {
        let bank = MemoryBank::random(n, dim, 11);
        let indices: Vec<u32> = (0..batch).map(|b| (b * 31 % n) as u32).collect();
        let noise = MemoryBank::random(batch, dim, 12);
        let mut features = Vec::new();
        for (b, &i) in indices.iter().enumerate() {
            let mixed: Vec<f32> =
                bank.row(i as usize).iter().zip(&*noise.row(b)).map(|(m, x)| 0.5 * m + x).collect();
            let norm = mixed.iter().map(|x| x * x).sum::<f32>().sqrt();
            features.extend(mixed.iter().map(|x| x / norm));
        }
        let negatives = draw_negatives(&Noise::Uniform { n: n as u32 }, 3, 4, batch, k);
        Case { features, bank, indices, negatives }
    }

    /// A [`case`] whose bank is in bf16, and the same numbers in fp32.
    pub(crate) fn in_both_precisions(n: usize, dim: usize, batch: usize, k: usize) -> [Case; 2] {
        let case = case(n, dim, batch, k);
        let bank = case.bank.clone().in_precision(Precision::Bf16);
        let same = bank.clone().in_precision(Precision::Fp32);
        [Case { bank, ..case.clone() }, Case { bank: same, ..case }]
    }

    /// `v_b · M[j]` in double precision.
    pub(crate) fn similarity(case: &Case, b: usize, j: u32) -> f64 {
        let v = &case.features[b * case.bank.dim()..][..case.bank.dim()];
        v.iter().zip(&*case.bank.row(j as usize)).map(|(v, m)| f64::from(*v) * f64::from(*m)).sum()
    }

    /// The gradient `Σ_j weights(b)[j].1 · M[weights(b)[j].0]` of all rows.
    pub(crate) fn gradient(case: &Case, weights: impl Fn(usize) -> Vec<(u32, f64)>) -> Vec<f64> {
        let dim = case.bank.dim();
        let mut gradient = vec![0.0; case.features.len()];
        for (b, out) in gradient.chunks_exact_mut(dim).enumerate() {
            for (j, weight) in weights(b) {
                for (out, m) in out.iter_mut().zip(&*case.bank.row(j as usize)) {
                    *out += weight * f64::from(*m);
                }
            }
        }
        gradient
    }

    /// Fails with the largest difference, relative to the largest expected entry.
    pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
        let worst = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance * largest, "{what}: difference {worst:e} of {largest:e}");
        assert!(found.iter().all(|x| x.is_finite()), "{what}: not finite");
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn the_proximal_term_is_the_mean_squared_distance() {
        let case = case(20, 9, 3, 1);
        let (loss, gradient) = proximal(&case.features, &case.bank, &case.indices, 0.7);
        let mut expected = 0.0;
        let mut expected_gradient = Vec::new();
        for b in 0..3 {
            for d in 0..9 {
                let difference = f64::from(case.features[b * 9 + d])
                    - f64::from(case.bank.row(case.indices[b] as usize)[d]);
                expected += 0.7 / 3.0 * difference.powi(2);
                expected_gradient.push(2.0 * 0.7 / 3.0 * difference);
            }
        }
        assert!((loss - expected).abs() < 1e-12);
        assert_close(&gradient, &expected_gradient, 1e-6, "proximal");
        let mut sum = softmax::full(&case.features, &case.bank, &case.indices, 0.1, &[]);
        let before = sum.clone();
        sum.add((loss, gradient.clone()));
        assert_eq!(sum.loss, before.loss + loss);
        assert_eq!(sum.gradient[5], before.gradient[5] + gradient[5]);
    }

    #[test]
    fn the_proximal_term_of_a_bank_in_bf16_is_that_of_its_numbers_in_fp32() {
        let [found, expected] =
            in_both_precisions(20, 9, 3, 1).map(|c| proximal(&c.features, &c.bank, &c.indices, 0.7));
        assert_eq!(found, expected);
    }

    #[test]
    #[should_panic(expected = "features are [B, D]")]
    fn wrong_shapes_are_refused() {
        let case = case(20, 9, 3, 1);
        proximal(&case.features[1..], &case.bank, &case.indices, 0.7);
    }
}
