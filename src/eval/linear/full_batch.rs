//! Multinomial logistic regression with L2, by L-BFGS on all images at once: the optimum itself, the same every time.
//!
//! `mean cross-entropy + (λ/2)·‖W‖²`, biases free: scikit-learn's `LogisticRegression` with `C = 1/(λ·n)`. Products
//! are f32, sums over batches of images and the minimiser f64.

use tch::{Device, Kind, Tensor};

use super::heads::Heads;
use super::lbfgs::{End, Lbfgs};
use super::metric::SecondMoments;
use super::{Examples, Fitted};
use crate::error::Result;

/// Largest component of the gradient of the mean loss at which a problem counts as solved.
pub const TOLERANCE: f64 = 1e-5;

/// Images whose logits are in memory at a time.
const CHUNK: usize = 4096;

/// Solves the problem for each of `l2` (λ) side by side on the images of `examples` that `counts` picks: f32 `[N]`, 1
/// for an image that takes part, 0 for another. `starts`, if any, are the points to start from.
///
/// `progress` hears the passes over the features; its error ends the fit.
///
/// # Errors
/// Those of `progress`.
pub fn fit(
    examples: &Examples<'_>,
    counts: &[f32],
    l2: &[f64],
    starts: Option<Vec<Vec<f64>>>,
    most_iterations: usize,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Fitted>> {
    let (dim, classes) = (examples.features.dim(), examples.n_classes);
    let variables = (dim + 1) * classes;
    let starts = starts.unwrap_or_else(|| vec![vec![0.0; variables]; l2.len()]);
    let moments = SecondMoments::of(examples, counts, CHUNK);
    let metrics: Vec<_> = l2
        .iter()
        .map(|&l2| {
            let metric = moments.as_ref()?.metric(classes, l2)?;
            Some(move |gradient: &[f64]| metric.apply(gradient))
        })
        .collect();
    let mut problems: Vec<Lbfgs<'_>> = Vec::with_capacity(l2.len());
    for (start, metric) in starts.into_iter().zip(&metrics) {
        let problem = Lbfgs::new(start, TOLERANCE, most_iterations);
        problems.push(match metric {
            Some(metric) => problem.in_metric(metric),
            None => problem,
        });
    }
    let mut passes = 0;
    loop {
        let open: Vec<usize> = (0..problems.len()).filter(|&p| problems[p].end().is_none()).collect();
        if open.is_empty() {
            break;
        }
        let trials: Vec<(&[f64], f64)> = open.iter().map(|&p| (problems[p].trial(), l2[p])).collect();
        let found = values_and_gradients(examples, counts, &trials);
        for (&p, (value, gradient)) in open.iter().zip(found) {
            problems[p].tell(value, gradient);
        }
        passes += 1;
        progress(passes)?;
    }
    let fitted = problems.iter().zip(l2).map(|(problem, &l2)| Fitted {
        setting: l2,
        heads: Heads::of(&[problem.point()], dim, classes, examples.device),
        parameters: problem.point().to_vec(),
        loss: problem.value(),
        iterations: problem.iterations(),
        converged: Some(problem.end() == Some(End::Converged)),
        gradient_norm: Some(problem.gradient_norm()),
    });
    Ok(fitted.collect())
}

/// Value and gradient of the objective at each trial, with its λ; one pass over the features.
fn values_and_gradients(
    examples: &Examples<'_>,
    counts: &[f32],
    trials: &[(&[f64], f64)],
) -> Vec<(f64, Vec<f64>)> {
    let (features, classes, device) = (examples.features, examples.n_classes, examples.device);
    let (n, dim) = (features.len(), features.dim());
    let points: Vec<&[f64]> = trials.iter().map(|(point, _)| *point).collect();
    let heads = Heads::of(&points, dim, classes, device);
    let columns = (trials.len() * classes) as i64;
    let double = (Kind::Double, device);
    let mut losses = Tensor::zeros([trials.len() as i64], double);
    let mut weight = Tensor::zeros([dim as i64, columns], double);
    let mut bias = Tensor::zeros([columns], double);
    for start in (0..n).step_by(CHUNK) {
        let range = start..(start + CHUNK).min(n);
        let labels: Vec<i64> = examples.labels[range.clone()].iter().map(|&l| i64::from(l)).collect();
        let counts = Tensor::from_slice(&counts[range.clone()]).to_device(device).unsqueeze(1);
        let pass =
            heads.pass(&examples.tensor(range), &Tensor::from_slice(&labels).to_device(device), &counts);
        let _ = losses.g_add_(&pass.losses);
        let _ = weight.g_add_(&pass.weight);
        let _ = bias.g_add_(&pass.bias);
    }
    let taken: f64 = counts.iter().map(|&count| f64::from(count)).sum();
    let (losses, bias) = (doubles(&losses), doubles(&bias));
    let trials = trials.iter().enumerate().map(|(head, (point, l2))| {
        let start = head * classes;
        let mut gradient = doubles(&weight.narrow(1, start as i64, classes as i64));
        gradient.extend_from_slice(&bias[start..start + classes]);
        gradient.iter_mut().for_each(|g| *g /= taken);
        let weights = &point[..dim * classes];
        gradient.iter_mut().zip(weights).for_each(|(g, w)| *g += l2 * w);
        let penalty = 0.5 * l2 * weights.iter().map(|w| w * w).sum::<f64>();
        (losses[head] / taken + penalty, gradient)
    });
    trials.collect()
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(Device::Cpu).contiguous();
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.copy_data(&mut values, count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::linear::cache::Cache;
    use crate::rng::{Purpose, stream};
    use rand::RngExt;

    /// 60 images of 3 overlapping classes in 4 numbers.
    fn blobs() -> (Cache, Vec<u32>) {
        let mut rng = stream(3, Purpose::Test, 0, 0);
        let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
        let values = labels.iter().flat_map(|&label| {
            (0..4)
                .map(|d| if d == label { 1.0 } else { 0.0 } + rng.random_range(-1.5..1.5))
                .collect::<Vec<f32>>()
        });
        (Cache::of(values.collect(), 4), labels)
    }

    fn solve(examples: &Examples<'_>, counts: &[f32], l2: &[f64]) -> Vec<Fitted> {
        fit(examples, counts, l2, None, 1000, &mut |_| Ok(())).unwrap()
    }

    #[test]
    fn gradients_are_those_of_the_values() {
        let (features, labels) = blobs();
        let examples = Examples { features: &features, labels: &labels, n_classes: 3, device: Device::Cpu };
        let counts: Vec<f32> = (0..60).map(|i| if i % 5 == 0 { 0.0 } else { 1.0 }).collect();
        let point: Vec<f64> = (0..15).map(|i| (f64::from(i) * 1.1).sin()).collect();
        let at = |point: &[f64]| values_and_gradients(&examples, &counts, &[(point, 0.3)]).remove(0);
        let gradient = at(&point).1;
        for i in 0..15 {
            let moved = |by: f64| {
                let mut point = point.clone();
                point[i] += by;
                at(&point).0
            };
            let slope = (moved(0.01) - moved(-0.01)) / 0.02;
            assert!((slope - gradient[i]).abs() < 1e-4, "{i}: {slope} {}", gradient[i]);
        }
    }

    #[test]
    fn the_optimum_is_that_of_patient_gradient_descent() {
        let (features, labels) = blobs();
        let examples = Examples { features: &features, labels: &labels, n_classes: 3, device: Device::Cpu };
        let (counts, l2) = (vec![1.0; 60], 0.05);
        let quick = solve(&examples, &counts, &[l2]).remove(0);
        assert_eq!(quick.converged, Some(true));
        let mut slow = vec![0.0; 15];
        for _ in 0..4000 {
            let (_, gradient) = values_and_gradients(&examples, &counts, &[(&slow, l2)]).remove(0);
            slow.iter_mut().zip(gradient).for_each(|(x, g)| *x -= 0.5 * g);
        }
        for (quick, slow) in quick.parameters[..12].iter().zip(&slow[..12]) {
            assert!((quick - slow).abs() < 1e-3, "{quick} {slow}");
        }
        let value = values_and_gradients(&examples, &counts, &[(&slow, l2)])[0].0;
        assert!((quick.loss - value).abs() < 1e-6, "{} {value}", quick.loss);
    }

    /// Side by side or alone, with images left out by their count or not there at all: the same classifier.
    #[test]
    fn neighbours_and_absent_images_change_nothing() {
        let (features, labels) = blobs();
        let examples = Examples { features: &features, labels: &labels, n_classes: 3, device: Device::Cpu };
        let counts: Vec<f32> = (0..60).map(|i| if i < 45 { 1.0 } else { 0.0 }).collect();
        let together = solve(&examples, &counts, &[1e-3, 0.1, 1.0]);
        let first = Cache::of(features.rows(0..45).to_vec(), 4);
        let fewer = Examples { features: &first, labels: &labels[..45], ..examples };
        let alone = solve(&fewer, &[1.0; 45], &[0.1]).remove(0);
        for (a, b) in together[1].parameters.iter().zip(&alone.parameters) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
        assert!(together[0].loss < together[1].loss && together[1].loss < together[2].loss);
    }

    /// One number and two images of two classes at ±1: by symmetry the weights are ±a, and the derivative of
    /// `ln(1 + exp(−2a)) + λ·a²` vanishes where `λ·a = 1/(1 + exp(2a))`, which is solved here by bisection.
    #[test]
    fn two_points_have_a_closed_optimum() {
        let features = Cache::of(vec![1.0, -1.0], 1);
        let examples = Examples { features: &features, labels: &[0, 1], n_classes: 2, device: Device::Cpu };
        let l2 = 0.1;
        let fitted = solve(&examples, &[1.0, 1.0], &[l2]).remove(0);
        let (mut low, mut high) = (0.0_f64, 10.0);
        for _ in 0..60 {
            let a = 0.5 * (low + high);
            if l2 * a < 1.0 / (1.0 + (2.0 * a).exp()) { low = a } else { high = a }
        }
        let [w0, w1, b0, b1] = fitted.parameters[..] else { panic!("two weights, two biases") };
        assert!((w0 - low).abs() < 1e-4 && (w1 + low).abs() < 1e-4, "{w0} {w1}, expected ±{low}");
        assert!((b0 - b1).abs() < 1e-4);
    }
}
