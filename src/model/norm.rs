//! BatchNorm with what follows it in a ResNet, the residual sum and the ReLU, in as few passes over the maps as there can
//! be: for fp32 maps on the CPU. libtorch has an operation, and a pass or more, for each.
//!
//! Sums are taken in an order that does not depend on the number of threads.

use tch::{Tensor, no_grad};

use super::autograd::attach;
use super::channels_last::{ChannelsLast, Chunk, Fresh, fits};
use super::threads::share;
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Chunks of one block of pixels, 64 KiB: what is read twice is still in the cache the second time.
const BLOCK: usize = 1024;

/// Pixels of a block, `chunks` each: their values are summed in single precision, blocks in double.
fn pixels_of_block(chunks: usize) -> usize {
    (BLOCK / chunks).max(1)
}

/// What a network does with normalised maps.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then<'a> {
    /// Nothing.
    Stop,
    /// `max(0, ·)`.
    Relu,
    /// Adds these maps, of the same shape, then `max(0, ·)`.
    AddRelu(&'a Tensor),
}

/// Parameters of a BatchNorm, `[C]` each.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub running_mean: &'a Tensor,
    pub running_var: &'a Tensor,
    /// Weight of the newest batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Whether [`train`] and [`evaluate`] take these maps `[B, C, H, W]`.
pub(super) fn takes(maps: &Tensor) -> bool {
    fits(maps)
}

