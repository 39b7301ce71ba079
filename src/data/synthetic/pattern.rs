//! Drawing one image: a motif repeated on a bent grid, two shaded colours, noise.
//!
//! Coordinates: the image is the unit square. The grid's cells are mapped to [−1, 1)², in which a motif is the set
//! of points where [`distance`] is negative.
//!
//! Only additions, multiplications, divisions, square roots and casts are used, and IEEE 754 fixes their results:
//! an image has the same bytes on every platform, which sines and powers of the system's library would not give.

use image::RgbImage;
use rand::Rng;

use super::motif::{Motif, floor};

type Rgb = [f32; 3];

/// Cell width, in image widths.
const SPACING: [f32; 2] = [0.3, 0.6];
/// Cell height over cell width.
const ASPECT: [f32; 2] = [0.8, 1.25];
/// Tangent of half the largest rotation: 16 degrees.
const TURN: f32 = 0.14;
/// Largest coefficient of the parabolas that bend rows and columns.
const BEND: f32 = 1.0;
/// Largest displacement of a single motif, in half cells.
pub const WOBBLE: f32 = 0.25;
/// Brightness of ground and motif, and the largest share by which both are scaled together.
const LUMA: [f32; 2] = [0.28, 0.64];
const LIGHT: f32 = 0.25;
/// Distance of the colours from grey, the largest change of hue across the image in the same unit, and the largest
/// change of brightness across the image.
const CHROMA: f32 = 0.35;
const GRADIENT: f32 = 1.0;
const SHADE: f32 = 0.2;
/// Standard deviation of the noise.
const NOISE: f32 = 0.02;

/// Draws an image of class `label`, `size`×`size` pixels; everything but the motif comes from `rng`.
///
/// # Panics
/// If `label` is not below 10.
pub fn draw(label: u32, size: u32, rng: &mut impl Rng) -> RgbImage {
    let motif = Motif::of(label);
    let light = 1.0 + LIGHT * uniform(rng, -1.0, 1.0);
    let hue = direction(rng);
    let grid = Grid::draw(rng);
    let ink = Paint::draw(LUMA[1] * light, hue.map(|part| -part), rng);
    let ground = Paint::draw(LUMA[0] * light, hue, rng);

    let mut grains = vec![0u8; 4 * (size * size) as usize];
    rng.fill_bytes(&mut grains);
    let pixel = 1.0 / size as f32;
    // A pixel's width in half cells is the width of the ramp that smooths the edges.
    let sharpness = grid.spacing / (2.0 * pixel);

    let mut image = RgbImage::new(size, size);
    for ((x, y, out), grain) in image.enumerate_pixels_mut().zip(grains.chunks_exact(4)) {
        // Both relative to the image's centre.
        let (u, v) = ((x as f32 + 0.5) * pixel - 0.5, (y as f32 + 0.5) * pixel - 0.5);
        let point = grid.cell_point(u, v, motif.wobbles());
        let cover = (0.5 - motif.distance(point) * sharpness).clamp(0.0, 1.0);
        // The sum of four bytes is close to normal, with a standard deviation of 148 about 510.
        let sum: u32 = grain.iter().map(|&byte| u32::from(byte)).sum();
        let noise = NOISE * (sum as f32 - 510.0) / 148.0;
        for (channel, value) in out.0.iter_mut().enumerate() {
            let (ink, ground) = (ink.at(channel, u, v), ground.at(channel, u, v));
            // The cast saturates.
            *value = (255.0 * (ground + (ink - ground) * cover + noise) + 0.5) as u8;
        }
    }
    image
}

/// A colour with a linear gradient.
struct Paint {
    centre: Rgb,
    along_u: Rgb,
    along_v: Rgb,
}

