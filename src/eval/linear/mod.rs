//! Linear classification on frozen features: what a linear layer makes of what the encoder knows (Wu et al. 2018, §4.2).
//!
//! [`features`] takes the numbers from the encoder, pooled where there are many, and standardises them; [`full_batch`]
//! solves for the optimum, [`sgd`] trains as papers do, with or without [`augmented`] images. Whatever is swept is
//! chosen on training images that were kept back, never on the test images.
//!
//! Shapes: N images, F numbers of a feature, C classes, H heads side by side.

pub mod augmented;
pub mod cache;
pub mod features;
pub mod full_batch;
pub mod heads;
pub mod lbfgs;
pub mod metric;
pub mod sgd;

use serde::Serialize;
use tch::{Device, Tensor};

use crate::error::Result;
use crate::eval::knn::{Confusion, accuracy};
use crate::model::to_vec_f32;
use cache::Cache;
use heads::Heads;
use sgd::SgdSettings;

/// Images whose scores are computed at a time.
const CHUNK: usize = 4096;

/// Images as a classifier sees them: features, standardised, with their labels.
#[derive(Clone, Copy)]
pub struct Examples<'a> {
    /// `[N, F]`.
    pub features: &'a Cache,
    /// `[N]`, each below `n_classes` where they are learnt from.
    pub labels: &'a [u32],
    /// C.
    pub n_classes: usize,
    /// Where to compute.
    pub device: Device,
}

impl Examples<'_> {
    /// The features of the images `range`, `[n, F]`, on the device.
    fn tensor(&self, range: std::ops::Range<usize>) -> Tensor {
        let shape = [range.len() as i64, self.features.dim() as i64];
        Tensor::from_slice(self.features.rows(range)).view(shape).to_device(self.device)
    }

    /// The features of the images `rows`, `[n, F]`, on the device.
    fn gather(&self, rows: &[u32]) -> Tensor {
        let shape = [rows.len() as i64, self.features.dim() as i64];
        let values: Vec<f32> = rows.iter().flat_map(|&i| self.features.row(i as usize)).copied().collect();
        Tensor::from_slice(&values).view(shape).to_device(self.device)
    }

    /// All of them, by number.
    fn every(&self) -> Vec<u32> {
        (0..self.labels.len() as u32).collect()
    }
}

/// A classifier, and how it came to be.
pub struct Fitted {
    /// What was swept: the L2 strength λ, or the learning rate.
    pub setting: f64,
    /// The classifier, alone.
    pub heads: Heads,
    /// Its parameters in f64 where the solver kept them: `[F·C]` weights, `[C]` biases.
    pub parameters: Vec<f64>,
    /// Its training loss: the objective, or the mean over the last epoch.
    pub loss: f64,
    /// Iterations of L-BFGS, or epochs.
    pub iterations: usize,
    /// Whether L-BFGS reached its tolerance.
    pub converged: Option<bool>,
    /// The largest component of its gradient at the end.
    pub gradient_norm: Option<f64>,
}

/// A setting that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// λ, or the learning rate.
    pub setting: f64,
    /// Share of the held-out training images that it got right, 0 to 1; NaN (null) if it diverged. None where there
    /// was nothing to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_top1: Option<f64>,
}

/// What came of one layer.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Everything that was tried.
    pub candidates: Vec<Candidate>,
    /// The setting that was chosen.
    pub chosen: f64,
    /// The training loss with it.
    pub loss: f64,
    /// Iterations of L-BFGS, or epochs.
    pub iterations: usize,
    /// Whether L-BFGS reached its tolerance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub converged: Option<bool>,
    /// The largest component of its gradient at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Share of the test images whose class scores highest, 0 to 1.
    pub top1: f64,
    /// Share of the test images whose class is among the first five.
    pub top5: f64,
    /// Share of each class's test images that was found to be of it.
    pub per_class: Vec<f64>,
}

/// Class scores `[n, C]` of the images `rows`, all positive, in the order of the logits.
fn scores(heads: &Heads, examples: &Examples<'_>, rows: &[u32]) -> Vec<f64> {
    let mut scores = Vec::with_capacity(rows.len() * examples.n_classes);
    for rows in rows.chunks(CHUNK) {
        let logits = heads.logits(&examples.gather(rows));
        scores.extend(positive(&to_vec_f32(&logits), examples.n_classes));
    }
    scores
}

