//! The outputs of a convolution over memory with the channels last, which is also how the gradient of its inputs is computed.

use std::ops::{Range, RangeInclusive};

use super::maps::{Maps, Place, load_square, store_square};
use super::product;
use super::scheme::{Factored, Scheme, Weighted};
use super::scratch::Scratch;
use crate::model::channels_last::{ChannelsLast, Chunk};
use crate::model::threads::{self, share};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Tiles that are worked on together: so many that each factor of the weights is used often once it is in the nearest cache,
/// and, between these, so few that all their factors, [`NEAR`] chunks, stay in the next.
const TILES: RangeInclusive<usize> = 24..=66;
const NEAR: usize = 1 << 12;

/// Chunks of channels that are read or written together: a pixel's are neighbours in memory.
const NEIGHBOURS: usize = 8;

/// Chunks from one point's `count` chunks to the next's. Were it a power of two, the points of a tile would all compete for
/// the same few places of the nearest cache.
pub(super) fn apart(count: usize) -> usize {
    count | 1
}

/// Numbers of working memory that [`convolve`] takes for `points` products along each axis of a tile and `factors` of the
/// weights.
pub(super) fn working_numbers(points: usize, factors: usize, inputs: usize, outputs: usize) -> usize {
    let weights = factors * factors * apart(inputs) * outputs;
    weights + points * points * apart(*TILES.end()) * (inputs + outputs)
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

/// What a convolution is computed from: factors of tiles, `P`² of each pair of a tile and a channel.
pub(super) trait Inputs<const P: usize>: Copy + Send + Sync {
    /// Chunks of channels that had best be asked for together.
    const NEIGHBOURS: usize;

    /// Chunks of channels.
    fn chunks(self) -> usize;

    /// The factors of the tiles at `places`, as many chunks of channels as `out` holds, from `first` on: `[chunks, P², step]`.
    fn factors<S: Simd>(
        self,
        simd: S,
        places: impl Iterator<Item = Place>,
        first: usize,
        step: usize,
        out: &mut [Chunk],
    );
}

/// Maps, or the gradient of some, cut into the squares whose factors are asked for.
#[derive(Clone, Copy)]
pub(super) struct Cut<'a, A, const I: usize>(pub A, pub Source<'a>);

impl<A: Factored<I, P>, const I: usize, const P: usize> Inputs<P> for Cut<'_, A, I> {
    const NEIGHBOURS: usize = NEIGHBOURS;

    fn chunks(self) -> usize {
        self.1.shape.chunks
    }

    #[inline(always)]
    fn factors<S: Simd>(
        self,
        simd: S,
        places: impl Iterator<Item = Place>,
        first: usize,
        step: usize,
        out: &mut [Chunk],
    ) {
        let Cut(scheme, source) = self;
        for (tile, place) in places.enumerate() {
            let corner =
                [place.down, place.right].map(|along| (along * A::STEP) as isize - A::BEFORE as isize);
            for (chunk, out) in out.chunks_exact_mut(P * P * step).enumerate() {
                let square = source.shape.load(simd, source.maps, [place.image, first + chunk], corner);
                store_square(simd, scheme.input_tile(simd, &square), &mut out[tile..], step);
            }
        }
    }
}

/// `out`, of shape `target`, = `inputs` convolved with the weights of `factors`, with zeros around the inputs.
pub(super) fn convolve<N: Inputs<P>, A: Scheme<P, O>, const P: usize, const O: usize>(
    isa: Isa,
    scheme: A,
    inputs: N,
    factors: &Factors,
    target: Maps,
    out: &mut [Chunk],
) {
    let tiles = target.tiles(O);
    let each_thread = (tiles.rows() * tiles.across()).div_ceil(threads::count());
    let near = NEAR / (P * P * (factors.from + factors.to));
    let together = near.clamp(*TILES.start(), *TILES.end()).min(each_thread);
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
        isa.run(Convolve { scheme, inputs, target, factors, rows, out });
    });
}

/// A block of rows of tiles.
struct Convolve<'a, N, A, const P: usize, const O: usize> {
    scheme: A,
    inputs: N,
    target: Maps,
    factors: &'a Factors,
    rows: Range<usize>,
    out: &'a mut [Chunk],
}

impl<N: Inputs<P>, A: Scheme<P, O>, const P: usize, const O: usize> Kernel for Convolve<'_, N, A, P, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Convolve { scheme, inputs, target, factors, rows, out } = self;
        let tiles = target.tiles(O);
        let count = rows.len() * tiles.across();
        let step = apart(count);
        // Of a chunk of channels.
        let each = P * P * step;
        let mut scratch = Scratch::new((factors.from + factors.to) * each);
        let (left, products) = scratch.split_at_mut(factors.from * each);
        for (group, left) in left.chunks_mut(N::NEIGHBOURS * each).enumerate() {
            inputs.factors(simd, tiles.places(rows.clone()), group * N::NEIGHBOURS, step, left);
        }
        if P == 1 && O == 1 {
            // The products are the outputs.
            for to in 0..factors.to {
                let out = (&mut out[to..], target.chunks);
                product::channels(simd, left, step, factors.of_point(to, 0, P), out, count);
            }
            return;
        }
        // All that is multiplied with one point's factors of the tiles comes while these are in a near cache.
        for point in 0..P * P {
            for to in 0..factors.to {
                let right = factors.of_point(to, point, P);
                let out = (&mut products[to * each + point * step..], 1);
                product::channels(simd, &left[point * step..], each, right, out, count);
            }
        }
        for (group, products) in products.chunks(NEIGHBOURS * each).enumerate() {
            let first = group * NEIGHBOURS;
            let (mut tile, mut above) = (0, 0);
            for row in rows.clone() {
                let height = tiles.height(row);
                for left in (0..target.width).step_by(O) {
                    let width = O.min(target.width - left);
                    for (to, products) in products.chunks_exact(each).enumerate() {
                        let outputs = scheme.output_tile(simd, &load_square(simd, &products[tile..], step));
                        let out = &mut out[(above + left) * target.chunks + first + to..];
                        for (down, outputs) in outputs.iter().enumerate().take(height) {
                            for (right, output) in outputs.iter().enumerate().take(width) {
                                simd.store(*output, &mut out[(down * target.width + right) * target.chunks]);
                            }
                        }
                    }
                    tile += 1;
                }
                above += height * target.width;
            }
        }
    }
}
