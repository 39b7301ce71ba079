//! Training and test views of an image, with torchvision's definitions on PIL images, bit for bit.
//!
//! An image `[height, width, 3]` of any size becomes a view `[size, size, 3]`, 8 bits a channel. What is random
//! is drawn first ([`AugmentParameters::draw`]) and applied after ([`AugmentParameters::apply`]), so that fixed
//! parameters can be held against torchvision's results (tests/augment.rs).

mod color;
mod draw;
mod hue;
mod normalize;
mod words;

use std::ops::Deref;

use image::{ImageBuffer, Rgb};
use serde::{Deserialize, Serialize};

use crate::data::resize::{Crop, Resizer, with_short_side};
use crate::error::{Error, Result};

pub use color::ColorOp;
pub use draw::AugmentParameters;
pub(crate) use draw::below;
pub(crate) use hue::hue_tables;
pub use normalize::{Normalization, NormalizationTable};

/// Largest side of a view, in pixels: beyond it a batch would not fit any memory.
const MAX_SIZE: u32 = 8192;

/// Buffers that live from one image to the next; one for each thread.
#[derive(Debug, Default)]
pub struct Scratch {
    resizer: Resizer,
    padded: Vec<u8>,
}

/// How far colours may stray: factors are uniform in `[max(0, 1 − x), 1 + x]`, the hue's shift in `[−x, x]` of a
/// turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jitter {
    /// Of the brightness factor.
    pub brightness: f64,
    /// Of the contrast factor.
    pub contrast: f64,
    /// Of the saturation factor.
    pub saturation: f64,
    /// Of the hue's shift; at most 0.5.
    pub hue: f64,
}

/// Whether an image may lose its colours before or after they are jittered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColorOrder {
    /// Greyscale, then jitter: as published for ImageNet.
    GrayscaleFirst,
    /// Jitter, then greyscale: as published for CIFAR.
    JitterFirst,
}

/// A random training view: crop and resize, colours, flip.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainTransform {
    /// Side of the view, in pixels.
    pub size: u32,
    /// Least and largest share of the image's area that a crop takes.
    pub scale: (f64, f64),
    /// Least and largest ratio of a crop's width to its height.
    pub ratio: (f64, f64),
    /// Colour jitter.
    pub jitter: Jitter,
    /// Probability of greyscale.
    pub grayscale: f64,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Which comes first, greyscale or jitter.
    pub order: ColorOrder,
}

impl TrainTransform {
    /// As published for ImageNet (at 224): greyscale 0.2, jitter 0.4, flip 0.5.
    pub fn imagenet(size: u32) -> Self {
        TrainTransform {
            size,
            scale: (0.2, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            jitter: Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.4 },
            grayscale: 0.2,
            flip: 0.5,
            order: ColorOrder::GrayscaleFirst,
        }
    }

    /// As published for CIFAR (at 32): jitter before greyscale, and no flip.
    pub fn cifar(size: u32) -> Self {
        TrainTransform { flip: 0.0, order: ColorOrder::JitterFirst, ..Self::imagenet(size) }
    }

    /// Ours for CIFAR: with flips, and with a quarter of the published change of hue, which leaves a class's colour
    /// recognisable.
    pub fn cifar_strong(size: u32) -> Self {
        let cifar = Self::cifar(size);
        TrainTransform { flip: 0.5, jitter: Jitter { hue: 0.1, ..cifar.jitter }, ..cifar }
    }

    /// Refuses settings that no view could be drawn from.
    ///
    /// # Errors
    /// [`Error::Usage`], naming the setting, its bounds and its value.
    pub fn validate(&self) -> Result<()> {
        check_size("size", self.size)?;
        let within = |name: &str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::usage(format!("augmentation: {name} must lie in {low} to {high}, not be {value}")))
            }
        };
        within("scale's lower bound", self.scale.0, f64::MIN_POSITIVE, 1.0)?;
        within("scale's upper bound", self.scale.1, self.scale.0, 1.0)?;
        within("ratio's lower bound", self.ratio.0, 1e-3, 1e3)?;
        within("ratio's upper bound", self.ratio.1, self.ratio.0, 1e3)?;
        within("brightness", self.jitter.brightness, 0.0, 1e3)?;
        within("contrast", self.jitter.contrast, 0.0, 1e3)?;
        within("saturation", self.jitter.saturation, 0.0, 1e3)?;
        within("hue", self.jitter.hue, 0.0, 0.5)?;
        within("grayscale", self.grayscale, 0.0, 1.0)?;
        within("flip", self.flip, 0.0, 1.0)
    }
}

impl AugmentParameters {
    /// Writes the view of `image` with these parameters to `out` `[size, size, 3]`. Rows of the image below the crop
    /// may be missing.
    ///
    /// # Panics
    /// If the crop is not inside the image or `out` has another length.
    pub fn apply(
        &self,
        image: &ImageBuffer<Rgb<u8>, impl Deref<Target = [u8]>>,
        size: u32,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        // Flipped at once: colours do not depend on where a pixel is.
        let (square, all) = ((size, size), Crop::whole(size, size));
        scratch.resizer.resize(image, self.crop, square, all, self.flip, out);
        for op in &self.color {
            op.apply(out);
        }
    }
}

