//! One block of pixels at a time, sixteen channels side by side.

use super::Statistics;
use crate::model::channels_last::Chunk;
use crate::simd::{Kernel, Simd};

/// Mean and sum of squared distances from it, of a block's values.
pub(super) struct BlockMoments<'a> {
    pub chunks: usize,
    pub values: &'a [Chunk],
    pub out: &'a mut [Chunk],
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
pub(super) struct Apply<'a> {
    pub statistics: &'a Statistics,
    pub weight: &'a [Chunk],
    pub bias: &'a [Chunk],
    pub maps: &'a [Chunk],
    pub residual: Option<&'a [Chunk]>,
    pub relu: bool,
    pub out: &'a mut [Chunk],
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
pub(super) struct BlockGradients<'a> {
    pub statistics: &'a Statistics,
    pub maps: &'a [Chunk],
    pub gradient: &'a [Chunk],
    pub passed: Option<&'a [Chunk]>,
    pub out: &'a mut [Chunk],
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
pub(super) struct Gradients<'a> {
    pub statistics: &'a Statistics,
    pub weight: &'a [Chunk],
    pub sums: &'a [Vec<Chunk>; 2],
    /// Of all maps.
    pub pixels: usize,
    pub maps: &'a [Chunk],
    pub gradient: &'a [Chunk],
    pub passed: Option<&'a [Chunk]>,
    pub out: [Option<&'a mut [Chunk]>; 2],
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
