//! Decoding against PIL, and against damaged files. The fixtures are written by `fixtures/images/make.py`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, too, may panic and print")]

use std::path::{Path, PathBuf};

use image::RgbImage;
use lemniscate::data::decode::{decode_bytes, decode_file};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

/// File name and what PIL decodes it to.
fn fixtures() -> Vec<(String, RgbImage)> {
    let listing = std::fs::read_to_string(folder().join("expected.txt")).unwrap();
    let read = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap().to_owned();
        let [width, height] = [0; 2].map(|_| words.next().unwrap().parse().unwrap());
        let pixels = std::fs::read(folder().join(format!("{name}.rgb"))).unwrap();
        (name, RgbImage::from_raw(width, height, pixels).unwrap())
    };
    listing.lines().map(read).collect()
}

fn largest_difference(a: &RgbImage, b: &RgbImage) -> u8 {
    a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| a.abs_diff(b)).max().unwrap()
}

/// How many levels of 255 a file may differ from PIL's pixels: nothing where no arithmetic is involved, and a
/// little where two decoders round an inverse cosine transform, a colour conversion or an upsampling differently.
fn tolerance(name: &str) -> u8 {
    match name {
        "really_png.jpg" => 0,
        "baseline420.jpg" | "baseline422.jpg" | "odd420.jpg" | "progressive.jpg" => 5,
        _ if name.ends_with(".jpg") => 2,
        "cmyk.tif" => 1,
        _ => 0,
    }
}

