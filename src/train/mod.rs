//! The training loop, readable top to bottom, and what surrounds it: starting, resuming, saving.
//!
//! A run is a function of its settings and data: every random number comes from [`crate::rng`] and counters, so a
//! run that was killed at any step and resumed ends with the same bytes as one that was not (same machine, same
//! number of threads).

use std::rc::Rc;
use std::time::{Duration, Instant};

use log::Level;

use crate::checkpoint::run_folder::RunFolder;
use crate::checkpoint::signals::Interrupt;
use crate::config::TrainConfig;
use crate::data::dataset::Splits;
use crate::error::{Error, Result};
use crate::report::machine::process_age;
use crate::report::metrics::STARTUP;
use crate::report::retrievals::RetrievalsWriter;
use crate::report::tensorboard::EventWriter;
use crate::report::{EpochStart, MetricsWriter, Reporter};

pub mod bench;
mod feed;
pub mod images;
pub mod memory;
mod observe;
pub mod pass;
pub mod replay;
pub mod start;
pub mod state;
pub mod step;
pub mod watch;

use images::ResidentImages;
use pass::{NoStep, Pass, milliseconds};
use replay::Replay;
use state::{DataIdentity, TrainState};
use step::Objective;
use watch::Watch;

/// A run that is ready to go on: fresh or resumed.
pub struct Session<'a> {
    /// Settings, complete.
    pub config: TrainConfig,
    /// The images.
    pub splits: Splits,
    /// The training images on the device, where they fit and there is one; a loader brings them otherwise.
    pub resident: Option<Rc<ResidentImages>>,
    /// What replays steps, where there is such.
    pub replay: Option<Replay>,
    /// What the images are, for checkpoints.
    pub identity: DataIdentity,
    /// Encoder, optimiser, bank, counters.
    pub state: TrainState,
    /// Negatives and loss.
    pub objective: Objective,
    /// Where everything is written.
    pub folder: RunFolder,
    /// `metrics.jsonl`.
    pub metrics: MetricsWriter,
    /// Whether this process has made no step yet: the record of the first says how long it took to get there.
    pub starting: bool,
    /// `retrievals.jsonl`.
    pub retrievals: RetrievalsWriter,
    /// Event files for TensorBoard, where they were asked for.
    pub events: Option<EventWriter>,
    /// Notices what a person should know.
    pub watch: Watch,
    /// Who hears of progress.
    pub reporter: &'a mut dyn Reporter,
    /// Whether a signal asked to stop.
    pub interrupt: Interrupt,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Optimiser steps taken since the start of the run.
    pub steps: u64,
    /// The last value of the monitor, in percent, if there is a monitor.
    pub last: Option<f64>,
    /// The best value of the monitor and its epoch.
    pub best: Option<(f64, u64)>,
}

/// Why a pass over the data ended.
enum Ended {
    Complete,
    StepLimit,
}

/// Trains until the last epoch, the step limit or a signal, saving as it goes.
///
/// # Errors
/// [`Error::Interrupted`] after a signal, with everything saved; [`Error::NonFiniteLoss`], with the last good
/// checkpoint kept; an image that cannot be read; a file that cannot be written.
pub fn run(mut session: Session<'_>) -> Result<Summary> {
    let mut last = None;
    session.watch_settings()?;
    // A run that was killed after its best epoch was saved, but before that became best.ckpt, makes up for it.
    let progress = &session.state.progress;
    if progress.step_in_epoch == 0 && progress.best_epoch.is_some_and(|best| best + 1 == progress.epoch) {
        session.save()?;
        session.folder.save_best()?;
    }
    while session.state.progress.epoch < session.config.epochs {
        if let Ended::StepLimit = session.pass()? {
            session.save()?;
            break;
        }
        last = session.end_of_epoch()?.or(last);
    }
    let progress = &session.state.progress;
    Ok(Summary { steps: progress.step, last, best: progress.best.zip(progress.best_epoch) })
}