/// `maps` `[B, C, H, W]` normalised by their own statistics, which move the running ones (the variance unbiased), and
/// `then`: as PyTorch's `batch_norm`, `add` and `relu` in training. Part of libtorch's graph.
pub(super) fn train(maps: &Tensor, norm: Norm, then: Then) -> Tensor {
    let isa = Isa::best();
    let (x, parameters) = no_grad(|| (ChannelsLast::of(maps), [norm.weight, norm.bias].map(numbers)));
    let statistics = Statistics::of(isa, &x, norm.epsilon);
    no_grad(|| statistics.move_running(norm, x.chunks().len() / x.chunks_per_pixel()));
    let residual = match then {
        Then::AddRelu(residual) => Some(residual),
        Then::Stop | Then::Relu => None,
    };
    let relu = !matches!(then, Then::Stop);
    let out = no_grad(|| {
        let residual = residual.map(ChannelsLast::of);
        let mut out = Fresh::new(x.size);
        statistics.apply(isa, &x, &parameters, residual.as_ref(), relu, out.chunks_mut());
        out.into_tensor()
    });
    // Its signs are those of what the ReLU let through.
    let passed = relu.then(|| ChannelsLast::of(&out));
    let weight = parameters.into_iter().next().unwrap_or_default();
    let gradients = move |gradient: &Tensor, wanted: [bool; 2]| {
        no_grad(|| {
            let gradient = ChannelsLast::of(gradient);
            let sums = statistics.gradient_sums(isa, &x, &gradient, passed.as_ref());
            let of_maps = wanted[0].then(|| Fresh::new(x.size));
            let of_residual = wanted[1].then(|| Fresh::new(x.size));
            let [maps, residual] = statistics.gradients(
                isa,
                &x,
                &weight,
                &gradient,
                passed.as_ref(),
                &sums,
                [of_maps, of_residual],
            );
            let [of_bias, of_weight] = sums.map(|sums| Tensor::from_slice(sums.as_flattened()));
            (maps, of_weight, of_bias, residual)
        })
    };
    match residual {
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
pub(super) fn evaluate(maps: &Tensor, norm: Norm, then: Then) -> Tensor {
    no_grad(|| {
        let statistics = Statistics::running(norm);
        let parameters = [norm.weight, norm.bias].map(numbers);
        let (residual, relu) = match then {
            Then::Stop => (None, false),
            Then::Relu => (None, true),
            Then::AddRelu(residual) => (Some(ChannelsLast::of(residual)), true),
        };
        let x = ChannelsLast::of(maps);
        let mut out = Fresh::new(x.size);
        statistics.apply(Isa::best(), &x, &parameters, residual.as_ref(), relu, out.chunks_mut());
        out.into_tensor()
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
        let blocks =
            sums_of_blocks(chunks, values, |values, _, out| isa.run(BlockMoments { chunks, values, out }));
        let pixels = values.len() / chunks;
        let block = pixels_of_block(chunks);
        let sizes = || (0..pixels).step_by(block).map(|first| block.min(pixels - first) as f64);
        // Chan, Golub and LeVeque's way to join the moments of parts.
        let means = in_double(&blocks, chunks, 0, sizes().map(|size| size / pixels as f64));
        let mut squares = in_double(&blocks, chunks, 1, sizes().map(|_| 1.0));
        for (block, size) in blocks.chunks_exact(2 * chunks).zip(sizes()) {
            let means_of_block = block[..chunks].as_flattened();
            for ((square, of_block), mean) in squares.iter_mut().zip(means_of_block).zip(&means) {
                *square += size * (f64::from(*of_block) - mean).powi(2);
            }
        }
        let variance = squares.iter().map(|square| square / pixels as f64);
        Statistics {
            mean: in_single(means.iter().copied()),
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

    /// Normalises `maps` into `out`, adds `residual`, and cuts off what is negative.
    fn apply(
        &self,
        isa: Isa,
        maps: &ChannelsLast,
        [weight, bias]: &[Vec<Chunk>; 2],
        residual: Option<&ChannelsLast>,
        relu: bool,
        out: &mut [Chunk],
    ) {
        let chunks = maps.chunks_per_pixel();
        let each = pixels_of_block(chunks) * chunks;
        let residual = residual.map(ChannelsLast::chunks);
        let blocks = maps.chunks().chunks(each).zip(out.chunks_mut(each)).enumerate();
        share(blocks, |(index, (maps, out))| {
            let residual = residual.map(|residual| &residual[index * each..][..maps.len()]);
            isa.run(Apply { statistics: self, weight, bias, maps, residual, relu, out });
        });
    }

    /// Of every channel: the sum of the gradients that `passed`, and that of their products with the normalised values.
    /// These are the gradients of bias and weight.
    fn gradient_sums(
        &self,
        isa: Isa,
        maps: &ChannelsLast,
        gradient: &ChannelsLast,
        passed: Option<&ChannelsLast>,
    ) -> [Vec<Chunk>; 2] {
        let (chunks, maps, passed) =
            (maps.chunks_per_pixel(), maps.chunks(), passed.map(ChannelsLast::chunks));
        let blocks = sums_of_blocks(chunks, gradient.chunks(), |gradient, first, out| {
            let part = first..first + gradient.len();
            let (maps, passed) = (&maps[part.clone()], passed.map(|passed| &passed[part.clone()]));
            isa.run(BlockGradients { statistics: self, maps, gradient, passed, out });
        });
        [0, 1].map(|which| in_single(in_double(&blocks, chunks, which, std::iter::repeat(1.0)).into_iter()))
    }

    /// The gradients of the maps and of what was added to them, in the memory that is there for them.
    #[expect(clippy::too_many_arguments, reason = "what a gradient depends on")]
    fn gradients(
        &self,
        isa: Isa,
        maps: &ChannelsLast,
        weight: &[Chunk],
        gradient: &ChannelsLast,
        passed: Option<&ChannelsLast>,
        sums: &[Vec<Chunk>; 2],
        mut out: [Option<Fresh>; 2],
    ) -> [Option<Tensor>; 2] {
        let chunks = maps.chunks_per_pixel();
        let each = pixels_of_block(chunks) * chunks;
        let pixels = maps.chunks().len() / chunks;
        let (maps, gradient, passed) = (maps.chunks(), gradient.chunks(), passed.map(ChannelsLast::chunks));
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
            isa.run(Gradients { statistics: self, weight, sums, pixels, maps, gradient, passed, out });
        });
        out.map(|out| out.map(Fresh::into_tensor))
    }
}

/// Two chunks for every chunk of channels, of each block of pixels, as `of_block(values, where they begin, out)` finds them.
fn sums_of_blocks(
    chunks: usize,
    values: &[Chunk],
    of_block: impl Fn(&[Chunk], usize, &mut [Chunk]) + Sync,
) -> Vec<Chunk> {
    let each = pixels_of_block(chunks) * chunks;
    let mut sums = vec![[0.0; LANES]; values.len().div_ceil(each) * 2 * chunks];
    let blocks = values.chunks(each).zip(sums.chunks_exact_mut(2 * chunks)).enumerate();
    share(blocks, |(index, (values, out))| of_block(values, index * each, out));
    sums
}

/// The first or second of the numbers of [`sums_of_blocks`], summed over blocks with `weights`.
fn in_double(blocks: &[Chunk], chunks: usize, which: usize, weights: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sums = vec![0.0; chunks * LANES];
    for (block, weight) in blocks.chunks_exact(2 * chunks).zip(weights) {
        let values = block[which * chunks..][..chunks].as_flattened();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += weight * f64::from(*value);
        }
    }
    sums
}

/// Rounded, sixteen at a time.
fn in_single(numbers: impl Iterator<Item = f64>) -> Vec<Chunk> {
    let numbers: Vec<f32> = numbers.map(|number| number as f32).collect();
    numbers.as_chunks().0.to_vec()
}

/// Mean and sum of squared distances from it, of a block's values.
struct BlockMoments<'a> {
    chunks: usize,
    values: &'a [Chunk],
    out: &'a mut [Chunk],
}

impl Kernel for BlockMoments<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (means, squares) = self.out.split_at_mut(self.chunks);
        // Distances from the first pixel are summed: a mean far from zero costs no digits.
        let first = &self.values[..self.chunks];
        let share = simd.splat(self.chunks as f32 / self.values.len() as f32);
        for pixel in self.values.chunks_exact(self.chunks) {
            for ((value, first), sum) in pixel.iter().zip(first).zip(means.iter_mut()) {
                let distance = simd.sub(simd.load(value), simd.load(first));
                simd.store(simd.add(simd.load(sum), distance), sum);
            }
        }
        for (first, mean) in first.iter().zip(means.iter_mut()) {
            simd.store(simd.mul_add(simd.load(mean), share, simd.load(first)), mean);
        }
        for pixel in self.values.chunks_exact(self.chunks) {
            for ((value, mean), square) in pixel.iter().zip(means.iter()).zip(squares.iter_mut()) {
                let distance = simd.sub(simd.load(value), simd.load(mean));
                simd.store(simd.mul_add(distance, distance, simd.load(square)), square);
            }
        }
    }
}

