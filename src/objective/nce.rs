//! Noise-contrastive estimation (Wu et al. 2018, §3.2, Eq. 4–8): tell a feature's own row from K rows of noise.

use super::gather::{Visitor, gather};
use super::{LossAndGradient, Problem, RowLoss};
use crate::bank::{MemoryBank, Negatives, Noise};
use crate::simd::{LANES, Simd};
use rayon::prelude::*;

/// Keeps the published quotients away from 0/0.
pub(super) const EPSILON: f64 = 1e-7;

/// The NCE loss and its gradient.
///
/// `features` `[B, D]` unit rows; `indices` `[B]` their rows in the bank; `negatives` `[B, K]` drawn from `noise`;
/// `ln_z` the logarithm of the [normaliser](super::normalizer) Z. With `P = exp(v·M[j]/T)/Z`, `c_j = K·q(j)` (which
/// is K/N for uniform noise q) and ε = 1e-7,
/// `loss = −(1/B)·Σ_b [ln(P₀/(P₀ + c₀ + ε)) + Σ_{j≥1} ln(c_j/(P_j + c_j + ε))]`.
///
/// That is the published formula, evaluated in log space: with `x_j = ln P_j − ln(c_j + ε)` the terms are
/// `−softplus(−x₀)` and `ln(c_j/(c_j + ε)) − softplus(x_j)`, which no temperature can overflow.
///
/// # Panics
/// If the shapes disagree with the bank's, an index is not `< N`, the batch is empty, the noise is over another
/// number of rows, or the temperature is not positive.
pub fn loss(
    features: &[f32],
    bank: &MemoryBank,
    indices: &[u32],
    negatives: &Negatives,
    temperature: f64,
    ln_z: f64,
    noise: &Noise,
) -> LossAndGradient {
    let problem = Problem::new(features, bank, indices, temperature);
    loss_of(&problem, negatives, ln_z, noise)
}

fn loss_of(problem: &Problem, negatives: &Negatives, ln_z: f64, noise: &Noise) -> LossAndGradient {
    assert_eq!(noise.len(), problem.bank.len(), "noise and bank are over the same rows");
    let batch = problem.batch();
    let terms = Terms { k: negatives.per_row(batch) as f64, ln_z, noise };
    let dim = problem.bank.dim();
    let mut gradient = vec![0.0; batch * dim];
    let row_losses: Vec<RowLoss> = gradient
        .par_chunks_exact_mut(dim)
        .enumerate()
        .map(|(b, gradient)| row_loss(problem, negatives, terms, b, gradient))
        .collect();
    LossAndGradient::mean(&row_losses, gradient)
}

/// Batch row `b`: its loss, and its share of the gradient in `gradient` (zeros before).
fn row_loss(
    problem: &Problem,
    negatives: &Negatives,
    terms: Terms,
    b: usize,
    gradient: &mut [f32],
) -> RowLoss {
    let positive = problem.positive(b);
    let similarity = problem.positive_similarity(b);
    let x = similarity / problem.temperature + terms.offset(problem.indices[b]);
    // P₀/(P₀ + c₀ + ε) = 1/(1 + exp(−x)).
    let probability = 1.0 / (1.0 + (-x).exp());
    let positive_weight = -1.0 / (1.0 + x.exp());

    let visitor = Negative {
        terms,
        inverse_temperature: (1.0 / problem.temperature) as f32,
        uniform: match terms.noise {
            Noise::Uniform { .. } => Some((terms.offset(0) as f32, terms.constant(0))),
            Noise::Weighted(_) => None,
        },
        loss: 0.0,
        product: 1.0,
    };
    let visitor = gather(problem, negatives, b, visitor, gradient);
    let scale = 1.0 / (problem.temperature * problem.batch() as f64);
    for (g, m) in gradient.iter_mut().zip(&*positive) {
        *g = ((f64::from(*g) + positive_weight * f64::from(*m)) * scale) as f32;
    }
    RowLoss {
        loss: softplus(-x) + visitor.loss + visitor.product.ln(),
        positive_similarity: similarity,
        positive_probability: probability,
    }
}

/// `ln(1 + exp(x))`.
fn softplus(x: f64) -> f64 {
    // `f64::max` would turn NaN into 0.
    let hinge = if x < 0.0 { 0.0 } else { x };
    hinge + (-x.abs()).exp().ln_1p()
}

/// What the formula needs besides similarities.
#[derive(Clone, Copy)]
struct Terms<'a> {
    k: f64,
    ln_z: f64,
    noise: &'a Noise,
}

impl Terms<'_> {
    /// `x − s/T` of row `index`: `−ln Z − ln(c + ε)`.
    fn offset(&self, index: u32) -> f64 {
        -self.ln_z - (self.k * self.noise.probability(index) + EPSILON).ln()
    }

    /// A negative's loss beyond its softplus: `ln((c + ε)/c)`.
    fn constant(&self, index: u32) -> f64 {
        (EPSILON / (self.k * self.noise.probability(index))).ln_1p()
    }
}

