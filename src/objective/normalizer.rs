//! NCE's normaliser Z (Wu et al. 2018, §3.2, Eq. 7): what `exp(v·M[j]/T)` adds up to over all N rows, estimated
//! because NCE exists to avoid that sum. Everything is kept as ln Z: at T = 0.01, Z itself may not fit a number.

use super::Problem;
use super::gather::{Visitor, gather};
use crate::bank::{MemoryBank, Negatives, Noise};
use crate::simd::{LANES, Simd};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Which similarities an estimate of Z is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// All B·(K+1), the positive's column included, as published: right for a fresh bank, whose rows know nothing of
    /// their images.
    All,
    /// The B·K negatives: for a bank that was started from features. There `exp(1/T)` of a positive, `10^6` at T =
    /// 0.07, would dominate the mean although a positive is one row of N, not one of K + 1.
    Negatives,
}

/// ln Z from one batch: `Z = N·mean(exp(v·M[j]/T))` over `entries`, as published.
///
/// `features` `[B, D]`, `indices` `[B]`, `negatives` `[B, K]` drawn from `noise`. Where the noise is not uniform,
/// a negative stands for `1/q(j)` rows instead of N. An estimate from no entries is NaN.
///
/// # Panics
/// If the shapes disagree with the bank's, an index is not `< N`, the batch is empty, the noise is over another
/// number of rows, or the temperature is not positive.
pub fn estimate_ln_z(
    features: &[f32],
    bank: &MemoryBank,
    indices: &[u32],
    negatives: &Negatives,
    temperature: f64,
    noise: &Noise,
    entries: Entries,
) -> f64 {
    let problem = Problem::new(features, bank, indices, temperature);
    assert_eq!(noise.len(), bank.len(), "noise and bank are over the same rows");
    let batch = problem.batch();
    let ln_n = (bank.len() as f64).ln();
    let rows: Vec<LogSum> = (0..batch)
        .into_par_iter()
        .map(|b| {
            let visitor =
                Exponentials { inverse_temperature: 1.0 / temperature, noise, sum: LogSum::default() };
            let mut sum = gather(&problem, negatives, b, visitor, &mut []).sum;
            if entries == Entries::All {
                let similarity = problem.positive_similarity(b);
                sum.add(similarity / temperature + ln_n);
            }
            sum
        })
        .collect();
    let mut total = LogSum::default();
    rows.iter().for_each(|row| total.add_scaled(row.largest, row.sum));
    let columns = negatives.per_row(batch) + usize::from(entries == Entries::All);
    total.ln() - ((batch * columns) as f64).ln()
}

/// What ln Z is expected to be for a fresh bank and unit features: `ln N + 1/(2·D·T²)`, since `v·M[j]` is then close
/// to normal with variance 1/D. `Z/N` is 2.219 at D = 128, T = 0.07.
pub fn analytic_ln_z(n: usize, dim: usize, temperature: f64) -> f64 {
    (n as f64).ln() + 1.0 / (2.0 * dim as f64 * temperature * temperature)
}

/// `ln Σ exp(x)` of a growing number of terms.
#[derive(Clone, Copy)]
struct LogSum {
    largest: f64,
    sum: f64,
}

impl Default for LogSum {
    fn default() -> Self {
        LogSum { largest: f64::NEG_INFINITY, sum: 0.0 }
    }
}

impl LogSum {
    fn add(&mut self, x: f64) {
        self.add_scaled(x, 1.0);
    }

    /// Adds `sum·exp(x)`.
    #[inline(always)]
    fn add_scaled(&mut self, x: f64, sum: f64) {
        if x == f64::NEG_INFINITY {
            return;
        }
        if x > self.largest {
            self.sum *= (self.largest - x).exp();
            self.largest = x;
        }
        self.sum += sum * (x - self.largest).exp();
    }

    fn ln(self) -> f64 {
        self.largest + self.sum.ln()
    }
}

/// Adds up `exp(s/T)/q(j)`.
struct Exponentials<'a> {
    inverse_temperature: f64,
    noise: &'a Noise,
    sum: LogSum,
}

