//! Linear classifiers trained by SGD side by side, one for each learning rate: the protocol of most papers.
//!
//! Each rate is trained twice in the same pass: without the held-out images, to choose among the rates, and with them,
//! to be tested.

use tch::{Kind, Tensor, no_grad};

use super::heads::Heads;
use super::{Examples, Fitted};
use crate::data::loader::epoch_order;
use crate::error::Result;
use crate::optim::{Schedule, lr};

/// How SGD trains a linear classifier.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SgdSettings {
    /// Passes over the training images.
    pub epochs: u64,
    /// Images of a step.
    pub batch_size: usize,
    /// μ of the momentum.
    pub momentum: f64,
    /// Weight decay, on weights and biases.
    pub weight_decay: f64,
    /// Epochs after which the rate falls to a tenth.
    pub milestones: Vec<f64>,
}

impl SgdSettings {
    /// `epochs` epochs with falls after 60 % and 80 % of them (He et al. 2020, §4.1: after 60 and 80 of 100, batch 256,
    /// momentum 0.9, no weight decay).
    pub fn new(epochs: u64) -> Self {
        let milestones = [0.6, 0.8].map(|share| (share * epochs as f64).round()).to_vec();
        SgdSettings { epochs, batch_size: 256, momentum: 0.9, weight_decay: 0.0, milestones }
    }

    /// The factor of the base rate in `epoch`, counted from 0.
    fn factor(&self, epoch: u64) -> f64 {
        let schedule = Schedule::Step { milestones: self.milestones.clone(), gamma: 0.1 };
        lr(1.0, &schedule, 0.0, self.epochs as f64, epoch as f64)
    }
}

/// The classifiers of all rates on one layer, in training: those that do not see the held-out images, then those that do.
pub struct Trainer {
    heads: Heads,
    weight_momentum: Tensor,
    bias_momentum: Tensor,
    /// Base rate of each column, `[2·R·C]`.
    rates: Tensor,
    settings: SgdSettings,
    learning_rates: Vec<f64>,
    /// Summed loss and images of this epoch for each head.
    loss: Tensor,
    seen: Tensor,
}

impl Trainer {
    /// Classifiers of zeros for features of `dim` numbers.
    pub fn new(
        dim: usize,
        classes: usize,
        learning_rates: &[f64],
        settings: &SgdSettings,
        device: tch::Device,
    ) -> Self {
        let twice = [learning_rates, learning_rates].concat();
        let heads = Heads::zeros(dim, twice.len(), classes, device);
        let columns: Vec<f32> = twice.iter().flat_map(|&rate| vec![rate as f32; classes]).collect();
        let sums = || Tensor::zeros([twice.len() as i64], (Kind::Double, device));
        Trainer {
            weight_momentum: heads.weight.zeros_like(),
            bias_momentum: heads.bias.zeros_like(),
            heads,
            rates: Tensor::from_slice(&columns).to_device(device),
            settings: settings.clone(),
            learning_rates: learning_rates.to_vec(),
            loss: sums(),
            seen: sums(),
        }
    }

    /// One step of every head on features `x` `[B, F]` in `epoch`; `held_out[i]` says that image i is kept from the
    /// heads that choose.
    pub fn step(&mut self, x: &Tensor, labels: &[u32], held_out: &[bool], epoch: u64) {
        let device = x.device();
        let rates = self.learning_rates.len();
        let labels: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
        let counts: Vec<f32> = held_out
            .iter()
            .flat_map(|&out| (0..2 * rates).map(move |head| f32::from(u8::from(head >= rates || !out))))
            .collect();
        let counts = Tensor::from_slice(&counts).to_device(device).view([held_out.len() as i64, -1]);
        let images = counts.sum_dim_intlist([0].as_slice(), false, Kind::Float); // [2R]
        let pass = self.heads.pass(
            x,
            &Tensor::from_slice(&labels).to_device(device),
            // A batch of held-out images only gives the heads that choose no gradient, not a division by zero.
            &(&counts / images.clamp_min(1.0)),
        );
        no_grad(|| {
            let _ = self.loss.g_add_(&(&pass.losses * &images));
            let _ = self.seen.g_add_(&images);
            let rate = &self.rates * self.settings.factor(epoch);
            let Trainer { heads, weight_momentum, bias_momentum, settings, .. } = self;
            for (parameter, buffer, gradient) in [
                (&mut heads.weight, weight_momentum, pass.weight),
                (&mut heads.bias, bias_momentum, pass.bias),
            ] {
                let _ = buffer.g_mul_scalar_(settings.momentum);
                let _ = buffer.g_add_(&gradient);
                if settings.weight_decay > 0.0 {
                    let _ = buffer.g_add_(&(&*parameter * settings.weight_decay));
                }
                let _ = parameter.g_sub_(&(&*buffer * &rate));
            }
        });
    }

    /// Forgets the sums of the epoch that is over.
    pub fn begin_epoch(&mut self) {
        let _ = (self.loss.zero_(), self.seen.zero_());
    }

