//! All parameters in one block of memory, all momentum in another: a step is one copy of the gradients and four operations,
//! however many tensors there are.

use tch::{Kind, Tensor, no_grad};

use super::Rates;
use crate::model::Parameters;
use crate::model::convert::same_layout;

/// Every tensor starts at a multiple of this many numbers: at 256 bytes, as if it had been allocated by itself, which
/// some convolutions ask for.
const ALIGNMENT: i64 = 64;

/// The two blocks, of which the encoder's parameters and the optimiser's buffers are views.
#[derive(Debug)]
pub(super) struct Flat {
    parameters: Tensor,
    momentum: Tensor,
    /// Zeros, to fill up to the next aligned place.
    padding: Tensor,
}

impl Flat {
    /// Moves the values of `parameters` and `buffers` into blocks and makes the tensors views of those: handles of them,
    /// such as the network's, stay valid, and shapes and memory layouts stay as they are.
    ///
    /// # Panics
    /// If the two do not belong together.
    pub fn new(parameters: &mut Parameters, buffers: &mut [(String, Tensor)]) -> Self {
        assert_eq!(parameters.trainable().count(), buffers.len(), "buffers of another encoder");
        let device = parameters.trainable().next().expect("an encoder has parameters").tensor.device();
        let total = parameters.trainable().map(|entry| aligned(entry.tensor.numel() as i64)).sum::<i64>();
        let zeros = |length| Tensor::zeros([length], (Kind::Float, device));
        let flat = Flat { parameters: zeros(total), momentum: zeros(total), padding: zeros(ALIGNMENT) };
        let mut start = 0;
        for (entry, (name, buffer)) in parameters.trainable_mut().zip(buffers) {
            assert_eq!(entry.name, *name, "buffers of another encoder");
            no_grad(|| {
                let mut place = view_like(&flat.parameters, start, &entry.tensor);
                place.copy_(&entry.tensor);
                entry.tensor.set_data(&place);
                let mut place = view_like(&flat.momentum, start, &entry.tensor);
                place.copy_(buffer);
                *buffer = place;
            });
            start += aligned(entry.tensor.numel() as i64);
        }
        flat
    }

    /// `g += wd·p; buf = μ·buf + g; p −= lr·buf` with one gradient for each parameter, in order.
    pub fn step(&mut self, gradients: &[Tensor], rates: Rates, lr: f32) {
        no_grad(|| {
            let gradient = self.gathered(gradients, rates.weight_decay);
            let (momentum, minus_lr) = (one_number(&gradient, rates.momentum), one_number(&gradient, -lr));
            self.apply(&gradient, &momentum, &minus_lr);
        });
    }

    /// The same with `lr` f32 `[1]` on the device, and only where `wanted`, a boolean scalar there, is true. Otherwise each
    /// number stays as it was, but for the sign of a weight that is −0.
    pub fn step_where(&mut self, gradients: &[Tensor], rates: Rates, lr: &Tensor, wanted: &Tensor) {
        no_grad(|| {
            let mut gradient = self.gathered(gradients, rates.weight_decay);
            // Adding −0, multiplying by 1 and moving at a rate of 0 change nothing, and no number is written twice.
            let unwanted = wanted.logical_not();
            let _ = gradient.masked_fill_(&unwanted, -0.0);
            let momentum = one_number(&gradient, 1.0).masked_fill(wanted, f64::from(rates.momentum));
            let minus_lr = (-lr).masked_fill(&unwanted, 0.0);
            self.apply(&gradient, &momentum, &minus_lr);
        });
    }

    /// `g + wd·p` of all parameters in one block.
    fn gathered(&self, gradients: &[Tensor], weight_decay: f32) -> Tensor {
        let mut pieces = Vec::with_capacity(2 * gradients.len());
        for gradient in gradients {
            let piece = in_storage_order(gradient);
            let left = aligned(piece.numel() as i64) - piece.numel() as i64;
            pieces.push(piece);
            if left > 0 {
                pieces.push(self.padding.narrow(0, 0, left));
            }
        }
        let mut gradient = Tensor::cat(&pieces, 0);
        assert_eq!(gradient.size(), self.parameters.size(), "gradients of another encoder");
        let weight_decay = one_number(&gradient, weight_decay);
        let _ = gradient.addcmul_(&self.parameters, &weight_decay);
        gradient
    }

    /// `buf = μ·buf + g; p −= lr·buf`, with numbers f32 `[1]`.
    fn apply(&mut self, gradient: &Tensor, momentum: &Tensor, minus_lr: &Tensor) {
        let _ = self.momentum.g_mul_(momentum);
        let _ = self.momentum.g_add_(gradient);
        let _ = self.parameters.addcmul_(&self.momentum, minus_lr);
    }
}

/// A number where `like` is, f32 `[1]`.
fn one_number(like: &Tensor, number: f32) -> Tensor {
    like.new_full([1], f64::from(number), (Kind::Float, like.device()))
}

