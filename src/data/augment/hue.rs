//! Turning the hue as torchvision does with PIL: to HSV bytes, an addition to the hue, and back; bit for bit.
//!
//! PIL's conversions mix single and double precision and truncate, so that each rounding shows. They have few
//! distinct inputs, though: the hue depends on which channels are largest and smallest and on two differences, the
//! saturation on two numbers, and of the way back all but a multiplication on hue and saturation. These are tabulated by
//! PIL's formulas, once. What remains is integers: a block of pixels at a time, all steps but looking up vectorised.

use std::sync::LazyLock;

use super::words::{BLOCK, BLOCK_BYTES, Words, channels, load, store};
use crate::data::resize::dispatch;

/// To HSV, `shift` added to the hue byte, and back, for all `pixels` `[.., 3]`.
///
/// The hue byte divides the circle by 255 but wraps at 256, in torchvision as here.
pub(super) fn turn_hue(shift: u8, pixels: &mut [u8]) {
    turn(&TO_HSV, &TO_RGB, shift, pixels);
}

dispatch! {
    fn turn = turn_portable(to_hsv: &ToHsv, to_rgb: &ToRgb, shift: u8, pixels: &mut [u8])
}

#[inline(always)]
fn turn_portable(to_hsv: &ToHsv, to_rgb: &ToRgb, shift: u8, pixels: &mut [u8]) {
    let mut hues = [0; BLOCK];
    let mut saturations = [0; BLOCK];
    let mut values = [0; BLOCK];
    let mut words = [0; BLOCK];
    for piece in pixels.chunks_mut(BLOCK_BYTES) {
        load(piece, &mut words);
        to_hsv.convert(&words, &mut hues, &mut saturations, &mut values);
        for hue in &mut hues {
            *hue = hue.wrapping_add(shift);
        }
        to_rgb.convert(&hues, &saturations, &values, &mut words);
        store(&words, piece);
    }
}

/// The tables as whole numbers, for conversions where our memory is not at hand: the steps between the look-ups are those of
/// [`places`] and [`ToRgb::convert`].
pub(crate) struct HueTables {
    /// Hue by rank · 2¹⁶ + range · 2⁸ + largest less middle channel; a rank has a bit each for r ≥ g, g ≥ b, r ≥ b.
    pub hues: Vec<i32>,
    /// Saturation by largest channel · 2⁸ + range.
    pub saturations: Vec<i32>,
    /// The changing channel's share of the value, of 2²⁴, by hue · 2⁸ + saturation.
    pub shares: Vec<i32>,
    /// By hue: which of value, changing and smallest channel is red, green and blue, `[256, 3]`.
    pub orders: Vec<i64>,
}

/// The tables of both conversions.
pub(crate) fn hue_tables() -> HueTables {
    let whole = |table: &[u8]| table.iter().map(|&level| i32::from(level)).collect();
    let orders =
        TO_RGB.entries.iter().step_by(256).flat_map(|&entry| shifts(entry).map(|s| i64::from(s) / 8));
    HueTables {
        hues: whole(&*TO_HSV.hues),
        saturations: whole(&*TO_HSV.saturations),
        shares: TO_RGB.entries.iter().map(|&entry| share(entry) as i32).collect(),
        orders: orders.collect(),
    }
}

static TO_HSV: LazyLock<ToHsv> = LazyLock::new(ToHsv::new);
static TO_RGB: LazyLock<ToRgb> = LazyLock::new(ToRgb::new);

/// Conversion to HSV, each in 0–255, truncated.
struct ToHsv {
    /// By [`rank`], range (largest less smallest), and largest less middle channel.
    hues: Box<[u8; 8 << 16]>,
    /// By largest channel and range.
    saturations: Box<[u8; 1 << 16]>,
}

/// How the channels compare, as three bits; two of the eight cannot be.
#[inline(always)]
fn rank([r, g, b]: [u32; 3]) -> u32 {
    u32::from(r >= g) << 2 | u32::from(g >= b) << 1 | u32::from(r >= b)
}

/// Place in `hues`, and in `saturations`, of a colour.
#[inline(always)]
fn places([r, g, b]: [u32; 3]) -> (u32, u32) {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let range = max - min;
    // The three sum to largest, smallest and middle.
    let below = 2 * max + min - (r + g + b);
    (rank([r, g, b]) << 16 | range << 8 | below, max << 8 | range)
}

impl ToHsv {
    fn new() -> Self {
        let mut tables = ToHsv { hues: zeros(0), saturations: zeros(0) };
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
                    tables.hues[places(color.map(u32::from)).0 as usize] = hue(color);
                }
            }
            for max in range..=255 {
                let saturation = f32::from(range) / f32::from(max);
                let place = usize::from(max) << 8 | usize::from(range);
                tables.saturations[place] = (f64::from(saturation) * 255.0) as u8;
            }
        }
        tables
    }

    #[inline(always)]
    fn convert(
        &self,
        words: &Words,
        hues: &mut [u8; BLOCK],
        saturations: &mut [u8; BLOCK],
        values: &mut [u32; BLOCK],
    ) {
        let mut hue_places = [0; BLOCK];
        let mut saturation_places = [0; BLOCK];
        for i in 0..BLOCK {
            (hue_places[i], saturation_places[i]) = places(channels(words[i]));
            values[i] = saturation_places[i] >> 8;
        }
        for i in 0..BLOCK {
            // The masks change nothing; they show that the tables are large enough.
            hues[i] = self.hues[hue_places[i] as usize & 0x7_FFFF];
            saturations[i] = self.saturations[saturation_places[i] as usize & 0xFFFF];
        }
    }
}

