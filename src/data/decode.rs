//! Image files to 8-bit RGB, as PIL's `Image.open(f).convert("RGB")` does it, upright.
//!
//! The content decides the format, not the name. Divergences from PIL, all deliberate:
//! - EXIF orientation is followed (PIL leaves that to `exif_transpose`).
//! - 16 bits become 8 by keeping the high byte, which PIL does for colour; 16-bit grey it clips at 255 instead.
//! - The first frame of a GIF that does not cover its canvas stands on black, not on the background colour.
//! - A damaged or truncated file is an error, where libjpeg fills the rest with grey and a warning.
//!
//! Alpha is dropped, not blended, as PIL does. [`MAX_SIDE`] and [`MAX_ALLOC`] bound what a file may claim.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, GenericImageView, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::error::{Error, Result};

mod jpeg;
mod webp;

/// Longest side in pixels that is decoded (libjpeg's limit, too).
pub const MAX_SIDE: u32 = 65_500;
/// Bytes that one image's file may have, and that decoding it may take besides: 512 MiB each.
pub const MAX_ALLOC: u64 = 512 << 20;

/// Extensions of the formats that are decoded, in lower case: what a folder is searched for.
pub const EXTENSIONS: [&str; 11] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif"];

/// Decodes the image file at `path`.
///
/// # Errors
/// [`Error::Image`] naming the file, if it cannot be read or decoded whole.
pub fn decode_file(path: &Path) -> Result<RgbImage> {
    let name = path.to_string_lossy();
    decode_bytes(&read_file(path, &name)?, &name)
}

/// The bytes of an image file, called `name` in errors. Refuses what is no regular file (opening a pipe would wait
/// forever) and what is larger than [`MAX_ALLOC`].
pub(super) fn read_file(path: &Path, name: &str) -> Result<Vec<u8>> {
    let fail = |reason: String| Error::Image { image: name.to_owned(), reason };
    let system = |source: std::io::Error| fail(format!("cannot be read: {source}"));
    let metadata = std::fs::metadata(path).map_err(system)?;
    if !metadata.is_file() {
        return Err(fail("not a regular file".into()));
    }
    if metadata.len() > MAX_ALLOC {
        return Err(fail(format!("{} bytes, more than the {MAX_ALLOC} an image may have", metadata.len())));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    // The file may have grown since; what is read stays bounded.
    File::open(path).map_err(system)?.take(MAX_ALLOC).read_to_end(&mut bytes).map_err(system)?;
    Ok(bytes)
}

/// Decodes an image file's bytes; `name` is what errors call it.
///
/// # Errors
/// [`Error::Image`] if the format is unknown, the content is damaged or incomplete, or a limit is exceeded.
pub fn decode_bytes(bytes: &[u8], name: &str) -> Result<RgbImage> {
    decode_within(bytes, name, MAX_ALLOC)
}

/// [`decode_bytes`], of a JPEG perhaps without its lower rows: `rows` is told width and height, once, and answers how
/// many rows are needed from the top. There are at least as many, and they are those of the whole image.
///
/// # Errors
/// As [`decode_bytes`]; but what is wrong in rows that are not decoded goes unnoticed. A truncated file never does.
pub fn decode_rows(
    bytes: Cow<'_, [u8]>,
    name: &str,
    rows: &mut dyn FnMut(u32, u32) -> u32,
) -> Result<RgbImage> {
    guarded(name, || decode(bytes, MAX_ALLOC, rows))
}

/// [`decode_bytes`] with another bound than [`MAX_ALLOC`] on the memory that decoding may take.
///
/// # Errors
/// As [`decode_bytes`].
pub fn decode_within(bytes: &[u8], name: &str, max_alloc: u64) -> Result<RgbImage> {
    guarded(name, || decode(bytes.into(), max_alloc, &mut |_, height| height))
}

/// The decoders are other people's and meet hostile bytes: a panic in one is this image's error. They own no state that
/// outlives the call, so nothing can be left half changed.
fn guarded(name: &str, decode: impl FnOnce() -> Reason<RgbImage>) -> Result<RgbImage> {
    let fail =
        |reason: Cow<'static, str>| Error::Image { image: name.to_owned(), reason: reason.into_owned() };
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(fail),
        Err(_) => Err(fail("the decoder panicked on it".into())),
    }
}

type Reason<T> = std::result::Result<T, Cow<'static, str>>;

fn decode(bytes: Cow<'_, [u8]>, max_alloc: u64, rows: &mut dyn FnMut(u32, u32) -> u32) -> Reason<RgbImage> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    match image::guess_format(&bytes) {
        Ok(ImageFormat::Jpeg) => jpeg::decode(bytes, max_alloc, rows),
        Ok(format) => {
            if format == ImageFormat::WebP {
                webp::check(&bytes, max_alloc)?;
            }
            let image = decode_other(&bytes, format, max_alloc)?;
            rows(image.width(), image.height());
            Ok(image)
        }
        Err(_) => Err("not an image of a known format".into()),
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat, max_alloc: u64) -> Reason<RgbImage> {
    let text = |error: image::ImageError| Cow::from(error.to_string());
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(max_alloc);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(text)?;
    let (width, height) = decoder.dimensions();
    // 3 more for the RGB copy.
    check_size(width, height, u64::from(decoder.color_type().bytes_per_pixel()) + 3, max_alloc)?;
    // Bad EXIF is no reason to refuse the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let image = DynamicImage::from_decoder(decoder).map_err(text)?;
    Ok(upright(to_rgb(image), orientation))
}

fn check_size(width: u32, height: u32, bytes_per_pixel: u64, max_alloc: u64) -> Reason<()> {
    let size = format!("{width} x {height} pixels");
    if width == 0 || height == 0 {
        return Err(format!("{size}: there is nothing to see").into());
    }
    let alloc = u64::from(width) * u64::from(height) * bytes_per_pixel;
    if width > MAX_SIDE || height > MAX_SIDE || alloc > max_alloc {
        return Err(format!(
            "{size} exceed the limits: {MAX_SIDE} a side, {} MiB to decode",
            max_alloc >> 20
        )
        .into());
    }
    Ok(())
}

/// Drops alpha, repeats grey, keeps the high byte of 16.
fn to_rgb(image: DynamicImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let high = |value: u16| (value >> 8) as u8;
    let pixels: Vec<u8> = match image {
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|&value| high(value)).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|pixel| [0, 1, 2].map(|c| high(pixel[c]))).collect()
        }
        DynamicImage::ImageLuma16(image) => {
            image.as_raw().iter().flat_map(|&value| [high(value); 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|pixel| [high(pixel[0]); 3]).collect(),
        // The 8-bit kinds, exactly; floating point (TIFF) is scaled from [0, 1].
        other => return other.into_rgb8(),
    };
    RgbImage::from_raw(width, height, pixels).expect("three bytes were made for each pixel")
}

fn upright(image: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}
