//! The three passes of a 3×3 convolution over memory with the channels last: outputs, which is also how the gradient of
//! the inputs is computed, and the gradient of the weights.

use super::product;
use super::scratch::Scratch;
use super::transform::{
    Maps, OUTPUTS, POINTS, input_tile, kernel_gradient_tile, kernel_tile, load_square, output_gradient_tile,
    output_tile, store_square,
};
use crate::model::channels_last::{ChannelsLast, Chunk};
use crate::model::threads::{self, share};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Tiles that are worked on together: so many that each factor of the weights is used often once it is in the nearest
/// cache, and so few that the tiles' own factors stay in the next.
const TOGETHER: usize = 66;

/// Tiles whose products are summed in one go for the gradient of the weights. The order of that sum, and with it the
/// result, depends on nothing else.
const SUMMED: usize = 128;

/// Chunks from one point's `count` chunks to the next's. Were it a power of two, the 36 of a tile would all compete for the
/// same few places of the nearest cache.
fn apart(count: usize) -> usize {
    count | 1
}

/// Bytes of working memory that a convolution of `channels` inputs and outputs takes: the weights' factors, the sums of their
/// gradient, and a block of tiles of both. It is kept from one convolution to the next, so that a network's largest counts.
pub fn working_bytes(channels: usize) -> usize {
    let weights = POINTS * apart(channels) * channels;
    let tiles = POINTS * apart(SUMMED) * channels;
    (2 * weights + 2 * tiles) * size_of::<f32>()
}

/// `3×3` weights `[outputs, 3, 3, inputs]`; outputs and inputs in chunks of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub values: &'a [Chunk],
    pub outputs: usize,
    pub inputs: usize,
}

/// Factors of the weights, `[to, POINTS, apart(16·from)]` vectors of sixteen of `to`.
pub(super) struct Factors {
    values: Scratch,
    from: usize,
    to: usize,
}

impl<'a> Weights<'a> {
    pub fn of(tensor: &'a ChannelsLast) -> Self {
        let outputs = tensor.size[0] as usize / LANES;
        Weights { values: tensor.chunks(), outputs, inputs: tensor.chunks_per_pixel() }
    }

    /// The vector of sixteen inputs at `place` of 9 for output `output`.
    #[inline(always)]
    fn at(&self, output: usize, place: usize, inputs: usize) -> &Chunk {
        &self.values[(output * 9 + place) * self.inputs + inputs]
    }

    /// For outputs from inputs.
    pub fn forward(self, isa: Isa) -> Factors {
        self.factors(isa, self.inputs, self.outputs, true)
    }

    /// For the gradient of the inputs from that of the outputs: the same weights, turned by half a circle, from outputs to
    /// inputs.
    pub fn backward(self, isa: Isa) -> Factors {
        self.factors(isa, self.outputs, self.inputs, false)
    }

    fn factors(self, isa: Isa, from: usize, to: usize, forward: bool) -> Factors {
        let each = POINTS * apart(from * LANES);
        let mut values = Scratch::new(to * each);
        share(values.chunks_mut(each).enumerate(), |(to, out)| {
            isa.run(KernelFactors { weights: self, to, forward, out });
        });
        Factors { values, from, to }
    }
}

/// The factors of the weights that lead to one chunk of channels.
struct KernelFactors<'a> {
    weights: Weights<'a>,
    to: usize,
    forward: bool,
    out: &'a mut [Chunk],
}

impl Kernel for KernelFactors<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let step = self.out.len() / POINTS;
        for from in 0..step / LANES {
            // Weights have their inputs side by side; going forward, vectors are of outputs.
            let mut turned = [[[0.0; LANES]; 9]; LANES];
            for (channel, turned) in turned.iter_mut().enumerate() {
                for (place, vector) in turned.iter_mut().enumerate() {
                    if self.forward {
                        for (output, number) in vector.iter_mut().enumerate() {
                            *number = self.weights.at(self.to * LANES + output, place, from)[channel];
                        }
                    } else {
                        *vector = *self.weights.at(from * LANES + channel, 8 - place, self.to);
                    }
                }
            }
            for (channel, weights) in turned.iter().enumerate() {
                let factors = kernel_tile(simd, &load_square(simd, weights, 1));
                store_square(simd, factors, &mut self.out[from * LANES + channel..], step);
            }
        }
    }
}

