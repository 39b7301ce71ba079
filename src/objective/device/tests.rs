//! Tensor operations on the CPU against the objectives in Rust.

use super::super::testing::{Case, assert_close, case};
use super::super::{LossAndGradient, NormalizerMode, normalizer, softmax};
use super::*;
use crate::bank::{AliasTable, Negatives};
use crate::model::to_vec_f32;

/// A [`Case`] as tensors.
struct Uploaded {
    features: Tensor,
    bank: DeviceBank,
    indices: Tensor,
    negatives: Tensor,
}

impl Uploaded {
    fn new(case: &Case) -> Self {
        let batch = case.indices.len() as i64;
        let indices: Vec<i64> = case.indices.iter().map(|&i| i64::from(i)).collect();
        let negatives: Vec<i32> = case.negatives.iter().map(|&i| i as i32).collect();
        Uploaded {
            features: Tensor::from_slice(&case.features).view([batch, -1]),
            bank: DeviceBank::new(&case.bank, Device::Cpu),
            indices: Tensor::from_slice(&indices),
            negatives: Tensor::from_slice(&negatives).view([batch, (negatives.len() as i64) / batch]),
        }
    }

    fn problem(&self, temperature: f64) -> DeviceProblem<'_> {
        DeviceProblem { features: &self.features, bank: &self.bank, indices: &self.indices, temperature }
    }
}

/// Logits are rounded relative to their size, 1/T: that bounds the losses' difference beside their own size.
fn agree(found: &DeviceLoss, expected: &LossAndGradient, temperature: f64, what: &str) {
    let loss = found.loss.double_value(&[]);
    let tolerance = 5e-6 * expected.loss.abs() + 3e-7 / temperature;
    assert!((loss - expected.loss).abs() <= tolerance, "{what}: {loss} or {}", expected.loss);
    let gradient: Vec<f64> = expected.gradient.iter().map(|&g| f64::from(g)).collect();
    let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
    if largest > 1e-4 {
        assert_close(&to_vec_f32(&found.gradient), &gradient, 5e-5 + 2e-6 / temperature, what);
    }
}

const CASES: [(usize, usize, usize, usize); 5] =
    [(50, 16, 3, 16), (40, 128, 5, 100), (7, 13, 2, 33), (300, 24, 4, 1), (2000, 32, 6, 300)];

#[test]
fn nce_equals_the_hosts() {
    for (n, dim, batch, k) in CASES {
        let case = case(n, dim, batch, k);
        let uploaded = Uploaded::new(&case);
        let uniform = Noise::Uniform { n: n as u32 };
        let mut weights: Vec<f64> = (0..n).map(|i| 1.0 + (i % 5) as f64).collect();
        // A row that is never drawn, nor anybody's own.
        if let Some(free) =
            (0..n).find(|&i| !case.negatives.contains(&(i as u32)) && !case.indices.contains(&(i as u32)))
        {
            weights[free] = 0.0;
        }
        let weighted = Noise::Weighted(AliasTable::new(&weights).unwrap());
        for noise in [&uniform, &weighted] {
            for (t, z) in [(0.07, 2.2 * n as f64), (0.5, 3.0), (0.07, 1e-4), (0.2, 1e9)] {
                let given = Negatives::Given(&case.negatives);
                let expected = super::super::nce::loss(
                    &case.features,
                    &case.bank,
                    &case.indices,
                    &given,
                    t,
                    z.ln(),
                    noise,
                );
                let problem = uploaded.problem(t);
                let noise = DeviceNoise::new(noise, Device::Cpu);
                let found = nce(&problem, &uploaded.negatives, z.ln(), &noise);
                agree(&found, &expected, t, &format!("NCE N={n} K={k} T={t} Z={z}"));
            }
        }
    }
}

#[test]
fn both_softmaxes_equal_the_hosts() {
    for (n, dim, batch, k) in CASES {
        let case = case(n, dim, batch, k);
        let uploaded = Uploaded::new(&case);
        for t in [0.03, 0.07, 0.5] {
            let problem = uploaded.problem(t);
            let given = Negatives::Given(&case.negatives);
            let expected = softmax::sampled(&case.features, &case.bank, &case.indices, &given, t);
            let found = sampled_softmax(&problem, &uploaded.negatives);
            agree(&found, &expected, t, &format!("sampled N={n} K={k} T={t}"));
            let excluded: Vec<u32> =
                (0..n as u32).filter(|i| i % 7 == 3 && !case.indices.contains(i)).collect();
            for excluded in [&[][..], &excluded] {
                let expected = softmax::full(&case.features, &case.bank, &case.indices, t, excluded);
                let found = full_softmax(&problem, excluded);
                agree(&found, &expected, t, &format!("full N={n} T={t} {}", excluded.len()));
            }
        }
    }
}

