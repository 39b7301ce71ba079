//! Colour operations on 8-bit RGB with the arithmetic of torchvision on PIL images, bit for bit.
//!
//! The order of operations and the precision of each intermediate (single or double) are part of the
//! definition: results are truncated to levels, so that the last bit of a sum can decide.

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
            // Truncated toward zero, then wrapped: what NumPy's conversions make of it.
            ColorOp::Hue(factor) => turn_hue((factor * 255.0) as i32 as u8, pixels),
            ColorOp::Grayscale => grayscale(pixels),
        }
    }
}

/// ITU-R 601 luma as PIL computes it: weights in units of 2⁻¹⁶, rounded to the nearest.
#[inline(always)]
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// `from + factor·(to − from)`, truncated and clipped.
#[inline(always)]
fn blend(from: f32, to: f32, factor: f32) -> u8 {
    (from + factor * (to - from)).clamp(0.0, 255.0) as i32 as u8
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
    // Runs of pixels whose sum fits 32 bits.
    *sum += pixels
        .chunks(3 << 16)
        .map(|run| u64::from(run.as_chunks::<3>().0.iter().map(|&pixel| u32::from(luma(pixel))).sum::<u32>()))
        .sum::<u64>();
}

dispatch! {
    /// Brightness and contrast: the same blend for every byte.
    fn blend_level = blend_level_portable(level: u8, factor: f32, pixels: &mut [u8])
}

#[inline(always)]
fn blend_level_portable(level: u8, factor: f32, pixels: &mut [u8]) {
    let from = f32::from(level);
    for byte in pixels {
        *byte = blend(from, f32::from(*byte), factor);
    }
}

dispatch! {
    fn saturate = saturate_portable(factor: f32, pixels: &mut [u8])
}

#[inline(always)]
fn saturate_portable(factor: f32, pixels: &mut [u8]) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let grey = f32::from(luma(*pixel));
        *pixel = pixel.map(|channel| blend(grey, f32::from(channel), factor));
    }
}

dispatch! {
    fn grayscale = grayscale_portable(pixels: &mut [u8])
}

#[inline(always)]
fn grayscale_portable(pixels: &mut [u8]) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        *pixel = [luma(*pixel); 3];
    }
}

/// To HSV, `shift` added to the hue byte with wrap-around, and back.
///
/// The hue byte divides the circle by 255 but wraps at 256, in torchvision as here.
fn turn_hue(shift: u8, pixels: &mut [u8]) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let [hue, saturation, value] = to_hsv(*pixel);
        *pixel = to_rgb([hue.wrapping_add(shift), saturation, value]);
    }
}

/// PIL's conversion to HSV: each in 0–255, truncated.
#[inline(always)]
fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let max = r.max(g).max(b);
    let range = max - r.min(g).min(b);
    if range == 0 {
        return [0, 0, max];
    }
    let width = f32::from(range);
    let below = |channel: u8| f64::from(f32::from(max - channel) / width);
    let sixths = if r == max {
        below(b) - below(g)
    } else if g == max {
        2.0 + below(r) - below(b)
    } else {
        4.0 + below(g) - below(r)
    };
    // In 5/6 to 11/6 of a turn, of which the whole turn is dropped.
    let turns = f64::from(sixths as f32) / 6.0 + 1.0;
    let hue = (if turns >= 1.0 { turns - 1.0 } else { turns }) as f32;
    let saturation = width / f32::from(max);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, max]
}

/// PIL's conversion from HSV: rounded half up.
#[inline(always)]
fn to_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixths = f64::from(hue) * 6.0 / 255.0;
    let sector = sixths as u8;
    let along = (sixths - f64::from(sector)) as f32;
    let strength = (f64::from(saturation) / 255.0) as f32;
    let scaled = |lost: f64| (f64::from(value) * (1.0 - lost) + 0.5) as u8;
    let low = scaled(f64::from(strength));
    let falling = scaled(f64::from(strength * along));
    let rising = scaled(f64::from(strength) * (1.0 - f64::from(along)));
    match sector {
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        5 => [value, low, falling],
        // 0, and 6: the full circle.
        _ => [value, rising, low],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every colour, the last channel fastest.
    fn every_color() -> Vec<u8> {
        let levels = 0..=255u8;
        let colors = levels.clone().flat_map(|r| (0..=255u8).flat_map(move |g| (0..=255u8).map(move |b| [r, g, b])));
        colors.flatten().collect()
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    fn pillow(key: &str) -> u32 {
        let cases = include_str!("../../../tests/fixtures/augment/cases.json");
        let cases: serde_json::Value = serde_json::from_str(cases).unwrap();
        cases["crc32"][key].as_u64().unwrap() as u32
    }

    /// All 16,777,216 colours through each conversion, against Pillow by checksum.
    #[test]
    fn every_color_converts_as_in_pillow() {
        let colors = every_color();
        let mapped = |convert: fn([u8; 3]) -> [u8; 3]| {
            crc32(colors.as_chunks::<3>().0.iter().map(|&color| convert(color)).collect::<Vec<_>>().as_flattened())
        };
        assert_eq!(mapped(to_hsv), pillow("rgb_to_hsv"), "to HSV");
        assert_eq!(mapped(to_rgb), pillow("hsv_to_rgb"), "from HSV");
        let grey: Vec<u8> = colors.as_chunks::<3>().0.iter().map(|&color| luma(color)).collect();
        assert_eq!(crc32(&grey), pillow("luma"), "luma");
        let applied = |op: ColorOp| {
            let mut pixels = colors.clone();
            op.apply(&mut pixels);
            crc32(&pixels)
        };
        assert_eq!(applied(ColorOp::Hue(0.3)), pillow("hue_0.3"), "hue");
        assert_eq!(applied(ColorOp::Saturation(1.3)), pillow("saturation_1.3"), "saturation");
    }

    #[test]
    fn both_compilations_agree() {
        let pixels: Vec<u8> = (0..999 * 3).map(|i| (i * i % 251) as u8).collect();
        let (mut fast, mut plain) = (pixels.clone(), pixels.clone());
        for factor in [0.6, 0.9, 1.4] {
            blend_level(100, factor, &mut fast);
            blend_level_portable(100, factor, &mut plain);
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