/// The view for tests: the short side resized, then the centre cut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestTransform {
    /// Side of the view, in pixels.
    pub size: u32,
    /// Length to which the shorter side is resized first, in pixels.
    pub resize_short: u32,
}

impl TestTransform {
    /// As published for ImageNet: 256 for a view of 224, in proportion for others.
    pub fn imagenet(size: u32) -> Self {
        TestTransform { size, resize_short: (f64::from(size) * 256.0 / 224.0).round() as u32 }
    }

    /// For CIFAR: nothing at all where an image is already `size` × `size`; others are resized to it.
    pub fn cifar(size: u32) -> Self {
        TestTransform { size, resize_short: size }
    }

    /// Refuses sizes that no view can have.
    ///
    /// # Errors
    /// [`Error::Usage`], naming the setting, its bounds and its value.
    pub fn validate(&self) -> Result<()> {
        check_size("size", self.size)?;
        check_size("resize_short", self.resize_short)
    }

    /// Writes the view of `image` to `out` `[size, size, 3]`; black where the resized image is too small.
    ///
    /// # Panics
    /// If the image is empty or `out` has another length.
    pub fn apply(
        &self,
        image: &ImageBuffer<Rgb<u8>, impl Deref<Target = [u8]>>,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        let size = self.size;
        assert_eq!(out.len(), size as usize * size as usize * 3, "output length");
        let (width, height) = with_short_side(image.dimensions(), self.resize_short);
        let (left, x, window_width) = centre(width, size);
        let (top, y, window_height) = centre(height, size);
        let window = Crop { top, left, height: window_height, width: window_width };
        let whole = Crop::whole(image.width(), image.height());
        if (window_width, window_height) == (size, size) {
            return scratch.resizer.resize(image, whole, (width, height), window, false, out);
        }
        let row_bytes = window_width as usize * 3;
        scratch.padded.resize(row_bytes * window_height as usize, 0);
        scratch.resizer.resize(image, whole, (width, height), window, false, &mut scratch.padded);
        out.fill(0);
        let rows = out.chunks_exact_mut(size as usize * 3).skip(y as usize);
        for (row, source) in rows.zip(scratch.padded.chunks_exact(row_bytes)) {
            row[x as usize * 3..][..row_bytes].copy_from_slice(source);
        }
    }
}

/// Along one axis of `extent` pixels, for a view of `size`: the first pixel seen, where in the view it goes, and
/// how many there are. The centre rounds half to even, as Python does.
fn centre(extent: u32, size: u32) -> (u32, u32, u32) {
    if extent < size {
        (0, (size - extent) / 2, extent)
    } else {
        ((f64::from(extent - size) / 2.0).round_ties_even() as u32, 0, size)
    }
}

fn check_size(name: &str, value: u32) -> Result<()> {
    if (1..=MAX_SIZE).contains(&value) {
        Ok(())
    } else {
        Err(Error::usage(format!("augmentation: {name} must lie in 1 to {MAX_SIZE} pixels, not be {value}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    #[test]
    fn transforms_survive_a_configuration_file() {
        let train = TrainTransform { size: 96, ..TrainTransform::imagenet(224) };
        let text = toml::to_string(&train).unwrap();
        assert_eq!(toml::from_str::<TrainTransform>(&text).unwrap(), train);
        let test = TestTransform::imagenet(96);
        assert_eq!(test.resize_short, 110);
        assert_eq!(toml::from_str::<TestTransform>(&toml::to_string(&test).unwrap()).unwrap(), test);
        assert!(toml::from_str::<TrainTransform>(&format!("{text}\nflop = 1")).is_err());
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let good = TrainTransform::cifar(32);
        assert!(good.validate().is_ok());
        let refused = |transform: TrainTransform, name: &str| {
            let message = transform.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        };
        refused(TrainTransform { size: 0, ..good }, "size");
        refused(TrainTransform { scale: (0.5, 0.2), ..good }, "scale");
        refused(TrainTransform { scale: (0.0, 1.0), ..good }, "scale");
        refused(TrainTransform { ratio: (0.75, f64::NAN), ..good }, "ratio");
        refused(TrainTransform { jitter: Jitter { hue: 0.6, ..good.jitter }, ..good }, "hue");
        refused(TrainTransform { flip: 1.5, ..good }, "flip");
        assert!(TestTransform { size: 32, resize_short: 0 }.validate().is_err());
    }

    #[test]
    fn the_whole_image_at_its_own_size_is_left_alone() {
        let image = RgbImage::from_fn(9, 9, |x, y| image::Rgb([x as u8 * 20, y as u8 * 20, 77]));
        let (mut scratch, mut out) = (Scratch::default(), vec![0; 9 * 9 * 3]);
        let same = AugmentParameters { crop: Crop::whole(9, 9), color: vec![], flip: false };
        same.apply(&image, 9, &mut scratch, &mut out);
        assert_eq!(&out, image.as_raw());
        out.fill(0);
        TestTransform::cifar(9).apply(&image, &mut scratch, &mut out);
        assert_eq!(&out, image.as_raw());
    }
}
