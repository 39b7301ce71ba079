//! Convolutions with fewer multiplications, forward and backward, for fp32 maps on the CPU: Winograd's, 3×3 with a quarter of
//! them (Lavin & Gray 2016) and, with stride 2, nine sixteenths; and 1×1, which has nothing to save but passes over memory.
//!
//! libtorch's own convolutions reach nearly all that the processor can multiply; what is left to win is not to multiply.
//! Sums are taken in an order that does not depend on the number of threads.

mod gradient;
mod maps;
mod passes;
mod product;
mod scheme;
mod scratch;

use tch::{Tensor, no_grad};

use self::gradient::weight_gradient;
use self::maps::Maps;
use self::passes::{Source, Weights, convolve};
use self::scheme::{Doubled, Halved, Point, Same, Spread};
use super::autograd::attach;
use super::channels_last::{ChannelsLast, Fresh, fits};
use crate::simd::{Isa, LANES};

/// The convolutions that there are, each padded by half its size.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// 3×3, stride 1.
    Same,
    /// 3×3, stride 2.
    Halved,
    /// 1×1, stride 1.
    Point,
    /// 1×1, stride 2.
    EverySecondPoint,
}

impl Kind {
    /// That of `size` by `size` weights.
    fn of(size: i64, stride: i64) -> Option<Self> {
        match (size, stride) {
            (3, 1) => Some(Kind::Same),
            (3, 2) => Some(Kind::Halved),
            (1, 1) => Some(Kind::Point),
            (1, 2) => Some(Kind::EverySecondPoint),
            _ => None,
        }
    }

    /// `side` pixels of inputs give so many outputs.
    fn outputs(self, side: i64) -> i64 {
        match self {
            Kind::Same | Kind::Point => side,
            Kind::Halved | Kind::EverySecondPoint => (side + 1) / 2,
        }
    }
}

/// Whether [`convolution`] takes this one: fp32 on the CPU, 3×3 or 1×1 with stride 1 or 2, channels in sixteens, and vector
/// instructions that it was found to be faster with.
pub fn takes(maps: &Tensor, weights: &Tensor, stride: i64) -> bool {
    let shape = weights.size();
    shape[2] == shape[3]
        && Kind::of(shape[2], stride).is_some()
        && shape[0] % LANES as i64 == 0
        && fits(maps)
        && fits(weights)
        && !matches!(Isa::best(), Isa::Portable(_))
}

/// `maps` `[B, C, H, W]` convolved with `weights` `[K, C, S, S]`, padded by `(S − 1)/2`: `[B, K, H', W']`, the channels last
/// in memory. Part of libtorch's graph.
///
/// # Panics
/// If it [takes](takes) no such weights, or channels do not come in sixteens.
pub fn convolution(maps: &Tensor, weights: &Tensor, stride: i64) -> Tensor {
    convolution_with(Isa::best(), maps, weights, stride)
}

fn convolution_with(isa: Isa, maps: &Tensor, weights: &Tensor, stride: i64) -> Tensor {
    let (x, w) = no_grad(|| (ChannelsLast::of(maps), ChannelsLast::of(weights)));
    let [images, inputs, height, width] = x.size;
    let outputs = w.size[0];
    let kind = Kind::of(w.size[2], stride).expect("a convolution that is taken");
    let out = no_grad(|| {
        let mut out = Fresh::new([images, outputs, kind.outputs(height), kind.outputs(width)]);
        kind.forward(isa, &x, &w, &mut out);
        out.into_tensor()
    });
    attach(out, [maps, weights], move |gradient, [maps, weights]| {
        no_grad(|| {
            let gradient = ChannelsLast::of(gradient);
            let of_maps = maps.then(|| {
                let mut out = Fresh::new([images, inputs, height, width]);
                kind.gradient_of_maps(isa, &gradient, &w, &mut out);
                out.into_tensor()
            });
            let of_weights = weights.then(|| {
                let mut out = Fresh::new(w.size);
                kind.gradient_of_weights(isa, &x, &gradient, &mut out);
                out.into_tensor()
            });
            [of_maps, of_weights]
        })
    })
}

impl Kind {
    /// `out` = the outputs for inputs `x`.
    fn forward(self, isa: Isa, x: &ChannelsLast, w: &ChannelsLast, out: &mut Fresh) {
        let (x, w, target) = (source(x), Weights::of(w), shape(out.size()));
        let out = out.chunks_mut();
        match self {
            Kind::Same => convolve(isa, Same, x, &w.forward(isa, Same), target, out),
            Kind::Halved => convolve(isa, Halved, x, &w.forward(isa, Halved), target, out),
            Kind::Point => convolve(isa, Point::<1>, x, &w.forward(isa, Point::<1>), target, out),
            Kind::EverySecondPoint => {
                convolve(isa, Point::<2>, x, &w.forward(isa, Point::<2>), target, out);
            }
        }
    }

    /// `out` = the gradient of the inputs, from that of the outputs.
    fn gradient_of_maps(self, isa: Isa, gradient: &ChannelsLast, w: &ChannelsLast, out: &mut Fresh) {
        let (gradient, w, target) = (source(gradient), Weights::of(w), shape(out.size()));
        let out = out.chunks_mut();
        match self {
            Kind::Same => convolve(isa, Same, gradient, &w.backward(isa, Same), target, out),
            Kind::Halved => convolve(isa, Doubled, gradient, &w.backward(isa, Halved), target, out),
            Kind::Point => convolve(isa, Point::<1>, gradient, &w.backward(isa, Point::<1>), target, out),
            Kind::EverySecondPoint => {
                convolve(isa, Spread, gradient, &w.backward(isa, Point::<2>), target, out);
            }
        }
    }

    /// `out` = the gradient of the weights, from the inputs and the gradient of the outputs.
    fn gradient_of_weights(self, isa: Isa, x: &ChannelsLast, gradient: &ChannelsLast, out: &mut Fresh) {
        let (x, gradient, out) = (source(x), source(gradient), out.chunks_mut());
        match self {
            Kind::Same => weight_gradient(isa, Same, x, gradient, out),
            Kind::Halved => weight_gradient(isa, Halved, x, gradient, out),
            Kind::Point => weight_gradient(isa, Point::<1>, x, gradient, out),
            Kind::EverySecondPoint => weight_gradient(isa, Point::<2>, x, gradient, out),
        }
    }
}

/// Bytes of working memory that a convolution of `size` by `size` weights takes. It is kept from one convolution to the next, so
/// that a network's largest counts.
pub fn working_bytes(size: i64, inputs: usize, outputs: usize) -> usize {
    // With stride 1: the other needs no more.
    let (points, factors) = if size == 1 { (1, 1) } else { (6, 6) };
    let forward = passes::working_numbers(points, factors, inputs, outputs);
    let backward = passes::working_numbers(points, factors, outputs, inputs);
    let weights = gradient::working_numbers(points, factors, inputs, outputs);
    (forward.max(backward) + weights) * size_of::<f32>()
}

/// `maps`, as the passes see them.
fn source(maps: &ChannelsLast) -> Source<'_> {
    Source { maps: maps.chunks(), shape: shape(maps.size) }
}

fn shape(size: [i64; 4]) -> Maps {
    let [batch, channels, height, width] = size.map(|size| size as usize);
    Maps { batch, height, width, chunks: channels / LANES }
}

#[cfg(test)]
mod tests;
