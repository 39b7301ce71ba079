//! Tensor operations on the CPU against the objectives in Rust.

use super::super::testing::{Case, assert_close, case};
use super::super::{LossAndGradient, NormalizerMode, normalizer, softmax};
use super::*;
use crate::bank::{AliasTable, MemoryBank, Negatives};
use crate::model::to_vec_f32;

/// A [`Case`] as tensors.
struct Uploaded {
    features: Tensor,
    bank: DeviceBank,
    indices: Tensor,
    negatives: Tensor,
}

impl Uploaded {
    /// For tensor operations.
    fn new(case: &Case) -> Self {
        Self::with_bank(case, DeviceBank::new(&case.bank, Device::Cpu))
    }

    /// For the CUDA kernels' twin.
    fn for_kernels(case: &Case, precision: Precision) -> Self {
        Self::with_bank(case, DeviceBank::with_twin(&case.bank.clone().in_precision(precision)))
    }

    fn with_bank(case: &Case, bank: DeviceBank) -> Self {
        let batch = case.indices.len() as i64;
        let indices: Vec<i64> = case.indices.iter().map(|&i| i64::from(i)).collect();
        let negatives: Vec<i32> = case.negatives.iter().map(|&i| i as i32).collect();
        Uploaded {
            features: Tensor::from_slice(&case.features).view([batch, -1]),
            bank,
            indices: Tensor::from_slice(&indices),
            negatives: Tensor::from_slice(&negatives).view([batch, (negatives.len() as i64) / batch]),
        }
    }

    fn problem(&self, temperature: f64) -> DeviceProblem<'_> {
        DeviceProblem {
            features: &self.features,
            bank: &self.bank,
            indices: &self.indices,
            temperature,
            products: Precision::Fp32,
        }
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

/// `case` with every number rounded to bf16: products of two of them are exact in f32, stored in either precision.
fn rounded(case: Case) -> Case {
    let round = |values: &[f32]| -> Vec<f32> {
        values.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect()
    };
    let bank = MemoryBank::from_rows(case.bank.len(), case.bank.dim(), round(&case.bank.rows()));
    Case { features: round(&case.features), bank, ..case }
}

const CASES: [(usize, usize, usize, usize); 5] =
    [(50, 16, 3, 16), (40, 128, 5, 100), (7, 13, 2, 33), (300, 24, 4, 1), (2000, 32, 6, 300)];

#[test]
fn nce_equals_the_hosts() {
    for (n, dim, batch, k) in CASES {
        let case = case(n, dim, batch, k);
        let by = [Uploaded::new(&case), Uploaded::for_kernels(&case, Precision::Fp32)];
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
                let noise = DeviceNoise::new(noise, Device::Cpu);
                for uploaded in &by {
                    let found = nce(&uploaded.problem(t), &uploaded.negatives, z.ln(), &noise);
                    agree(&found, &expected, t, &format!("NCE N={n} K={k} T={t} Z={z}"));
                }
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
            for uploaded in [&uploaded, &Uploaded::for_kernels(&case, Precision::Fp32)] {
                let found = sampled_softmax(&uploaded.problem(t), &uploaded.negatives);
                agree(&found, &expected, t, &format!("sampled N={n} K={k} T={t}"));
            }
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
fn a_bank_in_bf16_is_the_bank_of_its_rounded_rows() {
    let case = rounded(case(300, 24, 4, 70));
    let noise = Noise::Uniform { n: 300 };
    let given = Negatives::Given(&case.negatives);
    let expected =
        super::super::nce::loss(&case.features, &case.bank, &case.indices, &given, 0.1, 3.0, &noise);
    let noise = DeviceNoise::new(&noise, Device::Cpu);
    let sampled = softmax::sampled(&case.features, &case.bank, &case.indices, &given, 0.1);
    let full = softmax::full(&case.features, &case.bank, &case.indices, 0.1, &[7, 8]);
    let bank = case.bank.clone().in_precision(Precision::Bf16);
    let in_tensor_operations = DeviceBank::new(&bank, Device::Cpu);
    for uploaded in
        [Uploaded::with_bank(&case, in_tensor_operations), Uploaded::for_kernels(&case, Precision::Bf16)]
    {
        assert_eq!(uploaded.bank.rows().kind(), Kind::BFloat16);
        let problem = uploaded.problem(0.1);
        agree(&nce(&problem, &uploaded.negatives, 3.0, &noise), &expected, 0.1, "NCE");
        agree(&sampled_softmax(&problem, &uploaded.negatives), &sampled, 0.1, "sampled");
        agree(&full_softmax(&problem, &[7, 8]), &full, 0.1, "full");
    }
}

#[test]
fn the_full_softmax_in_one_kernel_rounds_to_bf16_and_no_further() {
    // Several blocks of features; tiles that end within the bank and beyond it; more parts than tiles, and fewer.
    for (n, dim, batch) in [(50, 16, 3), (64, 128, 17), (200, 128, 5), (1000, 32, 130), (700, 48, 9)] {
        let exact = case(n, dim, batch, 1);
        let rounded = rounded(case(n, dim, batch, 1));
        let excluded: Vec<u32> = (0..n as u32).filter(|i| i % 7 == 3 && !exact.indices.contains(i)).collect();
        for (t, precision, excluded) in [
            (0.03, Precision::Fp32, &[][..]),
            (0.07, Precision::Bf16, &[][..]),
            (0.07, Precision::Fp32, &excluded),
            (0.5, Precision::Bf16, &excluded),
        ] {
            let what = format!("N={n} D={dim} T={t} {precision} {}", excluded.len());
            let (loss, gradient) = in_one_kernel(&rounded, precision, t, excluded);
            // Weights are rounded to bf16 before they are multiplied; nothing else is.
            assert!(loss < 1e-5 + 3e-7 / t, "{what}: loss off by {loss}");
            assert!(gradient < 2f64.powi(-8), "{what}: gradient off by {gradient}");
        }
        let (loss, gradient) = in_one_kernel(&exact, Precision::Fp32, 0.07, &[]);
        assert!(loss < 1e-3 / 0.07 && gradient < 0.03, "N={n} D={dim}: off by {loss} and {gradient}");
    }
}

/// How far the kernel's loss, and its gradient relative to the largest entry, are from the host's in fp32.
fn in_one_kernel(case: &Case, precision: Precision, t: f64, excluded: &[u32]) -> (f64, f64) {
    let expected = softmax::full(&case.features, &case.bank, &case.indices, t, excluded);
    let uploaded = Uploaded::for_kernels(case, precision);
    let problem = DeviceProblem { products: Precision::Bf16, ..uploaded.problem(t) };
    let found = full_softmax(&problem, excluded);
    let largest = expected.gradient.iter().fold(0f32, |largest, g| largest.max(g.abs()));
    let furthest = to_vec_f32(&found.gradient)
        .iter()
        .zip(&expected.gradient)
        .fold(0f32, |furthest, (a, b)| furthest.max((a - b).abs()));
    ((found.loss.double_value(&[]) - expected.loss).abs(), f64::from(furthest / largest))
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
    for uploaded in [Uploaded::new(&broken), Uploaded::for_kernels(&broken, Precision::Fp32)] {
        nan_reaches_the_loss(&uploaded);
    }
}

fn nan_reaches_the_loss(uploaded: &Uploaded) {
    let problem = DeviceProblem { products: Precision::Bf16, ..uploaded.problem(0.1) };
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
