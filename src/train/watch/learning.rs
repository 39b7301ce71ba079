//! What an epoch's measurements tell about whether anything is learnt.

use super::{Epoch, Facts};
use crate::config::{ObjectiveKind, TrainConfig};
use crate::report::Finding;

/// Epochs and optimiser steps before the monitor is judged.
pub(super) const YOUNG: (u64, u64) = (3, 1000);

/// Epochs and optimiser steps before it is judged how features lie: in the first thousand steps they crowd together, and then
/// spread.
pub(super) const CROWDED: (u64, u64) = (10, 3000);

/// Standard deviations above chance that a monitor should have reached.
pub(super) const SIGMAS: f64 = 3.0;

/// Second views that the label-free monitor draws at most.
const SECOND_VIEWS: usize = 2_000;

/// Features are called collapsed below this effective rank, and below this share of what it could be.
pub(super) const COLLAPSED: (f64, f64) = (3.0, 0.25);

/// How far ln Z may lie from what the scores of the bank add up to: a factor of 100.
pub(super) const LN_Z: f64 = 4.6;

/// How far the mean loss of an epoch may lie above that of features that know nothing.
pub(super) const LOSS: f64 = 1.0;

pub(super) fn look(config: &TrainConfig, facts: &Facts, epoch: &Epoch, loss: Option<f64>) -> Vec<Finding> {
    [chance(config, facts, epoch), collapsed(epoch), z(facts, epoch), diverging(config, facts, epoch, loss)]
        .into_iter()
        .flatten()
        .collect()
}

fn is_before(epoch: &Epoch, (epochs, steps): (u64, u64)) -> bool {
    epoch.finished < epochs || epoch.steps < steps
}

/// The monitor does not tell more than the frequencies of the classes.
fn chance(config: &TrainConfig, facts: &Facts, epoch: &Epoch) -> Option<Finding> {
    if is_before(epoch, YOUNG) {
        return None;
    }
    let monitor = epoch.evaluations.iter().rev().find(|record| record.metric.ends_with("_top1"))?;
    let (chance, asked) = match (monitor.metric.as_str(), facts.largest_class) {
        ("view_top1", _) => (1.0 / facts.images as f64, facts.images.min(SECOND_VIEWS)),
        (_, Some(share)) => (share, facts.queries),
        (_, None) => return None,
    };
    let deviation = (chance * (1.0 - chance) / asked.max(1) as f64).sqrt();
    let bound = 100.0 * (chance + SIGMAS * deviation);
    // With one class, or nearly one, nothing can lie above chance.
    (monitor.value <= bound && bound < 100.0).then(|| {
        let text = format!(
            "after {} epochs {} is {:.2} %, no better than chance ({:.2} %): check the labels, the learning rate (--lr {}) and the \
             loss curve; features that have learnt something are better within the first epochs",
            epoch.finished,
            monitor.metric,
            monitor.value,
            100.0 * chance,
            config.lr
        );
        Finding::warning("chance", text)
    })
}

/// All embeddings lie in few directions.
fn collapsed(epoch: &Epoch) -> Option<Finding> {
    let spread = epoch.spread.filter(|_| !is_before(epoch, CROWDED))?;
    let (rank, most) = (spread.effective_rank, spread.most as f64);
    (rank < COLLAPSED.0 && rank < COLLAPSED.1 * most).then(|| {
        let text = format!(
            "the embeddings have collapsed: they use about {rank:.1} of {most} directions (effective rank of the bank); lower --lr, \
             and check that --bank-momentum is below 1 and the temperature is not far from 0.1"
        );
        Finding::warning("collapsed", text)
    })
}

/// Z no longer normalises the scores.
fn z(facts: &Facts, epoch: &Epoch) -> Option<Finding> {
    let (ln_z, spread) = (epoch.ln_z?, epoch.spread.filter(|_| !is_before(epoch, CROWDED))?);
    let scores = (facts.rows as f64).ln() + spread.ln_mean_exp;
    let off = ln_z - scores;
    (off.abs() > LN_Z).then(|| {
        let (factor, side) = (off.abs().exp(), if off > 0.0 { "more" } else { "less" });
        let text = format!(
            "Z = {:.3e} is {factor:.0} times {side} than the scores of the bank add up to ({:.3e}), so NCE mistakes {}; a new run with \
             --normalizer running-average follows them, and --nce-k 0 needs no Z",
            ln_z.exp(),
            scores.exp(),
            if off > 0.0 { "images for noise" } else { "noise for images" }
        );
        Finding::warning("normalizer-drift", text)
    })
}

