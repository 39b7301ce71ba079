//! Colour operations on 8-bit RGB with the arithmetic of torchvision on PIL images, bit for bit.
//!
//! The order of operations and the precision of each intermediate (single or double) are part of the
//! definition: results are truncated to levels, so that the last bit of a sum can decide.

use super::hue::turn_hue;
use super::words::{BLOCK, BLOCK_BYTES, channels, load, store};
use crate::data::resize::dispatch;

/// One colour operation with its parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ColorOp {
    /// All channels times the factor.
    Brightness(f64),
    /// Away from the mean grey of the image (factor above 1) or toward it.
    Contrast(f64),
    /// Away from each pixel's own grey (factor above 1) or toward it.
    Saturation(f64),
    /// Hue turned by this share of the circle, −0.5 to 0.5.
    Hue(f64),
    /// Each pixel's own grey in all three channels.
    Grayscale,
}

impl ColorOp {
    /// Changes `pixels` (`[.., 3]`, all pixels of one image) in place.
    pub fn apply(self, pixels: &mut [u8]) {
        match self {
            ColorOp::Brightness(factor) => blend_level(0, factor as f32, pixels),
            ColorOp::Contrast(factor) => blend_level(mean_luma(pixels), factor as f32, pixels),
            ColorOp::Saturation(factor) => saturate(factor as f32, pixels),
            ColorOp::Hue(turn) => turn_hue(Self::hue_shift(turn), pixels),
            ColorOp::Grayscale => grayscale(pixels),
        }
    }
}

impl ColorOp {
    /// What [`ColorOp::Hue`] adds to the hue byte: truncated toward zero, then wrapped, as NumPy's conversions make of it.
    pub(crate) fn hue_shift(turn: f64) -> u8 {
        (turn * 255.0) as i32 as u8
    }
}

/// ITU-R 601 luma as PIL computes it: weights in units of 2⁻¹⁶, rounded to the nearest.
#[inline(always)]
fn luma([r, g, b]: [u32; 3]) -> u32 {
    (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
}

/// `from + factor·(to − from)`, clipped and truncated.
#[inline(always)]
fn blend(from: f32, to: f32, factor: f32) -> u32 {
    // In this order NaN becomes 0 as well, and the vectorised conversion needs no care for any other value.
    #[allow(clippy::manual_clamp, reason = "clamp would keep NaN")]
    let level = (from + factor * (to - from)).max(0.0).min(255.0);
    // SAFETY: the line above leaves nothing but 0 to 255.
    unsafe { level.to_int_unchecked::<i32>() as u32 }
}

/// The mean of the image's luma, rounded half up.
fn mean_luma(pixels: &[u8]) -> u8 {
    let mut sum = 0;
    sum_luma(pixels, &mut sum);
    let count = pixels.len() / 3;
    (sum as f64 / count.max(1) as f64 + 0.5) as u8
}

dispatch! {
    fn sum_luma = sum_luma_portable(pixels: &[u8], sum: &mut u64)
}

#[inline(always)]
fn sum_luma_portable(pixels: &[u8], sum: &mut u64) {
    let mut words = [0; BLOCK];
    for piece in pixels.chunks(BLOCK_BYTES) {
        load(piece, &mut words);
        // The words beyond the last pixel are black, and black has no luma.
        *sum += u64::from(words.iter().map(|&word| luma(channels(word))).sum::<u32>());
    }
}

dispatch! {
    /// Brightness and contrast: the same blend for every byte.
    fn blend_level = blend_level_portable(level: u8, factor: f32, pixels: &mut [u8])
}

#[inline(always)]
fn blend_level_portable(level: u8, factor: f32, pixels: &mut [u8]) {
    let from = f32::from(level);
    for byte in pixels {
        *byte = blend(from, f32::from(*byte), factor) as u8;
    }
}

dispatch! {
    fn saturate = saturate_portable(factor: f32, pixels: &mut [u8])
}

#[inline(always)]
fn saturate_portable(factor: f32, pixels: &mut [u8]) {
    let mut words = [0; BLOCK];
    for piece in pixels.chunks_mut(BLOCK_BYTES) {
        load(piece, &mut words);
        for word in &mut words {
            let pixel = channels(*word);
            // Exact: levels are whole numbers below 2²⁴. As signed numbers they convert in one instruction.
            let [grey, r, g, b] =
                [luma(pixel), pixel[0], pixel[1], pixel[2]].map(|level| level as i32 as f32);
            let [r, g, b] = [r, g, b].map(|channel| blend(grey, channel, factor));
            *word = r | g << 8 | b << 16;
        }
        store(&words, piece);
    }
}

dispatch! {
    fn grayscale = grayscale_portable(pixels: &mut [u8])
}

#[inline(always)]
fn grayscale_portable(pixels: &mut [u8]) {
    let mut words = [0; BLOCK];
    for piece in pixels.chunks_mut(BLOCK_BYTES) {
        load(piece, &mut words);
        for word in &mut words {
            *word = luma(channels(*word)) * 0x01_01_01;
        }
        store(&words, piece);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every colour, the last channel fastest.
    pub(in super::super) fn every_color() -> Vec<u8> {
        let levels = 0..=255u8;
        let colors =
            levels.clone().flat_map(|r| (0..=255u8).flat_map(move |g| (0..=255u8).map(move |b| [r, g, b])));
        colors.flatten().collect()
    }

    pub(in super::super) fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    pub(in super::super) fn pillow(key: &str) -> u32 {
        let cases = include_str!("../../../tests/fixtures/augment/cases.json");
        let cases: serde_json::Value = serde_json::from_str(cases).unwrap();
        cases["crc32"][key].as_u64().unwrap() as u32
    }

    /// All 16,777,216 colours, against Pillow by checksum.
    #[test]
    fn every_color_changes_as_in_pillow() {
        let colors = every_color();
        let grey: Vec<u8> =
            colors.as_chunks::<3>().0.iter().map(|color| luma(color.map(u32::from)) as u8).collect();
        assert_eq!(crc32(&grey), pillow("luma"), "luma");
        let applied = |op: ColorOp| {
            let mut pixels = colors.clone();
            op.apply(&mut pixels);
            crc32(&pixels)
        };
        assert_eq!(applied(ColorOp::Saturation(1.3)), pillow("saturation_1.3"), "saturation");
    }

    #[test]
    fn both_compilations_agree() {
        let pixels: Vec<u8> = (0..999 * 3).map(|i| (i * i % 251) as u8).collect();
        let (mut fast, mut plain) = (pixels.clone(), pixels.clone());
        for factor in [0.6, 0.9, 1.4, f32::NAN] {
            saturate(factor, &mut fast);
            saturate_portable(factor, &mut plain);
            assert_eq!(fast, plain);
        }
        let (mut fast_sum, mut plain_sum) = (0, 0);
        sum_luma(&pixels, &mut fast_sum);
        sum_luma_portable(&pixels, &mut plain_sum);
        assert_eq!(fast_sum, plain_sum);
        grayscale(&mut fast);
        grayscale_portable(&mut plain);
        assert_eq!(fast, plain);
    }

    #[test]
    fn neutral_factors_change_nothing() {
        let pixels: Vec<u8> = (0..=255).collect::<Vec<u8>>()[1..].to_vec();
        for op in [ColorOp::Brightness(1.0), ColorOp::Contrast(1.0), ColorOp::Saturation(1.0)] {
            let mut out = pixels.clone();
            op.apply(&mut out);
            assert_eq!(out, pixels, "{op:?}");
        }
    }
}
