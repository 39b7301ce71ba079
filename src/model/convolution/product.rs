//! The products between the transforms: small dense matrices whose operands the transforms have laid out for them.

use crate::model::channels_last::Chunk;
use crate::simd::{LANES, Simd};

/// Channels whose vectors of weights, 16 KiB, stay in the nearest cache while all tiles are multiplied with them.
const CHANNELS_TOGETHER: usize = 256;

/// `out[t] = Σ_c left[t, c]·right[c]` for `tiles` tiles `t`, one vector of outputs each, `out_step` chunks apart.
///
/// `left` has its channels in chunks of sixteen, `step` chunks from one to the next, each with a chunk for every tile; `right`
/// has a vector for every channel.
#[inline(always)]
pub(super) fn channels<S: Simd>(
    simd: S,
    left: &[Chunk],
    step: usize,
    right: &[Chunk],
    (out, out_step): (&mut [Chunk], usize),
    tiles: usize,
) {
    for (block, right) in right.chunks(CHANNELS_TOGETHER).enumerate() {
        let left = &left[block * CHANNELS_TOGETHER / LANES * step..];
        let mut at = 0;
        macro_rules! while_there_are {
            ($rows:literal) => {
                while tiles - at >= $rows {
                    let out = &mut out[at * out_step..];
                    channels_of_rows::<S, $rows>(simd, &left[at..], step, right, (out, out_step), block > 0);
                    at += $rows;
                }
            };
        }
        if S::WIDE {
            while_there_are!(12);
        }
        while_there_are!(6);
        while_there_are!(4);
        while_there_are!(2);
        while_there_are!(1);
    }
}

/// `ROWS` tiles of it; added to `out` or written to it.
#[inline(always)]
fn channels_of_rows<S: Simd, const ROWS: usize>(
    simd: S,
    left: &[Chunk],
    step: usize,
    right: &[Chunk],
    (out, out_step): (&mut [Chunk], usize),
    add: bool,
) {
    let mut sums = [simd.splat(0.0); ROWS];
    if add {
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = simd.load(&out[row * out_step]);
        }
    }
    let (right, _) = right.as_chunks::<LANES>();
    for (index, right) in right.iter().enumerate() {
        let left: &[Chunk; ROWS] = left[index * step..].first_chunk().expect("a chunk for every tile");
        for (channel, right) in right.iter().enumerate() {
            let right = simd.load(right);
            for row in 0..ROWS {
                sums[row] = simd.mul_add(simd.splat(left[row][channel]), right, sums[row]);
            }
        }
    }
    for (row, sum) in sums.into_iter().enumerate() {
        simd.store(sum, &mut out[row * out_step]);
    }
}

/// `out[k] += Σ_t left[t][k]·right[t]` for sixteen `k`: a block of the gradient of the weights' factors.
#[inline(always)]
pub(super) fn tiles<S: Simd>(simd: S, left: &[Chunk], right: &[Chunk], out: &mut [Chunk; LANES]) {
    macro_rules! rows {
        ($from:literal, $count:literal) => {
            tiles_of_rows::<S, $from, $count>(simd, left, right, out)
        };
    }
    if S::WIDE {
        rows!(0, 16);
    } else {
        rows!(0, 6);
        rows!(6, 5);
        rows!(11, 5);
    }
}

#[inline(always)]
fn tiles_of_rows<S: Simd, const FROM: usize, const ROWS: usize>(
    simd: S,
    left: &[Chunk],
    right: &[Chunk],
    out: &mut [Chunk; LANES],
) {
    // Not by `from_fn`, whose closure may become a function of its own, without the instructions.
    let mut sums = [simd.splat(0.0); ROWS];
    for row in 0..ROWS {
        sums[row] = simd.load(&out[FROM + row]);
    }
    for (left, right) in left.iter().zip(right) {
        let right = simd.load(right);
        for row in 0..ROWS {
            sums[row] = simd.mul_add(simd.splat(left[FROM + row]), right, sums[row]);
        }
    }
    for row in 0..ROWS {
        simd.store(sums[row], &mut out[FROM + row]);
    }
}