fn aligned(count: i64) -> i64 {
    (count + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// The numbers of `tensor` in the order in which a parameter of its shape lies in memory: channels last.
fn in_storage_order(tensor: &Tensor) -> Tensor {
    match tensor.dim() {
        4 => tensor.permute([0, 2, 3, 1]).reshape([-1]),
        _ => tensor.reshape([-1]),
    }
}

/// The part of `block` from `start` on, with the shape and layout of the parameter `like`.
fn view_like(block: &Tensor, start: i64, like: &Tensor) -> Tensor {
    let piece = block.narrow(0, start, like.numel() as i64);
    let view = match like.size()[..] {
        [output, input, height, width] => piece.view([output, height, width, input]).permute([0, 3, 1, 2]),
        _ => piece.view(&like.size()[..]),
    };
    assert!(same_layout(&view, like), "parameters of four dimensions lie channels-last");
    view
}

#[cfg(test)]
mod tests {
    use crate::model::{Arch, Encoder, EncoderConfig, Family, Mode, to_vec_f32};
    use crate::optim::Sgd;
    use tch::{Device, Kind, Tensor};

    fn encoder() -> Encoder {
        // Odd widths, so that there is padding.
        let config =
            EncoderConfig { width: 3, embed_dim: 5, ..EncoderConfig::new(Arch::ResNet18, Family::Cifar) };
        Encoder::new(config, 1, Device::Cpu)
    }

    fn values(encoder: &Encoder) -> Vec<f32> {
        encoder.parameters().state().flat_map(|entry| to_vec_f32(&entry.tensor)).collect()
    }

    #[test]
    fn what_is_not_wanted_changes_nothing() {
        let images = Tensor::arange(2 * 3 * 16 * 16, (Kind::Float, Device::Cpu)).sin().view([2, 3, 16, 16]);
        let (mut queued, mut known) = (encoder(), encoder());
        let mut by_device = Sgd::new(queued.parameters(), 0.9, 0.01);
        let mut by_host = Sgd::new(known.parameters(), 0.9, 0.01);
        by_device.in_one_piece(queued.parameters_mut());
        by_host.in_one_piece(known.parameters_mut());
        let gradients = |encoder: &Encoder, scale: f64| {
            let rows = encoder.forward(&images, Mode::Train);
            encoder.backward(&rows, &((rows.detach() * 2.0 - 1.0) * scale))
        };
        let state = |encoder: &Encoder, sgd: &Sgd| -> Vec<u32> {
            let momentum = sgd.buffers().flat_map(|(_, buffer)| to_vec_f32(buffer));
            let weights = encoder.parameters().trainable().flat_map(|entry| to_vec_f32(&entry.tensor));
            weights.chain(momentum).map(f32::to_bits).collect()
        };
        for (step, lr) in [0.05f32, 0.02, 0.01].into_iter().enumerate() {
            let on_device = Tensor::from_slice(&[lr]);
            let (wanted, unwanted) = (Tensor::from(true), Tensor::from(false));
            let before = state(&queued, &by_device);
            by_device.step_where(gradients(&queued, f64::NAN), &on_device, &unwanted);
            assert_eq!(state(&queued, &by_device), before, "step {step}, not wanted");
            by_device.step_where(gradients(&queued, 1.0), &on_device, &wanted);
            let gradients = gradients(&known, 1.0);
            by_host.step(known.parameters_mut(), gradients, f64::from(lr));
            assert_ne!(state(&queued, &by_device), before);
            assert_eq!(state(&queued, &by_device), state(&known, &by_host), "step {step}, wanted");
        }
    }

    #[test]
    fn in_one_piece_it_steps_as_in_many() {
        let images = Tensor::arange(2 * 3 * 16 * 16, (Kind::Float, Device::Cpu)).sin().view([2, 3, 16, 16]);
        let (mut many, mut one) = (encoder(), encoder());
        let mut sgd = Sgd::new(many.parameters(), 0.9, 0.01);
        let mut flat = Sgd::new(one.parameters(), 0.9, 0.01);
        let before = values(&one);
        flat.in_one_piece(one.parameters_mut());
        assert_eq!(values(&one), before);
        for _ in 0..4 {
            let advance = |encoder: &mut Encoder, sgd: &mut Sgd| {
                let rows = encoder.forward(&images, Mode::Train);
                let gradients = encoder.backward(&rows, &(rows.detach() * 2.0 - 1.0));
                sgd.step(encoder.parameters_mut(), gradients, 0.05);
            };
            advance(&mut many, &mut sgd);
            advance(&mut one, &mut flat);
        }
        let close = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-2), "{a} {b}");
            }
        };
        assert_ne!(values(&one), before);
        close(&values(&many), &values(&one));
        for ((name, a), (other, b)) in sgd.buffers().zip(flat.buffers()) {
            assert_eq!((name, a.size()), (other, b.size()));
            close(&to_vec_f32(a), &to_vec_f32(b));
        }
        // What a checkpoint stores goes from one to the other.
        let state = sgd.buffers().map(|(name, buffer)| (name.to_owned(), buffer.copy())).collect();
        flat.load_buffers(&state).unwrap();
        let state = many.parameters().state().map(|e| (e.name.clone(), e.tensor.detach().copy())).collect();
        one.parameters_mut().load(&state).unwrap();
        assert_eq!(values(&one), values(&many));
        let rows = one.forward(&images, Mode::Eval);
        assert_eq!(to_vec_f32(&rows), to_vec_f32(&many.forward(&images, Mode::Eval)));
    }
}
