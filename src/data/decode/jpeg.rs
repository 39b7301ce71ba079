//! JPEG, by its decoder directly: through `image` it runs leniently and returns half-grey pictures.

use std::borrow::Cow;

use image::RgbImage;
use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{MAX_SIDE, Reason, check_size, upright};
use reader::Bytes;

mod reader;

/// Decodes `bytes`: as many rows as `rows` asks for, at least.
pub(super) fn decode(
    bytes: Cow<'_, [u8]>,
    max_alloc: u64,
    rows: &mut dyn FnMut(u32, u32) -> u32,
) -> Reason<RgbImage> {
    let markers = Markers::walk(&bytes)?;
    let mut decoder = decoder(&bytes)?;
    let (width, height) = decoder.dimensions().ok_or("no dimensions")?;
    let size = (width as u32, height as u32);
    // A progressive image keeps all coefficients, 2 bytes each, besides the pixels.
    let bytes_per_pixel = if markers.progressive { 9 } else { 3 };
    check_size(size.0, size.1, bytes_per_pixel, max_alloc)?;
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    if orientation != Orientation::NoTransforms {
        let image = upright(pixels(&mut decoder, size)?, orientation);
        rows(image.width(), image.height());
        return Ok(image);
    }
    match markers.lowered(rows(size.0, size.1), size.1) {
        None => pixels(&mut decoder, size),
        Some((place, height)) => {
            drop(decoder);
            let mut bytes = bytes.into_owned();
            bytes[place..place + 2].copy_from_slice(&height.to_be_bytes());
            pixels(&mut self::decoder(&bytes)?, (size.0, height.into()))
        }
    }
}

/// A decoder that has read the headers.
fn decoder(bytes: &[u8]) -> Reason<JpegDecoder<Bytes<'_>>> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Bytes::new(bytes), options);
    decoder.decode_headers().map_err(text)?;
    Ok(decoder)
}

fn pixels(decoder: &mut JpegDecoder<Bytes<'_>>, (width, height): (u32, u32)) -> Reason<RgbImage> {
    let pixels = decoder.decode().map_err(text)?;
    RgbImage::from_raw(width, height, pixels).ok_or("fewer pixels than announced".into())
}

fn text(error: zune_jpeg::errors::DecodeErrors) -> Cow<'static, str> {
    error.to_string().into()
}

/// What the markers of a file say of it.
#[derive(Default)]
struct Markers {
    progressive: bool,
    subsampled: bool,
    scans: usize,
    frames: usize,
    /// Where the frame header has the height.
    height_at: usize,
    /// The largest vertical sampling factor.
    vertical: u32,
}

impl Markers {
    /// Walks from SOI to EOI.
    ///
    /// The decoder itself, even when strict, accepts data that ends within the last row of blocks, and makes nonsense
    /// of sequential images with subsampled colour whose components come in scans of their own (which few programs
    /// write).
    fn walk(bytes: &[u8]) -> Reason<Self> {
        let truncated = || Cow::from("the file is truncated: the JPEG data has no end marker");
        let mut at = 2;
        let mut found = Markers::default();
        loop {
            // Between segments, and in entropy-coded data after SOS, everything up to a marker is skipped: FF 00 is
            // a stuffed FF, FF D0 to FF D7 restart the decoder, and FF may be repeated before a marker.
            at += bytes.get(at..).and_then(|rest| memchr::memchr(0xFF, rest)).ok_or_else(truncated)?;
            match bytes.get(at + 1).copied().ok_or_else(truncated)? {
                0xD9 if found.scans > 1 && found.subsampled && !found.progressive => {
                    return Err(
                        "sequential JPEG with subsampled colour in several scans is not supported".into()
                    );
                }
                0xD9 => return Ok(found),
                0xFF => at += 1,
                0x00 | 0x01 | 0xD0..=0xD8 => at += 2,
                marker => {
                    let length = bytes.get(at + 2..at + 4).ok_or_else(truncated)?;
                    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                    match marker {
                        0xC0..=0xC2 => {
                            found.progressive |= marker == 0xC2;
                            found.frames += 1;
                            // Behind length and precision.
                            found.height_at = at + 5;
                            found.frame(bytes.get(at + 4..at + 2 + length).unwrap_or_default());
                        }
                        0xDA => found.scans += 1,
                        _ => {}
                    }
                    at += 2 + length;
                }
            }
        }
    }

