//! SGD as the published program had it, with its momentum in the open.

use std::collections::BTreeMap;

use rayon::prelude::*;
use tch::{Device, Tensor, no_grad};

use flat::Flat;

use crate::error::Result;
use crate::model::convert::{dense_f32, dense_f32_mut, same_layout};
use crate::model::parameters::load_strictly;
use crate::model::{Gradients, Parameters};

mod flat;
pub mod schedule;

pub use schedule::{Schedule, lr};

/// Elements that one task of the fused update takes: three streams of 64 KB stay in a core's cache.
const CHUNK: usize = 16_384;

/// Stochastic gradient descent in PyTorch's form (momentum without dampening, no Nesterov):
/// `g += wd·p; buf = μ·buf + g; p −= lr·buf`, on every parameter, BatchNorm's and biases included.
///
/// The momentum buffers start at zero, so that the first step has `buf = g` as in PyTorch.
#[derive(Debug)]
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    buffers: Vec<(String, Tensor)>,
    /// Where parameters and buffers lie in one piece each.
    flat: Option<Flat>,
}

impl Sgd {
    /// An optimiser for `parameters` with empty momentum. `momentum` is μ (0.9 in the paper's code).
    pub fn new(parameters: &Parameters, momentum: f64, weight_decay: f64) -> Self {
        let buffers = parameters
            .trainable()
            .map(|entry| (entry.name.clone(), no_grad(|| entry.tensor.detach().zeros_like())))
            .collect();
        Sgd { momentum, weight_decay, buffers, flat: None }
    }

    /// Moves parameters and momentum into one block of memory each, so that a step is a few operations on those instead of
    /// some on every tensor. On a device each operation costs a launch, however small; on the CPU nothing is gained.
    ///
    /// # Panics
    /// If `parameters` are not those this optimiser was made for.
    pub fn in_one_piece(&mut self, parameters: &mut Parameters) {
        self.flat = Some(Flat::new(parameters, &mut self.buffers));
    }

    /// One step with learning rate `lr`; uses up the gradients.
    ///
    /// # Panics
    /// If `parameters` or `gradients` are not those of the encoder this optimiser was made for.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: Gradients, lr: f64) {
        let mut gradients = gradients.into_tensors();
        assert_eq!(gradients.len(), self.buffers.len(), "gradients of another encoder");
        assert_eq!(parameters.trainable().count(), self.buffers.len(), "parameters of another encoder");
        let (rates, lr) = (self.rates(), lr as f32);
        if let Some(flat) = &mut self.flat {
            return flat.step(&gradients, rates, lr);
        }
        let mut tasks = Vec::new();
        for ((entry, gradient), (name, buffer)) in
            parameters.trainable_mut().zip(&mut gradients).zip(&mut self.buffers)
        {
            assert_eq!(entry.name, *name, "parameters of another encoder");
            if entry.tensor.device() != Device::Cpu {
                step_with_tensor_ops(&mut entry.tensor, gradient, buffer, rates, lr);
                continue;
            }
            if !same_layout(gradient, &entry.tensor) {
                let mut relaid = entry.tensor.detach().empty_like();
                relaid.copy_(gradient);
                *gradient = relaid;
            }
            assert!(same_layout(buffer, &entry.tensor), "{name}: the momentum's layout is the parameter's");
            // SAFETY: parameter, gradient and buffer are three tensors with storage of their own: autograd made
            // the gradient, `new` the buffer. The exclusive borrows of the encoder's parameters and of `self`
            // keep others from using their handles until the last task is done, and no libtorch operation
            // touches them meanwhile.
            let (p, g, b) =
                unsafe { (dense_f32_mut(&mut entry.tensor), dense_f32(gradient), dense_f32_mut(buffer)) };
            tasks.extend(
                p.chunks_mut(CHUNK)
                    .zip(g.chunks(CHUNK))
                    .zip(b.chunks_mut(CHUNK))
                    .map(|((p, g), b)| (p, g, b)),
            );
        }
        tasks.into_par_iter().for_each(|(p, g, b)| step_in_one_pass(p, g, b, rates, lr));
    }

    /// [`step`](Self::step) with what only the device knows: the learning rate `lr` f32 `[1]`, and `wanted`, a boolean scalar.
    /// Where that is false neither parameters nor momentum move.
    ///
    /// # Panics
    /// If they do not lie [in one piece](Self::in_one_piece), or `gradients` are another encoder's.
    pub fn step_where(&mut self, gradients: Gradients, lr: &Tensor, wanted: &Tensor) {
        let rates = self.rates();
        let flat = self.flat.as_mut().expect("an optimiser in one piece");
        flat.step_where(gradients.tensors(), rates, lr, wanted);
    }

    /// Whether parameters and momentum lie [in one piece](Self::in_one_piece).
    pub fn is_in_one_piece(&self) -> bool {
        self.flat.is_some()
    }

    fn rates(&self) -> Rates {
        Rates { momentum: self.momentum as f32, weight_decay: self.weight_decay as f32 }
    }

    /// The momentum buffers by their parameter's name: what a checkpoint stores beside the parameters.
    pub fn buffers(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.buffers.iter().map(|(name, buffer)| (name.as_str(), buffer))
    }

    /// Copies all momentum buffers in, or none.
    ///
    /// # Errors
    /// If a name is missing or unknown, or a shape or kind differs; every such name is listed.
    pub fn load_buffers(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_strictly("optimiser", self.buffers.iter_mut().map(|(name, b)| (name.as_str(), b)), state)
    }
}

