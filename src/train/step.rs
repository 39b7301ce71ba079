//! One batch: forward, loss, backward, and the bank's move. The arithmetic of the paper happens here, in order.

use std::cell::OnceCell;
use std::time::{Duration, Instant};

use tch::Tensor;

use super::state::TrainState;
use crate::bank::{Bank, DeviceBank, DrawNumber, MemoryBank, Negatives, Noise};
use crate::config::{BankInit, ObjectiveKind, TrainConfig};
use crate::model::{Encoder, Gradients, Mode, PrecisionChoice, to_vec_f32, upload};
use crate::objective::device::{self, DeviceLoss, DeviceNoise, DeviceProblem};
use crate::objective::normalizer::estimate_ln_z;
use crate::objective::{Entries, LossAndGradient, Normalizer, NormalizerMode, nce, proximal, softmax};

/// The objective of a run: what does not change from batch to batch.
pub struct Objective {
    kind: ObjectiveKind,
    temperature: f64,
    n_negatives: usize,
    noise: Noise,
    /// The noise where the bank is, made when it is first needed.
    device_noise: OnceCell<DeviceNoise>,
    proximal: f64,
    seed: u64,
    estimate_from: Entries,
    /// Rows that are nobody's negative: those of quarantined images, ascending.
    excluded_rows: Vec<u32>,
    /// In what a device's full softmax may multiply: what the convolutions multiply in.
    products: PrecisionChoice,
}

/// What one batch cost and came to.
pub struct BatchOutcome {
    /// The mean loss over the batch.
    pub loss: f64,
    /// The gradient of every parameter; `None` if the loss is not finite, or the optimiser's step is made already.
    pub gradients: Option<Gradients>,
    /// Upload and forward pass. On a device these are the times to queue the work, not to do it; the last of the three
    /// includes waiting for all of it.
    pub forward: Duration,
    /// Loss and its gradient.
    pub objective: Duration,
    /// Backward pass.
    pub backward: Duration,
}

impl Objective {
    /// The objective of `config` with negatives from `noise`; `excluded_rows` ascending.
    pub fn new(config: &TrainConfig, noise: Noise, excluded_rows: Vec<u32>) -> Self {
        Self {
            kind: config.objective,
            temperature: config.temperature,
            n_negatives: config.n_negatives,
            noise,
            device_noise: OnceCell::new(),
            proximal: config.proximal,
            seed: config.seed,
            // In a bank of features a positive scores near exp(1/T) from the start and would dominate the mean of
            // K+1 scores; in a random bank it scores like any other row, and the published estimate includes it.
            estimate_from: match config.bank_init {
                BankInit::Random => Entries::All,
                BankInit::Features => Entries::Negatives,
            },
            excluded_rows,
            products: config.precision,
        }
    }

    /// Loss and gradient for `features` `[B, D]` of the images `indices`; `draw` numbers the batch in the run.
    ///
    /// Z, where it is estimated, is updated first, so that the first batch is scored with its own estimate.
    pub fn evaluate(
        &self,
        features: &[f32],
        indices: &[u32],
        bank: &MemoryBank,
        normalizer: &mut Normalizer,
        draw: u64,
    ) -> LossAndGradient {
        let negatives =
            Negatives::Drawn { noise: &self.noise, seed: self.seed, step: draw, k: self.n_negatives };
        let mut result = match self.kind {
            ObjectiveKind::Softmax => {
                softmax::full(features, bank, indices, self.temperature, &self.excluded_rows)
            }
            ObjectiveKind::SampledSoftmax => {
                softmax::sampled(features, bank, indices, &negatives, self.temperature)
            }
            ObjectiveKind::Nce => {
                if normalizer.needs_estimate() {
                    let estimate = estimate_ln_z(
                        features,
                        bank,
                        indices,
                        &negatives,
                        self.temperature,
                        &self.noise,
                        self.estimate_from,
                    );
                    normalizer.update(estimate);
                }
                let ln_z = normalizer.ln_z.expect("an estimate was just made where one was needed");
                nce::loss(features, bank, indices, &negatives, self.temperature, ln_z, &self.noise)
            }
        };
        if self.proximal > 0.0 {
            result.add(proximal(features, bank, indices, self.proximal));
        }
        result
    }

