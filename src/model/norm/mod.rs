//! BatchNorm with what follows it in a ResNet, the residual sum and the ReLU, in as few passes over the maps as there can
//! be: for fp32 maps on the CPU. libtorch has an operation, and a pass or more, for each.
//!
//! Sums are taken in an order that does not depend on the number of threads.

mod passes;

use tch::{Tensor, no_grad};

use super::autograd::attach;
use super::channels_last::{ChannelsLast, Chunk, Fresh, fits};
use super::threads::share;
use crate::simd::{Isa, LANES};
use passes::{Affine, Apply, BlockGradients, BlockMoments, Gradients, Passed, Slope};

/// Chunks of one block of pixels, 64 KiB: what is read twice is still in the cache the second time.
const BLOCK: usize = 1024;

/// Chunks of the largest maps, 24 MiB, that may still be in a cache when they are next read. Larger ones are written past it, which
/// saves reading first what is written over.
const CACHED: usize = (24 << 20) / size_of::<Chunk>();

/// Pixels of a block, at least: its sums must be small beside it. With 2,048 channels they make 256 KiB.
const PIXELS: usize = 32;

/// Parts in which maps are summed, at most: enough for the threads of a large machine.
const PARTS: usize = 64;

/// Pixels of a block, `chunks` each: their values are summed in single precision, blocks in double.
fn pixels_of_block(chunks: usize) -> usize {
    (BLOCK / chunks).max(PIXELS)
}

/// What a network does with normalised maps.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// Nothing.
    Stop,
    /// `max(0, ·)`.
    Relu,
    /// Adds these maps, of the same shape, then `max(0, ·)`.
    AddRelu(&'a Tensor),
}

impl<'a> Then<'a> {
    /// What is added.
    fn residual(self) -> Option<&'a Tensor> {
        match self {
            Then::AddRelu(residual) => Some(residual),
            Then::Stop | Then::Relu => None,
        }
    }

    fn relu(self) -> bool {
        !matches!(self, Then::Stop)
    }
}

/// Parameters of a BatchNorm, `[C]` each.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// γ, by which normalised values are multiplied.
    pub weight: &'a Tensor,
    /// β, added then.
    pub bias: &'a Tensor,
    /// What [`evaluate`] normalises with, moved by [`train`].
    pub running_mean: &'a Tensor,
    /// As `running_mean`; unbiased.
    pub running_var: &'a Tensor,
    /// Weight of the newest batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Whether [`train`] and [`evaluate`] take these maps `[B, C, H, W]`.
pub fn takes(maps: &Tensor) -> bool {
    fits(maps)
}

/// `maps` `[B, C, H, W]` normalised by their own statistics, which move the running ones (the variance unbiased), and
/// `then`: as PyTorch's `batch_norm`, `add` and `relu` in training. Part of libtorch's graph.
pub fn train(maps: &Tensor, norm: Norm, then: Then) -> Tensor {
    train_with(Isa::best(), maps, norm, then)
}

fn train_with(isa: Isa, maps: &Tensor, norm: Norm, then: Then) -> Tensor {
    let (x, parameters) = no_grad(|| (ChannelsLast::of(maps), [norm.weight, norm.bias].map(numbers)));
    let statistics = Statistics::of(isa, &x, norm.epsilon);
    no_grad(|| statistics.move_running(norm, x.chunks().len() / x.chunks_per_pixel()));
    let mut passed = then.relu().then(|| vec![0; x.chunks().len()]);
    let out = no_grad(|| statistics.apply(isa, &x, &parameters, then, passed.as_deref_mut()));
    let [weight, _] = parameters;
    let gradients = move |gradient: &Tensor, wanted: [bool; 2]| {
        no_grad(|| {
            let gradient = ChannelsLast::of(gradient);
            let sums = statistics.gradient_sums(isa, &x, &gradient, passed.as_deref());
            let of_maps = wanted[0].then(|| Fresh::new(x.size));
            let of_residual = wanted[1].then(|| Fresh::new(x.size));
            let [maps, residual] = statistics.gradients(
                isa,
                &x,
                &weight,
                &gradient,
                passed.as_deref(),
                &sums,
                [of_maps, of_residual],
            );
            let [of_bias, of_weight] = sums.map(|sums| Tensor::from_slice(sums.as_flattened()));
            (maps, of_weight, of_bias, residual)
        })
    };
    match then.residual() {
        None => attach(out, [maps, norm.weight, norm.bias], move |gradient, wanted| {
            let (maps, weight, bias, _) = gradients(gradient, [wanted[0], false]);
            [maps, Some(weight), Some(bias)]
        }),
        Some(residual) => attach(out, [maps, norm.weight, norm.bias, residual], move |gradient, wanted| {
            let (maps, weight, bias, residual) = gradients(gradient, [wanted[0], wanted[3]]);
            [maps, Some(weight), Some(bias), residual]
        }),
    }
}

