//! A whole training step that is recorded once and then replayed: under CUDA as a graph, so that a step costs one launch
//! instead of some thousand.
//!
//! What is recorded runs from levels to weights: normalise, forward, loss and gradient, backward, the bank's move, SGD. All that
//! differs from batch to batch is read from tensors that stay where they are (levels, rows, learning rate, number of the draw);
//! whether the loss is finite is decided on the device, for the bank and for SGD alike. The numbers are those of
//! [`queue_batch`](super::step::queue_batch) with a step behind it, bit for bit.
//!
//! The first [`WARM_UP`] batches are queued operation by operation, in the same form: libraries are loaded, and cuDNN's search is
//! over, before anything is recorded.

use std::time::Instant;

use log::Level;
use tch::{Device, Kind, Tensor, no_grad};

use super::state::TrainState;
use super::step::{Objective, QueuedBatch};
use crate::bank::{Bank, DrawNumber};
use crate::config::{CudaGraphs, TrainConfig};
use crate::error::{Error, Result};
use crate::eval::features::{Uploader, normalization};
use crate::model::cuda::graph::Graphs;
use crate::model::{Mode, upload};
use crate::objective::device::DeviceLoss;

/// Batches before the step is recorded.
pub const WARM_UP: usize = 3;

/// Something that records work on a device. `step` must read and write tensors that stay where they are, and nothing else that
/// changes.
pub trait Recorder {
    /// Records what `step` queues, in place of what was recorded before. Nothing of it has to be done by then.
    ///
    /// # Errors
    /// If it cannot be recorded; nothing is recorded then.
    fn record(&mut self, step: &mut dyn FnMut()) -> Result<(), String>;

    /// Queues what was recorded. `step` is the same once more, for a recorder that has no other way.
    ///
    /// # Errors
    /// If the device refuses.
    fn replay(&mut self, step: &mut dyn FnMut()) -> Result<(), String>;
}

impl Recorder for Graphs {
    fn record(&mut self, step: &mut dyn FnMut()) -> Result<(), String> {
        Graphs::record(self, step)
    }

    fn replay(&mut self, _step: &mut dyn FnMut()) -> Result<(), String> {
        Graphs::replay(self)
    }
}

/// What graphs do, on any device: replaying is doing the same again on the same tensors.
pub struct Twin;

impl Recorder for Twin {
    fn record(&mut self, _step: &mut dyn FnMut()) -> Result<(), String> {
        Ok(())
    }

    fn replay(&mut self, step: &mut dyn FnMut()) -> Result<(), String> {
        step();
        Ok(())
    }
}

/// The step of a run, recorded when it is time to.
pub struct Replay {
    recorder: Box<dyn Recorder>,
    step: Step,
    stage: Stage,
    news: Option<(Level, String)>,
}

enum Stage {
    /// So many batches were queued.
    WarmingUp(usize),
    Recorded {
        on: Basis,
        /// The number of the batch with which it was recorded.
        draw: u64,
    },
    /// It cannot be recorded.
    GivenUp,
}

impl Replay {
    /// For a run of `config` with `objective` that goes on from `state`; `None` where its device is none for graphs.
    ///
    /// # Errors
    /// Why there are no graphs although it is.
    pub fn of_run(
        config: &TrainConfig,
        objective: &Objective,
        state: &TrainState,
    ) -> Result<Option<Self>, String> {
        let device = state.encoder.device();
        let (Device::Cuda(number), Bank::Device(bank)) = (device, &state.bank) else { return Ok(None) };
        if config.cuda_graphs == CudaGraphs::Off {
            return Err("--cuda-graphs off".into());
        }
        if config.accumulate > 1 {
            return Err(format!("--accumulate {}", config.accumulate));
        }
        if !objective.will_be_fixed(bank, &state.normalizer) {
            return Err("the objective asks the host in every step".into());
        }
        let graphs = Graphs::new(number)?;
        Ok(Some(Self::new(Box::new(graphs), config, device)))
    }

    /// Steps of `config` on `device`, recorded by `recorder`.
    pub fn new(recorder: Box<dyn Recorder>, config: &TrainConfig, device: Device) -> Self {
        Replay { recorder, step: Step::new(config, device), stage: Stage::WarmingUp(0), news: None }
    }

    /// Whether the batch `indices` can be taken by [`queue`](Self::queue).
    pub fn takes(&self, state: &TrainState, objective: &Objective, indices: &[u32]) -> bool {
        !matches!(self.stage, Stage::GivenUp)
            && indices.len() as i64 == self.step.batch()
            && matches!(&state.bank, Bank::Device(bank) if objective.is_fixed(bank, &state.normalizer))
            && state.sgd.is_in_one_piece()
    }

    /// What a person should know, once.
    pub fn news(&mut self) -> Option<(Level, String)> {
        self.news.take()
    }

