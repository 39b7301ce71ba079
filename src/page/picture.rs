//! Small pictures for pages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{ExtendedColorType, RgbImage};

/// JPEG quality of thumbnails: nothing to be seen at their size, a few kilobytes each.
const QUALITY: u8 = 85;

/// `image` with its long side shrunk to at most `side` pixels (never enlarged), as JPEG.
///
/// # Panics
/// If `side` is 0 or the image has no pixels.
pub fn thumbnail_jpeg(image: &RgbImage, side: u32) -> Vec<u8> {
    let (width, height) = image.dimensions();
    let long = width.max(height);
    assert!(side > 0 && width.min(height) > 0, "a {width}x{height} image to fit {side} pixels");
    let scaled = |extent: u32| (u64::from(extent) * u64::from(side) / u64::from(long)).max(1) as u32;
    let small =
        (long > side).then(|| imageops::resize(image, scaled(width), scaled(height), FilterType::Triangle));
    let small = small.as_ref().unwrap_or(image);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .encode(small.as_raw(), small.width(), small.height(), ExtendedColorType::Rgb8)
        .expect("an image of at most 65,535 pixels a side is encoded into memory");
    bytes
}

/// See [`thumbnail_jpeg`]; as the `src` of an `img`.
///
/// # Panics
/// As [`thumbnail_jpeg`].
pub fn thumbnail(image: &RgbImage, side: u32) -> String {
    data_uri("image/jpeg", &thumbnail_jpeg(image, side))
}

/// A file as a `src` that needs no file.
pub fn data_uri(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnails_keep_proportions_and_never_grow() {
        let size = |width, height, side| {
            let bytes = thumbnail_jpeg(&RgbImage::new(width, height), side);
            image::load_from_memory(&bytes).unwrap().to_rgb8().dimensions()
        };
        assert_eq!(size(400, 200, 100), (100, 50));
        assert_eq!(size(32, 32, 100), (32, 32));
        assert_eq!(size(1, 5000, 64), (1, 64));
        assert!(thumbnail(&RgbImage::new(8, 8), 8).starts_with("data:image/jpeg;base64,/9j/"));
    }
}