/// The loss is worse than that of features that know nothing. NCE's depends on Z, and has a rule of its own.
fn diverging(config: &TrainConfig, facts: &Facts, epoch: &Epoch, loss: Option<f64>) -> Option<Finding> {
    let candidates = match config.objective {
        ObjectiveKind::Softmax => facts.images as f64,
        ObjectiveKind::SampledSoftmax => config.n_negatives as f64 + 1.0,
        ObjectiveKind::Nce => return None,
    };
    if epoch.finished < 2 {
        return None;
    }
    // The mean of ln Σ exp(s/T) against a bank of noise, where s has the variance 1/D, for an image that scores 0.
    let ignorant = candidates.ln() + 1.0 / (2.0 * config.embed_dim as f64 * config.temperature.powi(2));
    let loss = loss?;
    (loss > ignorant + LOSS).then(|| {
        let text = format!(
            "the mean loss of epoch {} is {loss:.2}, and {ignorant:.2} is what features have that know nothing: training diverges; \
             lower --lr {} or add --warmup-epochs",
            epoch.finished, config.lr
        );
        Finding::warning("diverging", text)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{abouts, config, facts};
    use super::*;
    use crate::config::Preset;
    use crate::eval::spread::Spread;
    use crate::report::EvalRecord;

    const HEALTHY: Spread = Spread { effective_rank: 60.0, most: 128, ln_mean_exp: 0.4 };

    fn monitor(metric: &str, value: f64) -> [EvalRecord; 1] {
        [EvalRecord { metric: metric.into(), value, ..Default::default() }]
    }

    fn old<'a>(evaluations: &'a [EvalRecord], spread: Spread, ln_z: Option<f64>) -> Epoch<'a> {
        Epoch { finished: 10, steps: 3910, evaluations, spread: Some(spread), ln_z }
    }

    fn said(epoch: Epoch) -> Vec<&'static str> {
        abouts(&look(&config(Preset::Cifar), &facts(), &epoch, Some(9.0)))
    }

    #[test]
    fn a_monitor_at_chance_is_noticed_after_many_steps() {
        let at_chance = monitor("knn_top1", 10.8);
        assert_eq!(said(old(&at_chance, HEALTHY, None)), ["chance"]);
        assert_eq!(said(Epoch { finished: 2, ..old(&at_chance, HEALTHY, None) }), [""; 0]);
        assert_eq!(said(Epoch { steps: 999, ..old(&at_chance, HEALTHY, None) }), [""; 0]);
        assert_eq!(said(old(&monitor("knn_top1", 13.5), HEALTHY, None)), [""; 0]);
        // 60 % of the images are of one class: 62 % is little, but 61.5 % is nothing.
        let skewed = Facts { largest_class: Some(0.6), ..facts() };
        let with = |value| {
            let records = monitor("knn_top1", value);
            abouts(&look(&config(Preset::Cifar), &skewed, &old(&records, HEALTHY, None), None))
        };
        assert_eq!((with(61.4), with(62.0)), (vec!["chance"], vec![]));
        // One class: nothing can be better than chance.
        let single = Facts { largest_class: Some(1.0), ..facts() };
        let all = monitor("knn_top1", 100.0);
        assert_eq!(look(&config(Preset::Cifar), &single, &old(&all, HEALTHY, None), None), []);
        // Without labels, one of 50,000 is chance.
        assert_eq!(said(old(&monitor("view_top1", 0.0), HEALTHY, None)), ["chance"]);
        assert_eq!(said(old(&monitor("view_top1", 1.0), HEALTHY, None)), [""; 0]);
        assert_eq!(said(old(&[], HEALTHY, None)), [""; 0]);
    }

    #[test]
    fn collapsed_features_are_noticed() {
        let with = |effective_rank, most| said(old(&[], Spread { effective_rank, most, ..HEALTHY }, None));
        assert_eq!(with(1.2, 128), ["collapsed"]);
        assert_eq!(with(0.0, 128), ["collapsed"]);
        assert_eq!(with(6.0, 128), [""; 0]);
        // Two of four directions are no collapse.
        assert_eq!(with(2.0, 4), [""; 0]);
        let line = Spread { effective_rank: 1.0, ..HEALTHY };
        assert_eq!(said(Epoch { steps: 2999, ..old(&[], line, None) }), [""; 0]);
        assert_eq!(said(Epoch { finished: 9, ..old(&[], line, None) }), [""; 0]);
    }

    #[test]
    fn a_z_that_no_longer_fits_is_noticed() {
        let scores = 50_000f64.ln() + HEALTHY.ln_mean_exp;
        for (off, expected) in
            [(5.0, Some("images for noise")), (-5.0, Some("noise for images")), (4.0, None)]
        {
            let found = look(&config(Preset::Cifar), &facts(), &old(&[], HEALTHY, Some(scores + off)), None);
            assert_eq!(found.len(), usize::from(expected.is_some()), "{off}");
            assert!(expected.is_none_or(|text| found[0].text.contains(text)), "{found:?}");
        }
    }

    #[test]
    fn a_loss_worse_than_ignorance_is_noticed() {
        let softmax =
            TrainConfig { objective: ObjectiveKind::Softmax, n_negatives: 0, ..config(Preset::Cifar) };
        let ignorant = 50_000f64.ln() + 1.0 / (2.0 * 128.0 * 0.01);
        let with = |config: &TrainConfig, finished, loss| {
            abouts(&look(config, &facts(), &Epoch { finished, ..old(&[], HEALTHY, None) }, Some(loss)))
        };
        assert_eq!(with(&softmax, 3, ignorant + 1.2), ["diverging"]);
        assert_eq!(with(&softmax, 3, ignorant + 0.8), [""; 0]);
        assert_eq!(with(&softmax, 1, ignorant + 5.0), [""; 0]);
        assert_eq!(with(&config(Preset::Cifar), 3, 40.0), [""; 0], "NCE");
        let sampled = TrainConfig { objective: ObjectiveKind::SampledSoftmax, ..softmax };
        assert_eq!(with(&TrainConfig { n_negatives: 4096, ..sampled }, 3, 9.0 + 1.5), ["diverging"]);
    }
}