/// `out` = `maps` convolved with the weights of `factors`, padded by a row or column of zeros at each side. `shape` is
/// that of `maps`; `out` has as many images of the same size, and the factors' channels.
pub(super) fn convolve(isa: Isa, maps: &[Chunk], shape: Maps, factors: &Factors, out: &mut [Chunk]) {
    let threads = threads::count();
    let tiles = shape.tile_rows() * shape.tiles_across();
    let rows = (TOGETHER.min(tiles.div_ceil(threads)) / shape.tiles_across()).max(1);
    let source = Source { maps, shape, side: Side::Inputs };
    let target = Maps { chunks: factors.to, ..shape };
    let mut rest = out;
    let blocks = (0..shape.tile_rows()).step_by(rows).map(|first| {
        let rows = rows.min(shape.tile_rows() - first);
        let pixels: usize = (first..first + rows).map(|row| shape.tile_row(row).2 * shape.width).sum();
        let (block, others) = std::mem::take(&mut rest).split_at_mut(pixels * target.chunks);
        rest = others;
        (first, rows, block)
    });
    share(blocks, |(first, rows, out)| {
        isa.run(Convolve { source, target, factors, first, rows, out });
    });
}

/// A block of rows of tiles.
struct Convolve<'a> {
    source: Source<'a>,
    target: Maps,
    factors: &'a Factors,
    first: usize,
    rows: usize,
    out: &'a mut [Chunk],
}

impl Kernel for Convolve<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Convolve { source, target, factors, first, rows, out } = self;
        let shape = source.shape;
        let across = shape.tiles_across();
        let tiles = rows * across;
        let step = apart(tiles);
        let mut scratch = Scratch::new((factors.from + 1) * POINTS * step);
        let (inputs, products) = scratch.split_at_mut(factors.from * POINTS * step);
        for (chunk, inputs) in inputs.chunks_mut(POINTS * step).enumerate() {
            source.factors(simd, first, rows, chunk, inputs);
        }
        let channels = factors.from * LANES;
        for to in 0..factors.to {
            for (point, products) in products.chunks_mut(step).enumerate() {
                let right = &factors.values[(to * POINTS + point) * apart(channels)..][..channels];
                product::channels(
                    simd,
                    &inputs[point * step..],
                    POINTS * step,
                    right,
                    &mut products[..tiles],
                );
            }
            let mut pixels_before = 0;
            for row in 0..rows {
                let (_, _, height) = shape.tile_row(first + row);
                for tile in 0..across {
                    let products = &products[row * across + tile..];
                    let outputs = output_tile(simd, &load_square(simd, products, step));
                    let x = tile * OUTPUTS;
                    let width = OUTPUTS.min(shape.width - x);
                    let out = &mut out[(pixels_before + x) * target.chunks + to..];
                    for (down, outputs) in outputs.iter().enumerate().take(height) {
                        for (right, output) in outputs.iter().enumerate().take(width) {
                            simd.store(*output, &mut out[(down * shape.width + right) * target.chunks]);
                        }
                    }
                }
                pixels_before += height * shape.width;
            }
        }
    }
}

/// Maps that tiles are cut from.
#[derive(Clone, Copy)]
struct Source<'a> {
    maps: &'a [Chunk],
    shape: Maps,
    side: Side,
}

/// What the maps of a [`Source`] are to the convolution.
#[derive(Clone, Copy)]
enum Side {
    /// Its inputs: a tile needs a margin of them.
    Inputs,
    /// The gradient of its outputs, which multiplies the inputs' factors in the gradient of the weights'.
    OutputGradient,
}

impl Source<'_> {
    /// The factors of `rows` rows of tiles from `first` on, channels `chunk`: `[POINTS, apart(tiles)]`.
    #[inline(always)]
    fn factors<S: Simd>(self, simd: S, first: usize, rows: usize, chunk: usize, out: &mut [Chunk]) {
        let Source { maps, shape, side } = self;
        let across = shape.tiles_across();
        let step = out.len() / POINTS;
        for row in 0..rows {
            let (image, top, _) = shape.tile_row(first + row);
            for tile in 0..across {
                let [top, left] = [top, tile * OUTPUTS].map(|corner| corner as isize);
                let at = [image, chunk];
                let factors = match side {
                    Side::Inputs => input_tile(simd, &shape.load(simd, maps, at, [top - 1, left - 1])),
                    Side::OutputGradient => {
                        output_gradient_tile(simd, &shape.load(simd, maps, at, [top, left]))
                    }
                };
                store_square(simd, factors, &mut out[row * across + tile..], step);
            }
        }
    }
}

