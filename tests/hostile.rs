//! Files and folders that mean harm, or might as well: each costs an error at most. Fuzzing (fuzz/) tries what nobody thinks of; this is what somebody did think of.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{describe, fails, lemniscate, succeeds, tiny, write_images};
use flate2::Compression;
use flate2::write::GzEncoder;
use lemniscate::data::decode::{decode_bytes, decode_within};
use lemniscate::data::{DataFormat, OpenOptions, open};

/// A WebP file with one chunk, `kind`, of `content`.
fn webp(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF".to_vec();
    file.extend((12 + content.len() as u32).to_le_bytes());
    file.extend(b"WEBP");
    file.extend(kind);
    file.extend((content.len() as u32).to_le_bytes());
    file.extend(content);
    file
}

#[test]
fn a_small_webp_that_claims_a_huge_picture_costs_an_error() {
    // The extended header with a canvas of 16,777,216 a side; the lossless one's limit, 16,384 a side.
    let extended = webp(b"VP8X", &[0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    let lossless = webp(b"VP8L", &[0x2F, 0xFF, 0xFF, 0xFF, 0x0F, 0, 0, 0, 0, 0]);
    let lossy = webp(b"VP8 ", &[0x10, 0, 0, 0x9D, 0x01, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F]);
    let begun = Instant::now();
    for bytes in [extended, lossless, lossy] {
        println!("{}", decode_bytes(&bytes, "claim.webp").unwrap_err());
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Found by fuzzing: memory was taken for a chunk before it was looked how much of it there is.
#[test]
fn a_webp_chunk_that_claims_gigabytes_is_cut_short() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/exif6.webp");
    let whole = fs::read(path).unwrap();
    assert!(decode_bytes(&whole, "exif6.webp").is_ok());
    let at = whole.windows(4).position(|name| name == b"EXIF").unwrap() + 4;
    for claim in [u32::MAX, 0x4E50_0FFA, whole.len() as u32] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&claim.to_le_bytes());
        let error = decode_bytes(&bytes, "claim.webp").unwrap_err().to_string();
        assert!(error.contains("truncated"), "{claim}: {error}");
    }
}

/// Found by fuzzing: a frame has a header of its own, and memory was taken for that before it met the canvas.
#[test]
fn a_webp_frame_larger_than_its_canvas_is_held_against_the_limits() {
    let canvas = [0x10, 0, 0, 0, 23, 0, 0, 15, 0, 0];
    let frame = [0x10, 0, 0, 0x9D, 0x01, 0x2A, 0x18, 0x2A, 0x00, 0x33];
    let chunk = |kind: &[u8; 4], content: &[u8]| webp(kind, content)[12..].to_vec();
    let still = [chunk(b"VP8X", &canvas), chunk(b"VP8 ", &frame)].concat();
    let moving = [&[0; 16], &chunk(b"VP8L", &[0x2F, 0xFF, 0xFF, 0xFF, 0x0F, 0])[..]].concat();
    let moving = [chunk(b"VP8X", &canvas), chunk(b"ANMF", &moving)].concat();
    for (chunks, claim) in [(still, "10776 x 13056"), (moving, "16384 x 16384")] {
        let mut bytes = webp(b"none", &[])[..12].to_vec();
        bytes.extend(&chunks);
        bytes[4..8].copy_from_slice(&(4 + chunks.len() as u32).to_le_bytes());
        let error = decode_within(&bytes, "claim.webp", 1 << 24).unwrap_err().to_string();
        assert!(error.contains(claim) && error.contains("exceed the limits"), "{error}");
    }
}

#[test]
fn a_picture_of_floats_that_are_no_numbers_is_a_picture_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("floats.tif");
    let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 1e30, 0.5];
    image::Rgb32FImage::from_fn(6, 2, |x, _| image::Rgb([strange[x as usize]; 3])).save(&path).unwrap();
    match decode_bytes(&fs::read(&path).unwrap(), "floats.tif") {
        // Whole bytes, whatever they are: nothing that is not finite can come out of them.
        Ok(image) => assert_eq!((image.width(), image.height()), (6, 2)),
        Err(error) => println!("{error}"),
    }
}

/// An archive of these entries, gzipped.
fn archive(path: &Path, build: impl FnOnce(&mut tar::Builder<GzEncoder<fs::File>>)) {
    let file = fs::File::create(path).unwrap();
    let mut builder = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    build(&mut builder);
    builder.into_inner().unwrap().finish().unwrap();
}

/// An entry whose name is written as it is, with whatever leads out of the archive.
fn entry(builder: &mut tar::Builder<impl Write>, name: &str, kind: tar::EntryType, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

#[test]
fn what_leads_out_of_an_archive_leads_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/cifar.tar.gz");
    fs::create_dir(folder.path().join("data")).unwrap();
    let record = [&[1u8, 7][..], &[9; 3072]].concat();
    archive(&path, |builder| {
        entry(builder, "../../cifar-100-binary/train.bin", tar::EntryType::Regular, &record);
        entry(builder, "../../cifar-100-binary/test.bin", tar::EntryType::Regular, &record);
        entry(builder, "/tmp/lemniscate-outside", tar::EntryType::Regular, b"outside");
        entry(builder, "cifar-100-binary/train.bin", tar::EntryType::Symlink, b"");
        entry(builder, "cifar-100-binary/test.bin", tar::EntryType::Link, b"");
        entry(builder, "cifar-100-binary/pipe", tar::EntryType::Fifo, b"");
    });
    // Read into memory, whatever the path; never unpacked.
    let splits = open(&path, None, &OpenOptions::default()).unwrap();
    assert_eq!((splits.train.len(), splits.train.label(0)), (1, Some(7)));
    let there: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, ["data"]);
    assert_eq!(fs::read_dir(folder.path().join("data")).unwrap().count(), 1);
    assert!(!Path::new("/tmp/lemniscate-outside").exists());
}

