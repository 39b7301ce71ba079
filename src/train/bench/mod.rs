//! Where the time of training goes on this machine with these images: a pass like any other, measured and thrown
//! away.
//!
//! The steps are those of [`Pass`], with the run's loader, objective and optimiser. What a run does between its steps
//! (records, checkpoints, the monitor) is left out; nothing is written. After them an evaluation pass is measured by itself.

mod evaluation;
mod peak;
mod report;

use std::rc::Rc;
use std::time::{Duration, Instant};

pub use evaluation::Evaluation;
pub use peak::Peak;
pub use report::{Loading, Parts, Report, StepTimes};

use super::images::ResidentImages;
use super::pass::{NoStep, Pass, milliseconds};
use super::replay::Replay;
use super::state::TrainState;
use super::step::Objective;
use super::watch::{Facts, WARM_UP_STEPS, about_speed};
use crate::bank::Bank;
use crate::config::TrainConfig;
use crate::data::dataset::Splits;
use crate::error::Result;
use crate::model::cost::MultiplyAdds;
use crate::model::device::device_name;
use crate::report::StepRecord;
use crate::report::machine::Machine;

/// Share of the asked time in which steps are not counted yet, unless [`WARM_UP_STEPS`] are over sooner.
const WARM_UP_SHARE: f64 = 0.25;
/// Share of the asked time that each of the two measurements of the peak takes, in at most [`MOST_FOR_PEAK`].
const PEAK_SHARE: f64 = 0.1;
const MOST_FOR_PEAK: Duration = Duration::from_secs(2);
/// As much of the asked time, after the steps, is given to the evaluation pass.
const EVALUATION_SHARE: f64 = 0.25;

/// What a benchmark is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Doing {
    /// Multiplying matrices.
    Peak,
    /// Making steps that do not count: threads start, first batches are decoded, memory is allocated.
    WarmUp,
    /// Making steps; how long so far.
    Steps(Duration),
    /// Computing features as an evaluation does.
    Evaluation,
}

/// Trains `state` for `duration`, at least one step after the warm-up, then evaluates it for a quarter of that, at least one
/// batch, and says where the time went. `doing` hears what is under way: each phase, and each step that counts.
///
/// # Errors
/// An image that cannot be read; a loss that is not finite.
pub fn run(
    config: &TrainConfig,
    splits: &Splits,
    state: &mut TrainState,
    objective: &Objective,
    duration: Duration,
    doing: &mut dyn FnMut(Doing),
) -> Result<Report> {
    let device = state.encoder.device();
    let for_peak = duration.mul_f64(PEAK_SHARE).min(MOST_FOR_PEAK);
    doing(Doing::Peak);
    let before = Peak::measure(device, for_peak);
    doing(Doing::WarmUp);
    let mut steps = Steps::start(config, splits, state, objective)?;
    let (began, mut warm) = (Instant::now(), 0);
    while warm == 0 || (warm < WARM_UP_STEPS && began.elapsed() < duration.mul_f64(WARM_UP_SHARE)) {
        steps.next()?;
        warm += 1;
    }
    let counted = steps.count(duration, doing)?;
    drop(steps);
    let parts = Parts::mean(&counted.records, counted.wall);
    // With the bank on a device a step's parts are the times to queue them.
    let forward_seconds = parts.forward * counted.records.len() as f64 / 1e3;
    let forward = matches!(state.bank, Bank::Host(_)).then(|| counted.images as f64 / forward_seconds);
    let for_evaluation = duration.mul_f64(EVALUATION_SHARE);
    let evaluation =
        Evaluation::measure(config, &splits.train, &state.encoder, forward, for_evaluation, doing)?;
    doing(Doing::Peak);
    let peak = before.or_better(Peak::measure(device, for_peak));

    let precision = state.encoder.precision();
    let cost = MultiplyAdds::of(state.encoder.config(), config.image_size);
    let seconds = counted.wall.as_secs_f64();
    let flop_per_s = cost.training_flop() as f64 * counted.images as f64 / seconds;
    // Arithmetic of the network while nothing else is done.
    let alone = (parts.forward + parts.backward) * counted.records.len() as f64 / 1e3;
    Ok(Report {
        machine: Machine {
            device: device_name(device),
            precision: precision.to_string(),
            threads: rayon::current_num_threads(),
            workers: config.workers,
            ..Machine::here()
        },
        data: config.data.to_string_lossy().into_owned(),
        data_format: config.data_format,
        n_images: splits.train.len(),
        encoder: *state.encoder.config(),
        image_size: config.image_size,
        batch_size: config.batch_size,
        accumulate: config.accumulate,
        objective: config.objective,
        n_negatives: config.n_negatives,
        forward_flop: 2 * cost.forward,
        backward_flop: 2 * cost.backward,
        seconds,
        steps: counted.records.len(),
        images: counted.images,
        images_per_s: counted.images as f64 / seconds,
        step_ms: StepTimes::of(&counted.records),
        parts_ms: parts,
        loading: counted.loading,
        evaluation,
        peak_flop_per_s: peak,
        flop_per_s,
        share_of_peak: flop_per_s / peak.of(precision),
        share_of_peak_in_network: flop_per_s * seconds / alone / peak.of(precision),
        findings: about_speed(config, &Facts::of(splits, device), &counted.records),
    })
}