/// Scores in the order of `logits` `[n, C]`, all positive: what counts accuracy takes a score of 0 for a class that
/// nothing spoke for.
pub(super) fn positive(logits: &[f32], classes: usize) -> Vec<f64> {
    let rows = logits.chunks_exact(classes).flat_map(|row| {
        let least = row.iter().copied().fold(f32::INFINITY, f32::min);
        row.iter().map(move |&logit| f64::from(logit - least) + 1.0)
    });
    rows.collect()
}

/// Whether a classifier has run away.
fn diverged(heads: &Heads) -> bool {
    ![&heads.weight, &heads.bias].iter().all(|t| bool::try_from(t.isfinite().all()).unwrap_or(false))
}

/// Share of the images `rows` of `examples` that `fitted` gets right; NaN if it diverged.
fn top1(fitted: &Fitted, examples: &Examples<'_>, rows: &[u32]) -> f64 {
    if diverged(&fitted.heads) {
        return f64::NAN;
    }
    let truth: Vec<u32> = rows.iter().map(|&i| examples.labels[i as usize]).collect();
    accuracy(&scores(&fitted.heads, examples, rows), examples.n_classes, &truth).top1
}

/// The candidates with their accuracy on the images `held_out` of `examples`, and the number of the best; of equal
/// ones the first. Those that diverged are never chosen while there is another.
fn choose(fitted: &[Fitted], examples: &Examples<'_>, held_out: &[u32]) -> (Vec<Candidate>, usize) {
    let candidates: Vec<_> = fitted
        .iter()
        .map(|one| {
            let share = top1(one, examples, held_out);
            Candidate { setting: one.setting, held_out_top1: Some(share) }
        })
        .collect();
    let share = |at: usize| candidates[at].held_out_top1.filter(|share| !share.is_nan()).unwrap_or(-1.0);
    let best = (0..candidates.len()).reduce(|best, at| if share(at) > share(best) { at } else { best });
    (candidates, best.expect("at least one setting is tried"))
}

/// Tests `fitted`, which was chosen among `candidates`.
fn outcome(candidates: Vec<Candidate>, fitted: &Fitted, test: &Examples<'_>) -> Outcome {
    let (top1, top5, per_class) = if diverged(&fitted.heads) {
        (f64::NAN, f64::NAN, vec![f64::NAN; test.n_classes])
    } else {
        let scores = scores(&fitted.heads, test, &test.every());
        let reached = accuracy(&scores, test.n_classes, test.labels);
        (reached.top1, reached.top5, Confusion::of(&scores, test.n_classes, test.labels).per_class())
    };
    let Fitted { setting: chosen, loss, iterations, converged, gradient_norm, .. } = *fitted;
    Outcome { candidates, chosen, loss, iterations, converged, gradient_norm, top1, top5, per_class }
}

/// The numbers of the images that are marked.
fn marked(held_out: &[bool]) -> Vec<u32> {
    (0u32..).zip(held_out).filter(|(_, marked)| **marked).map(|(i, _)| i).collect()
}

