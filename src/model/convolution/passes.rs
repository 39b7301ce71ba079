//! The outputs of a convolution over memory with the channels last, which is also how the gradient of its inputs is computed.

use std::ops::Range;

use super::maps::{Maps, Place, load_square, store_square};
use super::product;
use super::scheme::{Scheme, Transposed, Weighted};
use super::scratch::Scratch;
use crate::model::channels_last::{ChannelsLast, Chunk};
use crate::model::threads::{self, share};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Products of a pair of channels that are worked on together: so many that each factor of the weights is used often once it
/// is in the nearest cache, and so few that the tiles' own factors stay in the next. In tiles, at most [`MOST_TILES`].
const TOGETHER: usize = 66 * 36;
const MOST_TILES: usize = 66;

/// Chunks from one point's `count` chunks to the next's. Were it a power of two, the points of a tile would all compete for
/// the same few places of the nearest cache.
pub(super) fn apart(count: usize) -> usize {
    count | 1
}

/// Numbers of working memory that [`convolve`] takes for `points` products along each axis of a tile and `factors` of the
/// weights.
pub(super) fn working_numbers(points: usize, factors: usize, inputs: usize, outputs: usize) -> usize {
    let weights = factors * factors * apart(inputs) * outputs;
    weights + points * points * apart(most_tiles(points)) * (inputs + LANES)
}

/// Tiles that are worked on together.
fn most_tiles(points: usize) -> usize {
    MOST_TILES.min(TOGETHER / (points * points))
}

/// Weights `[outputs, side, side, inputs]`; outputs and inputs in chunks of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    values: &'a [Chunk],
    outputs: usize,
    inputs: usize,
}

/// Factors of the weights, `[to, side², apart(16·from)]` vectors of sixteen of `to`.
pub(super) struct Factors {
    values: Scratch,
    from: usize,
    to: usize,
    side: usize,
}

impl<'a> Weights<'a> {
    pub fn of(tensor: &'a ChannelsLast) -> Self {
        let outputs = tensor.size[0] as usize / LANES;
        Weights { values: tensor.chunks(), outputs, inputs: tensor.chunks_per_pixel() }
    }

    /// For outputs from inputs.
    pub fn forward<A: Weighted<SIZE, FACTORS>, const SIZE: usize, const FACTORS: usize>(
        self,
        isa: Isa,
        scheme: A,
    ) -> Factors {
        self.factors(isa, scheme, Direction::Forward)
    }

    /// For the gradient of the inputs from that of the outputs: the same weights, turned by half a circle, from outputs to
    /// inputs.
    pub fn backward<A: Weighted<SIZE, FACTORS>, const SIZE: usize, const FACTORS: usize>(
        self,
        isa: Isa,
        scheme: A,
    ) -> Factors {
        self.factors(isa, scheme, Direction::Backward)
    }

    fn factors<A: Weighted<SIZE, FACTORS>, const SIZE: usize, const FACTORS: usize>(
        self,
        isa: Isa,
        scheme: A,
        direction: Direction,
    ) -> Factors {
        let (from, to) = match direction {
            Direction::Forward => (self.inputs, self.outputs),
            Direction::Backward => (self.outputs, self.inputs),
        };
        let each = FACTORS * FACTORS * apart(from * LANES);
        let mut values = Scratch::new(to * each);
        share(values.chunks_mut(each).enumerate(), |(to, out)| {
            isa.run(KernelFactors { scheme, weights: self, direction, from, to, out });
        });
        Factors { values, from, to, side: FACTORS }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

impl Factors {
    /// Those of point `point` of `points`², `[16·from]` vectors of channels `to`.
    #[inline(always)]
    fn of_point(&self, to: usize, point: usize, points: usize) -> &[Chunk] {
        let factor = |along: usize| along.min(self.side - 1);
        let factor = factor(point / points) * self.side + factor(point % points);
        let channels = self.from * LANES;
        &self.values[(to * self.side * self.side + factor) * apart(channels)..][..channels]
    }
}

/// The factors of the weights that lead from `from` chunks of channels to one.
struct KernelFactors<'a, A, const SIZE: usize, const FACTORS: usize> {
    scheme: A,
    weights: Weights<'a>,
    direction: Direction,
    from: usize,
    to: usize,
    out: &'a mut [Chunk],
}

impl<A: Weighted<SIZE, FACTORS>, const SIZE: usize, const FACTORS: usize> Kernel
    for KernelFactors<'_, A, SIZE, FACTORS>
{
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let KernelFactors { scheme, weights, direction, from, to, out } = self;
        let step = apart(from * LANES);
        let chunk = |output: usize, place: usize, inputs: usize| {
            &weights.values[(output * SIZE * SIZE + place) * weights.inputs + inputs]
        };
        for from in 0..from {
            // Weights have their inputs side by side; going forward, vectors are of outputs.
            let mut turned = [[[[0.0; LANES]; SIZE]; SIZE]; LANES];
            for (channel, turned) in turned.iter_mut().enumerate() {
                for (place, vector) in turned.as_flattened_mut().iter_mut().enumerate() {
                    match direction {
                        Direction::Forward => {
                            for (output, number) in vector.iter_mut().enumerate() {
                                *number = chunk(to * LANES + output, place, from)[channel];
                            }
                        }
                        Direction::Backward => {
                            *vector = *chunk(from * LANES + channel, SIZE * SIZE - 1 - place, to);
                        }
                    }
                }
            }
            for (channel, weights) in turned.iter().enumerate() {
                let factors = scheme.kernel_tile(simd, &load_square(simd, weights.as_flattened(), 1));
                store_square(simd, factors, &mut out[from * LANES + channel..], step);
            }
        }
    }
}