/// Steps over as many epochs as it takes.
struct Steps<'a> {
    config: &'a TrainConfig,
    splits: &'a Splits,
    state: &'a mut TrainState,
    objective: &'a Objective,
    resident: Option<Rc<ResidentImages>>,
    replay: Option<Replay>,
    pass: Pass,
    /// What the passes before this one cost to load.
    loading: Loading,
}

/// Steps that count.
struct Counted {
    records: Vec<StepRecord>,
    images: u64,
    wall: Duration,
    loading: Loading,
}

impl<'a> Steps<'a> {
    fn start(
        config: &'a TrainConfig,
        splits: &'a Splits,
        state: &'a mut TrainState,
        objective: &'a Objective,
    ) -> Result<Self> {
        let device = state.encoder.device();
        let resident = ResidentImages::of_run(&splits.train, &config.augmentation, device)?;
        let pass = Pass::start(config, &splits.train, resident.as_ref(), state)?;
        // Without graphs it is measured without; `train` says why.
        let replay = Replay::of_run(config, objective, state).unwrap_or(None);
        Ok(Steps { config, splits, state, objective, resident, replay, pass, loading: Loading::default() })
    }

    fn next(&mut self) -> Result<StepRecord> {
        if self.pass.is_over(&self.state.progress) {
            self.loading.add(&self.pass.loading());
            self.state.progress.epoch += 1;
            self.state.progress.step_in_epoch = 0;
            self.pass = Pass::start(self.config, &self.splits.train, self.resident.as_ref(), self.state)?;
        }
        let step = self.pass.step(self.state, self.objective, self.replay.as_mut());
        step.map_err(|NoStep { error, .. }| error)
    }

