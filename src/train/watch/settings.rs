//! What settings alone tell, before the first step.

use super::Facts;
use crate::config::{ObjectiveKind, TrainConfig};
use crate::model::PrecisionChoice;
use crate::objective::{NormalizerMode, normalizer::analytic_ln_z};
use crate::report::Finding;

/// Bounds of the learning rate that SGD's momentum makes effective, `lr / (1 − momentum)`: 0.3 as published.
pub(super) const EFFECTIVE_LR: (f64, f64) = (3e-3, 10.0);

/// Bounds of the temperature: 0.07 and 0.1 as published.
pub(super) const TEMPERATURE: (f64, f64) = (0.03, 1.0);

/// How far ln Z, where it is given, may lie from what a fresh bank leads one to expect.
pub(super) const GIVEN_LN_Z: f64 = 4.6;

pub(super) fn look(config: &TrainConfig, facts: &Facts) -> Vec<Finding> {
    [
        learning_rate(config),
        temperature(config),
        given_z(config, facts),
        negatives(config, facts),
        precision(config, facts),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn learning_rate(config: &TrainConfig) -> Option<Finding> {
    let (low, high) = EFFECTIVE_LR;
    let effective = config.lr / (1.0 - config.momentum);
    let what = format!("--lr {} with --momentum {}", config.lr, config.momentum);
    let text = if effective > high {
        format!(
            "{what} steps {:.0} times as far as the published settings; the loss will likely not fall",
            effective / 0.3
        )
    } else if effective < low {
        format!(
            "{what} steps {:.0} times less far than the published settings; the features will hardly change",
            0.3 / effective
        )
    } else {
        return None;
    };
    Some(Finding::warning("learning-rate", text))
}

fn temperature(config: &TrainConfig) -> Option<Finding> {
    let (low, high) = TEMPERATURE;
    let t = config.temperature;
    let text = if t > high {
        format!(
            "--temperature {t}: the best score is then at most e^(2/T) = {:.1} times the worst, so an image can hardly be told from \
             the others; published are 0.07 and 0.1",
            (2.0 / t).exp()
        )
    } else if t < low {
        format!(
            "--temperature {t}: a similarity that is 0.1 higher then counts e^(0.1/T) = {:.0} times as much, so one neighbour decides \
             every gradient; published are 0.07 and 0.1",
            (0.1 / t).exp()
        )
    } else {
        return None;
    };
    Some(Finding::warning("temperature", text))
}

fn given_z(config: &TrainConfig, facts: &Facts) -> Option<Finding> {
    let NormalizerMode::Fixed(z) = config.normalizer.0 else { return None };
    if config.objective != ObjectiveKind::Nce {
        return None;
    }
    let expected = analytic_ln_z(facts.rows, config.embed_dim, config.temperature);
    ((z.ln() - expected).abs() > GIVEN_LN_Z).then(|| {
        let text = format!(
            "--normalizer {z}: for {} images, D = {} and T = {} about {:.3e} is expected; --normalizer first-batch estimates it",
            facts.rows,
            config.embed_dim,
            config.temperature,
            expected.exp()
        );
        Finding::warning("normalizer", text)
    })
}

fn negatives(config: &TrainConfig, facts: &Facts) -> Option<Finding> {
    let too_many = config.objective != ObjectiveKind::Softmax && config.n_negatives >= facts.images;
    too_many.then(|| {
        let text = format!(
            "{} negatives from {} images: --nce-k 0 compares with all of them and is exact",
            config.n_negatives, facts.images
        );
        Finding::warning("negatives", text)
    })
}

pub(super) fn precision(config: &TrainConfig, facts: &Facts) -> Option<Finding> {
    let slow = facts.on_cpu && facts.has_bf16 && config.precision == PrecisionChoice::Fp32;
    slow.then(|| {
        let text = "this processor multiplies bf16 in hardware, and the run is in fp32: --precision bf16 (or auto) is faster";
        Finding::advice("precision", text)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{abouts, config, facts};
    use super::*;
    use crate::config::{NormalizerChoice, Preset};

    fn said(config: &TrainConfig) -> Vec<&'static str> {
        abouts(&look(config, &facts()))
    }

    #[test]
    fn published_settings_and_those_of_the_demo_pass() {
        for preset in [Preset::Cifar, Preset::Imagenet] {
            assert_eq!(said(&config(preset)), [""; 0]);
        }
        let demo = TrainConfig {
            lr: 0.1,
            batch_size: 32,
            n_negatives: 0,
            objective: ObjectiveKind::Softmax,
            ..config(Preset::Cifar)
        };
        assert_eq!(
            abouts(&look(&demo, &crate::train::watch::Facts { rows: 2000, images: 2000, ..facts() })),
            [""; 0]
        );
        // As the released ImageNet models have it.
        let z = NormalizerChoice(NormalizerMode::Fixed(2_876_934.0));
        let released = TrainConfig { normalizer: z, ..config(Preset::Imagenet) };
        assert_eq!(
            abouts(&look(&released, &crate::train::watch::Facts { rows: 1_281_167, ..facts() })),
            [""; 0]
        );
    }

    #[test]
    fn a_learning_rate_out_of_range_is_noticed_with_its_momentum() {
        let with = |lr, momentum| said(&TrainConfig { lr, momentum, ..config(Preset::Cifar) });
        for (lr, momentum) in [(1.5, 0.9), (11.0, 0.0), (0.2, 0.99), (1e-4, 0.9), (1e-3, 0.0)] {
            assert_eq!(with(lr, momentum), ["learning-rate"], "{lr} {momentum}");
        }
        for (lr, momentum) in [(0.5, 0.9), (1.0, 0.0), (1e-3, 0.9), (0.3, 0.9)] {
            assert_eq!(with(lr, momentum), [""; 0], "{lr} {momentum}");
        }
    }

    #[test]
    fn a_temperature_out_of_range_is_noticed() {
        let with = |temperature| said(&TrainConfig { temperature, ..config(Preset::Cifar) });
        assert_eq!(with(0.02), ["temperature"]);
        assert_eq!(with(2.0), ["temperature"]);
        assert!([0.03, 0.07, 0.1, 0.5, 1.0].into_iter().all(|t| with(t).is_empty()));
    }

    #[test]
    fn a_given_z_that_cannot_be_meant_is_noticed() {
        let with = |z, objective| {
            let normalizer = NormalizerChoice(NormalizerMode::Fixed(z));
            said(&TrainConfig { normalizer, objective, ..config(Preset::Cifar) })
        };
        // Z/N instead of Z; and a Z of another temperature.
        assert_eq!(with(2.2, ObjectiveKind::Nce), ["normalizer"]);
        assert_eq!(with(5e8, ObjectiveKind::Nce), ["normalizer"]);
        assert_eq!(with(75_000.0, ObjectiveKind::Nce), [""; 0]);
        assert_eq!(with(2.2, ObjectiveKind::SampledSoftmax), [""; 0]);
    }

    #[test]
    fn as_many_negatives_as_images_are_noticed() {
        let few = crate::train::watch::Facts { images: 4096, ..facts() };
        assert_eq!(abouts(&look(&config(Preset::Cifar), &few)), ["negatives"]);
        let softmax =
            TrainConfig { objective: ObjectiveKind::Softmax, n_negatives: 0, ..config(Preset::Cifar) };
        assert_eq!(abouts(&look(&softmax, &few)), [""; 0]);
        let one_more = crate::train::watch::Facts { images: 4097, ..facts() };
        assert_eq!(abouts(&look(&config(Preset::Cifar), &one_more)), [""; 0]);
    }

    #[test]
    fn fp32_where_bf16_is_fast_is_noticed() {
        let fast = crate::train::watch::Facts { has_bf16: true, ..facts() };
        let with = |precision| TrainConfig { precision, ..config(Preset::Cifar) };
        let found = look(&with(PrecisionChoice::Fp32), &fast);
        assert!(abouts(&found) == ["precision"] && !found[0].is_warning);
        assert_eq!(abouts(&look(&with(PrecisionChoice::Bf16), &fast)), [""; 0]);
        assert_eq!(said(&with(PrecisionChoice::Fp32)), [""; 0]);
        let gpu = crate::train::watch::Facts { on_cpu: false, ..fast };
        assert_eq!(abouts(&look(&with(PrecisionChoice::Fp32), &gpu)), [""; 0]);
    }
}
