//! 3×3 convolutions with a quarter of the multiplications: Winograd's F(4×4, 3×3) (Lavin & Gray 2016), forward and
//! backward, for fp32 maps on the CPU.
//!
//! libtorch's own convolutions reach nearly all that the processor can multiply; what is left to win is not to multiply.
//! Sums are taken in an order that does not depend on the number of threads.

mod passes;
mod product;
mod scratch;
mod transform;

use tch::{Device, Kind, Tensor, no_grad};

use self::passes::{Weights, convolve, weight_gradient};
use self::transform::Maps;
use super::autograd::attach;
use crate::simd::{Isa, LANES};

/// Whether [`convolution`] takes this one: fp32 on the CPU, 3×3, stride 1, channels in sixteens, and vector instructions that
/// it was found to be faster with.
pub fn takes(maps: &Tensor, weights: &Tensor, stride: i64) -> bool {
    let sixteens = |channels: i64| channels > 0 && channels % LANES as i64 == 0;
    let shape = weights.size();
    stride == 1
        && shape[2..] == [3, 3]
        && sixteens(shape[0])
        && sixteens(shape[1])
        && [maps, weights].iter().all(|t| t.device() == Device::Cpu && t.kind() == Kind::Float)
        && maps.numel() > 0
        && !matches!(Isa::best(), Isa::Portable(_))
}

/// `maps` `[B, C, H, W]` convolved with `weights` `[K, C, 3, 3]`, stride 1, padded by one: `[B, K, H, W]`, the channels last
/// in memory. Part of libtorch's graph.
pub fn convolution(maps: &Tensor, weights: &Tensor) -> Tensor {
    convolution_with(Isa::best(), maps, weights)
}

fn convolution_with(isa: Isa, maps: &Tensor, weights: &Tensor) -> Tensor {
    let (x, w) = no_grad(|| (ChannelsLast::of(maps), ChannelsLast::of(weights)));
    let out = no_grad(|| {
        let mut out = ChannelsLast::like(&x, w.size[0]);
        convolve(isa, x.chunks(), x.maps(), &w.weights().forward(isa), out.chunks_mut());
        out.into_tensor()
    });
    attach(out, [maps, weights], move |gradient, [maps, weights]| {
        no_grad(|| {
            let gradient = ChannelsLast::of(gradient);
            let of_maps = maps.then(|| {
                let mut out = ChannelsLast::like(&x, w.size[1]);
                let factors = w.weights().backward(isa);
                convolve(isa, gradient.chunks(), gradient.maps(), &factors, out.chunks_mut());
                out.into_tensor()
            });
            let of_weights = weights.then(|| {
                let mut out = ChannelsLast::empty(w.size);
                let outputs = gradient.maps().chunks;
                weight_gradient(isa, x.chunks(), x.maps(), gradient.chunks(), outputs, out.chunks_mut());
                out.into_tensor()
            });
            [of_maps, of_weights]
        })
    })
}

/// A tensor `[N, C, H, W]` whose memory is `[N, H, W, C]` without gaps, and whose numbers can be looked at.
struct ChannelsLast {
    /// `[N, H, W, C]`, contiguous, without a graph.
    memory: Tensor,
    /// N, C, H, W.
    size: [i64; 4],
}

impl ChannelsLast {
    /// The same numbers; copied only if they lie in another order.
    fn of(tensor: &Tensor) -> Self {
        let (n, c, h, w) = tensor.size4().expect("four axes");
        let memory = tensor.detach().permute([0, 2, 3, 1]).contiguous();
        ChannelsLast { memory, size: [n, c, h, w] }
    }

    fn empty([n, c, h, w]: [i64; 4]) -> Self {
        ChannelsLast { memory: Tensor::empty([n, h, w, c], (Kind::Float, Device::Cpu)), size: [n, c, h, w] }
    }

    /// As many maps of the same size, with other channels.
    fn like(other: &ChannelsLast, channels: i64) -> Self {
        let [n, _, h, w] = other.size;
        Self::empty([n, channels, h, w])
    }

    fn into_tensor(self) -> Tensor {
        self.memory.permute([0, 3, 1, 2])
    }

    fn maps(&self) -> Maps {
        let [n, c, h, w] = self.size.map(|size| size as usize);
        Maps { batch: n, height: h, width: w, chunks: c / LANES }
    }

    fn weights(&self) -> Weights<'_> {
        let [outputs, inputs, ..] = self.size.map(|size| size as usize / LANES);
        Weights { values: self.chunks(), outputs, inputs }
    }

    fn chunks(&self) -> &[[f32; LANES]] {
        // SAFETY: fp32 on the CPU without gaps (`takes`, `contiguous`), a multiple of sixteen numbers that nothing
        // changes while `self` is borrowed: what the network computes is written once.
        unsafe { std::slice::from_raw_parts(self.memory.data_ptr().cast(), self.memory.numel() / LANES) }
    }

    fn chunks_mut(&mut self) -> &mut [[f32; LANES]] {
        // SAFETY: as above, and just made: nobody else has this memory.
        unsafe { std::slice::from_raw_parts_mut(self.memory.data_ptr().cast(), self.memory.numel() / LANES) }
    }
}

#[cfg(test)]
mod tests;