    fn count(&mut self, duration: Duration, doing: &mut dyn FnMut(Doing)) -> Result<Counted> {
        let images = self.state.progress.images_seen;
        let mut records = Vec::new();
        doing(Doing::Steps(Duration::ZERO));
        let started = Instant::now();
        while records.is_empty() || started.elapsed() < duration {
            records.push(self.next()?);
            doing(Doing::Steps(started.elapsed()));
        }
        let wall = started.elapsed();
        // Of the warm-up too: few steps of a large network may take only images that were loaded before.
        self.loading.add(&self.pass.loading());
        let images = self.state.progress.images_seen - images;
        Ok(Counted { records, images, wall, loading: self.loading.per_image() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use crate::data::DataFormat;
    use crate::data::synthetic;
    use crate::eval::features::EVALUATION_BATCH;
    use crate::train::start;
    use std::path::Path;
    use tch::Device;

    /// A few steps of a tiny run, over more than one epoch.
    fn measured(seconds: f64) -> Report {
        let splits = synthetic::open("synthetic:40x16", 0).unwrap();
        let preset = TrainConfig::preset(Preset::Cifar, Path::new("synthetic:40x16"), DataFormat::Synthetic);
        let mut config =
            TrainConfig { image_size: 16, width: 4, batch_size: 16, n_negatives: 8, workers: 1, ..preset };
        config.augmentation.size = 16;
        let encoder = start::fresh_encoder(&config, Device::Cpu);
        let mut state = start::fresh_state(&config, &splits, encoder, &mut |_| {}).unwrap();
        let objective = Objective::new(&config, start::noise(&config, &splits.train).unwrap(), Vec::new());
        let mut heard = Vec::new();
        let duration = Duration::from_secs_f64(seconds);
        let report = run(&config, &splits, &mut state, &objective, duration, &mut |doing| heard.push(doing));
        let report = report.unwrap();
        assert_eq!(heard[..3], [Doing::Peak, Doing::WarmUp, Doing::Steps(Duration::ZERO)]);
        let told = heard.iter().filter(|doing| matches!(doing, Doing::Steps(at) if !at.is_zero())).count();
        assert_eq!(told, report.steps);
        assert_eq!(heard[heard.len() - 2..], [Doing::Evaluation, Doing::Peak]);
        assert!(state.progress.step > report.steps as u64, "the warm-up does not count");
        report
    }

    #[test]
    fn the_parts_make_the_whole() {
        let report = measured(1.0);
        // How many steps there are is the machine's affair.
        assert!(report.steps >= 1 && report.seconds >= 1.0, "{report:?}");
        // Batches of 16, 16 and 8.
        let mean_batch = report.images as f64 / report.steps as f64;
        assert!((8.0..=16.0).contains(&mean_batch), "{report:?}");
        assert!((report.images_per_s * report.seconds / report.images as f64 - 1.0).abs() < 1e-9);
        let parts = report.parts_ms;
        let known = [parts.wait, parts.forward, parts.objective, parts.backward, parts.update];
        assert!(known.iter().all(|&ms| ms >= 0.0) && parts.forward > 0.0 && parts.backward > 0.0);
        let step = report.seconds * 1e3 / report.steps as f64;
        let sum = known.iter().sum::<f64>() + parts.rest;
        assert!((sum / step - 1.0).abs() < 1e-9, "{parts:?} of {step} ms");
        assert!(parts.rest >= 0.0 && parts.rest < 0.5 * step, "{parts:?} of {step} ms");
        let StepTimes { fastest, median, slowest, .. } = report.step_ms;
        assert!(0.0 < fastest && fastest <= median && median <= slowest);
        assert!(report.loading.images >= report.images && report.loading.decode_ms > 0.0);
        assert!(report.loading.augment_ms > 0.0);
    }

    #[test]
    fn evaluation_is_set_against_the_forward_passes_of_the_steps() {
        let report = measured(0.4);
        let found = report.evaluation;
        // A pass over 40 images is one batch, and as many passes are made as it takes.
        assert!(found.batch_size == EVALUATION_BATCH && found.images.is_multiple_of(40), "{found:?}");
        assert!(found.seconds >= 0.1 && (0.0..1.0).contains(&found.share_waiting), "{found:?}");
        assert!((found.images_per_s * found.seconds / found.images as f64 - 1.0).abs() < 1e-9, "{found:?}");
        let in_network = found.images_per_s / (1.0 - found.share_waiting);
        assert!((found.images_per_s_in_network / in_network - 1.0).abs() < 1e-9, "{found:?}");
        let forward = found.training_forward_images_per_s.unwrap();
        let expected = report.images as f64 / report.steps as f64 / report.parts_ms.forward * 1e3;
        assert!((forward / expected - 1.0).abs() < 1e-9, "{found:?}");
        assert!((found.ratio.unwrap() * forward / found.images_per_s - 1.0).abs() < 1e-9, "{found:?}");
        assert!(found.ratio <= found.ratio_in_network && report.to_string().contains("\nevaluation  "));
    }

    #[test]
    fn arithmetic_is_counted_against_the_peak() {
        let report = measured(0.2);
        let flop = (report.forward_flop + report.backward_flop) as f64;
        assert!((report.flop_per_s / (flop * report.images_per_s) - 1.0).abs() < 1e-9);
        assert!(0.0 < report.share_of_peak && report.share_of_peak < report.share_of_peak_in_network);
        assert!(report.share_of_peak_in_network < 1.0, "{report:?}");
        let bound = report.findings[0].about;
        assert!(["loader-bound", "compute-bound"].contains(&bound), "{bound}");
    }
}