impl Paint {
    /// A colour of brightness `luma` about which hue and brightness change in a random direction.
    fn draw(luma: f32, hue: [f32; 2], rng: &mut impl Rng) -> Self {
        // Two directions of equal length at right angles to grey.
        const U: Rgb = [0.816, -0.408, -0.408];
        const V: Rgb = [0.0, 0.707, -0.707];
        let chroma = CHROMA * uniform(rng, 0.9, 1.0);
        let coloured = |[a, b]: [f32; 2]| -> Rgb { std::array::from_fn(|c| chroma * (a * U[c] + b * V[c])) };
        let centre = coloured(hue).map(|part| luma + part);
        let turn = coloured(direction(rng).map(|part| GRADIENT * part));
        let lift = uniform(rng, -SHADE, SHADE);
        let [x, y] = direction(rng);
        Self {
            centre,
            along_u: turn.map(|part| (part + lift) * x),
            along_v: turn.map(|part| (part + lift) * y),
        }
    }

    fn at(&self, channel: usize, u: f32, v: f32) -> f32 {
        self.centre[channel] + self.along_u[channel] * u + self.along_v[channel] * v
    }
}

/// Where the motifs stand.
struct Grid {
    origin: [f32; 2],
    /// Unit vector along a row.
    axis: [f32; 2],
    spacing: f32,
    aspect: f32,
    bend: [f32; 2],
    /// Key of the single motifs' displacements.
    key: u32,
}

impl Grid {
    fn draw(rng: &mut impl Rng) -> Self {
        let tangent = uniform(rng, -TURN, TURN);
        let square = tangent * tangent;
        Self {
            origin: [unit(rng), unit(rng)],
            axis: [(1.0 - square) / (1.0 + square), 2.0 * tangent / (1.0 + square)],
            spacing: uniform(rng, SPACING[0], SPACING[1]),
            aspect: uniform(rng, ASPECT[0], ASPECT[1]),
            bend: [uniform(rng, -BEND, BEND), uniform(rng, -BEND, BEND)],
            key: rng.next_u32(),
        }
    }

    /// The place in its cell, in [−1, 1)² but for the displacement, of the image's point (u, v).
    fn cell_point(&self, u: f32, v: f32, wobbles: bool) -> [f32; 2] {
        let across = (u + self.bend[0] * v * v - self.origin[0]) / self.spacing;
        let down = (v + self.bend[1] * u * u - self.origin[1]) / (self.spacing * self.aspect);
        let column = across * self.axis[0] + down * self.axis[1];
        let row = down * self.axis[0] - across * self.axis[1];
        let cell = [floor(column), floor(row)];
        let [dx, dy] = if wobbles { self.displacement(cell) } else { [0.0; 2] };
        [2.0 * (column - cell[0]) - 1.0 - dx, 2.0 * (row - cell[1]) - 1.0 - dy]
    }

    /// A fixed pseudo-random displacement for each cell: its coordinates, mixed as a hash's last step would.
    fn displacement(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        let mut bits = self.key
            ^ (x as i32 as u32).wrapping_mul(0x9E37_79B1)
            ^ (y as i32 as u32).wrapping_mul(0x85EB_CA77);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x2C1B_3C6D);
        bits = (bits ^ (bits >> 12)).wrapping_mul(0x297A_2D39);
        bits ^= bits >> 15;
        [bits & 255, (bits >> 8) & 255].map(|byte| WOBBLE * (byte as f32 / 127.5 - 1.0))
    }
}

/// Uniform on [0, 1) in steps of 2⁻²⁴.
fn unit(rng: &mut impl Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// Uniform on [low, high].
fn uniform(rng: &mut impl Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * unit(rng)
}

/// A unit vector in a uniformly random direction.
fn direction(rng: &mut impl Rng) -> [f32; 2] {
    loop {
        let [x, y] = [uniform(rng, -1.0, 1.0), uniform(rng, -1.0, 1.0)];
        let square = x * x + y * y;
        if (0.01..=1.0).contains(&square) {
            let length = square.sqrt();
            return [x / length, y / length];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, stream};

    #[test]
    fn colours_are_seldom_cut_off() {
        let (mut cut, mut all) = (0, 0);
        for index in 0..100 {
            let image = draw(index % 10, 32, &mut stream(0, Purpose::Test, 0, u64::from(index)));
            cut += image.as_raw().iter().filter(|&&byte| byte == 0 || byte == 255).count();
            all += image.as_raw().len();
        }
        assert!(cut * 10 < all, "{cut} of {all} values");
    }
}