/// A table that would be large on the stack.
fn zeros<T: Copy, const N: usize>(zero: T) -> Box<[T; N]> {
    match vec![zero; N].into_boxed_slice().try_into() {
        Ok(table) => table,
        Err(_) => unreachable!("it has N entries"),
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

/// Fractional bits of a share of the value. With 24 of them every product rounds as PIL's does (see the tests).
const SHARE_BITS: u32 = 24;

/// Conversion from HSV, rounded half up.
struct ToRgb {
    /// By hue and saturation: [`share`] and, two bits each above it, a multiple of 8 for each of [`shifts`].
    entries: Box<[u32; 1 << 16]>,
}

/// The share of the value that the channel keeps that changes along the sector.
#[inline(always)]
fn share(entry: u32) -> u32 {
    entry & ((2 << SHARE_BITS) - 1)
}

/// For red, green and blue: how far to shift largest, changing and smallest channel so that the right one of them comes
/// last: 0, 8 or 16.
#[inline(always)]
fn shifts(entry: u32) -> [u32; 3] {
    [1, 3, 5].map(|place| entry >> (SHARE_BITS + place - 3) & 0b11_000)
}

impl ToRgb {
    fn new() -> Self {
        let mut tables = ToRgb { entries: zeros(0) };
        for hue in 0..256 {
            // Where the hue lies in the circle of six sectors, between a primary colour and a mixed one each.
            let sixths = hue as f64 * 6.0 / 255.0;
            let along = f64::from((sixths - sixths.floor()) as f32);
            // The last, 6, is the full circle.
            let sector = sixths as usize % 6;
            let [r, g, b] = [[0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1]][sector];
            let order = (r | g << 2 | b << 4) << (SHARE_BITS + 1);
            for saturation in 0..256 {
                let strength = f64::from((saturation as f64 / 255.0) as f32);
                // The channel falls along odd sectors; PIL has that product in single precision.
                let lost = match sector % 2 {
                    1 => f64::from((strength * along) as f32),
                    _ => strength * (1.0 - along),
                };
                let share = (1.0 - lost) * f64::from(1 << SHARE_BITS);
                tables.entries[hue << 8 | saturation] = share.round() as u32 | order;
            }
        }
        tables
    }

    #[inline(always)]
    fn convert(
        &self,
        hues: &[u8; BLOCK],
        saturations: &[u8; BLOCK],
        values: &[u32; BLOCK],
        words: &mut Words,
    ) {
        let mut entries = [0; BLOCK];
        for i in 0..BLOCK {
            entries[i] = self.entries[usize::from(hues[i]) << 8 | usize::from(saturations[i])];
        }
        for i in 0..BLOCK {
            let value = values[i];
            let changing = (value * share(entries[i]) + (1 << (SHARE_BITS - 1))) >> SHARE_BITS;
            // value·(1 − saturation / 255), rounded: 255 is odd, so that there is no half to round.
            let scaled = value * (255 - u32::from(saturations[i])) + 127;
            let smallest = (scaled * 0x8081) >> 23;
            let levels = value | changing << 8 | smallest << 16;
            let [r, g, b] = shifts(entries[i]).map(|shift| levels >> shift & 0xFF);
            words[i] = r | g << 8 | b << 16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::color::tests::{crc32, every_color, pillow};
    use super::*;

    /// All 16,777,216 colours through each conversion, against Pillow by checksum.
    #[test]
    fn every_color_converts_as_in_pillow() {
        let colors = every_color();
        let mut mapped = colors.clone();
        let (mut hues, mut saturations, mut values) = ([0; BLOCK], [0; BLOCK], [0; BLOCK]);
        let mut words = [0; BLOCK];
        for piece in mapped.chunks_mut(BLOCK_BYTES) {
            load(piece, &mut words);
            TO_HSV.convert(&words, &mut hues, &mut saturations, &mut values);
            for i in 0..BLOCK {
                words[i] = u32::from(hues[i]) | u32::from(saturations[i]) << 8 | values[i] << 16;
            }
            store(&words, piece);
        }
        assert_eq!(crc32(&mapped), pillow("rgb_to_hsv"), "to HSV");
        mapped.copy_from_slice(&colors);
        for piece in mapped.chunks_mut(BLOCK_BYTES) {
            load(piece, &mut words);
            for i in 0..BLOCK {
                let [hue, saturation, value] = channels(words[i]);
                (hues[i], saturations[i], values[i]) = (hue as u8, saturation as u8, value);
            }
            TO_RGB.convert(&hues, &saturations, &values, &mut words);
            store(&words, piece);
        }
        assert_eq!(crc32(&mapped), pillow("hsv_to_rgb"), "from HSV");
        let shift = (0.3 * 255.0) as u8;
        mapped.copy_from_slice(&colors);
        turn_hue(shift, &mut mapped);
        assert_eq!(crc32(&mapped), pillow("hue_0.3"), "turned");
        let mut plain = colors;
        turn_portable(&TO_HSV, &TO_RGB, shift, &mut plain);
        assert!(plain == mapped, "both compilations");
    }
}