#[test]
fn every_format_decodes_to_the_pixels_of_pil() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 45, "only {} fixtures", fixtures.len());
    let mut wrong = Vec::new();
    for (name, expected) in &fixtures {
        // PIL clips 16-bit grey at 255; we keep the high byte (see the next test).
        if name == "grey16.png" {
            continue;
        }
        match decode_file(&folder().join(name)) {
            Err(error) => wrong.push(error.to_string()),
            Ok(image) if image.dimensions() != expected.dimensions() => {
                wrong.push(format!("{name}: {:?} for {:?}", image.dimensions(), expected.dimensions()));
            }
            Ok(image) => {
                let difference = largest_difference(&image, expected);
                println!("{name}: {difference} levels");
                if difference > tolerance(name) {
                    wrong.push(format!("{name}: differs by {difference} of 255 levels"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sixteen_bit_grey_keeps_the_high_byte() {
    let image = decode_file(&folder().join("grey16.png")).unwrap();
    // The fixture holds the scene's green channel, 255 y / 15, in the high byte.
    for (_, y, pixel) in image.enumerate_pixels() {
        let level = (255.0 * f64::from(y) / 15.0).round() as u8;
        assert!(pixel.0.iter().all(|&c| c.abs_diff(level) <= 1), "row {y}: {pixel:?}, expected {level}");
    }
}

/// A prefix is an error or, if only a trailer is missing, the whole picture: never a part of one.
#[test]
fn no_prefix_of_a_file_decodes_to_half_a_picture() {
    for (name, _) in fixtures() {
        let bytes = std::fs::read(folder().join(&name)).unwrap();
        let whole = decode_bytes(&bytes, &name).unwrap();
        for end in 0..bytes.len() {
            if let Ok(image) = decode_bytes(&bytes[..end], &name) {
                assert_eq!(image.dimensions(), whole.dimensions(), "{name} cut at {end}");
                let same = image.as_raw() == whole.as_raw();
                assert!(same, "{name} cut at {end} of {} bytes decodes to something else", bytes.len());
                assert!(
                    !name.ends_with(".jpg") || name == "really_png.jpg",
                    "{name} cut at {end} of {}",
                    bytes.len()
                );
            }
        }
    }
}

/// Flipped bytes may give a wrong picture or an error, never a panic that escapes.
#[test]
fn damaged_files_never_panic() {
    for (name, _) in fixtures() {
        let whole = std::fs::read(folder().join(&name)).unwrap();
        for at in (0..whole.len()).step_by(3) {
            for value in [0x00, 0xFF, whole[at] ^ 0x10] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                if let Err(error) = decode_bytes(&bytes, &name) {
                    let text = error.to_string();
                    assert!(
                        text.starts_with(name.as_str()) && !text.contains("panicked"),
                        "byte {at}: {text}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_small_file_that_claims_a_huge_picture_costs_an_error() {
    let patch = |file: &str, find: &[u8], offset: usize, new: &[u8]| {
        let mut bytes = std::fs::read(folder().join(file)).unwrap();
        let at = bytes.windows(find.len()).position(|window| window == find).unwrap() + offset;
        bytes[at..at + new.len()].copy_from_slice(new);
        decode_bytes(&bytes, file).unwrap_err().to_string()
    };
    let sof = [0xFF, 0xC0, 0, 17, 8];
    let huge = 100_000u32;
    for error in [
        patch("baseline444.jpg", &sof, 5, &[0xFF, 0xFF, 0xFF, 0xFF]),
        patch("baseline444.jpg", &sof, 5, &[0x80, 0x00, 0x80, 0x00]),
        patch("progressive.jpg", &[0xFF, 0xC2, 0, 17, 8], 5, &[0x20, 0x00, 0x20, 0x00]),
        patch("rgb.bmp", &[24, 0, 0, 0, 16, 0, 0, 0], 0, &[huge.to_le_bytes(), huge.to_le_bytes()].concat()),
        patch("palette.gif", &[24, 0, 16, 0], 0, &[0xFF; 4]),
        patch("raw.tif", &[0x00, 0x01, 4, 0, 1, 0, 0, 0, 24], 8, &huge.to_le_bytes()),
    ] {
        println!("{error}");
    }
    // A PNG with a correct checksum.
    let mut header = b"IHDR".to_vec();
    header.extend([huge.to_be_bytes(), huge.to_be_bytes()].concat());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&header);
    png.extend(crc32(&header).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    let error = decode_bytes(&png, "claim.png").unwrap_err().to_string();
    assert!(error.contains("limit") || error.contains("dimensions"), "{error}");
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn what_is_no_image_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = decode_file(&scratch.path().join("missing.jpg")).unwrap_err().to_string();
    assert!(missing.contains("missing.jpg") && missing.contains("cannot be read"), "{missing}");
    let folder = decode_file(scratch.path()).unwrap_err().to_string();
    assert!(folder.contains("not a regular file"), "{folder}");
    let text = decode_bytes(b"hello, world, this is text", "x").unwrap_err().to_string();
    assert_eq!(text, "x: not an image of a known format");
    assert_eq!(decode_bytes(b"", "x").unwrap_err().to_string(), "x: the file is empty");
}

/// The decoder makes other pictures of these; better none.
#[test]
fn subsampled_sequential_jpeg_in_several_scans_is_refused() {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    let pixels: Vec<u8> = (0..24 * 16 * 3).map(|i| (i * 7 % 256) as u8).collect();
    let encoded = |sampling, several_scans| {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 95);
        encoder.set_sampling_factor(sampling);
        // This encoder then writes a scan for each component.
        encoder.set_optimized_huffman_tables(several_scans);
        encoder.encode(&pixels, 24, 16, ColorType::Rgb).unwrap();
        decode_bytes(&bytes, "scans.jpg")
    };
    let error = encoded(SamplingFactor::R_4_2_0, true).unwrap_err().to_string();
    assert!(error.contains("several scans"), "{error}");
    assert!(encoded(SamplingFactor::R_4_2_0, false).is_ok());
    let difference = |image: RgbImage| image.as_raw().iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max();
    let [one, several] = [false, true].map(|several| encoded(SamplingFactor::R_4_4_4, several).unwrap());
    assert!(one == several && difference(one).unwrap() < 100);
}
