//! Antialiased bilinear resizing of a rectangle of an 8-bit RGB image, equal to Pillow's bit for bit.
//!
//! Two passes, along rows and along columns, with 8-bit pixels between them. Each output pixel is a weighted mean of the
//! inputs under a triangle, which is as wide as two input pixels when enlarging and as two output pixels when
//! shrinking. Weights are fixed-point numbers of 22 fractional bits, sums round half up. Only pixels inside the
//! rectangle are read: they are cropped first, as torchvision does, so that nothing leaks in from outside.
//!
//! `fast_image_resize` has narrower weights (16 bits), hence other pixels; this module exists to have the same.

use std::ops::{Deref, Range};

use image::{ImageBuffer, Rgb};

/// Fractional bits of a weight: 32 less 8 for the pixel and 2 to spare, as in Pillow.
pub(crate) const FRACTION_BITS: u32 = 22;
/// One half, added before the shift so that sums round to the nearest.
const HALF: i32 = 1 << (FRACTION_BITS - 1);
/// Rows summed at a time in the horizontal pass: they share their weights, and fill vector registers.
const ROWS: usize = 4;
/// Bytes summed at a time in the vertical pass; a few vector registers.
const BLOCK: usize = 64;

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Rows above it.
    pub top: u32,
    /// Columns to its left.
    pub left: u32,
    /// Rows in it.
    pub height: u32,
    /// Columns in it.
    pub width: u32,
}

impl Crop {
    /// All of an image of this size.
    pub fn whole(width: u32, height: u32) -> Self {
        Crop { top: 0, left: 0, height, width }
    }

    fn is_within(&self, width: u32, height: u32) -> bool {
        let fits = |start: u32, extent: u32, limit: u32| {
            extent > 0 && start.checked_add(extent).is_some_and(|end| end <= limit)
        };
        fits(self.left, self.width, width) && fits(self.top, self.height, height)
    }
}

/// The size of an image of `width` × `height` pixels after resizing its shorter side to `short`; the longer one is
/// truncated, as in torchvision.
pub fn with_short_side((width, height): (u32, u32), short: u32) -> (u32, u32) {
    let long = f64::from(short) * f64::from(width.max(height)) / f64::from(width.min(height));
    if width <= height { (short, long as u32) } else { (long as u32, short) }
}

/// A pixel of each of [`ROWS`] rows, four bytes each.
type Line = [u8; 4 * ROWS];

/// Resizes images; keeps its buffers from one to the next.
#[derive(Debug, Default)]
pub struct Resizer {
    columns: Taps,
    rows: Taps,
    /// Pixels between the two passes: the input rows that are needed at the output's
    /// width, or the input columns that are needed at its height.
    between: Vec<u8>,
    /// Input rows, a pixel of each beside one another; the fourth byte means nothing.
    lines: Vec<Line>,
}

impl Resizer {
    /// Resizes `crop` of `image` to `width` × `height` and writes `window` of the result to `out`
    /// (`[window.height, window.width, 3]`), with left and right exchanged if `mirrored`, which costs nothing more. Pixels
    /// outside the window are not computed.
    ///
    /// # Panics
    /// If `crop` is empty or not inside the image, `window` is empty or not inside the result, or `out` has
    /// another length.
    pub fn resize(
        &mut self,
        image: &ImageBuffer<Rgb<u8>, impl Deref<Target = [u8]>>,
        crop: Crop,
        (width, height): (u32, u32),
        window: Crop,
        mirrored: bool,
        out: &mut [u8],
    ) {
        assert!(
            crop.is_within(image.width(), image.height()),
            "{crop:?} of a {:?} image",
            image.dimensions()
        );
        assert!(window.is_within(width, height), "{window:?} of {width}x{height} pixels");
        let row_bytes = window.width as usize * 3;
        assert_eq!(out.len(), window.height as usize * row_bytes, "output length");

        let stride = image.width() as usize * 3;
        let start = |row: usize| (crop.top as usize + row) * stride + crop.left as usize * 3;
        let pixels: &[u8] = image.as_raw();
        if (crop.width, crop.height) == (width, height) {
            let skipped = window.left as usize * 3;
            for (row, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                let at = start(row + window.top as usize) + skipped;
                out.copy_from_slice(&pixels[at..at + row_bytes]);
                if mirrored {
                    out.as_chunks_mut::<3>().0.reverse();
                }
            }
            return;
        }

        let columns = window.left..window.left + window.width;
        match mirrored {
            false => self.columns.compute(crop.width, width, columns),
            true => self.columns.compute(crop.width, width, columns.rev()),
        }
        self.rows.compute(crop.height, height, window.top..window.top + window.height);
        let source = &pixels[start(0)..];
        if vertical_first(crop, width, height) {
            let needed = &self.columns.inputs();
            let between_bytes = needed.len() * 3;
            self.between.resize(window.height as usize * between_bytes, 0);
            vertical(&source[needed.start * 3..], stride, &self.rows, 0, between_bytes, &mut self.between);
            let between = self.between.chunks(ROWS * between_bytes);
            for (rows, out) in between.zip(out.chunks_mut(ROWS * row_bytes)) {
                horizontal(rows, between_bytes, &self.columns, needed, &mut self.lines, out);
            }
        } else {
            let needed = self.rows.inputs();
            self.between.resize(needed.len() * row_bytes, 0);
            let rows = needed.clone().step_by(ROWS);
            for (row, out) in rows.zip(self.between.chunks_mut(ROWS * row_bytes)) {
                let (source, width) = (&source[row * stride..], crop.width as usize);
                horizontal(source, stride, &self.columns, &(0..width), &mut self.lines, out);
            }
            vertical(&self.between, row_bytes, &self.rows, needed.start, row_bytes, out);
        }
    }
}