/// The gradient of the weights `[outputs, 3, 3, inputs]`, from the inputs `maps` and the `gradient` of the outputs.
/// `outputs` is the number of the gradient's chunks; `out` has the weights' layout.
pub(super) fn weight_gradient(
    isa: Isa,
    maps: &[Chunk],
    shape: Maps,
    gradient: &[Chunk],
    outputs: usize,
    out: &mut [Chunk],
) {
    let inputs = Source { maps, shape, side: Side::Inputs };
    let target = Maps { chunks: outputs, ..shape };
    let gradient = Source { maps: gradient, shape: target, side: Side::OutputGradient };
    let rows = (SUMMED / shape.tiles_across()).max(1);
    let sources = shape.chunks + outputs;
    // Of the gradient of the factors: `[inputs, POINTS, apart(16·outputs)]`, vectors of sixteen inputs.
    let mut sums = Scratch::zeros(shape.chunks * POINTS * apart(outputs * LANES));
    // Of tiles, per block: `[inputs and outputs, POINTS, apart(tiles)]`.
    let block = sources * POINTS * apart(rows * shape.tiles_across());
    let blocks = shape.tile_rows().div_ceil(rows);
    // No more than gives every thread something to do: what lies in the caches need not be fetched.
    let together = threads::count().div_ceil(sources).min(blocks);
    let mut factors = Scratch::new(block * together);
    for first in (0..blocks).step_by(together) {
        let blocks = first..blocks.min(first + together);
        let of = |block: usize| {
            let first = block * rows;
            (first, rows.min(shape.tile_rows() - first))
        };
        let parts = factors.chunks_mut(block).zip(blocks.clone()).flat_map(|(factors, block)| {
            let (first, rows) = of(block);
            let each = POINTS * apart(rows * shape.tiles_across());
            factors
                .chunks_mut(each)
                .take(sources)
                .enumerate()
                .map(move |(source, out)| (first, rows, source, out))
        });
        share(parts, |(first, rows, source, out)| {
            let (source, chunk) = match source.checked_sub(shape.chunks) {
                None => (inputs, source),
                Some(chunk) => (gradient, chunk),
            };
            isa.run(SourceFactors { source, first, rows, chunk, out });
        });
        let all = sums.chunks_mut(apart(outputs * LANES)).enumerate();
        share(all, |(index, sums)| {
            let (input, point) = (index / POINTS, index % POINTS);
            for (factors, block) in factors.chunks(block).zip(blocks.clone()) {
                let tiles = of(block).1 * shape.tiles_across();
                let of_source = |source: usize| &factors[(source * POINTS + point) * apart(tiles)..][..tiles];
                isa.run(SumTiles { of_source: &of_source, input, outputs: shape.chunks, sums });
            }
        });
    }
    let each = LANES * 9 * shape.chunks;
    share(out.chunks_mut(each).enumerate(), |(output, out)| {
        isa.run(KernelGradient { sums: &sums, inputs: shape.chunks, outputs, output, out });
    });
}

/// [`Source::factors`] by themselves.
struct SourceFactors<'a> {
    source: Source<'a>,
    first: usize,
    rows: usize,
    chunk: usize,
    out: &'a mut [Chunk],
}

impl Kernel for SourceFactors<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.source.factors(simd, self.first, self.rows, self.chunk, self.out);
    }
}

/// Adds a block of tiles to one point's sums of one chunk of inputs, all outputs.
struct SumTiles<'a, F> {
    /// The tiles' factors of a source, at that point.
    of_source: &'a F,
    input: usize,
    /// The source with the first outputs.
    outputs: usize,
    sums: &'a mut [Chunk],
}

impl<'a, F: Fn(usize) -> &'a [Chunk]> Kernel for SumTiles<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let right = (self.of_source)(self.input);
        for (output, sums) in self.sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            product::tiles(simd, (self.of_source)(self.outputs + output), right, sums);
        }
    }
}

/// The gradient of the weights of sixteen outputs.
struct KernelGradient<'a> {
    sums: &'a [Chunk],
    inputs: usize,
    outputs: usize,
    output: usize,
    out: &'a mut [Chunk],
}

impl Kernel for KernelGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let KernelGradient { sums, inputs, outputs, output, out } = self;
        let step = apart(outputs * LANES);
        for lane in 0..LANES {
            for input in 0..inputs {
                let sums = &sums[input * POINTS * step + output * LANES + lane..];
                let weights = kernel_gradient_tile(simd, &load_square(simd, sums, step));
                for (place, weight) in weights.as_flattened().iter().enumerate() {
                    simd.store(*weight, &mut out[(lane * 9 + place) * inputs + input]);
                }
            }
        }
    }
}