#[test]
fn deep_and_long_archives_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let nested = folder.path().join("nested.tar.gz");
    // An archive in an archive in an archive: the inner ones are files like others, and not opened.
    let mut inner = b"nothing".to_vec();
    for _ in 0..50 {
        archive(&nested, |builder| entry(builder, "nested.tar.gz", tar::EntryType::Regular, &inner));
        inner = fs::read(&nested).unwrap();
    }
    let begun = Instant::now();
    assert!(open(&nested, None, &OpenOptions::default()).is_err());
    assert!(open(&nested, Some(DataFormat::CifarBinary), &OpenOptions::default()).is_err());
    let many = folder.path().join("many.tar.gz");
    archive(&many, |builder| {
        for number in 0..50_000 {
            entry(builder, &format!("{}{number}", "a/".repeat(30)), tar::EntryType::Regular, b"");
        }
    });
    assert!(open(&many, Some(DataFormat::CifarPython), &OpenOptions::default()).is_err());
    // gzip within gzip is not unpacked twice.
    let twice = folder.path().join("twice.tar.gz");
    let mut gz = GzEncoder::new(fs::File::create(&twice).unwrap(), Compression::fast());
    gz.write_all(&fs::read(&many).unwrap()).unwrap();
    gz.finish().unwrap();
    assert!(open(&twice, Some(DataFormat::CifarBinary), &OpenOptions::default()).is_err());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn a_list_may_name_any_file_and_only_pictures_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let images = write_images(&folder.path().join("images"), 2);
    fs::create_dir(folder.path().join("lists")).unwrap();
    let pipe = folder.path().join("pipe.png");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let inside = images[0].display();
    let list = folder.path().join("lists/some.csv");
    let lines = format!(
        "{inside}\n../images/001.png\n../pipe.png\n/dev/zero\n/dev/stdin\n/etc/passwd\n../images\nsome.csv\n"
    );
    fs::write(&list, lines).unwrap();
    let said = succeeds(folder.path(), ["data", "lists/some.csv"]);
    for words in [
        "unreadable   6",
        "../pipe.png: not a regular file",
        "/dev/zero: not a regular file",
        "../images: not a regular file",
        "/etc/passwd: not an image of a known format",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // The list itself.
    for place in ["/dev/zero", "pipe.png"] {
        let refused = fails(folder.path(), 1, ["data", place, "--data-format", "list"]);
        assert!(refused.contains("a regular file"), "{refused}");
    }
}

#[test]
fn links_to_themselves_are_unreadable_images_and_folders_that_are_not_entered() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    write_images(&photos, 2);
    symlink("loop.png", photos.join("loop.png")).unwrap();
    symlink("b.png", photos.join("a.png")).unwrap();
    symlink("a.png", photos.join("b.png")).unwrap();
    symlink("..", photos.join("up")).unwrap();
    symlink(".", photos.join("here")).unwrap();
    let said = succeeds(folder.path(), ["data", "photos"]);
    assert!(said.contains("unreadable   3") && said.contains("loop.png"), "{said}");
    assert!(said.contains("lead back"), "{said}");
}

#[test]
fn names_that_are_not_utf_8_are_read_or_refused_but_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let strange = OsStr::from_bytes(b"ph\xFFotos");
    write_images(&folder.path().join(strange), 3);
    let output = lemniscate(folder.path(), [OsStr::new("data"), strange]).output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    // A configuration is TOML and cannot hold such a path.
    let train = [OsStr::new("train"), strange, OsStr::new("--out"), OsStr::new("run")];
    let output = lemniscate(folder.path(), train).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
    assert!(!folder.path().join("run").exists());
    // Two classes that look the same.
    write_images(&folder.path().join("classes").join(OsStr::from_bytes(b"\xFF")), 1);
    write_images(&folder.path().join("classes").join(OsStr::from_bytes(b"\xFE")), 1);
    let refused = fails(folder.path(), 1, ["data", "classes", "--data-format", "folder"]);
    assert!(refused.contains("look the same"), "{refused}");
}

/// As many classes as images, a million of each: reading the list must be quick, and no table of classes by anything made.
#[test]
fn a_million_classes_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("million.csv");
    let mut file = std::io::BufWriter::new(fs::File::create(&list).unwrap());
    for number in 0..1_000_000u32 {
        writeln!(file, "{number}.png,class {}", number.wrapping_mul(2_654_435_761)).unwrap();
    }
    file.flush().unwrap();
    let begun = Instant::now();
    let splits = open(&list, None, &OpenOptions::default()).unwrap();
    assert_eq!((splits.train.len(), splits.train.n_classes()), (1_000_000, 1_000_000));
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn one_image_trains_or_is_refused_and_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_images(&folder.join("one"), 1);
    fs::create_dir(folder.join("none")).unwrap();
    fs::write(folder.join("empty.csv"), "").unwrap();
    for (data, words) in [("none", "there is no image"), ("empty.csv", "names no image")] {
        let refused = fails(folder, 1, tiny(data, "run", &[]));
        assert!(refused.contains(words), "{refused}");
    }
    // Four maps of one pixel each: BatchNorm has something to normalise at 32 pixels.
    succeeds(folder, tiny("one", "run", &["--image-size", "32", "--max-steps", "2"]));
    succeeds(folder, ["eval", "run"]);
}
