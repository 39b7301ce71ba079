//! One block of pixels at a time, sixteen channels side by side. Pixel by pixel, as they lie in memory: what bounds these passes is how fast
//! it can be read.

use super::Statistics;
use crate::model::channels_last::Chunk;
use crate::simd::{Kernel, Simd};

/// Bit `i` says whether the ReLU let value `i` of a chunk through. A thirty-second of the maps themselves: the passes backward read that
/// much less.
pub(super) type Passed = u16;

/// Of a block's values: the mean of their distances from `origin`, and the sum of squared distances from their mean.
pub(super) struct BlockMoments<'a> {
    /// A pixel: a mean far from zero costs no digits.
    pub origin: &'a [Chunk],
    pub values: &'a [Chunk],
    /// Zeros.
    pub out: &'a mut [Chunk],
}

impl Kernel for BlockMoments<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let BlockMoments { origin, values, out } = self;
        let (means, squares) = out.split_at_mut(origin.len());
        for pixel in values.chunks_exact(origin.len()) {
            for ((value, origin), sum) in pixel.iter().zip(origin).zip(means.iter_mut()) {
                simd.store(simd.add(simd.load(sum), simd.sub(simd.load(value), simd.load(origin))), sum);
            }
        }
        let share = simd.splat(origin.len() as f32 / values.len() as f32);
        for mean in means.iter_mut() {
            simd.store(simd.mul(simd.load(mean), share), mean);
        }
        for pixel in values.chunks_exact(origin.len()) {
            for (((value, origin), mean), square) in
                pixel.iter().zip(origin).zip(&*means).zip(squares.iter_mut())
            {
                let distance = simd.sub(simd.sub(simd.load(value), simd.load(origin)), simd.load(mean));
                simd.store(simd.mul_add(distance, distance, simd.load(square)), square);
            }
        }
    }
}

/// `scale·(x − mean) + bias` for sixteen channels.
pub(super) struct Affine {
    pub mean: Chunk,
    pub scale: Chunk,
    pub bias: Chunk,
}

/// [`Statistics::apply`] for some pixels.
pub(super) struct Apply<'a> {
    /// Of each chunk of channels.
    pub affine: &'a [Affine],
    pub maps: &'a [Chunk],
    pub residual: Option<&'a [Chunk]>,
    pub relu: bool,
    /// Where it is written down which values are positive.
    pub passed: Option<&'a mut [Passed]>,
    /// Whether `out` is left out of the caches.
    pub past_caches: bool,
    pub out: &'a mut [Chunk],
}

impl Kernel for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Apply { affine, maps, residual, relu, mut passed, past_caches, out } = self;
        let zero = simd.splat(0.0);
        let mut at = 0;
        while at < maps.len() {
            for Affine { mean, scale, bias } in affine {
                // The distance first, for the same reason as in `BlockMoments`.
                let distance = simd.sub(simd.load(&maps[at]), simd.load(mean));
                let mut value = simd.mul_add(distance, simd.load(scale), simd.load(bias));
                if let Some(residual) = residual {
                    value = simd.add(value, simd.load(&residual[at]));
                }
                if relu {
                    // What is no number stays none: the second operand wins.
                    value = simd.max(zero, value);
                }
                if let Some(passed) = &mut passed {
                    passed[at] = simd.greater(value, zero) as Passed;
                }
                store(simd, value, &mut out[at], past_caches);
                at += 1;
            }
        }
        simd.settle();
    }
}

#[inline(always)]
fn store<S: Simd>(simd: S, value: S::V, out: &mut Chunk, past_caches: bool) {
    if past_caches { simd.store_past_caches(value, out) } else { simd.store(value, out) }
}

/// `gradient` where the value `passed`; all of it where there was nothing to pass.
#[inline(always)]
fn let_through<S: Simd>(simd: S, gradient: &Chunk, passed: Option<Passed>) -> S::V {
    let gradient = simd.load(gradient);
    match passed {
        Some(passed) => simd.keep(gradient, passed.into()),
        None => gradient,
    }
}

/// [`Statistics::gradient_sums`] of a block.
pub(super) struct BlockGradients<'a> {
    pub statistics: &'a Statistics,
    pub maps: &'a [Chunk],
    pub gradient: &'a [Chunk],
    pub passed: Option<&'a [Passed]>,
    /// Zeros.
    pub out: &'a mut [Chunk],
}

impl Kernel for BlockGradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let BlockGradients { statistics, maps, gradient, passed, out } = self;
        let (sums, products) = out.split_at_mut(statistics.mean.len());
        let mut at = 0;
        while at < maps.len() {
            for ((mean, sum), product) in statistics.mean.iter().zip(sums.iter_mut()).zip(products.iter_mut())
            {
                let gradient = let_through(simd, &gradient[at], passed.map(|passed| passed[at]));
                let distance = simd.sub(simd.load(&maps[at]), simd.load(mean));
                simd.store(simd.add(simd.load(sum), gradient), sum);
                simd.store(simd.mul_add(distance, gradient, simd.load(product)), product);
                at += 1;
            }
        }
        for (product, inverse) in products.iter_mut().zip(&statistics.inverse) {
            simd.store(simd.mul(simd.load(product), simd.load(inverse)), product);
        }
    }
}

/// `scale·(g − mean_gradient − (x − mean)·slope)` for sixteen channels.
pub(super) struct Slope {
    pub mean: Chunk,
    pub scale: Chunk,
    pub mean_gradient: Chunk,
    pub slope: Chunk,
}

/// [`Statistics::gradients`] for some pixels.
pub(super) struct Gradients<'a> {
    /// Of each chunk of channels.
    pub slopes: &'a [Slope],
    pub maps: &'a [Chunk],
    pub gradient: &'a [Chunk],
    pub passed: Option<&'a [Passed]>,
    /// Whether `out` is left out of the caches.
    pub past_caches: bool,
    pub out: [Option<&'a mut [Chunk]>; 2],
}

impl Kernel for Gradients<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Gradients { slopes, maps, gradient, passed, past_caches, out } = self;
        let [mut of_maps, mut of_residual] = out;
        let mut at = 0;
        while at < maps.len() {
            for Slope { mean, scale, mean_gradient, slope } in slopes {
                let gradient = let_through(simd, &gradient[at], passed.map(|passed| passed[at]));
                if let Some(out) = &mut of_residual {
                    store(simd, gradient, &mut out[at], past_caches);
                }
                if let Some(out) = &mut of_maps {
                    let distance = simd.sub(simd.load(&maps[at]), simd.load(mean));
                    let slope = simd.mul(distance, simd.load(slope));
                    let centred = simd.sub(simd.sub(gradient, simd.load(mean_gradient)), slope);
                    store(simd, simd.mul(centred, simd.load(scale)), &mut out[at], past_caches);
                }
                at += 1;
            }
        }
        simd.settle();
    }
}
