//! Turning the hue as torchvision does with PIL: to HSV bytes, an addition to the hue, and back; bit for bit.
//!
//! PIL's conversions mix single and double precision and truncate, so that each rounding shows. They have few
//! distinct inputs, though: the hue depends on which channels are largest and smallest and on two differences, the
//! saturation on two numbers. These are tabulated by PIL's formulas, once.

use std::sync::LazyLock;

/// To HSV, `shift` added to the hue byte, and back, for all `pixels` `[.., 3]`.
///
/// The hue byte divides the circle by 255 but wraps at 256, in torchvision as here.
pub(super) fn turn_hue(shift: u8, pixels: &mut [u8]) {
    let to_hsv = &*TO_HSV;
    let to_rgb = ToRgb::new(shift);
    for pixel in pixels.as_chunks_mut::<3>().0 {
        *pixel = to_rgb.convert(to_hsv.convert(*pixel));
    }
}

static TO_HSV: LazyLock<ToHsv> = LazyLock::new(ToHsv::new);

/// Conversion to HSV, each in 0–255, truncated.
struct ToHsv {
    /// By [`rank`], range (largest less smallest), and largest less middle channel.
    hues: Box<[[[u8; 256]; 256]; 8]>,
    /// By largest channel and range.
    saturations: Box<[[u8; 256]; 256]>,
}

/// How the channels compare, as three bits; two of the eight cannot be.
#[inline(always)]
fn rank([r, g, b]: [u8; 3]) -> usize {
    usize::from(r >= g) << 2 | usize::from(g >= b) << 1 | usize::from(r >= b)
}

impl ToHsv {
    fn new() -> Self {
        let mut tables = ToHsv { hues: zeros([[0; 256]; 256]), saturations: zeros([0; 256]) };
        for range in 1..=255u8 {
            for below in 0..=range {
                // Any colour with these differences has this hue: one for each order of the channels.
                let (max, mid, min) = (range, range - below, 0);
                for color in [
                    [max, mid, min],
                    [max, min, mid],
                    [mid, max, min],
                    [min, max, mid],
                    [mid, min, max],
                    [min, mid, max],
                ] {
                    tables.hues[rank(color)][usize::from(range)][usize::from(below)] = hue(color);
                }
            }
            for max in range..=255 {
                let saturation = f32::from(range) / f32::from(max);
                tables.saturations[usize::from(max)][usize::from(range)] =
                    (f64::from(saturation) * 255.0) as u8;
            }
        }
        tables
    }

    #[inline(always)]
    fn convert(&self, pixel: [u8; 3]) -> [u8; 3] {
        let [r, g, b] = pixel;
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        let range = usize::from(max - min);
        // The three sum to largest, smallest and middle.
        let mid = r.wrapping_add(g).wrapping_add(b).wrapping_sub(max).wrapping_sub(min);
        let hue = self.hues[rank(pixel)][range][usize::from(max - mid)];
        [hue, self.saturations[usize::from(max)][range], max]
    }
}

/// A table that would be large on the stack.
fn zeros<T: Copy, const N: usize>(row: T) -> Box<[T; N]> {
    match vec![row; N].into_boxed_slice().try_into() {
        Ok(table) => table,
        Err(_) => unreachable!("it has N rows"),
    }
}

/// PIL's hue of a colour that is not grey.
fn hue([r, g, b]: [u8; 3]) -> u8 {
    let max = r.max(g).max(b);
    let range = f32::from(max - r.min(g).min(b));
    let below = |channel: u8| f64::from(f32::from(max - channel) / range);
    let sixths = if r == max {
        below(b) - below(g)
    } else if g == max {
        2.0 + below(r) - below(b)
    } else {
        4.0 + below(g) - below(r)
    };
    let turns = (f64::from(sixths as f32) / 6.0 + 1.0) % 1.0;
    (f64::from(turns as f32) * 255.0) as u8
}

/// Conversion from HSV, rounded half up, of hues to which something is added first.
struct ToRgb {
    /// By hue byte.
    sectors: [Sector; 256],
    /// The saturation byte as a share, in single precision.
    strengths: [f64; 256],
}

/// Where a hue lies in the circle of six sectors, between a primary colour and a mixed one each.
#[derive(Clone, Copy, Default)]
struct Sector {
    /// Share of the sector that lies behind (odd sectors) or ahead (even ones).
    weight: f64,
    /// Whether the changing channel falls along the sector; PIL has that product in single precision.
    falling: bool,
    /// For each channel: 0 if it is the largest, 8 if it changes along the sector, 16 if it is the smallest.
    shifts: [u8; 3],
}

impl ToRgb {
    fn new(shift: u8) -> Self {
        let sector = |hue: u8| {
            let sixths = f64::from(hue) * 6.0 / 255.0;
            let along = f64::from((sixths - sixths.floor()) as f32);
            // The last, 6, is the full circle.
            let number = sixths as usize % 6;
            let shifts = [[0, 8, 16], [8, 0, 16], [16, 0, 8], [16, 8, 0], [8, 16, 0], [0, 16, 8]][number];
            let falling = number % 2 == 1;
            Sector { weight: if falling { along } else { 1.0 - along }, falling, shifts }
        };
        ToRgb {
            sectors: std::array::from_fn(|hue| sector((hue as u8).wrapping_add(shift))),
            strengths: std::array::from_fn(|saturation| f64::from((saturation as f64 / 255.0) as f32)),
        }
    }

    #[inline(always)]
    fn convert(&self, [hue, saturation, value]: [u8; 3]) -> [u8; 3] {
        let Sector { weight, falling, shifts } = self.sectors[usize::from(hue)];
        let strength = self.strengths[usize::from(saturation)];
        let product = strength * weight;
        let lost = if falling { f64::from(product as f32) } else { product };
        let scaled = |lost: f64| (f64::from(value) * (1.0 - lost) + 0.5) as u32;
        let channels = u32::from(value) | scaled(lost) << 8 | scaled(strength) << 16;
        shifts.map(|shift| (channels >> shift) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::super::color::tests::{crc32, every_color, pillow};
    use super::*;

    /// All 16,777,216 colours through each conversion, against Pillow by checksum.
    #[test]
    fn every_color_converts_as_in_pillow() {
        let mut colors = every_color();
        let mapped = |convert: &dyn Fn([u8; 3]) -> [u8; 3]| {
            let converted: Vec<_> = colors.as_chunks::<3>().0.iter().map(|&color| convert(color)).collect();
            crc32(converted.as_flattened())
        };
        assert_eq!(mapped(&|color| TO_HSV.convert(color)), pillow("rgb_to_hsv"), "to HSV");
        let to_rgb = ToRgb::new(0);
        assert_eq!(mapped(&|color| to_rgb.convert(color)), pillow("hsv_to_rgb"), "from HSV");
        turn_hue((0.3 * 255.0) as u8, &mut colors);
        assert_eq!(crc32(&colors), pillow("hue_0.3"), "turned");
    }
}
