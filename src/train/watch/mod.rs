//! Noticing that a run will disappoint, or could be faster, while there is time to change it.
//!
//! Each rule is a function of numbers that are at hand anyway; none changes what is trained. What a rule finds is said
//! once in a run. The numbers that decide, with the reason for each, stand in docs/warnings.md.

mod learning;
mod settings;
mod speed;

use std::collections::BTreeSet;

use tch::Device;

use crate::config::TrainConfig;
use crate::data::dataset::Splits;
use crate::eval::spread::Spread;
use crate::model::Precision;
use crate::report::{EvalRecord, Finding, StepRecord};

use speed::Pace;

/// What a run's surroundings are, as far as the rules ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// N, rows of the bank.
    pub rows: usize,
    /// Images that enter batches.
    pub images: usize,
    /// Images that the monitor asks about.
    pub queries: usize,
    /// The largest class's share of the training images; none without labels.
    pub largest_class: Option<f64>,
    /// Processors that this process may use.
    pub cores: usize,
    /// Whether the network runs on processors.
    pub on_cpu: bool,
    /// Whether the device multiplies bf16 in hardware.
    pub has_bf16: bool,
}

impl Facts {
    /// The facts of a run on `splits` whose network is on `device`.
    pub fn of(splits: &Splits, device: Device) -> Self {
        let train = &splits.train;
        let readable = train.len() - train.quarantined().len();
        let largest_class = train.labels().map(|labels| {
            let mut counts = vec![0usize; train.n_classes()];
            labels.iter().for_each(|&label| counts[label as usize] += 1);
            counts.into_iter().max().unwrap_or(0) as f64 / labels.len() as f64
        });
        let asked = splits.test.as_ref().map_or(readable, |test| test.len() - test.quarantined().len());
        Facts {
            rows: train.len(),
            images: readable,
            queries: asked,
            largest_class,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            on_cpu: device == Device::Cpu,
            has_bf16: Precision::auto(device) == Precision::Bf16,
        }
    }
}

/// The rules of one run, and what they have said.
#[derive(Debug)]
pub struct Watch {
    config: TrainConfig,
    facts: Facts,
    said: BTreeSet<String>,
    pace: Pace,
    /// Sum of the losses of the epoch under way, and their number.
    loss: (f64, u64),
}

/// Steps at the beginning of a pass that say nothing about its speed.
pub const WARM_UP_STEPS: u64 = speed::WARM_UP;

/// What bounds a run whose steps are like `steps`, at least one of them, and what would make it faster. The first
/// finding is about what bounds it: `loader-bound` or `compute-bound`.
pub fn about_speed(config: &TrainConfig, facts: &Facts, steps: &[StepRecord]) -> Vec<Finding> {
    let mut pace = Pace::default();
    steps.iter().for_each(|step| pace.add(step));
    let mut found = vec![speed::judge(config, facts, &pace)];
    found.extend(settings::precision(config, facts));
    found
}

/// What an epoch came to.
#[derive(Clone, Copy, Debug)]
pub struct Epoch<'a> {
    /// Epochs finished since the start of the run, this one included.
    pub finished: u64,
    /// Optimiser steps since the start of the run.
    pub steps: u64,
    /// What was measured after it.
    pub evaluations: &'a [EvalRecord],
    /// How the bank's rows lie.
    pub spread: Option<Spread>,
    /// NCE's constant, where there is one.
    pub ln_z: Option<f64>,
}

impl Watch {
    /// Watches a run of `config`; `said` are the things that an earlier process said of it.
    pub fn new(config: TrainConfig, facts: Facts, said: BTreeSet<String>) -> Self {
        Watch { config, facts, said, pace: Pace::default(), loss: (0.0, 0) }
    }

    /// What the settings alone tell.
    pub fn start(&mut self) -> Vec<Finding> {
        let found = settings::look(&self.config, &self.facts);
        self.once(found)
    }

    /// Hears of a step.
    pub fn step(&mut self, record: &StepRecord) {
        self.pace.step(record);
        self.loss.0 += record.loss;
        self.loss.1 += 1;
    }

    /// What an epoch and its measurements tell.
    pub fn epoch(&mut self, epoch: Epoch) -> Vec<Finding> {
        let pace = std::mem::take(&mut self.pace);
        let (sum, steps) = std::mem::take(&mut self.loss);
        let loss = (steps > 0).then(|| sum / steps as f64);
        let mut found = learning::look(&self.config, &self.facts, &epoch, loss);
        found.extend(speed::look(&self.config, &self.facts, &pace));
        self.once(found)
    }

    fn once(&mut self, found: Vec<Finding>) -> Vec<Finding> {
        found.into_iter().filter(|finding| self.said.insert(finding.about.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use crate::data::detect::DataFormat;
    use std::path::Path;

    /// A run with published settings that nothing is wrong with.
    pub(super) fn config(preset: Preset) -> TrainConfig {
        TrainConfig::preset(preset, Path::new("photos"), DataFormat::Folder)
    }

    pub(super) fn facts() -> Facts {
        Facts {
            rows: 50_000,
            images: 50_000,
            queries: 10_000,
            largest_class: Some(0.1),
            cores: 2,
            on_cpu: true,
            has_bf16: false,
        }
    }

    pub(super) fn abouts(found: &[Finding]) -> Vec<&'static str> {
        found.iter().map(|finding| finding.about).collect()
    }

    #[test]
    fn nothing_is_said_twice_not_even_by_another_process() {
        let config = TrainConfig { temperature: 7.0, lr: 1e-9, ..config(Preset::Cifar) };
        let mut watch = Watch::new(config, facts(), BTreeSet::from(["learning-rate".to_owned()]));
        assert_eq!(abouts(&watch.start()), ["temperature"]);
        assert!(watch.start().is_empty());
    }

    #[test]
    fn a_healthy_epoch_is_passed_over() {
        let mut watch = Watch::new(config(Preset::Cifar), facts(), BTreeSet::new());
        assert!(watch.start().is_empty());
        let knn = EvalRecord { metric: "knn_top1".into(), value: 14.0, ..Default::default() };
        for finished in 1..=5 {
            let spread = Some(Spread { effective_rank: 60.0, most: 128, ln_mean_exp: 0.5 });
            let ln_z = Some(50_000f64.ln() + 0.39);
            let evaluations = std::slice::from_ref(&knn);
            let epoch = Epoch { finished, steps: 391 * finished, evaluations, spread, ln_z };
            assert!(watch.epoch(epoch).is_empty());
        }
    }
}