/// As [`train`], normalised by the running statistics instead, which stay as they are: without a graph.
pub fn evaluate(maps: &Tensor, norm: Norm, then: Then) -> Tensor {
    no_grad(|| {
        let parameters = [norm.weight, norm.bias].map(numbers);
        Statistics::running(norm).apply(Isa::best(), &ChannelsLast::of(maps), &parameters, then, None)
    })
}

/// The numbers of `tensor` `[C]`, sixteen at a time.
fn numbers(tensor: &Tensor) -> Vec<Chunk> {
    let numbers = super::to_vec_f32(&tensor.detach());
    numbers.as_chunks().0.to_vec()
}

/// Of every channel, sixteen at a time.
struct Statistics {
    mean: Vec<Chunk>,
    /// Without Bessel's correction.
    variance: Vec<Chunk>,
    /// `1/√(variance + ε)`.
    inverse: Vec<Chunk>,
}

impl Statistics {
    fn of(isa: Isa, maps: &ChannelsLast, epsilon: f64) -> Self {
        let (chunks, values) = (maps.chunks_per_pixel(), maps.chunks());
        let origin = &values[..chunks];
        let of_block = |values: &[Chunk], _, out: &mut [Chunk]| isa.run(BlockMoments { origin, values, out });
        // Distances and their squares are added up: double precision has digits enough for the difference below.
        let [sums, squares] = sums(chunks, values, of_block, |pixels, mean, squared_distances| {
            [pixels * mean, squared_distances + pixels * mean * mean]
        });
        let pixels = (values.len() / chunks) as f64;
        let variance = squares.iter().zip(&sums).map(|(squares, sum)| {
            let variance = squares / pixels - (sum / pixels).powi(2);
            // What is no number stays none.
            if variance < 0.0 { 0.0 } else { variance }
        });
        let means =
            origin.as_flattened().iter().zip(&sums).map(|(first, sum)| f64::from(*first) + sum / pixels);
        Statistics {
            mean: in_single(means),
            inverse: in_single(variance.clone().map(|variance| 1.0 / (variance + epsilon).sqrt())),
            variance: in_single(variance),
        }
    }

    /// The running ones.
    fn running(norm: Norm) -> Self {
        let variance = numbers(norm.running_var);
        let values = variance.as_flattened().iter().map(|variance| f64::from(*variance));
        Statistics {
            mean: numbers(norm.running_mean),
            inverse: in_single(values.map(|variance| 1.0 / (variance + norm.epsilon).sqrt())),
            variance,
        }
    }

    /// Moves the running statistics towards these, of `pixels` values.
    fn move_running(&self, norm: Norm, pixels: usize) {
        let unbiased = pixels as f64 / (pixels as f64 - 1.0);
        for (running, new, factor) in
            [(norm.running_mean, &self.mean, 1.0), (norm.running_var, &self.variance, unbiased)]
        {
            let new = Tensor::from_slice(new.as_flattened()) * (factor * norm.momentum);
            let moved = running * (1.0 - norm.momentum) + new;
            running.shallow_clone().copy_(&moved);
        }
    }

    /// `maps` normalised, and `then`; what it let through goes to `passed`.
    fn apply(
        &self,
        isa: Isa,
        maps: &ChannelsLast,
        [weight, bias]: &[Vec<Chunk>; 2],
        then: Then,
        passed: Option<&mut [Passed]>,
    ) -> Tensor {
        let each = pixels_of_block(weight.len()) * weight.len();
        let affine: Vec<Affine> = (0..weight.len())
            .map(|chunk| Affine {
                mean: self.mean[chunk],
                scale: product(&weight[chunk], &self.inverse[chunk]),
                bias: bias[chunk],
            })
            .collect();
        let residual = then.residual().map(ChannelsLast::of);
        let residual = residual.as_ref().map(ChannelsLast::chunks);
        let (relu, past_caches) = (then.relu(), maps.chunks().len() > CACHED);
        let mut out = Fresh::new(maps.size);
        let mut passed = passed.map(|passed| passed.chunks_mut(each));
        let blocks = maps.chunks().chunks(each).zip(out.chunks_mut().chunks_mut(each)).enumerate();
        let blocks = blocks.map(|block| (block, passed.as_mut().and_then(Iterator::next)));
        share(blocks, |((index, (maps, out)), passed)| {
            let residual = residual.map(|residual| &residual[index * each..][..maps.len()]);
            isa.run(Apply { affine: &affine, maps, residual, relu, passed, past_caches, out });
        });
        out.into_tensor()
    }

    /// Of every channel: the sum of the gradients that `passed`, and that of their products with the normalised values.
    /// These are the gradients of bias and weight.
    fn gradient_sums(
        &self,
        isa: Isa,
        maps: &ChannelsLast,
        gradient: &ChannelsLast,
        passed: Option<&[Passed]>,
    ) -> [Vec<Chunk>; 2] {
        let (chunks, maps) = (maps.chunks_per_pixel(), maps.chunks());
        let of_block = |gradient: &[Chunk], first, out: &mut [Chunk]| {
            let part = first..first + gradient.len();
            let (maps, passed) = (&maps[part.clone()], passed.map(|passed| &passed[part.clone()]));
            isa.run(BlockGradients { statistics: self, maps, gradient, passed, out });
        };
        sums(chunks, gradient.chunks(), of_block, |_, sum, products| [sum, products])
            .map(|sums| in_single(sums.into_iter()))
    }