impl Visitor for Exponentials<'_> {
    const GRADIENT: bool = false;

    #[inline(always)]
    fn visit<S: Simd>(
        &mut self,
        _: S,
        similarities: &[f32; LANES],
        indices: &[u32],
        _: &mut [f32; LANES],
    ) -> f32 {
        for (similarity, &index) in similarities.iter().zip(indices) {
            let ln_weight = -self.noise.probability(index).ln();
            self.sum.add(f64::from(*similarity) * self.inverse_temperature + ln_weight);
        }
        1.0
    }
}

/// Where Z comes from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormalizerMode {
    /// Estimated from the first batch, then frozen, as published.
    FirstBatch,
    /// Z itself, positive: 2876934 is about what ImageNet gives.
    Fixed(f64),
    /// An average over batches that forgets: `Z ← decay·Z + (1 − decay)·estimate`, from the first estimate on.
    RunningAverage {
        /// How much of the old value is kept, 0 to 1.
        decay: f64,
    },
    /// [`analytic_ln_z`]: the value of a fresh bank without its sampling error.
    Analytic,
}

/// Z as it stands. It changes in [`update`](Self::update) and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalizer {
    /// Where Z comes from.
    pub mode: NormalizerMode,
    /// ln Z; none before the first estimate.
    pub ln_z: Option<f64>,
}

impl Normalizer {
    /// Z before training, for a bank `[n, dim]`: known if fixed or analytic.
    pub fn new(mode: NormalizerMode, n: usize, dim: usize, temperature: f64) -> Self {
        let ln_z = match mode {
            NormalizerMode::Fixed(z) => Some(z.ln()),
            NormalizerMode::Analytic => Some(analytic_ln_z(n, dim, temperature)),
            NormalizerMode::FirstBatch | NormalizerMode::RunningAverage { .. } => None,
        };
        Normalizer { mode, ln_z }
    }

    /// Whether this step needs an [estimate](estimate_ln_z) before its loss.
    pub fn needs_estimate(&self) -> bool {
        self.ln_z.is_none() || matches!(self.mode, NormalizerMode::RunningAverage { .. })
    }