    /// Queues the whole step of the batch `indices`, whose views are `levels` `[B, size, size, 3]` on the device. A loss that is
    /// not finite leaves weights, momentum and bank as they were; BatchNorm's running statistics have moved by then.
    ///
    /// # Errors
    /// If the device refuses a replay.
    ///
    /// # Panics
    /// If it does not [take](Self::takes) the batch.
    pub fn queue(
        &mut self,
        state: &mut TrainState,
        objective: &Objective,
        indices: &[u32],
        levels: &Tensor,
        lr: f64,
        draw: u64,
    ) -> Result<QueuedBatch> {
        let started = Instant::now();
        self.step.fill(indices, levels, lr, draw);
        let forward = started.elapsed();
        let begun = Instant::now();
        self.get_ready(state, objective, draw);
        let Replay { recorder, step, stage, .. } = self;
        match stage {
            Stage::Recorded { draw, .. } => recorder
                .replay(&mut || step.queue(state, objective, *draw))
                .map_err(|message| Error::Torch { context: "a training step is replayed".into(), message })?,
            Stage::WarmingUp(_) | Stage::GivenUp => step.queue(state, objective, draw),
        }
        Ok(QueuedBatch::with_step(self.step.loss.shallow_clone(), forward, begun))
    }

    /// Records the step if it is time to, for this batch and those that follow.
    fn get_ready(&mut self, state: &mut TrainState, objective: &Objective, draw: u64) {
        let now = Basis::of(state, objective);
        match &mut self.stage {
            Stage::Recorded { on, .. } if *on == now => {}
            // What was recorded would write to where the weights were.
            Stage::Recorded { .. } => self.stage = Stage::WarmingUp(1),
            Stage::WarmingUp(done) if *done < WARM_UP => *done += 1,
            Stage::WarmingUp(_) => {
                let Replay { recorder, step, .. } = self;
                match recorder.record(&mut || step.queue(state, objective, draw)) {
                    Ok(()) => {
                        self.stage = Stage::Recorded { on: now, draw };
                        let text = "from here on training steps are replayed as a CUDA graph";
                        self.news = Some((Level::Debug, text.into()));
                    }
                    Err(said) => {
                        self.stage = Stage::GivenUp;
                        let text = format!("training goes on without CUDA graphs: {said}");
                        self.news = Some((Level::Warn, text));
                    }
                }
            }
            Stage::GivenUp => {}
        }
    }
}

/// What a recording is bound to.
#[derive(PartialEq)]
struct Basis {
    /// Addresses of weights, statistics, momentum and bank.
    places: Vec<usize>,
    /// Z, which the objective has as a constant.
    ln_z: Option<u64>,
    objective: *const Objective,
}

impl Basis {
    fn of(state: &TrainState, objective: &Objective) -> Self {
        let Bank::Device(bank) = &state.bank else { panic!("a replayed step has its bank on the device") };
        let network = state.encoder.parameters().state().map(|entry| &entry.tensor);
        let momentum = state.sgd.buffers().map(|(_, buffer)| buffer);
        let tensors = network.chain(momentum).chain([bank.rows()]);
        Basis {
            places: tensors.map(|tensor| tensor.data_ptr() as usize).collect(),
            ln_z: state.normalizer.ln_z.map(f64::to_bits),
            objective,
        }
    }
}

/// The step, and the tensors that it reads what it is to do from. B is the run's batch size.
struct Step {
    uploader: Uploader,
    bank_momentum: f32,
    /// u8 `[B, size, size, 3]`.
    levels: Tensor,
    /// i64 `[B + 2]`, so that one copy brings all of it. The others are parts of it.
    numbers: Tensor,
    /// Bank rows, i64 `[B]`.
    rows: Tensor,
    /// i64 `[1]`.
    draw: Tensor,
    /// f32 `[1]`.
    lr: Tensor,
    /// What comes out: f64, a scalar.
    loss: Tensor,
}

impl Step {
    fn new(config: &TrainConfig, device: Device) -> Self {
        let (batch, side) = (config.batch_size as i64, i64::from(config.image_size));
        let numbers = Tensor::zeros([batch + 2], (Kind::Int64, device));
        Step {
            uploader: Uploader::normalizing_on(&normalization(config.family).table().into(), device),
            bank_momentum: config.bank_momentum,
            levels: Tensor::zeros([batch, side, side, 3], (Kind::Uint8, device)),
            rows: numbers.narrow(0, 0, batch),
            draw: numbers.narrow(0, batch, 1),
            // The lower half of the last number, which comes first in memory.
            lr: numbers.narrow(0, batch + 1, 1).view_dtype(Kind::Float).narrow(0, 0, 1),
            loss: Tensor::zeros([], (Kind::Double, device)),
            numbers,
        }
    }

    fn batch(&self) -> i64 {
        self.rows.size()[0]
    }

    /// Queues the copies of what the next batch is.
    fn fill(&mut self, indices: &[u32], levels: &Tensor, lr: f64, draw: u64) {
        assert_eq!(levels.size(), self.levels.size(), "levels are [B, size, size, 3]");
        let mut numbers: Vec<i64> = indices.iter().map(|&index| i64::from(index)).collect();
        numbers.extend([draw.cast_signed(), i64::from((lr as f32).to_bits())]);
        let numbers = upload(&numbers, &[numbers.len() as i64], self.numbers.device());
        no_grad(|| {
            self.levels.copy_(levels);
            self.numbers.copy_(&numbers);
        });
    }