    /// The gradients of the maps and of what was added to them, in the memory that is there for them.
    #[expect(clippy::too_many_arguments, reason = "what a gradient depends on")]
    fn gradients(
        &self,
        isa: Isa,
        maps: &ChannelsLast,
        weight: &[Chunk],
        gradient: &ChannelsLast,
        passed: Option<&[Passed]>,
        sums: &[Vec<Chunk>; 2],
        mut out: [Option<Fresh>; 2],
    ) -> [Option<Tensor>; 2] {
        let chunks = maps.chunks_per_pixel();
        let each = pixels_of_block(chunks) * chunks;
        // w/σ·(g − mean of g − x̂·(mean of g·x̂)), with x̂ = (x − mean)/σ (Ioffe & Szegedy 2015, §3).
        let each_pixel = [1.0 / (maps.chunks().len() / chunks) as f32; LANES];
        let slopes: Vec<Slope> = (0..chunks)
            .map(|chunk| Slope {
                mean: self.mean[chunk],
                scale: product(&weight[chunk], &self.inverse[chunk]),
                mean_gradient: product(&sums[0][chunk], &each_pixel),
                slope: product(&product(&sums[1][chunk], &each_pixel), &self.inverse[chunk]),
            })
            .collect();
        let (maps, gradient) = (maps.chunks(), gradient.chunks());
        let past_caches = maps.len() > CACHED;
        let [of_maps, of_residual] = &mut out;
        let mut of_maps = of_maps.as_mut().map(|out| out.chunks_mut().chunks_mut(each));
        let mut of_residual = of_residual.as_mut().map(|out| out.chunks_mut().chunks_mut(each));
        let blocks = maps.chunks(each).enumerate().map(|(index, maps)| {
            let out = [&mut of_maps, &mut of_residual].map(|out| out.as_mut().and_then(Iterator::next));
            (index * each, maps, out)
        });
        share(blocks, |(first, maps, out)| {
            let part = first..first + maps.len();
            let (gradient, passed) = (&gradient[part.clone()], passed.map(|passed| &passed[part.clone()]));
            isa.run(Gradients { slopes: &slopes, maps, gradient, passed, past_caches, out });
        });
        out.map(|out| out.map(Fresh::into_tensor))
    }
}

/// `a·b`, number by number.
fn product(a: &Chunk, b: &Chunk) -> Chunk {
    std::array::from_fn(|lane| a[lane] * b[lane])
}

/// Two sums for every channel: of what `joined(pixels of a block, first, second)` makes of the two numbers that
/// `of_block(values, where they begin, out)` finds in a block, in two chunks of zeros for every chunk of channels.
fn sums(
    chunks: usize,
    values: &[Chunk],
    of_block: impl Fn(&[Chunk], usize, &mut [Chunk]) + Sync,
    joined: impl Fn(f64, f64, f64) -> [f64; 2] + Sync,
) -> [Vec<f64>; 2] {
    let (channels, block) = (chunks * LANES, pixels_of_block(chunks) * chunks);
    let part = values.len().div_ceil(block).div_ceil(PARTS) * block;
    let mut parts = vec![[0.0; 2]; values.len().div_ceil(part) * channels];
    share(
        values.chunks(part).zip(parts.chunks_exact_mut(channels)).enumerate(),
        |(index, (values, sums))| {
            let mut out = vec![[0.0; LANES]; 2 * chunks];
            for (number, values) in values.chunks(block).enumerate() {
                out.fill([0.0; LANES]);
                of_block(values, index * part + number * block, &mut out);
                let pixels = (values.len() / chunks) as f64;
                let (first, second) = out.as_flattened().split_at(channels);
                for ((sums, first), second) in sums.iter_mut().zip(first).zip(second) {
                    let [first, second] = joined(pixels, (*first).into(), (*second).into());
                    sums[0] += first;
                    sums[1] += second;
                }
            }
        },
    );
    let mut sums = vec![[0.0; 2]; channels];
    for part in parts.chunks_exact(channels) {
        for (sums, of_part) in sums.iter_mut().zip(part) {
            sums[0] += of_part[0];
            sums[1] += of_part[1];
        }
    }
    [0, 1].map(|which| sums.iter().map(|sums| sums[which]).collect())
}

/// Rounded, sixteen at a time.
fn in_single(numbers: impl Iterator<Item = f64>) -> Vec<Chunk> {
    let numbers: Vec<f32> = numbers.map(|number| number as f32).collect();
    numbers.as_chunks().0.to_vec()
}

#[cfg(test)]
mod tests;