/// Which pass comes first, for the roundings between them depend on it: Pillow 13 begins with the rows where the
/// height loses more than twice as many pixels as the width. (Earlier versions always begin with the columns.)
pub(crate) fn vertical_first(crop: Crop, width: u32, height: u32) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    lost(crop.height, height) > (2 * lost(crop.width, width)).max(0)
}

/// For each output position along one axis: the input positions under the triangle, and their weights.
#[derive(Debug, Default)]
struct Taps {
    /// Of each output: the first input and the number of inputs.
    spans: Vec<(usize, usize)>,
    /// Fixed point; those of output `o` start at `o * stride`.
    weights: Vec<i32>,
    stride: usize,
    /// One output's weights before rounding.
    exact: Vec<f64>,
}

impl Taps {
    /// Weights for outputs `window`, ascending or descending, of `output` ones made from `input` inputs. The order of the
    /// floating-point operations is Pillow's: another one gives other roundings.
    fn compute(&mut self, input: u32, output: u32, window: impl Iterator<Item = u32>) {
        let scale = f64::from(input) / f64::from(output);
        let support = scale.max(1.0);
        let narrowing = 1.0 / support;
        self.stride = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.weights.clear();
        for position in window {
            let center = (f64::from(position) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input as usize);
            self.exact.clear();
            self.exact.extend((first..end).map(|input| {
                let distance = (input as f64 - center + 0.5) * narrowing;
                (1.0 - distance.abs()).max(0.0)
            }));
            let total: f64 = self.exact.iter().sum();
            let fixed =
                self.exact.iter().map(|weight| (0.5 + weight / total * f64::from(1 << FRACTION_BITS)) as i32);
            let start = self.weights.len();
            self.weights.extend(fixed);
            self.weights.resize(start + self.stride, 0);
            self.spans.push((first, end - first));
        }
    }

    /// The inputs that any of the outputs needs.
    fn inputs(&self) -> Range<usize> {
        let outer = || [self.spans.first(), self.spans.last()].into_iter().flatten();
        let first = outer().map(|span| span.0).min();
        let end = outer().map(|span| span.0 + span.1).max();
        first.unwrap_or(0)..end.unwrap_or(0)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.weights.chunks_exact(self.stride);
        self.spans.iter().zip(weights).map(|(&(first, count), weights)| (first, &weights[..count]))
    }
}

/// The weight of each of `input` positions in each of `output` ones along an axis, `[output, input]`, of 2^[`FRACTION_BITS`].
pub(crate) fn weights(input: u32, output: u32) -> Vec<i32> {
    let mut taps = Taps::default();
    taps.compute(input, output, 0..output);
    let mut matrix = vec![0; input as usize * output as usize];
    for (row, (first, weights)) in matrix.chunks_exact_mut(input as usize).zip(taps.iter()) {
        row[first..first + weights.len()].copy_from_slice(weights);
    }
    matrix
}

/// Weights sum to one but for their rounding: the upper end needs clipping, the lower one doesn't.
#[inline(always)]
fn to_level(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).min(255) as u8
}