    /// Queues the step. `host_draw` is the host's idea of the number of the draw.
    fn queue(&mut self, state: &mut TrainState, objective: &Objective, host_draw: u64) {
        let TrainState { encoder, sgd, bank, normalizer, .. } = state;
        let Bank::Device(bank) = bank else { panic!("a replayed step has its bank on the device") };
        let embedded = encoder.forward(&self.uploader.images_of_levels(&self.levels), Mode::Train);
        let features = embedded.detach();
        let draw = DrawNumber { host: host_draw, device: Some(self.draw.shallow_clone()) };
        let DeviceLoss { loss, gradient } =
            objective.evaluate_on_device(&features, &self.rows, bank, normalizer, &draw);
        let gradients = encoder.backward(&embedded, &gradient);
        let finite = loss.isfinite();
        bank.update(&features, &self.rows, self.bank_momentum, &finite);
        sgd.step_where(gradients, &self.lr, &finite);
        no_grad(|| self.loss.copy_(&loss));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::bank::{DeviceBank, MemoryBank, Noise};
    use crate::checkpoint::state::Progress;
    use crate::config::Preset;
    use crate::data::detect::DataFormat;
    use crate::model::{Encoder, to_vec_f32};
    use crate::objective::Normalizer;
    use crate::optim::Sgd;
    use crate::train::step::queue_batch;

    const N: usize = 40;

    fn config(objective: &str) -> TrainConfig {
        let layer = format!(
            "width = 4\nembed-dim = 16\nimage-size = 16\nbatch-size = 4\nn-negatives = 20\nprecision = \"fp32\"\n\
             objective = \"{objective}\""
        );
        let layers = [("test", layer.parse().unwrap())];
        TrainConfig::resolve(Preset::Cifar, Path::new("photos"), DataFormat::Flat, &layers).unwrap()
    }

    /// With our CUDA kernels' twin, in one piece.
    fn state(config: &TrainConfig) -> TrainState {
        let encoder = Encoder::new(config.encoder(), 1, Device::Cpu);
        let bank = DeviceBank::with_twin(&MemoryBank::random(N, config.embed_dim, 2));
        let normalizer = Normalizer::new(config.normalizer.0, N, config.embed_dim, config.temperature);
        let sgd = Sgd::new(encoder.parameters(), config.momentum, config.weight_decay);
        TrainState::new(encoder, sgd, Bank::Device(bank), normalizer, Progress::default())
    }

    /// Negatives are drawn by the number that the device has, which a recording's host does not know.
    #[test]
    fn steps_that_draw_their_negatives_on_the_device_are_replayed() {
        for objective in ["nce", "sampled-softmax"] {
            let config = config(objective);
            let objective = Objective::new(&config, Noise::Uniform { n: N as u32 }, Vec::new());
            let (mut queued, mut replayed) = (state(&config), state(&config));
            let mut replay = Replay::new(Box::new(Twin), &config, Device::Cpu);
            let uploader =
                Uploader::normalizing_on(&normalization(config.family).table().into(), Device::Cpu);
            for draw in 0..8u64 {
                let levels = Tensor::arange(4 * 16 * 16 * 3, (Kind::Int64, Device::Cpu)) * (draw as i64 + 3);
                let levels = levels.remainder(251).to_kind(Kind::Uint8).view([4, 16, 16, 3]);
                let indices: Vec<u32> = (0..4).map(|b| (draw as u32 * 4 + b) % N as u32).collect();
                let step = |state: &mut TrainState| {
                    let images = || uploader.images_of_levels(&levels);
                    let momentum = config.bank_momentum;
                    let outcome = queue_batch(state, &objective, &indices, images, momentum, 1, draw).wait();
                    state.sgd.step(state.encoder.parameters_mut(), outcome.gradients.unwrap(), 0.01);
                    outcome.loss
                };
                let expected = step(&mut queued);
                // The first batch of NCE estimates Z.
                let found = if replay.takes(&replayed, &objective, &indices) {
                    replay
                        .queue(&mut replayed, &objective, &indices, &levels, 0.01, draw)
                        .unwrap()
                        .wait()
                        .loss
                } else {
                    assert_eq!((draw, config.objective), (0, crate::config::ObjectiveKind::Nce));
                    step(&mut replayed)
                };
                assert_eq!(found.to_bits(), expected.to_bits(), "batch {draw}: {found} or {expected}");
            }
            assert!(matches!(replay.stage, Stage::Recorded { .. }));
            assert_eq!(replayed.bank.on_host(), queued.bank.on_host());
            for (a, b) in queued.encoder.parameters().state().zip(replayed.encoder.parameters().state()) {
                assert_eq!(to_vec_f32(&a.tensor), to_vec_f32(&b.tensor), "{}", a.name);
            }
        }
    }
}