    /// Takes in a batch's estimate of ln Z and returns ln Z for that batch's loss.
    pub fn update(&mut self, estimate: f64) -> f64 {
        let ln_z = match (self.mode, self.ln_z) {
            (NormalizerMode::RunningAverage { decay }, Some(old)) => {
                let mut average = LogSum::default();
                average.add_scaled(old, decay);
                average.add_scaled(estimate, 1.0 - decay);
                average.ln()
            }
            (_, Some(frozen)) => frozen,
            (_, None) => estimate,
        };
        self.ln_z = Some(ln_z);
        ln_z
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::bank::AliasTable;

    fn unit(n: usize, dim: usize) -> Vec<f32> {
        let mut features = MemoryBank::random(n, dim, 77).rows().to_vec();
        for row in features.chunks_exact_mut(dim) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
        features
    }

    #[test]
    fn a_fresh_bank_has_the_analytic_normaliser() {
        let (n, dim, t, k) = (20_000, 128, 0.07, 4096);
        let bank = MemoryBank::random(n, dim, 1);
        let (features, indices) = (unit(64, dim), (0..64).collect::<Vec<u32>>());
        let noise = Noise::Uniform { n: n as u32 };
        let negatives = Negatives::Drawn { noise: &noise, seed: 1, step: 0, k };
        let analytic = analytic_ln_z(n, dim, t);
        assert!(((analytic.exp() / n as f64) - 2.219).abs() < 1e-3);
        for entries in [Entries::All, Entries::Negatives] {
            let estimate = estimate_ln_z(&features, &bank, &indices, &negatives, t, &noise, entries);
            assert!((estimate - analytic).abs() < 0.02, "{entries:?}: {estimate} or {analytic}");
        }
    }

    #[test]
    fn equals_the_published_mean() {
        let (n, k, t) = (50, 33, 0.2);
        let case = case(n, 16, 3, k);
        let noise = Noise::Uniform { n: 50 };
        let estimate = |entries, t| {
            let given = Negatives::Given(&case.negatives);
            estimate_ln_z(&case.features, &case.bank, &case.indices, &given, t, &noise, entries)
        };
        let (mut negatives, mut positives) = (0.0, 0.0);
        for b in 0..3 {
            positives += (similarity(&case, b, case.indices[b]) / t).exp();
            negatives += case.negatives[b * k..][..k]
                .iter()
                .map(|&j| (similarity(&case, b, j) / t).exp())
                .sum::<f64>();
        }
        let all = 50.0 * (negatives + positives) / (3 * (k + 1)) as f64;
        assert!((estimate(Entries::All, t) - all.ln()).abs() < 1e-6);
        let negatives = 50.0 * negatives / (3 * k) as f64;
        assert!((estimate(Entries::Negatives, t) - negatives.ln()).abs() < 1e-6);
        // exp(1/T) does not fit here.
        assert!(estimate(Entries::All, 0.001).is_finite());
    }

    #[test]
    fn a_bank_in_bf16_gives_the_estimate_of_its_numbers_in_fp32() {
        let noise = Noise::Uniform { n: 50 };
        for entries in [Entries::All, Entries::Negatives] {
            let [found, expected] = in_both_precisions(50, 24, 3, 33).map(|case| {
                let given = Negatives::Given(&case.negatives);
                estimate_ln_z(&case.features, &case.bank, &case.indices, &given, 0.2, &noise, entries)
            });
            assert_eq!(found, expected, "{entries:?}");
        }
    }

    #[test]
    fn weighted_noise_is_corrected_for() {
        let (n, dim, t) = (400, 32, 0.3);
        let bank = MemoryBank::random(n, dim, 1);
        let (features, indices) = (unit(8, dim), (0..8).collect::<Vec<u32>>());
        let weights: Vec<f64> = (0..n).map(|i| 1.0 + (i % 10) as f64).collect();
        let noise = Noise::Weighted(AliasTable::new(&weights).unwrap());
        let negatives = Negatives::Drawn { noise: &noise, seed: 1, step: 0, k: 20_000 };
        let exact: f64 = (0..8)
            .flat_map(|b| (0..n).map(move |j| (b, j)))
            .map(|(b, j)| {
                let v = &features[b * dim..][..dim];
                let s: f64 = v.iter().zip(&*bank.row(j)).map(|(v, m)| f64::from(v * m)).sum();
                (s / t).exp() / 8.0
            })
            .sum();
        let found = estimate_ln_z(&features, &bank, &indices, &negatives, t, &noise, Entries::Negatives);
        assert!((found - exact.ln()).abs() < 0.02, "{found} or {}", exact.ln());
    }

    #[test]
    fn each_mode_takes_estimates_in_its_own_way() {
        let run = |mode| {
            let mut z = Normalizer::new(mode, 100, 128, 0.07);
            let needed = z.needs_estimate();
            z.update(2f64.ln());
            z.update(4f64.ln());
            (needed, z.needs_estimate(), z.ln_z.unwrap().exp())
        };
        assert_eq!(run(NormalizerMode::FirstBatch), (true, false, 2.0));
        let (before, after, z) = run(NormalizerMode::Fixed(7.0));
        assert!(!before && !after && (z - 7.0).abs() < 1e-12);
        let (before, after, z) = run(NormalizerMode::RunningAverage { decay: 0.75 });
        assert!(before && after && (z - 2.5).abs() < 1e-12);
        let (before, after, z) = run(NormalizerMode::Analytic);
        assert!(!before && !after && (z - 221.9).abs() < 0.1);
    }

    #[test]
    fn survives_serialisation_exactly() {
        for mode in [NormalizerMode::FirstBatch, NormalizerMode::RunningAverage { decay: 0.9 }] {
            let mut z = Normalizer::new(mode, 1, 1, 1.0);
            z.update(0.1 + 0.2);
            let text = serde_json::to_string(&z).unwrap();
            assert_eq!(serde_json::from_str::<Normalizer>(&text).unwrap(), z, "{text}");
        }
    }
}