/// Adds up `softplus(x) + ln((c + ε)/c)`; weighs rows with `sigmoid(x)`.
struct Negative<'a> {
    terms: Terms<'a>,
    inverse_temperature: f32,
    /// Offset and constant where they are the same for every row.
    uniform: Option<(f32, f64)>,
    loss: f64,
    /// `Σ ln(1 + e)` is kept as the logarithm of a product: exact for the tiny e of a well-told negative, and one
    /// logarithm for many terms.
    product: f64,
}

impl Visitor for Negative<'_> {
    const GRADIENT: bool = true;

    #[inline(always)]
    fn visit<S: Simd>(
        &mut self,
        simd: S,
        similarities: &[f32; LANES],
        indices: &[u32],
        weights: &mut [f32; LANES],
    ) -> f32 {
        let count = indices.len();
        let offset = match self.uniform {
            Some((offset, constant)) => {
                self.loss += constant * count as f64;
                simd.splat(offset)
            }
            None => {
                let mut offsets = [0.0; LANES];
                for (offset, &index) in offsets.iter_mut().zip(indices) {
                    *offset = self.terms.offset(index) as f32;
                    self.loss += self.terms.constant(index);
                }
                simd.load(&offsets)
            }
        };
        let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
        let x = simd.mul_add(simd.load(similarities), simd.splat(self.inverse_temperature), offset);
        // With e = exp(−|x|): softplus(x) = max(x, 0) + ln(1 + e), sigmoid(x) = (1 or e)/(1 + e).
        let e = simd.exp(simd.sub(zero, simd.max(simd.sub(zero, x), x)));
        let sigmoid = simd.div(simd.select_greater(x, zero, one, e), simd.add(one, e));
        simd.store(sigmoid, weights);
        let mut tails = [0.0; LANES];
        simd.store(e, &mut tails);
        weights[count..].fill(0.0);
        tails[count..].fill(0.0);
        if simd.greater(x, zero) != 0 {
            let mut hinges = [0.0; LANES];
            simd.store(simd.max(x, zero), &mut hinges);
            self.loss += hinges[..count].iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        let mut products = [1.0f64; 4];
        for (i, e) in tails.iter().enumerate() {
            products[i % 4] *= 1.0 + f64::from(*e);
        }
        // Sixteen factors of at most 2 each time.
        self.product *= (products[0] * products[1]) * (products[2] * products[3]);
        if self.product > 1e250 {
            self.loss += self.product.ln();
            self.product = 1.0;
        }
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::bank::AliasTable;
    use crate::simd::Isa;

    /// The published formula as it stands, in double precision, and its derivative by every similarity.
    fn naive(case: &Case, k: usize, t: f64, z: f64, q: &dyn Fn(u32) -> f64) -> (f64, Vec<f64>) {
        let batch = case.indices.len();
        let mut loss = 0.0;
        for b in 0..batch {
            let p = |j: u32| (similarity(case, b, j) / t).exp() / z;
            let c = |j: u32| k as f64 * q(j);
            let i = case.indices[b];
            loss -= (p(i) / (p(i) + c(i) + EPSILON)).ln();
            for &j in &case.negatives[b * k..][..k] {
                loss -= (c(j) / (p(j) + c(j) + EPSILON)).ln();
            }
        }
        let gradient = gradient(case, |b| {
            let p = |j: u32| (similarity(case, b, j) / t).exp() / z;
            let c = |j: u32| k as f64 * q(j) + EPSILON;
            let i = case.indices[b];
            let mut weights = vec![(i, -c(i) / (p(i) + c(i)) / t / batch as f64)];
            weights.extend(
                case.negatives[b * k..][..k].iter().map(|&j| (j, p(j) / (p(j) + c(j)) / t / batch as f64)),
            );
            weights
        });
        (loss / batch as f64, gradient)
    }

    fn run(case: &Case, isa: Isa, t: f64, ln_z: f64, noise: &Noise) -> LossAndGradient {
        let problem = Problem { isa, ..Problem::new(&case.features, &case.bank, &case.indices, t) };
        loss_of(&problem, &Negatives::Given(&case.negatives), ln_z, noise)
    }

    #[test]
    fn equals_the_published_formula_on_every_path() {
        for (n, dim, batch, k) in
            [(50, 16, 3, 16), (40, 128, 5, 100), (7, 13, 2, 33), (300, 24, 4, 1), (9, 8, 1, 0)]
        {
            let case = case(n, dim, batch, k);
            let noise = Noise::Uniform { n: n as u32 };
            for (t, z) in [(0.07, 2.2 * n as f64), (0.1, n as f64), (0.5, 3.0), (0.07, 1e-4), (0.2, 1e9)] {
                let (loss, gradient) = naive(&case, k, t, z, &|_| 1.0 / n as f64);
                for isa in Isa::available() {
                    let found = run(&case, isa, t, z.ln(), &noise);
                    let error = (found.loss - loss).abs() / loss.abs().max(1e-3);
                    assert!(error < 2e-6, "{isa:?} {n} {k} T={t} Z={z}: {} or {loss}", found.loss);
                    assert_close(&found.gradient, &gradient, 1e-5, &format!("{isa:?} T={t} Z={z}"));
                    assert!(found.positive_probability > 0.0 && found.positive_probability <= 1.0);
                }
            }
        }
    }

    #[test]
    fn a_bank_in_bf16_gives_the_bits_of_its_numbers_in_fp32_on_every_path() {
        for (n, dim, batch, k) in [(50, 16, 3, 16), (40, 128, 5, 100), (7, 13, 2, 33), (300, 40, 4, 1)] {
            let cases = in_both_precisions(n, dim, batch, k);
            for isa in Isa::available() {
                let [found, expected] =
                    cases.each_ref().map(|case| run(case, isa, 0.07, 5.0, &Noise::Uniform { n: n as u32 }));
                assert_eq!(found, expected, "{isa:?} {n} {dim}");
            }
        }
    }

    #[test]
    fn weighs_each_row_by_its_own_noise() {
        let (n, k) = (30, 40);
        let mut case = case(n, 16, 3, k);
        let mut weights: Vec<f64> = (1..=n).map(|i| i as f64).collect();
        weights[2] = 0.0;
        case.negatives.iter_mut().for_each(|j| *j = (*j).max(3));
        let total: f64 = weights.iter().sum();
        let noise = Noise::Weighted(AliasTable::new(&weights).unwrap());
        let (loss, gradient) = naive(&case, k, 0.1, 50.0, &|j| weights[j as usize] / total);
        for isa in Isa::available() {
            let found = run(&case, isa, 0.1, 50f64.ln(), &noise);
            assert!((found.loss - loss).abs() < 2e-6 * loss, "{isa:?}: {} or {loss}", found.loss);
            assert_close(&found.gradient, &gradient, 1e-5, &format!("{isa:?}"));
        }
    }

    #[test]
    fn no_temperature_overflows() {
        let case = case(50, 32, 4, 64);
        let noise = Noise::Uniform { n: 50 };
        for isa in Isa::available() {
            for (t, ln_z) in [(0.01, 3.9), (0.001, 3.9), (0.01, -400.0), (0.01, 400.0)] {
                let found = run(&case, isa, t, ln_z, &noise);
                assert!(found.loss.is_finite() && found.loss > 0.0, "{isa:?} T={t}: {}", found.loss);
                assert!(found.gradient.iter().all(|g| g.is_finite()), "{isa:?} T={t}");
            }
            // Where the naive formula still fits into double precision, T=0.01 agrees with it too.
            let (loss, gradient) = naive(&case, 64, 0.01, 3.9f64.exp(), &|_| 1.0 / 50.0);
            let found = run(&case, isa, 0.01, 3.9, &noise);
            assert!((found.loss - loss).abs() < 1e-6 * loss, "{isa:?}: {} or {loss}", found.loss);
            assert_close(&found.gradient, &gradient, 3e-5, &format!("{isa:?}"));
        }
    }

    #[test]
    fn nan_anywhere_reaches_the_loss() {
        for isa in Isa::available() {
            let mut broken = case(20, 16, 2, 32);
            broken.features[3] = f32::NAN;
            assert!(run(&broken, isa, 0.1, 3.0, &Noise::Uniform { n: 20 }).loss.is_nan(), "{isa:?}");
            let mut broken = case(20, 16, 2, 32);
            let row = broken.negatives[7] as usize;
            broken.bank.set_row(row, &[f32::NAN; 16]);
            assert!(run(&broken, isa, 0.1, 3.0, &Noise::Uniform { n: 20 }).loss.is_nan(), "{isa:?}");
        }
    }

    #[test]
    fn drawn_negatives_give_the_same_bits_whatever_the_threads() {
        let case = case(500, 48, 7, 50);
        let noise = Noise::Uniform { n: 500 };
        let drawn = Negatives::Drawn { noise: &noise, seed: 3, step: 4, k: 50 };
        let all = loss(&case.features, &case.bank, &case.indices, &drawn, 0.07, 6.0, &noise);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again =
                pool.install(|| loss(&case.features, &case.bank, &case.indices, &drawn, 0.07, 6.0, &noise));
            assert_eq!(all, again);
        }
        let given = Negatives::Given(&case.negatives);
        assert_eq!(all, loss(&case.features, &case.bank, &case.indices, &given, 0.07, 6.0, &noise));
    }
}
