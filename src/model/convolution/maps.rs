//! Feature maps with the channels last, and the squares of pixels that convolutions cut them into.

use crate::model::channels_last::Chunk;
use crate::simd::Simd;

/// The size of feature maps `[batch, height, width, 16·chunks]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    /// Channels, in chunks of sixteen.
    pub chunks: usize,
}

impl Maps {
    /// The square of `N` by `N` vectors of channels `chunk`, row `y` and column `x` its first; zeros outside of the image.
    #[inline(always)]
    pub fn load<S: Simd, const N: usize>(
        &self,
        simd: S,
        maps: &[Chunk],
        [image, chunk]: [usize; 2],
        [y, x]: [isize; 2],
    ) -> [[S::V; N]; N] {
        let mut square = [[simd.splat(0.0); N]; N];
        for (i, vectors) in square.iter_mut().enumerate() {
            let y = y + i as isize;
            if y < 0 || y >= self.height as isize {
                continue;
            }
            let row = (image * self.height + y as usize) * self.width * self.chunks;
            let row = &maps[row..][..self.width * self.chunks];
            for (j, vector) in vectors.iter_mut().enumerate() {
                let x = x + j as isize;
                if x >= 0 && x < self.width as isize {
                    *vector = simd.load(&row[x as usize * self.chunks + chunk]);
                }
            }
        }
        square
    }

    /// Cut into squares of `side` by `side` pixels.
    pub fn tiles(self, side: usize) -> Tiles {
        Tiles { maps: self, side }
    }
}

/// Maps cut into squares, row by row; the last ones of a row or column may be cut off by the edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    maps: Maps,
    side: usize,
}

/// Where a tile is: the image, and tiles above and to the left of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub image: usize,
    pub down: usize,
    pub right: usize,
}

impl Tiles {
    /// Tiles from left to right.
    pub fn across(&self) -> usize {
        self.maps.width.div_ceil(self.side)
    }

    fn down(&self) -> usize {
        self.maps.height.div_ceil(self.side)
    }

    /// Rows of tiles in all images.
    pub fn rows(&self) -> usize {
        self.maps.batch * self.down()
    }

    /// Rows of pixels of a row of tiles.
    pub fn height(&self, row: usize) -> usize {
        self.side.min(self.maps.height - row % self.down() * self.side)
    }

    /// Pixels of some rows of tiles.
    pub fn pixels(&self, rows: std::ops::Range<usize>) -> usize {
        rows.map(|row| self.height(row) * self.maps.width).sum()
    }

    /// The tiles of some rows.
    pub fn places(&self, rows: std::ops::Range<usize>) -> impl Iterator<Item = Place> + use<> {
        let (across, down) = (self.across(), self.down());
        rows.flat_map(move |row| {
            (0..across).map(move |right| Place { image: row / down, down: row % down, right })
        })
    }
}

/// A square of vectors that lie `step` chunks apart, row by row.
#[inline(always)]
pub(super) fn load_square<S: Simd, const N: usize>(simd: S, values: &[Chunk], step: usize) -> [[S::V; N]; N] {
    let mut square = [[simd.splat(0.0); N]; N];
    for i in 0..N {
        for j in 0..N {
            square[i][j] = simd.load(&values[(i * N + j) * step]);
        }
    }
    square
}

/// The reverse of [`load_square`].
#[inline(always)]
pub(super) fn store_square<S: Simd, const N: usize>(
    simd: S,
    square: [[S::V; N]; N],
    values: &mut [Chunk],
    step: usize,
) {
    for i in 0..N {
        for j in 0..N {
            simd.store(square[i][j], &mut values[(i * N + j) * step]);
        }
    }
}
