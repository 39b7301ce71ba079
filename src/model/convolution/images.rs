//! The first convolution of a network, whose three channels fill no vector: a product with whole patches of the images.

use super::maps::Place;
use super::passes::Inputs;
use crate::model::channels_last::{ChannelsLast, Chunk};
use crate::simd::{LANES, Simd};

/// Numbers that are copied at once: a row of a patch of 7×7 pixels of three channels has 21.
const WIDE: usize = 32;

/// Room for a patch and what is copied too much. The largest that is taken is smaller by [`WIDE`].
const LARGEST: usize = 432;
pub(super) const LARGEST_PATCH: usize = LARGEST - WIDE;

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
    /// If a patch has more than [`LARGEST_PATCH`] numbers.
    pub fn of(images: &'a ChannelsLast, size: i64, stride: i64) -> Self {
        let [_, channels, height, width] = images.size.map(|size| size as usize);
        let (size, stride) = (size as usize, stride as usize);
        assert!(
            size * size * channels <= LARGEST_PATCH,
            "a patch of {size}×{size} pixels, {channels} channels"
        );
        Patches { images: images.numbers(), height, width, channels, size, stride }
    }

    /// Numbers of a patch.
    fn numbers(&self) -> usize {
        self.size * self.size * self.channels
    }

    /// Makes `patch`, zeros from [`numbers`](Self::numbers) on, the patch at `place`.
    #[inline(always)]
    fn copy(&self, place: Place, patch: &mut [f32; LARGEST]) {
        let row = self.size * self.channels;
        let (top, left) = (place.down * self.stride, place.right * self.stride);
        let before = self.size / 2;
        let inside = |first: usize, side: usize| first >= before && first + self.size - before <= side;
        if inside(top, self.height) && inside(left, self.width) && row <= WIDE {
            let first =
                ((place.image * self.height + top - before) * self.width + left - before) * self.channels;
            let end = first + (self.size - 1) * self.width * self.channels + WIDE;
            if let Some(images) = self.images.get(first..end) {
                // Copies of a fixed length are much faster; what is too much is overwritten by the next row.
                for down in 0..self.size {
                    let from: &[f32; WIDE] =
                        images[down * self.width * self.channels..].first_chunk().expect("in `end`");
                    *patch[down * row..].first_chunk_mut().expect("room for a wide row") = *from;
                }
                patch[self.numbers()..].iter_mut().take(WIDE).for_each(|number| *number = 0.0);
                return;
            }
        }
        patch.fill(0.0);
        // Pixels of the patch that the image has, from left to right.
        let first = before.saturating_sub(left);
        let last = self.size.min(self.width + before - left);
        for down in 0..self.size {
            let Some(y) = (top + down).checked_sub(before).filter(|y| *y < self.height) else {
                continue;
            };
            let from = ((place.image * self.height + y) * self.width + left + first - before) * self.channels;
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
        self.numbers().div_ceil(LANES)
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
        let mut patch = [0.0; LARGEST];
        for (tile, place) in places.enumerate() {
            self.copy(place, &mut patch);
            let chunks = patch.as_chunks::<LANES>().0[first..].iter();
            for (chunk, out) in chunks.zip(out.chunks_exact_mut(step)) {
                out[tile] = *chunk;
            }
        }
    }
}
