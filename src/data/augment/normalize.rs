//! Levels to the encoder's input: `(level / 255 − mean) / std` per channel.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Bytes that one thread converts at a time.
const PIECE: usize = 3 << 16;

/// Mean and standard deviation of each channel, R, G, B, in units of full intensity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Subtracted.
    pub mean: [f32; 3],
    /// Divided by.
    pub std: [f32; 3],
}

impl Normalization {
    /// The published constants for CIFAR.
    pub fn cifar() -> Self {
        Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.2023, 0.1994, 0.2010] }
    }

    /// The usual constants for ImageNet and photos in general.
    pub fn imagenet() -> Self {
        Normalization { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }

    /// The normalised value of each level: the same single-precision operations as torchvision's `ToTensor` and
    /// `Normalize`, once for each of the 768 possible inputs.
    pub fn table(&self) -> NormalizationTable {
        let mut values = [[0.0; 3]; 256];
        for (level, values) in values.iter_mut().enumerate() {
            for ((value, mean), std) in values.iter_mut().zip(self.mean).zip(self.std) {
                *value = (level as f32 / 255.0 - mean) / std;
            }
        }
        NormalizationTable { values }
    }
}

/// What [`Normalization::table`] computed.
#[derive(Clone, Debug)]
pub struct NormalizationTable {
    /// By level, then channel.
    values: [[f32; 3]; 256],
}

impl NormalizationTable {
    /// The value of one level in one channel.
    pub fn value(&self, level: u8, channel: usize) -> f32 {
        self.values[usize::from(level)][channel]
    }

    /// Converts `pixels` `[.., 3]` to `out` of the same shape; on all of rayon's threads where there is enough
    /// to do.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of 3.
    pub fn normalize_into(&self, pixels: &[u8], out: &mut [f32]) {
        assert_eq!(pixels.len(), out.len(), "lengths of pixels and output");
        assert_eq!(pixels.len() % 3, 0, "three channels");
        if pixels.len() <= PIECE {
            return self.convert(pixels, out);
        }
        out.par_chunks_mut(PIECE)
            .zip(pixels.par_chunks(PIECE))
            .for_each(|(out, pixels)| self.convert(pixels, out));
    }

    fn convert(&self, pixels: &[u8], out: &mut [f32]) {
        for (out, pixel) in out.as_chunks_mut::<3>().0.iter_mut().zip(pixels.as_chunks::<3>().0) {
            for (channel, (out, &level)) in out.iter_mut().zip(pixel).enumerate() {
                *out = self.value(level, channel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_batches_are_converted_like_small_ones() {
        let pixels: Vec<u8> = (0..PIECE * 2 + 33).map(|i| (i * 7 % 256) as u8).collect();
        let normalization = Normalization::cifar();
        let table = normalization.table();
        let mut out = vec![f32::NAN; pixels.len()];
        table.normalize_into(&pixels, &mut out);
        for (i, (&level, &value)) in pixels.iter().zip(&out).enumerate() {
            let expected = (f32::from(level) / 255.0 - normalization.mean[i % 3]) / normalization.std[i % 3];
            assert_eq!(value.to_bits(), expected.to_bits(), "element {i}");
        }
    }

    #[test]
    #[should_panic(expected = "three channels")]
    fn half_a_pixel_is_refused() {
        Normalization::imagenet().table().normalize_into(&[1; 4], &mut [0.0; 4]);
    }
}