/// Maps, and how large they are.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub maps: &'a [Chunk],
    pub shape: Maps,
}

/// `out`, of shape `target`, = `source` convolved with the weights of `factors`, with zeros around the source.
pub(super) fn convolve<A: Scheme<I, P, O>, const I: usize, const P: usize, const O: usize>(
    isa: Isa,
    scheme: A,
    source: Source,
    factors: &Factors,
    target: Maps,
    out: &mut [Chunk],
) {
    let tiles = target.tiles(O);
    let all = tiles.rows() * tiles.across();
    let together = most_tiles(P).min(all.div_ceil(threads::count()));
    let rows = (together / tiles.across()).max(1);
    let mut rest = out;
    let blocks = (0..tiles.rows()).step_by(rows).map(|first| {
        let rows = first..tiles.rows().min(first + rows);
        let pixels = tiles.pixels(rows.clone());
        let (block, others) = std::mem::take(&mut rest).split_at_mut(pixels * target.chunks);
        rest = others;
        (rows, block)
    });
    share(blocks, |(rows, out)| {
        isa.run(Convolve { scheme, source, target, factors, rows, out });
    });
}

/// A block of rows of tiles.
struct Convolve<'a, A, const I: usize, const P: usize, const O: usize> {
    scheme: A,
    source: Source<'a>,
    target: Maps,
    factors: &'a Factors,
    rows: Range<usize>,
    out: &'a mut [Chunk],
}

impl<A: Scheme<I, P, O>, const I: usize, const P: usize, const O: usize> Kernel for Convolve<'_, A, I, P, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Convolve { scheme, source, target, factors, rows, out } = self;
        let tiles = target.tiles(O);
        let count = rows.len() * tiles.across();
        let step = apart(count);
        let mut scratch = Scratch::new((factors.from + 1) * P * P * step);
        let (inputs, products) = scratch.split_at_mut(factors.from * P * P * step);
        for (chunk, inputs) in inputs.chunks_mut(P * P * step).enumerate() {
            input_factors(simd, scheme, source, tiles.places(rows.clone()), chunk, inputs);
        }
        for to in 0..factors.to {
            for (point, products) in products.chunks_mut(step).enumerate() {
                let right = factors.of_point(to, point, P);
                product::channels(simd, &inputs[point * step..], P * P * step, right, &mut products[..count]);
            }
            let mut products = &products[..];
            let mut above = 0;
            for row in rows.clone() {
                let height = tiles.height(row);
                for left in (0..target.width).step_by(O) {
                    let outputs = scheme.output_tile(simd, &load_square(simd, products, step));
                    products = &products[1..];
                    let width = O.min(target.width - left);
                    let out = &mut out[(above + left) * target.chunks + to..];
                    for (down, outputs) in outputs.iter().enumerate().take(height) {
                        for (right, output) in outputs.iter().enumerate().take(width) {
                            simd.store(*output, &mut out[(down * target.width + right) * target.chunks]);
                        }
                    }
                }
                above += height * target.width;
            }
        }
    }
}

/// The factors of the tiles at `places`, channels `chunk` of `source`: `[P², apart(tiles)]`.
#[inline(always)]
pub(super) fn input_factors<S: Simd, A: Scheme<I, P, O>, const I: usize, const P: usize, const O: usize>(
    simd: S,
    scheme: A,
    source: Source,
    places: impl Iterator<Item = Place>,
    chunk: usize,
    out: &mut [Chunk],
) {
    let step = out.len() / (P * P);
    for (tile, place) in places.enumerate() {
        let corner = [place.down, place.right].map(|along| (along * A::STEP) as isize - A::BEFORE as isize);
        let square = source.shape.load(simd, source.maps, [place.image, chunk], corner);
        store_square(simd, scheme.input_tile(simd, &square), &mut out[tile..], step);
    }
}

/// The same of a gradient of outputs, which is multiplied by the inputs' factors in the gradient of the weights'.
#[inline(always)]
pub(super) fn gradient_factors<S: Simd, A: Transposed<P, O>, const P: usize, const O: usize>(
    simd: S,
    scheme: A,
    gradient: Source,
    places: impl Iterator<Item = Place>,
    chunk: usize,
    out: &mut [Chunk],
) {
    let step = out.len() / (P * P);
    for (tile, place) in places.enumerate() {
        let corner = [place.down, place.right].map(|along| (along * O) as isize);
        let square = gradient.shape.load(simd, gradient.maps, [place.image, chunk], corner);
        store_square(simd, scheme.output_gradient_tile(simd, &square), &mut out[tile..], step);
    }
}