/// [`Statistics::apply`] for some pixels.
struct Apply<'a> {
    statistics: &'a Statistics,
    weight: &'a [Chunk],
    bias: &'a [Chunk],
    maps: &'a [Chunk],
    residual: Option<&'a [Chunk]>,
    relu: bool,
    out: &'a mut [Chunk],
}

impl Kernel for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Apply { statistics, weight, bias, maps, residual, relu, out } = self;
        let chunks = weight.len();
        let zero = simd.splat(0.0);
        for chunk in 0..chunks {
            let scale = simd.mul(simd.load(&weight[chunk]), simd.load(&statistics.inverse[chunk]));
            let mean = simd.load(&statistics.mean[chunk]);
            let bias = simd.load(&bias[chunk]);
            let mut at = chunk;
            while at < maps.len() {
                // The distance first, for the same reason as in `BlockMoments`.
                let mut value = simd.mul_add(simd.sub(simd.load(&maps[at]), mean), scale, bias);
                if let Some(residual) = residual {
                    value = simd.add(value, simd.load(&residual[at]));
                }
                if relu {
                    // What is no number stays none: the second operand wins.
                    value = simd.max(zero, value);
                }
                simd.store(value, &mut out[at]);
                at += chunks;
            }
        }
    }
}

/// `gradient` where `passed` is positive; all of it where there was nothing to pass.
#[inline(always)]
fn let_through<S: Simd>(simd: S, gradient: &Chunk, passed: Option<&Chunk>) -> S::V {
    let gradient = simd.load(gradient);
    let zero = simd.splat(0.0);
    match passed {
        Some(passed) => simd.select_greater(simd.load(passed), zero, gradient, zero),
        None => gradient,
    }
}

/// [`Statistics::gradient_sums`] of a block.
struct BlockGradients<'a> {
    statistics: &'a Statistics,
    maps: &'a [Chunk],
    gradient: &'a [Chunk],
    passed: Option<&'a [Chunk]>,
    out: &'a mut [Chunk],
}