/// What a step multiplies with, in the parameters' precision as PyTorch does.
#[derive(Clone, Copy)]
struct Rates {
    momentum: f32,
    weight_decay: f32,
}

/// The update of one chunk. Memory is what it costs: each number is read and written once.
fn step_in_one_pass(parameters: &mut [f32], gradients: &[f32], buffers: &mut [f32], rates: Rates, lr: f32) {
    for ((p, g), b) in parameters.iter_mut().zip(gradients).zip(buffers) {
        *b = rates.momentum * *b + (*g + rates.weight_decay * *p);
        *p -= lr * *b;
    }
}

/// The same update in tensor operations, for devices whose memory we cannot reach.
fn step_with_tensor_ops(
    parameter: &mut Tensor,
    gradient: &Tensor,
    buffer: &mut Tensor,
    rates: Rates,
    lr: f32,
) {
    no_grad(|| {
        let gradient = gradient + parameter.detach() * f64::from(rates.weight_decay);
        let _ = buffer.g_mul_scalar_(f64::from(rates.momentum));
        let _ = buffer.g_add_(&gradient);
        let _ = parameter.g_sub_(&(&*buffer * f64::from(lr)));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Arch, Encoder, EncoderConfig, Family, Mode, to_vec_f32};
    use tch::Kind;

    fn encoder(seed: u64) -> Encoder {
        let config =
            EncoderConfig { width: 4, embed_dim: 8, ..EncoderConfig::new(Arch::ResNet18, Family::Cifar) };
        Encoder::new(config, seed, Device::Cpu)
    }

    fn values(encoder: &Encoder) -> Vec<Vec<f32>> {
        encoder.parameters().trainable().map(|entry| to_vec_f32(&entry.tensor)).collect()
    }

    /// The fused pass, the tensor operations and the definition in f64 agree over several steps, whatever the
    /// layout of the gradients.
    #[test]
    fn every_path_follows_the_definition() {
        let (momentum, weight_decay, lr) = (0.9, 5e-4, 0.03);
        let mut encoder = encoder(1);
        let mut sgd = Sgd::new(encoder.parameters(), momentum, weight_decay);
        let mut oracle: Vec<Vec<(f64, f64)>> =
            values(&encoder).iter().map(|p| p.iter().map(|&p| (f64::from(p), 0.0)).collect()).collect();
        let mut plain: Vec<(Tensor, Tensor)> = encoder
            .parameters()
            .trainable()
            .map(|entry| (entry.tensor.detach().copy(), entry.tensor.detach().zeros_like()))
            .collect();
        for step in 0..3 {
            let gradients: Vec<Tensor> = encoder
                .parameters()
                .trainable()
                .map(|entry| {
                    let count = entry.tensor.numel() as i64;
                    let ramp = Tensor::arange(count, (Kind::Float, Device::Cpu));
                    (ramp * 0.37 + f64::from(step)).sin().view(entry.tensor.size().as_slice())
                })
                .collect();
            for ((oracle, gradient), (p, b)) in oracle.iter_mut().zip(&gradients).zip(&mut plain) {
                for ((p, b), g) in oracle.iter_mut().zip(to_vec_f32(gradient)) {
                    *b = momentum * *b + f64::from(g) + weight_decay * *p;
                    *p -= lr * *b;
                }
                let rates = Rates { momentum: momentum as f32, weight_decay: weight_decay as f32 };
                step_with_tensor_ops(p, gradient, b, rates, lr as f32);
            }
            sgd.step(encoder.parameters_mut(), Gradients::from_tensors(gradients), lr);
        }
        for ((ours, oracle), (plain, _)) in values(&encoder).iter().zip(&oracle).zip(&plain) {
            for ((ours, (oracle, _)), plain) in ours.iter().zip(oracle).zip(to_vec_f32(plain)) {
                assert!((f64::from(*ours) - oracle).abs() < 1e-6, "{ours} {oracle}");
                assert!((f64::from(plain) - oracle).abs() < 1e-6, "{plain} {oracle}");
            }
        }
        let largest = sgd.buffers().flat_map(|(_, buffer)| to_vec_f32(buffer)).fold(0.0_f32, f32::max);
        assert!(largest > 1.0, "momentum gathered");
    }

    #[test]
    fn training_continues_identically_from_saved_buffers() {
        let images = Tensor::arange(2 * 3 * 16 * 16, (Kind::Float, Device::Cpu)).sin().view([2, 3, 16, 16]);
        let advance = |encoder: &mut Encoder, sgd: &mut Sgd| {
            let rows = encoder.forward(&images, Mode::Train);
            let gradients = encoder.backward(&rows, &(rows.detach() * 2.0 - 1.0));
            sgd.step(encoder.parameters_mut(), gradients, 0.1);
        };
        let (mut first, mut second) = (encoder(1), encoder(2));
        let mut sgd = Sgd::new(first.parameters(), 0.9, 1e-4);
        advance(&mut first, &mut sgd);
        let state = first.parameters().state().map(|e| (e.name.clone(), e.tensor.detach().copy())).collect();
        second.parameters_mut().load(&state).unwrap();
        let mut resumed = Sgd::new(second.parameters(), 0.9, 1e-4);
        let buffers = sgd.buffers().map(|(name, buffer)| (name.to_owned(), buffer.copy())).collect();
        resumed.load_buffers(&buffers).unwrap();
        for _ in 0..2 {
            advance(&mut first, &mut sgd);
            advance(&mut second, &mut resumed);
        }
        assert_eq!(values(&first), values(&second));
        assert!(resumed.load_buffers(&BTreeMap::new()).is_err());
    }

    #[test]
    fn accumulated_halves_are_the_whole() {
        let images = Tensor::arange(4 * 3 * 16 * 16, (Kind::Float, Device::Cpu)).sin().view([4, 3, 16, 16]);
        let encoder = encoder(3);
        let gradient = |scale: f64| {
            let rows = encoder.forward(&images, Mode::Train);
            encoder.backward(&rows, &(Tensor::ones_like(&rows) * scale).detach())
        };
        let whole = gradient(1.0);
        let mut halves = gradient(0.5);
        halves.accumulate(&gradient(0.5));
        assert!((whole.norm() / halves.norm() - 1.0).abs() < 1e-5);
        for (a, b) in whole.tensors().iter().zip(halves.tensors()) {
            assert!(a.allclose(b, 1e-4, 1e-5, false));
        }
    }
}