    /// Whether [`evaluate_on_device`](Self::evaluate_on_device) reads nothing from the host that changes from batch to batch, and
    /// waits for nothing: what a step needs to be [replayed](super::replay).
    pub fn is_fixed(&self, bank: &DeviceBank, normalizer: &Normalizer) -> bool {
        self.will_be_fixed(bank, normalizer) && (self.kind != ObjectiveKind::Nce || normalizer.ln_z.is_some())
    }

    /// Whether it [is](Self::is_fixed), or will be once the first batch has been seen.
    pub fn will_be_fixed(&self, bank: &DeviceBank, normalizer: &Normalizer) -> bool {
        match self.kind {
            // The numbers of excluded rows are brought to the device each time.
            ObjectiveKind::Softmax => self.excluded_rows.is_empty(),
            ObjectiveKind::SampledSoftmax => bank.draws(&self.noise),
            ObjectiveKind::Nce => {
                bank.draws(&self.noise) && !matches!(normalizer.mode, NormalizerMode::RunningAverage { .. })
            }
        }
    }

    /// [`evaluate`](Self::evaluate) where the bank is on a device, with `features` and i64 `rows` `[B]` there too. The same
    /// negatives are drawn.
    pub fn evaluate_on_device(
        &self,
        features: &Tensor,
        rows: &Tensor,
        bank: &DeviceBank,
        normalizer: &mut Normalizer,
        draw: &DrawNumber,
    ) -> DeviceLoss {
        let device = bank.device();
        let products = self.products.resolve(device);
        let problem =
            DeviceProblem { features, bank, indices: rows, temperature: self.temperature, products };
        let draw_negatives = || {
            let batch = rows.size()[0] as usize;
            bank.draw_negatives(&self.noise, self.seed, draw, batch, self.n_negatives)
        };
        let mut result = match self.kind {
            ObjectiveKind::Softmax => device::full_softmax(&problem, &self.excluded_rows),
            ObjectiveKind::SampledSoftmax => device::sampled_softmax(&problem, &draw_negatives()),
            ObjectiveKind::Nce => {
                let negatives = draw_negatives();
                let noise = self.device_noise.get_or_init(|| DeviceNoise::new(&self.noise, device));
                let ln_z = device::ln_z(normalizer, &problem, &negatives, noise, self.estimate_from);
                device::nce(&problem, &negatives, ln_z, noise)
            }
        };
        if self.proximal > 0.0 {
            result.add(device::proximal(&problem, self.proximal));
        }
        result
    }
}

/// A batch whose work is done on the host, or queued on a device.
pub struct QueuedBatch {
    outcome: BatchOutcome,
    /// The loss where it has to be waited for, and when the backward pass began to be queued.
    on_device: Option<(Tensor, Instant)>,
}

impl QueuedBatch {
    /// A batch whose every part is queued, the optimiser's step too, in `forward` and since `begun`; `loss` f64 will be its loss.
    pub(super) fn with_step(loss: Tensor, forward: Duration, begun: Instant) -> Self {
        let outcome = BatchOutcome {
            loss: f64::NAN,
            gradients: None,
            forward,
            objective: Duration::ZERO,
            backward: Duration::ZERO,
        };
        QueuedBatch { outcome, on_device: Some((loss, begun)) }
    }

    /// Whether there is something to wait for: time to get the next batch ready.
    pub fn waits(&self) -> bool {
        self.on_device.is_some()
    }

    /// What it came to, after the device has got so far.
    pub fn wait(self) -> BatchOutcome {
        let Some((loss, begun)) = self.on_device else { return self.outcome };
        let loss = loss.double_value(&[]);
        let gradients = self.outcome.gradients.filter(|_| loss.is_finite());
        BatchOutcome { loss, gradients, backward: begun.elapsed(), ..self.outcome }
    }
}