impl Session<'_> {
    /// The rest of the current epoch, from the batch the counters name.
    fn pass(&mut self) -> Result<Ended> {
        let mut pass = Pass::start(&self.config, &self.splits.train, self.resident.as_ref(), &self.state)?;
        let save_every = Duration::from_secs_f64(self.config.save_every * 60.0);
        let mut saved_at = Instant::now();
        self.reporter.epoch_started(EpochStart {
            epoch: self.state.progress.epoch,
            epochs: self.config.epochs,
            batches: pass.n_batches(),
            batches_done: self.state.progress.step_in_epoch,
            batches_to_limit: self.config.max_steps.map(|limit| {
                limit.saturating_sub(self.state.progress.step).saturating_mul(self.config.accumulate as u64)
            }),
        });
        while !pass.is_over(&self.state.progress) {
            if self.step_limit_reached() {
                return Ok(Ended::StepLimit);
            }
            let startup_s = std::mem::take(&mut self.starting).then(process_age).flatten();
            let made = pass.step(&mut self.state, &self.objective, self.replay.as_mut());
            if let Some((level, text)) = self.replay.as_mut().and_then(Replay::news) {
                self.reporter.message(level, &text);
            }
            let mut record = match made {
                Ok(record) => record,
                Err(NoStep { error, untouched }) => {
                    if untouched {
                        self.save()?;
                    }
                    return Err(error);
                }
            };
            record.extra.extend(startup_s.map(|seconds| (STARTUP.to_owned(), seconds.into())));
            self.step_made(&record)?;

            if self.interrupt.interrupted() {
                self.save()?;
                return Err(self.interrupted());
            }
            if saved_at.elapsed() >= save_every {
                self.save()?;
                saved_at = Instant::now();
            }
        }
        Ok(Ended::Complete)
    }

    fn step_limit_reached(&self) -> bool {
        self.config.max_steps.is_some_and(|limit| self.state.progress.step >= limit)
    }

    /// Measures the features, remembers the best, moves on to the next epoch and saves.
    fn end_of_epoch(&mut self) -> Result<Option<f64>> {
        self.reporter.epoch_finished(self.state.progress.epoch);
        // Measuring can take long or fail; what was learnt is safe before it starts.
        self.save()?;
        let value = self.measure()?;
        let progress = &mut self.state.progress;
        let finished = progress.epoch;
        let improved = value.is_some_and(|value| progress.best.is_none_or(|best| value > best));
        if improved {
            progress.best = value;
            progress.best_epoch = Some(finished);
        }
        progress.epoch += 1;
        progress.step_in_epoch = 0;
        self.save()?;
        if improved {
            self.folder.save_best()?;
        }
        if self.interrupt.interrupted() && self.state.progress.epoch < self.config.epochs {
            return Err(self.interrupted());
        }
        Ok(value)
    }

    /// Writes `last.ckpt`, unless the encoder has gone bad: then the last good one stays.
    fn save(&mut self) -> Result<()> {
        if let Some(name) = self.state.encoder.parameters().first_non_finite() {
            return Err(Error::Torch {
                context: "not saved, so that the last good checkpoint stays".into(),
                message: format!("parameter {name} is no longer finite"),
            });
        }
        let started = Instant::now();
        self.state.progress.metrics_bytes = self.metrics.sync()?;
        let Self { state, config, identity, folder, .. } = self;
        state.save(config, identity, |view| folder.save_last(view))?;
        let (step, ms) = (self.state.progress.step, milliseconds(started.elapsed()));
        self.reporter.message(Level::Debug, &format!("saved last.ckpt after step {step} in {ms:.0} ms"));
        Ok(())
    }

    fn interrupted(&self) -> Error {
        let progress = &self.state.progress;
        let path = self.folder.path().display();
        Error::Interrupted {
            saved: format!(
                "saved {path} in epoch {} after step {}; go on with: lemniscate train --resume {path}",
                // People count epochs from 1.
                progress.epoch + 1,
                progress.step
            ),
        }
    }
}
