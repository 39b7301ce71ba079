//! What an image becomes when it is packed: the file as it is, a smaller JPEG, or pixels.

use std::fmt;

use image::RgbImage;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde::{Deserialize, Serialize};

use super::format::Kind;
use crate::data::decode::decode_bytes;
use crate::data::resize::{Crop, Resizer, with_short_side};
use crate::data::{Dataset, ImageSource};
use crate::error::{Error, Result};

/// How images are kept. `short_side` is the length in pixels that the shorter side of a larger image is resized to;
/// images are never enlarged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Form {
    /// The bytes of the files, unchanged; pixels where there are no files.
    Original,
    /// JPEG with 4:2:0 chroma. A JPEG file that needs no resizing is kept as it is.
    Jpeg {
        /// 1 to 100, as libjpeg counts.
        quality: u8,
        /// See above.
        short_side: Option<u32>,
    },
    /// Pixels, three bytes each: nothing to decode.
    Raw {
        /// See above.
        short_side: Option<u32>,
    },
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = match self {
            Form::Original => return f.write_str("files as they are"),
            Form::Jpeg { quality, short_side } => {
                write!(f, "JPEG of quality {quality}")?;
                short_side
            }
            Form::Raw { short_side } => {
                f.write_str("raw pixels")?;
                short_side
            }
        };
        match short {
            Some(short) => write!(f, ", short side {short}"),
            None => f.write_str(", not resized"),
        }
    }
}

/// An image in the form in which it is kept.
pub(super) struct Packed {
    pub(super) kind: Kind,
    /// Width and height.
    pub(super) size: (u16, u16),
    pub(super) bytes: Vec<u8>,
}

/// Bytes of a reason that are kept.
const MAX_REASON: usize = 1000;

impl Packed {
    /// Brings image `index` of `data` into `form`. One that cannot be read becomes the reason why not.
    pub(super) fn of(data: &Dataset, index: usize, form: Form) -> Self {
        match pack(data.source().as_ref(), index, form) {
            Ok(packed) => packed,
            Err(error) => {
                let reason = match error {
                    Error::Image { reason, .. } => reason,
                    other => other.to_string(),
                };
                let mut end = reason.len().min(MAX_REASON);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                Packed { kind: Kind::Unreadable, size: (0, 0), bytes: reason[..end].into() }
            }
        }
    }

    fn file(bytes: Vec<u8>, image: &RgbImage) -> Self {
        Packed { kind: Kind::File, size: size(image), bytes }
    }

    fn pixels(image: RgbImage) -> Self {
        Packed { kind: Kind::Pixels, size: size(&image), bytes: image.into_raw() }
    }
}

fn pack(source: &dyn ImageSource, index: usize, form: Form) -> Result<Packed> {
    let (file, image) = match source.encoded(index)? {
        // Decoded even if kept as it is: what cannot be read should show now, not in the middle of a training run.
        Some(bytes) => {
            let image = decode_bytes(&bytes, &source.name(index))?;
            (Some(bytes), image)
        }
        None => (None, source.load(index)?),
    };
    match (form, file) {
        (Form::Original, Some(bytes)) => Ok(Packed::file(bytes, &image)),
        (Form::Original, None) => Ok(Packed::pixels(image)),
        (Form::Raw { short_side }, _) => Ok(Packed::pixels(shrunk(image, short_side))),
        (Form::Jpeg { short_side, .. }, Some(bytes))
            if is_jpeg(&bytes) && shrunk_size(&image, short_side) == image.dimensions() =>
        {
            Ok(Packed::file(bytes, &image))
        }
        (Form::Jpeg { quality, short_side }, _) => {
            let image = shrunk(image, short_side);
            let bytes = encode_jpeg(&image, quality).map_err(|error| Error::Image {
                image: source.name(index).into_owned(),
                reason: format!("cannot be written as JPEG: {error}"),
            })?;
            Ok(Packed::file(bytes, &image))
        }
    }
}

/// Decoded images have sides of at most [`crate::data::decode::MAX_SIDE`]; generated ones are small.
fn size(image: &RgbImage) -> (u16, u16) {
    (image.width() as u16, image.height() as u16)
}

fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xFF, 0xD8, 0xFF])
}

fn shrunk_size(image: &RgbImage, short_side: Option<u32>) -> (u32, u32) {
    let size = image.dimensions();
    match short_side {
        Some(short) if size.0.min(size.1) > short => with_short_side(size, short),
        _ => size,
    }
}

fn shrunk(image: RgbImage, short_side: Option<u32>) -> RgbImage {
    let (width, height) = shrunk_size(&image, short_side);
    if (width, height) == image.dimensions() {
        return image;
    }
    let mut out = RgbImage::new(width, height);
    let all = Crop::whole(image.width(), image.height());
    Resizer::default().resize(&image, all, (width, height), Crop::whole(width, height), false, &mut out);
    out
}

fn encode_jpeg(image: &RgbImage, quality: u8) -> std::result::Result<Vec<u8>, jpeg_encoder::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, quality);
    // What cameras write, and half the samples to decode of 4:4:4.
    encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
    let (width, height) = size(image);
    encoder.encode(image.as_raw(), width, height, ColorType::Rgb)?;
    Ok(bytes)
}