impl Kernel for BlockGradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let BlockGradients { statistics, maps, gradient, passed, out } = self;
        let chunks = statistics.mean.len();
        for chunk in 0..chunks {
            let mean = simd.load(&statistics.mean[chunk]);
            let mut sum = simd.splat(0.0);
            let mut product = sum;
            let mut at = chunk;
            while at < maps.len() {
                let gradient = let_through(simd, &gradient[at], passed.map(|passed| &passed[at]));
                sum = simd.add(sum, gradient);
                product = simd.mul_add(simd.sub(simd.load(&maps[at]), mean), gradient, product);
                at += chunks;
            }
            simd.store(sum, &mut out[chunk]);
            simd.store(simd.mul(product, simd.load(&statistics.inverse[chunk])), &mut out[chunks + chunk]);
        }
    }
}

/// [`Statistics::gradients`] for some pixels.
struct Gradients<'a> {
    statistics: &'a Statistics,
    weight: &'a [Chunk],
    sums: &'a [Vec<Chunk>; 2],
    /// Of all maps.
    pixels: usize,
    maps: &'a [Chunk],
    gradient: &'a [Chunk],
    passed: Option<&'a [Chunk]>,
    out: [Option<&'a mut [Chunk]>; 2],
}

impl Kernel for Gradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Gradients { statistics, weight, sums, pixels, maps, gradient, passed, out } = self;
        let chunks = statistics.mean.len();
        let share = simd.splat(1.0 / pixels as f32);
        let [mut of_maps, mut of_residual] = out;
        for chunk in 0..chunks {
            // w/σ·(g − mean of g − x̂·(mean of g·x̂)), with x̂ = (x − mean)/σ (Ioffe & Szegedy 2015, §3).
            let inverse = simd.load(&statistics.inverse[chunk]);
            let mean = simd.load(&statistics.mean[chunk]);
            let scale = simd.mul(simd.load(&weight[chunk]), inverse);
            let mean_gradient = simd.mul(simd.load(&sums[0][chunk]), share);
            let slope = simd.mul(simd.mul(simd.load(&sums[1][chunk]), share), inverse);
            let mut at = chunk;
            while at < maps.len() {
                let gradient = let_through(simd, &gradient[at], passed.map(|passed| &passed[at]));
                if let Some(out) = &mut of_residual {
                    simd.store(gradient, &mut out[at]);
                }
                if let Some(out) = &mut of_maps {
                    let distance = simd.sub(simd.load(&maps[at]), mean);
                    let slope = simd.mul(distance, slope);
                    let centred = simd.sub(simd.sub(gradient, mean_gradient), slope);
                    simd.store(simd.mul(centred, scale), &mut out[at]);
                }
                at += chunks;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const EPSILON: f64 = 1e-5;

    /// Output, gradients of maps, weight, bias and residual, running mean and variance.
    fn passes(
        kind: Kind,
        size: [i64; 4],
        mean: f64,
        add: bool,
        relu: bool,
        layer: impl Fn(&Tensor, Norm, Then) -> Tensor,
    ) -> Vec<Tensor> {
        let wave = |size: &[i64], step: f64| {
            let count = size.iter().product::<i64>();
            let wave = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * step).sin();
            wave.view(size).to_kind(Kind::Float).to_kind(kind)
        };
        let leaf = |tensor: Tensor| tensor.set_requires_grad(true);
        let channels = [size[1]];
        let (maps, residual) = (leaf(wave(&size, 1.3) + mean), leaf(wave(&size, 0.7)));
        let (weight, bias) = (leaf(wave(&channels, 2.1) + 1.2), leaf(wave(&channels, 0.9) * 0.5));
        let running = [wave(&channels, 0.3), wave(&channels, 0.4) + 2.0];
        let norm = Norm {
            weight: &weight,
            bias: &bias,
            running_mean: &running[0],
            running_var: &running[1],
            momentum: 0.1,
            epsilon: EPSILON,
        };
        let then = match (add, relu) {
            (true, _) => Then::AddRelu(&residual),
            (false, true) => Then::Relu,
            (false, false) => Then::Stop,
        };
        let out = layer(&maps, norm, then);
        // Not at right angles to ones and maps: parameters get gradients that are no mere rounding.
        let seed = wave(&size, 0.31) + wave(&size, 1.3) + 0.4;
        let loss = (&out * seed).sum(kind) + residual.sum(kind) * 0.0;
        let leaves = [&maps, &weight, &bias, &residual];
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        let mut all = vec![out.detach()];
        all.extend(gradients);
        all.extend(running);
        all
    }

    fn by_libtorch(training: bool, maps: &Tensor, norm: Norm, then: Then) -> Tensor {
        let (mean, variance) = (Some(norm.running_mean), Some(norm.running_var));
        let (weight, bias) = (Some(norm.weight), Some(norm.bias));
        let out = maps.batch_norm(weight, bias, mean, variance, training, norm.momentum, norm.epsilon, false);
        match then {
            Then::Stop => out,
            Then::Relu => out.relu(),
            Then::AddRelu(residual) => (out + residual).relu(),
        }
    }

    #[test]
    fn outputs_gradients_and_running_statistics_equal_libtorchs_in_double_precision() {
        // Less than a block, blocks and a rest, rows of one pixel; a mean far from zero.
        let cases =
            [([2, 16, 3, 5], 0.0), ([5, 48, 13, 11], 0.3), ([2, 32, 1, 5], -1.0), ([3, 16, 20, 20], 500.0)];
        for (size, mean) in cases {
            for (add, relu) in [(false, false), (false, true), (true, true)] {
                let found = passes(Kind::Float, size, mean, add, relu, train);
                let exact = passes(Kind::Double, size, mean, add, relu, |x, norm, then| {
                    by_libtorch(true, x, norm, then)
                });
                for (index, (found, exact)) in found.iter().zip(&exact).enumerate() {
                    assert_eq!(found.size(), exact.size());
                    let largest = |t: Tensor| f64::try_from(t.abs().max()).unwrap();
                    let scale = largest(exact.shallow_clone()).max(1e-3);
                    let error = largest(found.to_kind(Kind::Double) - exact) / scale;
                    // At 500 an input itself is rounded to 3e-5.
                    let bound = if mean.abs() > 100.0 { 2e-4 } else { 3e-6 };
                    assert!(error < bound, "{size:?} {mean} {add} {relu}: part {index} is off by {error:e}");
                }
            }
        }
    }

    #[test]
    fn evaluation_takes_the_running_statistics_and_leaves_them_alone() {
        for then in ["stop", "relu", "add"] {
            let residual = Tensor::ones([3, 16, 9, 11], (Kind::Float, Device::Cpu)) * 0.2;
            let layer = |x: &Tensor, norm: Norm| {
                let then = match then {
                    "stop" => Then::Stop,
                    "relu" => Then::Relu,
                    _ => Then::AddRelu(&residual),
                };
                let before = [norm.running_mean, norm.running_var].map(super::super::to_vec_f32);
                let found = evaluate(x, norm, then);
                assert!(!found.requires_grad());
                assert_eq!([norm.running_mean, norm.running_var].map(super::super::to_vec_f32), before);
                let error = (found - by_libtorch(false, x, norm, then)).abs().max();
                assert!(f64::try_from(error).unwrap() < 1e-5);
            };
            passes(Kind::Float, [3, 16, 9, 11], 0.4, false, false, |x, norm, _| {
                layer(x, norm);
                train(x, norm, Then::Stop)
            });
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let with = |threads| {
            tch::set_num_threads(threads);
            let parts = passes(Kind::Float, [7, 32, 12, 12], 0.1, true, true, train);
            parts.iter().map(super::super::to_vec_f32).collect::<Vec<_>>()
        };
        let before = tch::get_num_threads();
        let (one, three) = (with(1), with(3));
        tch::set_num_threads(before);
        assert_eq!(one, three);
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let maps = Tensor::ones([1, 16, 2, 2], (Kind::Float, Device::Cpu));
        let _ = maps.narrow(3, 0, 1).fill_(f64::NAN);
        let ones = || Tensor::ones([16], (Kind::Float, Device::Cpu));
        let (weight, bias, running_mean, running_var) = (ones(), ones(), ones(), ones());
        let norm = Norm {
            weight: &weight,
            bias: &bias,
            running_mean: &running_mean,
            running_var: &running_var,
            momentum: 0.1,
            epsilon: EPSILON,
        };
        let out = super::super::to_vec_f32(&train(&maps, norm, Then::Relu));
        assert!(out.iter().all(|value| value.is_nan()));
    }
}