/// Compiles a function a second time for AVX2 and takes that one where the machine has it: the portable code
/// vectorises well, but x86-64's base instruction set lacks a 32-bit multiplication.
macro_rules! dispatch {
    ($(#[$doc:meta])* fn $name:ident = $portable:ident($($argument:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) {
                    $portable($($argument),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the machine has AVX2, the only thing this safe function asks for.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $portable($($argument),*)
        }
    };
}
pub(crate) use dispatch;

/// Resizes up to [`ROWS`] rows of RGB pixels, as many as `out` has room for. They start every `stride` bytes of
/// `source` and hold the inputs `inputs`.
fn horizontal(
    source: &[u8],
    stride: usize,
    columns: &Taps,
    inputs: &Range<usize>,
    lines: &mut Vec<Line>,
    out: &mut [u8],
) {
    let width = inputs.len();
    lines.resize(width, [0; 4 * ROWS]);
    for number in 0..out.len() / (3 * columns.spans.len()) {
        let row = &source[number * stride..][..3 * width];
        // Four bytes are one instruction, three are not; behind the last pixel there is no fourth.
        for (pixels, bytes) in lines.iter_mut().zip(row.windows(4).step_by(3)) {
            pixels[4 * number..][..4].copy_from_slice(bytes);
        }
        lines[width - 1][4 * number..][..3].copy_from_slice(&row[3 * (width - 1)..]);
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has AVX2, the only thing this safe function asks for.
        return unsafe { weigh_avx2(lines, columns, inputs.start, out) };
    }
    weigh(lines, columns, inputs.start, out);
}

/// Writes the weighted means of `lines`, of which the first is input `offset`, to the rows of `out`.
fn weigh(lines: &[Line], columns: &Taps, offset: usize, out: &mut [u8]) {
    for (column, (first, weights)) in columns.iter().enumerate() {
        let mut sums = [HALF; 4 * ROWS];
        for (levels, weight) in lines[first - offset..][..weights.len()].iter().zip(weights) {
            for (sum, &level) in sums.iter_mut().zip(levels) {
                *sum += weight * i32::from(level);
            }
        }
        put(&sums.map(to_level), column, columns.spans.len(), out);
    }
}

/// [`weigh`] with a pixel of two rows in a register, which a compiler does not think of.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn weigh_avx2(lines: &[Line], columns: &Taps, offset: usize, out: &mut [u8]) {
    use std::arch::x86_64::*;
    for (column, (first, weights)) in columns.iter().enumerate() {
        let mut sums = [_mm256_set1_epi32(HALF); 2];
        for (levels, &weight) in lines[first - offset..][..weights.len()].iter().zip(weights) {
            let weight = _mm256_set1_epi32(weight);
            for (sums, levels) in sums.iter_mut().zip(levels.as_chunks::<8>().0) {
                let levels = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*levels)));
                *sums = _mm256_add_epi32(*sums, _mm256_mullo_epi32(levels, weight));
            }
        }
        let [a, b] = sums.map(|sums| _mm256_srai_epi32::<{ FRACTION_BITS as i32 }>(sums));
        // Clipped at 255 by packing, which leaves the rows in the order 0, 2, 1, 3.
        let words = _mm256_packus_epi32(a, b);
        let bytes = _mm256_packus_epi16(words, words);
        let even = _mm_cvtsi128_si64(_mm256_castsi256_si128(bytes)).to_le_bytes();
        let odd = _mm_cvtsi128_si64(_mm256_extracti128_si256::<1>(bytes)).to_le_bytes();
        let mut levels = [0; 4 * ROWS];
        for (to, from) in [(0, &even[..4]), (4, &odd[..4]), (8, &even[4..]), (12, &odd[4..])] {
            levels[to..to + 4].copy_from_slice(from);
        }
        put(&levels, column, columns.spans.len(), out);
    }
}

/// Writes a pixel of each row to `out`, whose rows are `width` pixels wide.
#[inline(always)]
fn put(levels: &Line, column: usize, width: usize, out: &mut [u8]) {
    for (row, levels) in out.chunks_exact_mut(3 * width).zip(levels.as_chunks::<4>().0) {
        match row[3 * column..].first_chunk_mut::<4>() {
            // One instruction; the fourth byte is written over by the next pixel.
            Some(pixel) => *pixel = *levels,
            None => row[3 * column..].copy_from_slice(&levels[..3]),
        }
    }
}

dispatch! {
    /// Resizes columns of `row_bytes` bytes; rows start every `stride` bytes, the first is input row `offset`.
    fn vertical = vertical_portable(
        source: &[u8], stride: usize, rows: &Taps, offset: usize, row_bytes: usize, out: &mut [u8]
    )
}

#[inline(always)]
fn vertical_portable(
    source: &[u8],
    stride: usize,
    rows: &Taps,
    offset: usize,
    row_bytes: usize,
    out: &mut [u8],
) {
    for ((first, weights), out) in rows.iter().zip(out.chunks_exact_mut(row_bytes)) {
        let source = &source[(first - offset) * stride..];
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        let whole = blocks.len() * BLOCK;
        for (block, out) in blocks.iter_mut().enumerate() {
            let mut sums = [HALF; BLOCK];
            for (row, weight) in weights.iter().enumerate() {
                let levels = &source[row * stride + block * BLOCK..][..BLOCK];
                for (sum, &level) in sums.iter_mut().zip(levels) {
                    *sum += weight * i32::from(level);
                }
            }
            *out = sums.map(to_level);
        }
        for (column, out) in rest.iter_mut().enumerate() {
            let levels = source[whole + column..].iter().step_by(stride);
            let sum = levels.zip(weights).fold(HALF, |sum, (&level, weight)| sum + weight * i32::from(level));
            *out = to_level(sum);
        }
    }
}

#[cfg(test)]
mod tests;