    /// Looks at the sampling factors in a frame header: precision, height, width, number of components, and
    /// identifier, factors, table of each.
    fn frame(&mut self, header: &[u8]) {
        let components = header.get(6..).unwrap_or_default().as_chunks::<3>().0;
        self.subsampled |= components.windows(2).any(|pair| pair[0][1] != pair[1][1]);
        self.vertical = components.iter().map(|component| u32::from(component[1] & 15)).max().unwrap_or(0);
    }

    /// Where to write which lower height so that the decoder, which goes from the top, stops behind `needed` rows and
    /// these are what they are in the whole image of `height`; `None` where that is not known or saves nothing.
    ///
    /// Several scans each begin at the top. Between rows of blocks nothing depends on what follows but colour of half
    /// the height: it is interpolated from the row below, too.
    fn lowered(&self, needed: u32, height: u32) -> Option<(usize, u16)> {
        if self.progressive || self.scans != 1 || self.frames != 1 || !matches!(self.vertical, 1 | 2) {
            return None;
        }
        let seen = if self.vertical > 1 { needed + self.vertical } else { needed };
        let kept = seen.next_multiple_of(8 * self.vertical);
        if kept == 0 || kept >= height {
            return None;
        }
        Some((self.height_at, u16::try_from(kept).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

    use super::*;
    use crate::data::decode::{MAX_ALLOC, decode_bytes, decode_rows};

    fn encoded(sampling: SamplingFactor, restart: u16, progressive: bool, height: u16) -> Vec<u8> {
        let pixels: Vec<u8> =
            (0..40 * u32::from(height) * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 90);
        encoder.set_sampling_factor(sampling);
        encoder.set_progressive(progressive);
        if restart > 0 {
            encoder.set_restart_interval(restart);
        }
        encoder.encode(&pixels, 40, height, ColorType::Rgb).unwrap();
        bytes
    }

    /// Decodes `needed` rows for each number of them; returns the least number of rows that ever came.
    fn compare(bytes: &[u8], name: &str) -> u32 {
        let whole = decode_bytes(bytes, name).unwrap();
        let mut least = whole.height();
        for needed in 0..=whole.height() {
            let mut asked = 0;
            let mut rows = |width: u32, height: u32| {
                assert_eq!((width, height), whole.dimensions(), "{name}");
                asked += 1;
                needed
            };
            let part = decode_rows(bytes.into(), name, &mut rows).unwrap();
            assert_eq!((asked, part.width()), (1, whole.width()), "{name}");
            assert!(part.height() >= needed, "{name}: {} rows for {needed}", part.height());
            let seen = needed as usize * whole.width() as usize * 3;
            assert!(part.as_raw()[..seen] == whole.as_raw()[..seen], "{name}: {needed} rows");
            least = least.min(part.height());
        }
        least
    }

    #[test]
    fn upper_rows_are_those_of_the_whole_image() {
        use SamplingFactor::*;
        for sampling in [R_4_4_4, R_4_4_0, R_4_2_2, R_4_2_0] {
            for (restart, height) in [(0, 96), (3, 96), (0, 101), (0, 7)] {
                let name = format!("{sampling:?}, {restart}, {height}");
                let least = compare(&encoded(sampling, restart, false, height), &name);
                assert!(least <= 40, "{name}: never fewer than {least} rows");
            }
        }
        assert_eq!(compare(&encoded(R_4_2_0, 0, true, 96), "progressive"), 96);
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if !path.extension().is_some_and(|end| end == "rgb" || end == "txt" || end == "py") {
                let bytes = std::fs::read(&path).unwrap();
                compare(&bytes, &path.display().to_string());
            }
        }
    }

    #[test]
    fn a_truncated_file_is_refused_whatever_is_needed_of_it() {
        let bytes = encoded(SamplingFactor::R_4_2_0, 0, false, 96);
        for end in 0..bytes.len() {
            assert!(decode(bytes[..end].into(), MAX_ALLOC, &mut |_, _| 1).is_err(), "cut at {end}");
        }
    }
}
