//! The gradient of a convolution's weights: products of the inputs' factors and those of the outputs' gradient, summed over all
//! tiles.

use std::ops::Range;

use super::maps::{Tiles, load_square};
use super::passes::{Inputs, apart};
use super::product;
use super::scheme::Weighted;
use super::scratch::Scratch;
use crate::model::channels_last::Chunk;
use crate::model::threads::{self, share};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Products of a pair of channels that are summed in one go, and at most how many tiles. The order of that sum, and with it the
/// result, depends on nothing else.
const SUMMED: usize = 128 * 36;
const MOST_SUMMED_TILES: usize = 128;

/// Chunks of outputs whose sums one thread adds to at a time.
const OUTPUTS_TOGETHER: usize = 8;

/// Chunks of tiles' factors, 2 MiB, that threads prepare for each other at a time: with fewer they would wait for each other
/// too often, and more would have left the caches.
const PREPARED: usize = 1 << 15;

/// Tiles that are summed in one go.
fn summed_tiles(points: usize) -> usize {
    MOST_SUMMED_TILES.min(SUMMED / (points * points))
}

/// Numbers of working memory that it takes for `points` products along each axis of a tile and `factors` of the weights.
pub(super) fn working_numbers(points: usize, factors: usize, inputs: usize, outputs: usize) -> usize {
    let sums = factors * factors * apart(outputs) * inputs;
    let block = points * points * apart(summed_tiles(points)) * (inputs + outputs);
    sums + block.max(PREPARED * LANES)
}

/// The gradient of the weights `[outputs, SIZE, SIZE, inputs]`, from the inputs' factors and those of the gradient of the
/// outputs, which has `tiles`; `out` has the weights' layout.
pub(super) fn weight_gradient<
    A: Weighted<SIZE, FACTORS>,
    N: Inputs<P>,
    G: Inputs<P>,
    const P: usize,
    const SIZE: usize,
    const FACTORS: usize,
>(
    isa: Isa,
    scheme: A,
    of_inputs: N,
    of_outputs: G,
    tiles: Tiles,
    out: &mut [Chunk],
) {
    let rows = (summed_tiles(P) / tiles.across()).max(1);
    let (inputs, outputs) = (of_inputs.chunks(), of_outputs.chunks());
    // Of the gradient of the weights' factors: `[FACTORS², inputs, apart(16·outputs)]`, vectors of sixteen inputs.
    let mut sums = Scratch::zeros(inputs * FACTORS * FACTORS * apart(outputs * LANES));
    // Of tiles, per block: `[inputs and outputs, P², apart(tiles)]`.
    let block = (inputs + outputs) * P * P * apart(rows * tiles.across());
    let blocks = tiles.rows().div_ceil(rows);
    // At least what gives every thread something to do.
    let together = threads::count().div_ceil(inputs + outputs).max(PREPARED / block).min(blocks);
    let mut prepared = Scratch::new(block * together);
    let of_block = |block: usize| block * rows..tiles.rows().min((block + 1) * rows);
    for first in (0..blocks).step_by(together) {
        let blocks = first..blocks.min(first + together);
        let parts = prepared.chunks_mut(block).zip(blocks.clone()).flat_map(|(prepared, block)| {
            let rows = of_block(block);
            let each = P * P * apart(rows.len() * tiles.across());
            let (left, right) = prepared[..(inputs + outputs) * each].split_at_mut(inputs * each);
            let groups = |out, of: Of, neighbours: usize| {
                let rows = rows.clone();
                let groups = <[Chunk]>::chunks_mut(out, neighbours * each).enumerate();
                groups.map(move |(group, out)| (of, rows.clone(), group * neighbours, out))
            };
            let of_inputs = groups(left, Of::Inputs, N::NEIGHBOURS);
            of_inputs.chain(groups(right, Of::Outputs, G::NEIGHBOURS))
        });
        share(parts, |(of, rows, first, out)| match of {
            Of::Inputs => isa.run(Prepare { inputs: of_inputs, tiles, rows, first, out }),
            Of::Outputs => isa.run(Prepare { inputs: of_outputs, tiles, rows, first, out }),
        });
        let groups = sums.chunks_mut(apart(outputs * LANES)).enumerate().flat_map(|(index, sums)| {
            let groups = sums[..outputs * LANES].chunks_mut(OUTPUTS_TOGETHER * LANES).enumerate();
            groups.map(move |(group, sums)| (index, group, sums))
        });
        share(groups, |(index, group, sums)| {
            let (factor, input) = (index / inputs, index % inputs);
            for (prepared, block) in prepared.chunks(block).zip(blocks.clone()) {
                let tiles = of_block(block).len() * tiles.across();
                for point in points_of::<P, FACTORS>(factor) {
                    let of_source =
                        |source: usize| &prepared[(source * P * P + point) * apart(tiles)..][..tiles];
                    let output = inputs + group * OUTPUTS_TOGETHER;
                    isa.run(SumTiles { of_source: &of_source, input, output, sums });
                }
            }
        });
    }
    let each = LANES * SIZE * SIZE * inputs;
    share(out.chunks_mut(each).enumerate(), |(output, out)| {
        isa.run(WeightsOfFactors { scheme, sums: &sums, inputs, outputs, output, out });
    });
}

