//! Convolutions with fewer multiplications, forward and backward, for fp32 maps on the CPU: Winograd's, 3×3 with a quarter of
//! them (Lavin & Gray 2016) and, with stride 2, nine sixteenths; and 1×1 and that of the images, as products.
//!
//! libtorch's own convolutions reach nearly all that the processor can multiply; what is left to win is not to multiply.
//! Sums are taken in an order that does not depend on the number of threads.

mod gradient;
mod images;
mod maps;
mod passes;
mod product;
mod scheme;
mod scratch;

use tch::{Tensor, no_grad};

use self::gradient::weight_gradient;
use self::images::Patches;
use self::maps::Maps;
use self::passes::{Cut, Inputs, Source, Weights, convolve};
use self::scheme::{Doubled, Halved, HalvedGradient, Point, Same, SameGradient, Spread};
use super::autograd::attach;
use super::channels_last::{ChannelsLast, Fresh, fits, is_plain};
use crate::simd::{Isa, LANES};

/// The convolutions that there are, each padded by half its size.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// 3×3, stride 1.
    Same,
    /// 3×3, stride 2.
    Halved,
    /// 1×1, stride 2.
    EverySecondPoint,
}

impl Kind {
    /// That of `size` by `size` weights.
    fn of(size: i64, stride: i64) -> Option<Self> {
        match (size, stride) {
            (3, 1) => Some(Kind::Same),
            (3, 2) => Some(Kind::Halved),
            (1, 2) => Some(Kind::EverySecondPoint),
            _ => None,
        }
    }
}

/// Whether [`convolution`] takes this one: fp32 on the CPU, outputs in sixteens, and vector instructions that it was found to be
/// faster with. Inputs in sixteens: 3×3 with stride 1 or 2, or 1×1 with stride 2; or the images,
/// which have no gradient. (1×1 with stride 1 is a plain product, and libtorch's are as fast.)
pub fn takes(maps: &Tensor, weights: &Tensor, stride: i64) -> bool {
    let [outputs, inputs, height, width] = weights.size()[..] else { return false };
    let of_maps = || Kind::of(height, stride).is_some() && fits(maps) && fits(weights);
    height == width
        && height % 2 == 1
        && outputs % LANES as i64 == 0
        && (of_maps() || is_plain(maps) && is_plain(weights) && are_images(maps, inputs * height * width))
        && !matches!(Isa::best(), Isa::Portable(_))
}

/// Whether `maps` are convolved as images: patch by patch, of so many numbers.
fn are_images(maps: &Tensor, patch: i64) -> bool {
    !maps.requires_grad() && maps.size()[1] < LANES as i64 && patch <= images::LARGEST_PATCH as i64
}

/// `maps` `[B, C, H, W]` convolved with `weights` `[K, C, S, S]`, padded by `(S − 1)/2`: `[B, K, H', W']`, the channels last
/// in memory. Part of libtorch's graph.
///
/// # Panics
/// If it is not one that is [taken](takes).
pub fn convolution(maps: &Tensor, weights: &Tensor, stride: i64) -> Tensor {
    convolution_with(Isa::best(), maps, weights, stride)
}

