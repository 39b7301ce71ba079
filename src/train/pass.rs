//! One pass over the training images, a step at a time: what an epoch consists of, in a run and in a benchmark.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::feed::Feed;
use super::images::ResidentImages;
use super::replay::Replay;
use super::state::TrainState;
use super::step::{Objective, queue_batch};
use crate::bank::Bank;
use crate::checkpoint::state::Progress;
use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::data::loader::{LoaderStatistics, epoch_order};
use crate::error::{Error, Result};
use crate::eval::features::{Input, Uploader};
use crate::model::Gradients;
use crate::optim::{self, Schedule};
use crate::report::StepRecord;

/// The rest of an epoch: where its batches come from, and what does not change from step to step.
pub struct Pass {
    config: TrainConfig,
    train: Dataset,
    schedule: Schedule,
    feed: Feed,
    epoch: u64,
    n_batches: u64,
}

/// Why a step was not made.
pub struct NoStep {
    /// What happened.
    pub error: Error,
    /// Whether nothing of the state has changed, so that it can be saved.
    pub untouched: bool,
}

impl Pass {
    /// Starts loading the epoch that the progress of `state` names, from the batch that it names, for its encoder's
    /// device. `resident` are the images if they are there already.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        config: &TrainConfig,
        train: &Dataset,
        resident: Option<&Rc<ResidentImages>>,
        state: &TrainState,
    ) -> Result<Self> {
        let progress = &state.progress;
        let epoch = progress.epoch;
        let order = epoch_order(&train.trainable_indices(), config.seed, epoch);
        let n_batches = order.len().div_ceil(config.batch_size) as u64;
        let done = (progress.step_in_epoch as usize * config.batch_size).min(order.len());
        let input = Input::new(config.family, config.image_size, config.workers)
            .with_read_timeout(config.read_timeout());
        let device = state.encoder.device();
        // Where the bank is, images are normalised.
        let uploader = match &state.bank {
            Bank::Device(_) => Uploader::normalizing_on(&input.normalization, device),
            Bank::Host(_) => Uploader::new(&input.normalization, device),
        };
        Ok(Pass {
            feed: Feed::new(config, train, resident, &input, &order[done..], epoch, uploader)?,
            config: config.clone(),
            train: train.clone(),
            schedule: config.lr_schedule(),
            epoch,
            n_batches,
        })
    }

    /// Batches in the whole epoch.
    pub fn n_batches(&self) -> u64 {
        self.n_batches
    }

    /// Whether `progress` has every batch of the epoch behind it.
    pub fn is_over(&self, progress: &Progress) -> bool {
        progress.step_in_epoch >= self.n_batches
    }

    /// What loading has cost so far.
    pub fn loading(&self) -> LoaderStatistics {
        self.feed.statistics()
    }

    /// One optimiser step: `accumulate` batches, or those that are left; by `replay`, if that is given and takes it. The
    /// record holds the parts of its time as `forward_ms`, `objective_ms`, `backward_ms` and `update_ms`.
    ///
    /// # Errors
    /// An image that cannot be read; [`Error::NonFiniteLoss`].
    pub fn step(
        &mut self,
        state: &mut TrainState,
        objective: &Objective,
        mut replay: Option<&mut Replay>,
    ) -> Result<StepRecord, NoStep> {
        let started = Instant::now();
        let config = &self.config;
        let first = state.progress.step_in_epoch;
        // Batches left at the end of an epoch form a smaller group; the published loop dropped their gradient.
        let group = (self.n_batches - first).min(config.accumulate as u64);
        let lr = optim::lr(
            config.lr,
            &self.schedule,
            config.warmup_epochs,
            config.epochs as f64,
            self.epoch as f64 + first as f64 / self.n_batches as f64,
        );
        let mut record = StepRecord { epoch: self.epoch, lr, ..StepRecord::default() };
        let mut images = 0;
        let mut parts = [0.0; 3];
        let mut gradients: Option<Gradients> = None;
        for done in 0..group {
            let waiting = Instant::now();
            let views = self
                .feed
                .next()
                // In the middle of a group there is no state to go on from; the last checkpoint serves.
                .map_err(|error| NoStep { error, untouched: done == 0 })?;
            record.data_ms += milliseconds(waiting.elapsed());
            let draw = self.epoch * self.n_batches + state.progress.step_in_epoch;
            let indices = views.indices();
            let replay = replay.as_deref_mut().filter(|it| group == 1 && it.takes(state, objective, indices));
            let queued = match replay.zip(views.levels()) {
                Some((replay, levels)) => replay
                    .queue(state, objective, indices, levels, lr, draw)
                    .map_err(|error| NoStep { error, untouched: false })?,
                None => queue_batch(
                    state,
                    objective,
                    indices,
                    || self.feed.images(&views),
                    config.bank_momentum,
                    group as usize,
                    draw,
                ),
            };
            if queued.waits() {
                self.feed.prepare();
            }
            let outcome = queued.wait();
            if !outcome.loss.is_finite() {
                let names = indices.iter().map(|&i| self.train.name(i as usize).into_owned());
                let error = Error::NonFiniteLoss {
                    loss: outcome.loss,
                    epoch: self.epoch,
                    step: state.progress.step,
                    images: names.collect(),
                };
                return Err(NoStep { error, untouched: false });
            }
            match (&mut gradients, outcome.gradients) {
                (Some(sum), Some(part)) => sum.accumulate(&part),
                (sum, part) => *sum = part,
            }
            record.loss += outcome.loss / group as f64;
            for (part, spent) in parts.iter_mut().zip([outcome.forward, outcome.objective, outcome.backward])
            {
                *part += milliseconds(spent);
            }
            images += indices.len();
            state.progress.step_in_epoch += 1;
            self.feed.recycle(views);
        }
        let updating = Instant::now();
        if let Some(gradients) = gradients {
            state.sgd.step(state.encoder.parameters_mut(), gradients, lr);
        }
        let [forward, objective, backward] = parts;
        let update = milliseconds(updating.elapsed());
        record.extra = [
            ("forward_ms", forward),
            ("objective_ms", objective),
            ("backward_ms", backward),
            ("update_ms", update),
        ]
        .into_iter()
        .map(|(part, ms)| (part.to_owned(), ms.into()))
        .collect();
        state.progress.step += 1;
        state.progress.images_seen += images as u64;
        state.progress.ln_z = state.normalizer.ln_z;
        record.step = state.progress.step;
        record.step_ms = milliseconds(started.elapsed());
        record.images_per_s = images as f64 / started.elapsed().as_secs_f64();
        record.ln_z = state.progress.ln_z;
        Ok(record)
    }
}

/// As records of a run have it.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