/// The points, of `P`², that one of `FACTORS`² belongs to: along an axis the last one to all from there on.
fn points_of<const P: usize, const FACTORS: usize>(factor: usize) -> impl Iterator<Item = usize> {
    let along = |factor: usize| factor..if factor + 1 == FACTORS { P } else { factor + 1 };
    along(factor / FACTORS).flat_map(move |down| along(factor % FACTORS).map(move |right| down * P + right))
}

/// Whose factors are prepared.
#[derive(Clone, Copy)]
enum Of {
    Inputs,
    Outputs,
}

/// The factors of a block of tiles, of some chunks of channels from `first` on.
struct Prepare<'a, N, const P: usize> {
    inputs: N,
    tiles: Tiles,
    rows: Range<usize>,
    first: usize,
    out: &'a mut [Chunk],
}

impl<N: Inputs<P>, const P: usize> Kernel for Prepare<'_, N, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Prepare { inputs, tiles, rows, first, out } = self;
        let step = apart(rows.len() * tiles.across());
        inputs.factors(simd, tiles.places(rows), first, step, out);
    }
}

/// Adds a block of tiles to one point's sums of one chunk of inputs, some outputs.
struct SumTiles<'a, F> {
    /// The tiles' factors of a source, at that point.
    of_source: &'a F,
    input: usize,
    /// The source with the first of the outputs.
    output: usize,
    sums: &'a mut [Chunk],
}

impl<'a, F: Fn(usize) -> &'a [Chunk]> Kernel for SumTiles<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let right = (self.of_source)(self.input);
        for (output, sums) in self.sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            product::tiles(simd, (self.of_source)(self.output + output), right, sums);
        }
    }
}

/// The gradient of the weights of sixteen outputs.
struct WeightsOfFactors<'a, A, const SIZE: usize, const FACTORS: usize> {
    scheme: A,
    sums: &'a [Chunk],
    inputs: usize,
    outputs: usize,
    output: usize,
    out: &'a mut [Chunk],
}

impl<A: Weighted<SIZE, FACTORS>, const SIZE: usize, const FACTORS: usize> Kernel
    for WeightsOfFactors<'_, A, SIZE, FACTORS>
{
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let WeightsOfFactors { scheme, sums, inputs, outputs, output, out } = self;
        let step = inputs * apart(outputs * LANES);
        for lane in 0..LANES {
            for input in 0..inputs {
                let sums = &sums[input * apart(outputs * LANES) + output * LANES + lane..];
                let weights = scheme.kernel_gradient_tile(simd, &load_square(simd, sums, step));
                for (place, weight) in weights.as_flattened().iter().enumerate() {
                    simd.store(*weight, &mut out[(lane * SIZE * SIZE + place) * inputs + input]);
                }
            }
        }
    }
}
