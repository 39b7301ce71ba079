//! 3×3 convolutions with a quarter of the multiplications: Winograd's F(4×4, 3×3) (Lavin & Gray 2016), forward and
//! backward, for fp32 maps on the CPU.
//!
//! libtorch's own convolutions reach nearly all that the processor can multiply; what is left to win is not to multiply.
//! Sums are taken in an order that does not depend on the number of threads.

mod passes;
mod product;
mod scratch;
mod transform;

use tch::{Tensor, no_grad};

pub use self::passes::working_bytes;
use self::passes::{Weights, convolve, weight_gradient};
use self::transform::Maps;
use super::autograd::attach;
use super::channels_last::{ChannelsLast, Fresh, fits};
use crate::simd::{Isa, LANES};

/// Whether [`convolution`] takes this one: fp32 on the CPU, 3×3, stride 1, channels in sixteens, and vector instructions that
/// it was found to be faster with.
pub fn takes(maps: &Tensor, weights: &Tensor, stride: i64) -> bool {
    let shape = weights.size();
    stride == 1
        && shape[2..] == [3, 3]
        && shape[0] % LANES as i64 == 0
        && fits(maps)
        && fits(weights)
        && !matches!(Isa::best(), Isa::Portable(_))
}

/// `maps` `[B, C, H, W]` convolved with `weights` `[K, C, 3, 3]`, stride 1, padded by one: `[B, K, H, W]`, the channels last
/// in memory. Part of libtorch's graph.
pub fn convolution(maps: &Tensor, weights: &Tensor) -> Tensor {
    convolution_with(Isa::best(), maps, weights)
}

fn convolution_with(isa: Isa, maps: &Tensor, weights: &Tensor) -> Tensor {
    let (x, w) = no_grad(|| (ChannelsLast::of(maps), ChannelsLast::of(weights)));
    let [images, _, height, width] = x.size;
    let maps_of = move |channels| Fresh::new([images, channels, height, width]);
    let out = no_grad(|| {
        let mut out = maps_of(w.size[0]);
        convolve(isa, x.chunks(), shape(&x), &Weights::of(&w).forward(isa), out.chunks_mut());
        out.into_tensor()
    });
    attach(out, [maps, weights], move |gradient, [maps, weights]| {
        no_grad(|| {
            let gradient = ChannelsLast::of(gradient);
            let of_maps = maps.then(|| {
                let mut out = maps_of(w.size[1]);
                let factors = Weights::of(&w).backward(isa);
                convolve(isa, gradient.chunks(), shape(&gradient), &factors, out.chunks_mut());
                out.into_tensor()
            });
            let of_weights = weights.then(|| {
                let mut out = Fresh::new(w.size);
                let outputs = gradient.chunks_per_pixel();
                weight_gradient(isa, x.chunks(), shape(&x), gradient.chunks(), outputs, out.chunks_mut());
                out.into_tensor()
            });
            [of_maps, of_weights]
        })
    })
}

/// `maps`, as the passes see them.
fn shape(maps: &ChannelsLast) -> Maps {
    let [batch, _, height, width] = maps.size.map(|size| size as usize);
    Maps { batch, height, width, chunks: maps.chunks_per_pixel() }
}

#[cfg(test)]
mod tests;
