//! The first convolution of a network, whose three channels fill no vector: a product with whole patches of the images.

use super::maps::Place;
use super::passes::Inputs;
use crate::model::channels_last::{ChannelsLast, Chunk};
use crate::simd::{LANES, Simd};

/// Numbers of the largest patch that is taken: 7×7 of three channels, and up to eight.
pub(super) const LARGEST: usize = 400;

/// The patches of images, one for every output: `size`² pixels of all channels, next to each other, then zeros up to a
/// multiple of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Patches<'a> {
    /// `[batch, height, width, channels]`.
    images: &'a [f32],
    height: usize,
    width: usize,
    channels: usize,
    size: usize,
    stride: usize,
}

impl<'a> Patches<'a> {
    /// Those of `size` by `size` pixels around every `stride`th one.
    ///
    /// # Panics
    /// If a patch has more than [`LARGEST`] numbers.
    pub fn of(images: &'a ChannelsLast, size: i64, stride: i64) -> Self {
        let [_, channels, height, width] = images.size.map(|size| size as usize);
        let (size, stride) = (size as usize, stride as usize);
        assert!(size * size * channels <= LARGEST, "a patch of {size}×{size} pixels, {channels} channels");
        Patches { images: images.numbers(), height, width, channels, size, stride }
    }

    /// Writes the patch at `place` over `patch`, where what is beyond the images' edges may be left as it was.
    #[inline(always)]
    fn copy(&self, place: Place, patch: &mut [f32]) {
        let row = self.size * self.channels;
        let before = self.size / 2;
        // Pixels of the patch that the image has, from left to right.
        let left = place.right * self.stride;
        let first = before.saturating_sub(left);
        let last = self.size.min(self.width + before - left);
        for down in 0..self.size {
            let Some(y) = (place.down * self.stride + down).checked_sub(before).filter(|y| *y < self.height)
            else {
                continue;
            };
            let x = left + first - before;
            let from = ((place.image * self.height + y) * self.width + x) * self.channels;
            let count = (last - first) * self.channels;
            patch[down * row + first * self.channels..][..count]
                .copy_from_slice(&self.images[from..][..count]);
        }
    }
}

impl Inputs<1> for Patches<'_> {
    /// All: a patch is made for all of them.
    const NEIGHBOURS: usize = LARGEST / LANES;

    fn chunks(self) -> usize {
        (self.size * self.size * self.channels).div_ceil(LANES)
    }

    #[inline(always)]
    fn factors<S: Simd>(
        self,
        _: S,
        places: impl Iterator<Item = Place>,
        first: usize,
        step: usize,
        out: &mut [Chunk],
    ) {
        for (tile, place) in places.enumerate() {
            let mut patch = [0.0; LARGEST];
            self.copy(place, &mut patch);
            let chunks = patch.as_chunks::<LANES>().0[first..].iter();
            for (chunk, out) in chunks.zip(out.chunks_exact_mut(step)) {
                out[tile] = *chunk;
            }
        }
    }
}
