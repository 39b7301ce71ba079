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
    pub fn step(&mut self, gradients: &[Tensor], rates: Rates) {
        no_grad(|| {
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
            let rate = |rate: f32| gradient.new_full([1], f64::from(rate), (Kind::Float, gradient.device()));
            let (weight_decay, minus_lr) = (rate(rates.weight_decay), rate(-rates.lr));
            let _ = gradient.addcmul_(&self.parameters, &weight_decay);
            let _ = self.momentum.g_mul_scalar_(f64::from(rates.momentum));
            let _ = self.momentum.g_add_(&gradient);
            let _ = self.parameters.addcmul_(&self.momentum, &minus_lr);
        });
    }
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