fn convolution_with(isa: Isa, maps: &Tensor, weights: &Tensor, stride: i64) -> Tensor {
    let x = no_grad(|| ChannelsLast::of(maps));
    let [images, inputs, height, width] = x.size;
    let size = weights.size()[2];
    // Half the size is added at each side.
    let [down, across] = [height, width].map(|side| (side - 1) / stride + 1);
    let out = Fresh::new([images, weights.size()[0], down, across]);
    if inputs % LANES as i64 != 0 {
        return of_images(isa, x, weights, stride, out);
    }
    let w = no_grad(|| ChannelsLast::of(weights));
    let kind = Kind::of(size, stride).expect("a convolution that is taken");
    let out = no_grad(|| {
        let mut out = out;
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
            Kind::Same => convolve(isa, Same, Cut(Same, x), &w.forward(isa, Same), target, out),
            Kind::Halved => convolve(isa, Halved, Cut(Halved, x), &w.forward(isa, Halved), target, out),
            Kind::EverySecondPoint => {
                convolve(isa, SECOND, Cut(SECOND, x), &w.forward(isa, SECOND), target, out);
            }
        }
    }

    /// `out` = the gradient of the inputs, from `y`, that of the outputs.
    fn gradient_of_maps(self, isa: Isa, y: &ChannelsLast, w: &ChannelsLast, out: &mut Fresh) {
        let (y, w, target) = (source(y), Weights::of(w), shape(out.size()));
        let out = out.chunks_mut();
        match self {
            Kind::Same => convolve(isa, Same, Cut(Same, y), &w.backward(isa, Same), target, out),
            Kind::Halved => convolve(isa, Doubled, Cut(Doubled, y), &w.backward(isa, Halved), target, out),
            Kind::EverySecondPoint => {
                convolve(isa, Spread, Cut(Spread, y), &w.backward(isa, SECOND), target, out);
            }
        }
    }

    /// `out` = the gradient of the weights, from the inputs and `y`, the gradient of the outputs.
    fn gradient_of_weights(self, isa: Isa, x: &ChannelsLast, y: &ChannelsLast, out: &mut Fresh) {
        let (x, y, out) = (source(x), source(y), out.chunks_mut());
        let tiles = |side: usize| y.shape.tiles(side);
        match self {
            Kind::Same => {
                weight_gradient(isa, Same, Cut(Same, x), Cut(SameGradient, y), tiles(4), out);
            }
            Kind::Halved => {
                weight_gradient(isa, Halved, Cut(Halved, x), Cut(HalvedGradient, y), tiles(4), out);
            }
            Kind::EverySecondPoint => {
                weight_gradient(isa, SECOND, Cut(SECOND, x), Cut(POINT, y), tiles(1), out);
            }
        }
    }
}

const POINT: Point<1> = Point;
const SECOND: Point<2> = Point;

/// The convolution of images `x`, into `out`.
fn of_images(isa: Isa, x: ChannelsLast, weights: &Tensor, stride: i64, mut out: Fresh) -> Tensor {
    let [outputs, inputs, size, _] = weights.size()[..] else { unreachable!("four axes") };
    let numbers = size * size * inputs;
    let padded = Patches::of(&x, size, stride).chunks() as i64 * LANES as i64;
    let out = no_grad(|| {
        // In the order of a patch.
        let w = weights.detach().permute([0, 2, 3, 1]).reshape([outputs, numbers]);
        let w = ChannelsLast::of(&w.constant_pad_nd([0, padded - numbers]).view([outputs, padded, 1, 1]));
        let (patches, factors) = (Patches::of(&x, size, stride), Weights::of(&w).forward(isa, POINT));
        let target = shape(out.size());
        convolve(isa, POINT, patches, &factors, target, out.chunks_mut());
        out.into_tensor()
    });
    attach(out, [weights], move |gradient, [wanted]| {
        [wanted.then(|| {
            no_grad(|| {
                let gradient = ChannelsLast::of(gradient);
                let y = source(&gradient);
                let mut out = Fresh::new([outputs, padded, 1, 1]);
                let patches = Patches::of(&x, size, stride);
                let tiles = y.shape.tiles(1);
                weight_gradient(isa, POINT, patches, Cut(POINT, y), tiles, out.chunks_mut());
                let w = out.into_tensor().view([outputs, padded]).narrow(1, 0, numbers);
                w.reshape([outputs, size, size, inputs]).permute([0, 3, 1, 2])
            })
        })]
    })
}

/// Bytes of working memory that a convolution of `size` by `size` weights takes. It is kept from one convolution to the next, so
/// that a network's largest counts.
pub fn working_bytes(size: i64, inputs: usize, outputs: usize) -> usize {
    let (points, factors, inputs) = match size {
        // With stride 1: the other needs no more.
        3 => (6, 6, inputs),
        1 => (1, 1, inputs),
        _ => (1, 1, images::LARGEST_PATCH),
    };
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