    /// The classifiers that chose and those that are tested, each in the order of the rates.
    pub fn finish(self) -> (Vec<Fitted>, Vec<Fitted>) {
        let means = &self.loss / &self.seen;
        let rates = self.learning_rates.len();
        let fitted = |head: usize| Fitted {
            setting: self.learning_rates[head % rates],
            heads: self.heads.one(head),
            parameters: Vec::new(),
            loss: means.double_value(&[head as i64]),
            iterations: self.settings.epochs as usize,
            converged: None,
            gradient_norm: None,
        };
        ((0..rates).map(fitted).collect(), (rates..2 * rates).map(fitted).collect())
    }
}

/// Trains on cached features; the order of an epoch depends on `seed` and epoch only. `progress` hears the images done,
/// over all epochs; its error ends the training.
///
/// # Errors
/// Those of `progress`.
pub fn fit(
    examples: &Examples<'_>,
    held_out: &[bool],
    learning_rates: &[f64],
    settings: &SgdSettings,
    seed: u64,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<(Vec<Fitted>, Vec<Fitted>)> {
    let Examples { features, labels, n_classes, device } = *examples;
    let dim = features.dim();
    let mut trainer = Trainer::new(dim, n_classes, learning_rates, settings, device);
    let all: Vec<u32> = (0..features.len() as u32).collect();
    let mut done = 0;
    for epoch in 0..settings.epochs {
        trainer.begin_epoch();
        for batch in epoch_order(&all, seed, epoch).chunks(settings.batch_size) {
            let rows: Vec<f32> = batch.iter().flat_map(|&i| features.row(i as usize)).copied().collect();
            let x = Tensor::from_slice(&rows).view([batch.len() as i64, dim as i64]).to_device(device);
            let of = |i: &u32| labels[*i as usize];
            let out: Vec<bool> = batch.iter().map(|&i| held_out[i as usize]).collect();
            trainer.step(&x, &batch.iter().map(of).collect::<Vec<_>>(), &out, epoch);
            done += batch.len();
            progress(done)?;
        }
    }
    Ok(trainer.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::linear::cache::Cache;
    use crate::model::to_vec_f32;
    use tch::Device;

    /// 24 images of 2 classes in 3 numbers.
    fn examples() -> (Cache, Vec<u32>) {
        let labels: Vec<u32> = (0..24).map(|i| i % 2).collect();
        let values = (0..72).map(|i: u32| (i as f32 * 0.9).sin() + if i / 3 % 2 == 1 { 0.6 } else { 0.0 });
        (Cache::of(values.collect(), 3), labels)
    }

    /// The rates side by side, held-out images among them, against a plain loop for one rate without them.
    #[test]
    fn every_head_is_what_it_would_be_alone() {
        let (features, labels) = examples();
        let examples = Examples { features: &features, labels: &labels, n_classes: 2, device: Device::Cpu };
        let held_out: Vec<bool> = (0..24).map(|i| i >= 20).collect();
        let settings =
            SgdSettings { batch_size: 8, weight_decay: 0.01, milestones: vec![2.0], ..SgdSettings::new(3) };
        let rates = [0.01, 0.5];
        let (choosing, tested) = fit(&examples, &held_out, &rates, &settings, 5, &mut |_| Ok(())).unwrap();
        for (sees_all, fitted) in [(false, &choosing), (true, &tested)] {
            for (rate, fitted) in rates.iter().zip(fitted) {
                assert_eq!(fitted.setting, *rate);
                let found = [to_vec_f32(&fitted.heads.weight), to_vec_f32(&fitted.heads.bias)].concat();
                let expected = naive(&features, &labels, &held_out, sees_all, *rate);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
                }
                assert!(fitted.loss.is_finite());
            }
        }
    }

    fn naive(features: &Cache, labels: &[u32], held_out: &[bool], sees_all: bool, rate: f64) -> Vec<f64> {
        let (mut p, mut buffer) = (vec![0.0_f64; 8], vec![0.0_f64; 8]);
        let all: Vec<u32> = (0..24).collect();
        for epoch in 0..3 {
            for batch in epoch_order(&all, 5, epoch).chunks(8) {
                let taken: Vec<usize> =
                    batch.iter().map(|&i| i as usize).filter(|&i| sees_all || !held_out[i]).collect();
                let mut gradient: Vec<f64> = p.iter().map(|p| 0.01 * p).collect();
                for &i in &taken {
                    let x: Vec<f64> = features.row(i).iter().map(|&x| f64::from(x)).chain([1.0]).collect();
                    let logits = [0, 1].map(|c| (0..4).map(|f| x[f] * p[2 * f + c]).sum::<f64>());
                    for c in 0..2 {
                        let share = 1.0 / (1.0 + (logits[1 - c] - logits[c]).exp());
                        let error = share - f64::from(u8::from(labels[i] as usize == c));
                        (0..4).for_each(|f| gradient[2 * f + c] += x[f] * error / taken.len() as f64);
                    }
                }
                let rate = if epoch < 2 { rate } else { 0.1 * rate };
                for ((p, b), g) in p.iter_mut().zip(&mut buffer).zip(gradient) {
                    *b = 0.9 * *b + g;
                    *p -= rate * *b;
                }
            }
        }
        p
    }

    #[test]
    fn the_usual_schedule_falls_twice() {
        let settings = SgdSettings::new(100);
        assert_eq!(settings.milestones, [60.0, 80.0]);
        let close = |epoch, factor: f64| (settings.factor(epoch) - factor).abs() < 1e-12;
        assert!(close(0, 1.0) && close(59, 1.0) && close(60, 0.1) && close(80, 0.01));
    }
}