#[test]
fn tiles_and_the_two_ways_to_score_change_nothing_but_rounding() {
    let case = case(500, 24, 7, 90);
    let uploaded = Uploaded::new(&case);
    let problem = uploaded.problem(0.1);
    let negatives = &uploaded.negatives;
    let add_up = |candidates: Candidates| {
        let (mut sum, mut rows) =
            (Tensor::zeros([7], (Kind::Double, Device::Cpu)), problem.features.zeros_like());
        let mut tiles = 0;
        candidates.each(|tile| {
            let weights = (tile.scores() * 3.0).exp();
            sum += tile.sum(&weights);
            rows += tile.weighted_rows(&tile.times(&weights));
            tiles += 1;
        });
        (tiles, to_vec_f32(&sum), to_vec_f32(&rows))
    };
    let (one, sum, rows) = add_up(Candidates::gathered(&problem, negatives));
    assert_eq!(one, 1);
    for (candidates, at_least) in [
        (Candidates::gathered(&problem, negatives).in_small_tiles(7 * 24 * 11), 9),
        (Candidates::counted(&problem, negatives), 1),
        (Candidates::counted(&problem, negatives).in_small_tiles(7 * 33), 16),
        (Candidates::gathered(&problem, negatives).in_small_tiles(1), 90),
    ] {
        let (tiles, other_sum, other_rows) = add_up(candidates);
        assert!(tiles >= at_least, "{tiles} tiles");
        for (a, b) in sum.iter().zip(&other_sum).chain(rows.iter().zip(&other_rows)) {
            assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{a} {b}");
        }
    }
    // Many stretches, of which some are excluded as a whole.
    let excluded: Vec<u32> = (100..400).filter(|i| !case.indices.contains(i)).collect();
    let mut sums = RunningSoftmax::new(&problem.positives().1);
    Candidates::whole_bank(&problem, &excluded).in_small_tiles(7 * 40).each(|tile| sums.add(tile, 0.1));
    let (positives, logits) = problem.positives();
    let found = sums.finish(&problem, &positives, &logits);
    agree(
        &found,
        &softmax::full(&case.features, &case.bank, &case.indices, 0.1, &excluded),
        1e-5,
        "stretches",
    );
}

#[test]
fn z_is_estimated_as_on_the_host() {
    for (n, dim, batch, k) in CASES {
        let case = case(n, dim, batch, k);
        let uploaded = Uploaded::new(&case);
        let uniform = Noise::Uniform { n: n as u32 };
        let weights: Vec<f64> = (0..n).map(|i| 1.0 + (i % 5) as f64).collect();
        let weighted = Noise::Weighted(AliasTable::new(&weights).unwrap());
        for noise in [&uniform, &weighted] {
            for entries in [Entries::All, Entries::Negatives] {
                for t in [0.001, 0.07] {
                    let given = Negatives::Given(&case.negatives);
                    let expected = normalizer::estimate_ln_z(
                        &case.features,
                        &case.bank,
                        &case.indices,
                        &given,
                        t,
                        noise,
                        entries,
                    );
                    let noise = DeviceNoise::new(noise, Device::Cpu);
                    let mut z = Normalizer::new(NormalizerMode::FirstBatch, n, dim, t);
                    let found = ln_z(&mut z, &uploaded.problem(t), &uploaded.negatives, &noise, entries);
                    assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found} {expected}");
                    assert_eq!(z.ln_z, Some(found));
                }
            }
        }
    }
}

#[test]
fn the_proximal_term_equals_the_hosts() {
    let case = case(20, 9, 3, 1);
    let uploaded = Uploaded::new(&case);
    let (loss, gradient) = super::super::proximal(&case.features, &case.bank, &case.indices, 0.7);
    let found = proximal(&uploaded.problem(1.0), 0.7);
    assert!((found.loss.double_value(&[]) - loss).abs() < 1e-6);
    let gradient: Vec<f64> = gradient.into_iter().map(f64::from).collect();
    assert_close(&to_vec_f32(&found.gradient), &gradient, 1e-6, "proximal");
}

#[test]
fn nan_anywhere_reaches_the_loss() {
    let mut broken = case(20, 16, 2, 32);
    broken.features[3] = f32::NAN;
    let uploaded = Uploaded::new(&broken);
    let problem = uploaded.problem(0.1);
    let noise = DeviceNoise::new(&Noise::Uniform { n: 20 }, Device::Cpu);
    for found in [
        nce(&problem, &uploaded.negatives, 3.0, &noise),
        sampled_softmax(&problem, &uploaded.negatives),
        full_softmax(&problem, &[]),
        proximal(&problem, 1.0),
    ] {
        assert!(found.loss.double_value(&[]).is_nan());
    }
}
