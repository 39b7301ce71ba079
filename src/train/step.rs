//! One batch: forward, loss, backward, and the bank's move. The arithmetic of the paper happens here, in order.

use std::time::{Duration, Instant};

use tch::Tensor;

use super::state::TrainState;
use crate::bank::{MemoryBank, Negatives, Noise};
use crate::config::{BankInit, ObjectiveKind, TrainConfig};
use crate::data::augment::NormalizationTable;
use crate::data::loader::Batch;
use crate::eval::features::input_tensor;
use crate::model::{Gradients, Mode, to_vec_f32};
use crate::objective::normalizer::estimate_ln_z;
use crate::objective::{Entries, LossAndGradient, Normalizer, nce, proximal, softmax};

/// The objective of a run: what does not change from batch to batch.
pub struct Objective {
    kind: ObjectiveKind,
    temperature: f64,
    n_negatives: usize,
    noise: Noise,
    proximal: f64,
    seed: u64,
    estimate_from: Entries,
    /// Rows that are nobody's negative: those of quarantined images, ascending.
    excluded_rows: Vec<u32>,
}

/// What one batch cost and came to.
pub struct BatchOutcome {
    /// The mean loss over the batch.
    pub loss: f64,
    /// The gradient of every parameter; `None` if the loss is not finite.
    pub gradients: Option<Gradients>,
    /// Upload and forward pass.
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
            proximal: config.proximal,
            seed: config.seed,
            // In a bank of features a positive scores near exp(1/T) from the start and would dominate the mean of
            // K+1 scores; in a random bank it scores like any other row, and the published estimate includes it.
            estimate_from: match config.bank_init {
                BankInit::Random => Entries::All,
                BankInit::Features => Entries::Negatives,
            },
            excluded_rows,
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
}

/// Takes one batch through the network and the objective, and moves the batch's rows of the bank. The gradients are
/// those of the loss divided by `group`, the number of batches that make one optimiser step; the step is the caller's.
///
/// With a loss that is not finite nothing is moved.
pub fn train_batch(
    state: &mut TrainState,
    objective: &Objective,
    batch: &Batch,
    normalization: &NormalizationTable,
    bank_momentum: f32,
    group: usize,
    draw: u64,
) -> BatchOutcome {
    let started = Instant::now();
    let embedded = state.encoder.forward(&input_tensor(batch, normalization), Mode::Train); // [B, D], unit rows
    let features = to_vec_f32(&embedded);
    let forward = started.elapsed();

    let started = Instant::now();
    let LossAndGradient { loss, mut gradient, .. } =
        objective.evaluate(&features, &batch.indices, &state.bank, &mut state.normalizer, draw);
    let objective_time = started.elapsed();
    if !loss.is_finite() {
        return BatchOutcome {
            loss,
            gradients: None,
            forward,
            objective: objective_time,
            backward: Duration::ZERO,
        };
    }

    let started = Instant::now();
    if group > 1 {
        let share = 1.0 / group as f32;
        gradient.iter_mut().for_each(|g| *g *= share);
    }
    let gradients = state.encoder.backward(&embedded, &Tensor::from_slice(&gradient).view_as(&embedded));
    // The gradient has been taken: now, and only here, the bank moves.
    state.bank.update(&features, &batch.indices, bank_momentum);
    let backward = started.elapsed();
    BatchOutcome { loss, gradients: Some(gradients), forward, objective: objective_time, backward }
}