/// Logistic regression on all of `train`, tested on `test`. With several strengths in `l2` each is first fitted without
/// the images that `held_out` marks, and the one that gets most of those right is fitted again with all.
///
/// `progress` hears the passes over the features, of one fit and then of the other; its error ends them.
///
/// # Errors
/// Those of `progress`.
pub fn solve(
    train: &Examples<'_>,
    test: &Examples<'_>,
    held_out: &[bool],
    l2: &[f64],
    most_iterations: usize,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Outcome> {
    let mut start = None;
    let (mut candidates, mut best) = (vec![Candidate { setting: l2[0], held_out_top1: None }], 0);
    if l2.len() > 1 {
        let counts: Vec<f32> = held_out.iter().map(|&out| f32::from(u8::from(!out))).collect();
        let mut fitted = full_batch::fit(train, &counts, l2, None, most_iterations, progress)?;
        (candidates, best) = choose(&fitted, train, &marked(held_out));
        start = Some(vec![std::mem::take(&mut fitted[best].parameters)]);
    }
    let all = vec![1.0; train.labels.len()];
    let fitted = full_batch::fit(train, &all, &l2[best..=best], start, most_iterations, progress)?.remove(0);
    Ok(outcome(candidates, &fitted, test))
}

/// SGD on cached features, tested on `test`; the rate is chosen on the images that `held_out` marks, and the classifier
/// that is tested has seen them too. `progress` hears the images done, over all epochs; its error ends the training.
///
/// # Errors
/// Those of `progress`.
pub fn train(
    train: &Examples<'_>,
    test: &Examples<'_>,
    held_out: &[bool],
    learning_rates: &[f64],
    settings: &SgdSettings,
    seed: u64,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Outcome> {
    let (choosing, tested) = sgd::fit(train, held_out, learning_rates, settings, seed, progress)?;
    Ok(choose_and_test(&choosing, &tested, train, &marked(held_out), test))
}

/// The outcome of the classifier in `tested` whose counterpart in `choosing` does best on the images `held_out` of
/// `examples`.
fn choose_and_test(
    choosing: &[Fitted],
    tested: &[Fitted],
    examples: &Examples<'_>,
    held_out: &[u32],
    test: &Examples<'_>,
) -> Outcome {
    if let [only] = tested {
        let candidate = Candidate { setting: only.setting, held_out_top1: None };
        return outcome(vec![candidate], only, test);
    }
    let (candidates, best) = choose(choosing, examples, held_out);
    outcome(candidates, &tested[best], test)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// Two classes along one number, 40 images, the last 8 to choose on.
    fn line() -> (Cache, Vec<u32>, Vec<bool>) {
        let labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
        let values = (0u8..40).map(|i| f32::from(i % 2) * 2.0 - 1.0 + 0.3 * f32::from(i % 7) - 0.9).collect();
        (Cache::of(values, 1), labels, (0..40).map(|i| i >= 32).collect())
    }

    #[test]
    fn both_solvers_separate_what_can_be_separated() {
        let (features, labels, held_out) = line();
        let examples = Examples { features: &features, labels: &labels, n_classes: 2, device: Device::Cpu };
        let solved = solve(&examples, &examples, &held_out, &[1e-4, 10.0], 200, &mut |_| Ok(())).unwrap();
        assert_eq!(solved.candidates.len(), 2);
        assert!(solved.top1 > 0.8 && solved.top5 == 1.0 && solved.converged == Some(true), "{solved:?}");
        let settings = SgdSettings { batch_size: 8, ..SgdSettings::new(20) };
        let trained =
            train(&examples, &examples, &held_out, &[1e-9, 0.1], &settings, 0, &mut |_| Ok(())).unwrap();
        assert!((trained.top1 - solved.top1).abs() < 0.11, "{trained:?}");
        let one = train(&examples, &examples, &held_out, &[0.1], &settings, 0, &mut |_| Ok(())).unwrap();
        assert_eq!(one.candidates, [Candidate { setting: 0.1, held_out_top1: None }]);
    }

    #[test]
    fn both_solvers_stop_when_they_are_told_to() {
        let (features, labels, held_out) = line();
        let examples = Examples { features: &features, labels: &labels, n_classes: 2, device: Device::Cpu };
        let stop = |done: &mut usize| {
            *done += 1;
            if *done == 3 { Err(Error::usage("enough")) } else { Ok(()) }
        };
        let (mut passes, mut steps) = (0, 0);
        let solved =
            solve(&examples, &examples, &held_out, &[1e-6, 1e-4], 200, &mut |_| stop(&mut passes)).err();
        let settings = SgdSettings { batch_size: 8, ..SgdSettings::new(20) };
        let trained =
            train(&examples, &examples, &held_out, &[0.1], &settings, 0, &mut |_| stop(&mut steps)).err();
        assert_eq!([solved, trained].map(|error| error.unwrap().to_string()), ["enough"; 2]);
        assert_eq!((passes, steps), (3, 3));
    }

    #[test]
    fn a_classifier_that_ran_away_is_not_chosen_and_not_right() {
        let (features, labels, held_out) = line();
        let examples = Examples { features: &features, labels: &labels, n_classes: 2, device: Device::Cpu };
        let settings = SgdSettings { batch_size: 8, weight_decay: 3.0, ..SgdSettings::new(60) };
        let rates = [1e30, 0.01];
        let trained = train(&examples, &examples, &held_out, &rates, &settings, 0, &mut |_| Ok(())).unwrap();
        assert_eq!(trained.chosen, 0.01);
        assert!(trained.candidates[0].held_out_top1.is_some_and(f64::is_nan));
        let alone =
            train(&examples, &examples, &held_out, &rates[..1], &settings, 0, &mut |_| Ok(())).unwrap();
        assert!(alone.top1.is_nan());
    }
}