/// Takes the images `indices` through the network and the objective, and moves their rows of the bank. `images` makes the
/// encoder's input of them, f32 `[B, 3, H, W]`. The gradients are those of the loss divided by `group`, the number of
/// batches that make one optimiser step; the step is the caller's.
///
/// A device is not waited for: neither the loss nor whether it is finite is known before [`QueuedBatch::wait`]. With a loss that
/// is not finite nothing is moved.
pub fn queue_batch(
    state: &mut TrainState,
    objective: &Objective,
    indices: &[u32],
    images: impl FnOnce() -> Tensor,
    bank_momentum: f32,
    group: usize,
    draw: u64,
) -> QueuedBatch {
    let started = Instant::now();
    let embedded = state.encoder.forward(&images(), Mode::Train); // [B, D], unit rows
    let TrainState { encoder, bank, normalizer, .. } = state;
    let batch = Embedded { encoder, embedded, indices, objective, bank_momentum, group, draw, started };
    match bank {
        Bank::Host(bank) => QueuedBatch { outcome: batch.finish_on_host(bank, normalizer), on_device: None },
        Bank::Device(bank) => batch.queue_on_device(bank, normalizer),
    }
}

/// A batch whose forward pass is done, or queued.
struct Embedded<'a> {
    encoder: &'a Encoder,
    embedded: Tensor,
    indices: &'a [u32],
    objective: &'a Objective,
    bank_momentum: f32,
    group: usize,
    draw: u64,
    started: Instant,
}

impl Embedded<'_> {
    fn finish_on_host(self, bank: &mut MemoryBank, normalizer: &mut Normalizer) -> BatchOutcome {
        let features = to_vec_f32(&self.embedded);
        let forward = self.started.elapsed();

        let started = Instant::now();
        let LossAndGradient { loss, mut gradient, .. } =
            self.objective.evaluate(&features, self.indices, bank, normalizer, self.draw);
        let objective = started.elapsed();
        if !loss.is_finite() {
            return BatchOutcome { loss, gradients: None, forward, objective, backward: Duration::ZERO };
        }

        let started = Instant::now();
        if self.group > 1 {
            let share = 1.0 / self.group as f32;
            gradient.iter_mut().for_each(|g| *g *= share);
        }
        let gradient = Tensor::from_slice(&gradient).view_as(&self.embedded);
        let gradients = self.encoder.backward(&self.embedded, &gradient);
        // The gradient has been taken: now, and only here, the bank moves.
        bank.update(&features, self.indices, self.bank_momentum);
        BatchOutcome { loss, gradients: Some(gradients), forward, objective, backward: started.elapsed() }
    }

    /// The same, queued; nothing is waited for but an estimate of Z.
    fn queue_on_device(self, bank: &mut DeviceBank, normalizer: &mut Normalizer) -> QueuedBatch {
        let features = self.embedded.detach();
        let rows: Vec<i64> = self.indices.iter().map(|&index| i64::from(index)).collect();
        let rows = upload(&rows, &[rows.len() as i64], bank.device());
        let forward = self.started.elapsed();

        let started = Instant::now();
        let DeviceLoss { loss, mut gradient } =
            self.objective.evaluate_on_device(&features, &rows, bank, normalizer, &self.draw.into());
        let objective = started.elapsed();

        let started = Instant::now();
        if self.group > 1 {
            gradient *= 1.0 / self.group as f64;
        }
        let gradients = self.encoder.backward(&self.embedded, &gradient);
        // The gradient has been taken: now, and only here, the bank moves, unless the device finds the loss not finite.
        bank.update(&features, &rows, self.bank_momentum, &loss.isfinite());
        let outcome = BatchOutcome {
            loss: f64::NAN,
            gradients: Some(gradients),
            forward,
            objective,
            backward: started.elapsed(),
        };
        QueuedBatch { outcome, on_device: Some((loss, started)) }
    }
}
