//! Packed data sets: what goes in comes out, whatever happens on the way and whatever the file turns out to be.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, may panic")]

mod common;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use common::{assert_same_tensors, fails, lemniscate, metrics, succeeds, tiny, write_images};
use image::RgbImage;
use lemniscate::Error;
use lemniscate::data::augment::{Scratch, TestTransform};
use lemniscate::data::packed::write::{PackOptions, Report, pack};
use lemniscate::data::packed::{Form, format};
use lemniscate::data::resize::{Crop, Resizer};
use lemniscate::data::scan::scan;
use lemniscate::data::watch::DEFAULT_READ_TIMEOUT;
use lemniscate::data::{DataFormat, Dataset, OpenOptions, Splits, open};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

/// Every kind of image file there is, grey, CMYK and turned ones among them, in two classes and two splits.
fn folder() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let mut files: Vec<_> = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !["rgb", "txt", "py"].iter().any(|&no| path.extension().unwrap() == no));
    files.sort();
    assert!(files.len() > 40);
    for (i, file) in files.iter().enumerate() {
        let to = root.path().join(["train/odd", "train/even", "val/odd"][i % 3]);
        fs::create_dir_all(&to).unwrap();
        fs::copy(file, to.join(file.file_name().unwrap())).unwrap();
    }
    root
}

fn opened(path: &Path) -> Splits {
    open(path, None, &OpenOptions::default()).unwrap()
}

fn packed(splits: &Splits, out: &Path, form: Form) -> Splits {
    let report = try_pack(splits, out, form, 2, false, usize::MAX).unwrap();
    assert_eq!((report.resumed, report.unreadable), (0, 0));
    assert_eq!(report.bytes, fs::metadata(out).unwrap().len());
    opened(out)
}

/// Stops after `images` images.
fn try_pack(
    splits: &Splits,
    out: &Path,
    form: Form,
    threads: usize,
    quarantine: bool,
    images: usize,
) -> Result<Report, Error> {
    let done = Cell::new(0);
    let options = PackOptions { form, quarantine, threads };
    pack(splits, out, options, &mut |now| done.set(now), &|| done.get() >= images)
}

fn images(data: &Dataset) -> Vec<RgbImage> {
    (0..data.len()).map(|index| data.load(index).unwrap()).collect()
}

/// Asserts that names, labels and classes are the same; gives both splits of each.
fn same_but_for_pixels<'a>(a: &'a Splits, b: &'a Splits) -> [(&'a Dataset, &'a Dataset); 2] {
    let pairs = [(&a.train, &b.train), (a.test.as_ref().unwrap(), b.test.as_ref().unwrap())];
    for (a, b) in pairs {
        assert_eq!(a.labels(), b.labels());
        assert_eq!(a.classes(), b.classes());
        assert!(a.len() == b.len() && (0..a.len()).all(|i| a.name(i) == b.name(i)));
    }
    pairs
}

#[test]
fn files_and_pixels_come_back_bit_for_bit() {
    let root = folder();
    let files = opened(root.path());
    for (form, name) in [(Form::Original, "original"), (Form::Raw { short_side: None }, "raw")] {
        let packed = packed(&files, &root.path().join(name), form);
        assert_eq!(packed.format, DataFormat::Packed);
        assert!(packed.notes.is_empty(), "{:?}", packed.notes);
        for (a, b) in same_but_for_pixels(&files, &packed) {
            assert!(images(a) == images(b), "{name}");
            let hashes = |data: &Dataset| data.source().content_hash(3).unwrap();
            assert_eq!(hashes(a) == hashes(b), form == Form::Original, "{name}");
            let report = scan(b, &|_| {}, 2, DEFAULT_READ_TIMEOUT).unwrap();
            assert!(report.unreadable.is_empty() && report.images == a.len());
        }
    }
}

#[test]
fn jpeg_files_that_fit_are_kept_and_others_become_jpeg() {
    let root = folder();
    let files = opened(root.path());
    let packed = packed(&files, &root.path().join("jpeg"), Form::Jpeg { quality: 95, short_side: Some(200) });
    for (a, b) in same_but_for_pixels(&files, &packed) {
        for index in 0..a.len() {
            let (was, is) = (a.load(index).unwrap(), b.load(index).unwrap());
            let kept = a.source().encoded(index).unwrap() == b.source().encoded(index).unwrap();
            let file = a.source().encoded(index).unwrap().unwrap();
            assert_eq!(kept, file.starts_with(&[0xFF, 0xD8]), "{}", a.name(index));
            assert_eq!(was.dimensions(), is.dimensions());
            let differences = was.as_raw().iter().zip(is.as_raw()).map(|(&a, &b)| u64::from(a.abs_diff(b)));
            let mean = differences.sum::<u64>() as f64 / was.as_raw().len() as f64;
            assert!(kept && mean == 0.0 || !kept && mean < 16.0, "{}: {mean} levels", a.name(index));
        }
    }
}

#[test]
fn large_images_are_resized_once_and_test_views_stay_the_same() {
    let root = folder();
    let files = opened(root.path());
    let packed = packed(&files, &root.path().join("small"), Form::Raw { short_side: Some(12) });
    let transform = TestTransform { size: 10, resize_short: 12 };
    let view = |image: &RgbImage| {
        let mut out = vec![0; 300];
        transform.apply(image, &mut Scratch::default(), &mut out);
        out
    };
    let mut resized = 0;
    for (a, b) in same_but_for_pixels(&files, &packed) {
        for (a, b) in images(a).iter().zip(images(b)) {
            assert_eq!(b.width().min(b.height()), 12.min(a.width().min(a.height())));
            assert_eq!(view(a), view(&b));
            let (size, all) = (b.dimensions(), Crop::whole(a.width(), a.height()));
            let mut expected = RgbImage::new(size.0, size.1);
            Resizer::default().resize(a, all, size, Crop::whole(size.0, size.1), false, &mut expected);
            assert!(expected == b);
            resized += usize::from(a.dimensions() != b.dimensions());
        }
    }
    assert!(resized > 40);
}

#[test]
fn generated_images_and_packed_ones_can_be_packed() {
    let root = tempfile::tempdir().unwrap();
    let generated = opened("synthetic:40x16".as_ref());
    let first = packed(&generated, &root.path().join("first"), Form::Original);
    let second = packed(&first, &root.path().join("second"), Form::Original);
    for (a, b) in same_but_for_pixels(&generated, &second) {
        assert!(images(a) == images(b));
    }
    assert_eq!(first.train.fingerprint().unwrap(), second.train.fingerprint().unwrap());
}

#[test]
fn the_bytes_depend_on_neither_threads_nor_interruptions() {
    let root = folder();
    let files = opened(root.path());
    let form = Form::Jpeg { quality: 80, short_side: Some(12) };
    let expected = root.path().join("whole");
    packed(&files, &expected, form);
    let expected = fs::read(expected).unwrap();
    let total = files.train.len() + files.test.as_ref().unwrap().len();

    for (threads, stops) in
        [(1, vec![]), (5, vec![]), (2, vec![1, 2, 20, total - 1]), (1, (1..total).collect())]
    {
        let out = root.path().join(format!("again-{threads}-{}", stops.len()));
        let beside = |ending: &str| PathBuf::from(format!("{}{ending}", out.display()));
        for (i, &stop) in stops.iter().enumerate() {
            let error = try_pack(&files, &out, form, threads, false, stop).unwrap_err();
            assert_eq!(error.exit_code(), 130);
            assert!(error.to_string().contains(&format!("{stop} of {total} images")), "{error}");
            // As if it had been killed while writing an image, or a record.
            for (file, cut) in [(".part", 0), (".part.index", i % 3)] {
                let mut bytes = fs::read(beside(file)).unwrap();
                bytes.truncate(bytes.len() - cut);
                bytes.extend([7; 11]);
                fs::write(beside(file), bytes).unwrap();
            }
            assert!(
                open(&beside(".part"), None, &OpenOptions::default())
                    .unwrap_err()
                    .to_string()
                    .contains("never finished")
            );
        }
        try_pack(&files, &out, form, threads, false, usize::MAX).unwrap();
        assert!(fs::read(&out).unwrap() == expected, "{threads} threads, {stops:?}");
        assert!(!beside(".part").exists() && !beside(".part.index").exists());
    }
}

#[test]
fn another_packing_is_not_mixed_in() {
    let root = folder();
    let files = opened(root.path());
    let out = root.path().join("out");
    try_pack(&files, &out, Form::Original, 1, false, 5).unwrap_err();
    let error = try_pack(&files, &out, Form::Raw { short_side: None }, 1, false, usize::MAX).unwrap_err();
    assert!(error.to_string().contains("in another form"), "{error}");
    let report = try_pack(&files, &out, Form::Original, 1, false, usize::MAX).unwrap();
    assert_eq!(report.resumed, 5);
}

#[test]
fn unreadable_images_are_listed_or_keep_their_rows() {
    let root = tempfile::tempdir().unwrap();
    let paths = write_images(&root.path().join("train"), 6);
    let good = fs::read(&paths[2]).unwrap();
    let bad = vec![b'x'; good.len()];
    fs::write(&paths[2], &bad).unwrap();
    fs::write(&paths[4], "").unwrap();
    let files = opened(root.path());
    let out = root.path().join("out");
    let form = Form::Raw { short_side: None };
    let error = try_pack(&files, &out, form, 2, false, usize::MAX).unwrap_err().to_string();
    assert!(error.contains("2 of 6") && error.contains("002.png: not an image"), "{error}");
    assert!(error.contains("004.png: the file is empty") && !out.exists(), "{error}");

    // Mended, and of the same size, so that nothing but looking again can tell.
    fs::write(&paths[2], &good).unwrap();
    let report = try_pack(&files, &out, form, 2, true, usize::MAX).unwrap();
    assert_eq!((report.resumed, report.unreadable), (2, 1));
    let packed = opened(&out);
    assert_eq!(packed.train.quarantined(), [4]);
    assert!(packed.notes[0].contains("1 train images"), "{:?}", packed.notes);
    assert!(packed.train.load(2).unwrap() == files.train.load(2).unwrap());
    assert_eq!(packed.train.load(4).unwrap_err().to_string(), "004.png: the file is empty");

    // A set of nothing but unreadable images is no data set.
    paths.iter().for_each(|path| fs::write(path, &bad).unwrap());
    let error = try_pack(&opened(root.path()), &root.path().join("none"), form, 1, true, usize::MAX);
    assert!(matches!(error, Err(Error::Unreadable { .. })));
}

/// A file small enough to try everything with: three images, a file, pixels and an unreadable one.
fn small() -> (TempDir, Vec<u8>) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train/a/1.jpg");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(3, 2, image::Rgb([9, 99, 200])).save(&path).unwrap();
    fs::create_dir_all(root.path().join("train/b")).unwrap();
    fs::write(root.path().join("train/b/2.png"), "no image").unwrap();
    write_images(&root.path().join("val/b"), 1);
    let out = root.path().join("out");
    try_pack(&opened(root.path()), &out, Form::Original, 1, true, usize::MAX).unwrap();
    let bytes = fs::read(&out).unwrap();
    (root, bytes)
}

/// Opens `bytes` as a file and reads all of it; gives the rows that could not be read, or `None` if it was refused.
fn read_all(path: &Path, bytes: &[u8]) -> Option<Vec<String>> {
    fs::write(path, bytes).unwrap();
    let splits = open(path, Some(DataFormat::Packed), &OpenOptions::default()).ok()?;
    let mut unread = Vec::new();
    for data in std::iter::once(&splits.train).chain(&splits.test) {
        data.fingerprint().unwrap();
        for index in 0..data.len() {
            let image = data.load(index);
            let hash = data.source().content_hash(index);
            if image.is_err() || hash.is_err() {
                unread.push(data.name(index).into_owned());
            }
        }
    }
    Some(unread)
}

#[test]
fn no_byte_may_change_and_none_may_be_missing() {
    let (root, bytes) = small();
    let path = root.path().join("changed");
    assert_eq!(read_all(&path, &bytes).unwrap(), ["b/2.png"]);
    let images = images_of(&bytes);
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        match read_all(&path, &changed) {
            None => refused += 1,
            Some(unread) => {
                assert!(images.contains(&at), "byte {at}");
                // That image and no other; of the unreadable one only the reason changes.
                assert!(unread.len() == 2 || unread == ["b/2.png"], "byte {at}: {unread:?}");
            }
        }
        assert!(read_all(&path, &bytes[..at]).is_none(), "cut at {at}");
    }
    assert_eq!(refused, bytes.len() - images.len());
    assert!(read_all(&path, &[&bytes[..], &[0]].concat()).is_none());
}

fn images_of(bytes: &[u8]) -> std::ops::Range<usize> {
    let footer = &bytes[bytes.len() - 56..];
    16..u64::from_le_bytes(footer[..8].try_into().unwrap()) as usize
}

/// With a valid hash, so that the parser itself meets wrong numbers.
#[test]
fn an_index_is_not_trusted_because_its_hash_is_right() {
    let (root, bytes) = small();
    let path = root.path().join("forged");
    let end = images_of(&bytes).end;
    let index = &bytes[end..bytes.len() - 56];
    let forge = |index: Vec<u8>| [&bytes[..end], &format::seal(end as u64, index)].concat();
    assert_eq!(forge(index.to_vec()), bytes);
    let mut opened = 0;
    for at in 0..index.len() {
        for value in [0, 1, 0x7F, 0xFF] {
            let mut index = index.to_vec();
            index[at] = value;
            opened += usize::from(read_all(&path, &forge(index)).is_some());
        }
        read_all(&path, &forge(index[..at].to_vec()));
        read_all(&path, &[&bytes[..end], &format::seal(at as u64, index.to_vec())].concat());
    }
    assert!(opened > 0, "nothing got past the parser");
    // Offsets beyond any file.
    for offset in [u64::MAX, u64::MAX - 7, 1 << 40] {
        assert!(read_all(&path, &[&bytes[..end], &format::seal(offset, index.to_vec())].concat()).is_none());
    }
}

#[test]
fn training_on_packed_files_is_training_on_the_folder() {
    let root = tempfile::tempdir().unwrap();
    let here = root.path();
    write_images(&here.join("d/train/a"), 20);
    write_images(&here.join("d/train/b"), 20);
    write_images(&here.join("d/val/a"), 8);
    let said = succeeds(here, ["pack", "d", "d.pack", "--as", "original", "-j", "2"]);
    assert!(said.contains("40 train and 8 test images, files as they are"), "{said}");
    succeeds(here, tiny("d", "folder", &[]));
    succeeds(here, tiny("d.pack", "packed", &[]));
    let losses = |run: &str| {
        metrics(&here.join(run), "step").iter().map(|step| step["loss"].clone()).collect::<Vec<_>>()
    };
    assert!(losses("folder").len() > 1);
    assert_eq!(losses("folder"), losses("packed"));
    assert_same_tensors(&here.join("folder/last.ckpt"), &here.join("packed/last.ckpt"));

    // It goes on with itself, moved, and with nothing else.
    fs::rename(here.join("d.pack"), here.join("moved.pack")).unwrap();
    succeeds(here, ["train", "moved.pack", "--resume", "packed", "--epochs", "3", "-q"]);
    succeeds(here, ["pack", "d", "raw.pack", "--as", "raw"]);
    let said = fails(here, 1, ["train", "raw.pack", "--resume", "packed", "--epochs", "4"]);
    assert!(said.contains("the data has changed"), "{said}");
    fails(here, 1, ["train", "d", "--resume", "packed", "--epochs", "4"]);

    let said = succeeds(here, ["data", "moved.pack"]);
    assert!(said.contains("moved.pack: packed") && said.contains("unreadable   none"), "{said}");
    let said = succeeds(here, ["inspect", "raw.pack"]);
    assert!(said.contains("packed data set 1") && said.contains("raw pixels"), "{said}");
    let said = succeeds(here, ["inspect", "raw.pack", "--json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&said).unwrap()["content"]["entries"].is_array());
}

#[test]
fn a_killed_packing_goes_on_when_it_is_repeated() {
    let root = tempfile::tempdir().unwrap();
    let here = root.path();
    write_images(&here.join("d"), 300);
    succeeds(here, ["pack", "d", "whole.pack", "--size", "16", "--as", "jpeg"]);
    let command = ["pack", "d", "d.pack", "--size", "16", "--as", "jpeg", "-j", "1"];
    let mut child = lemniscate(here, command).stderr(std::process::Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() && !here.join("d.pack.part").exists() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if !here.join("d.pack").exists() {
        succeeds(here, command);
    }
    assert!(fs::read(here.join("d.pack")).unwrap() == fs::read(here.join("whole.pack")).unwrap());
    let said = fails(here, 2, command);
    assert!(said.contains("exists") && said.contains("--force"), "{said}");
}

#[test]
fn impossible_wishes_are_refused() {
    let root = tempfile::tempdir().unwrap();
    write_images(&root.path().join("d"), 3);
    for flags in
        [&["--as", "original", "--size", "64"][..], &["--as", "raw", "--quality", "80"], &["--quality", "0"]]
    {
        fails(root.path(), 2, [&["pack", "d", "out"], flags].concat());
    }
    // Small images are kept as pixels unless something else is asked for.
    let said = succeeds(root.path(), ["pack", "d", "out"]);
    assert!(said.contains("raw pixels, not resized"), "{said}");
}

/// Packed by version 0.1: `pack DIR files.pack --as original --quarantine`, of images of tests/fixtures/images and
/// one file that is none, and `pack synthetic:10x8 pixels.pack`. They are also what fuzzing starts from.
#[test]
fn files_of_version_1_stay_readable() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/packed");
    let files = opened(&here.join("files.pack"));
    let names: Vec<_> = (0..4).map(|index| files.train.name(index).into_owned()).collect();
    assert_eq!(names, ["a/exif6.jpg", "a/grey.png", "b/cmyk.jpg", "b/no.png"]);
    assert_eq!((files.train.labels().unwrap(), files.train.classes().len()), (&[0, 0, 1, 1][..], 2));
    assert_eq!(files.train.quarantined(), [3]);
    for (index, name) in [(0, "exif6.jpg"), (1, "grey.png"), (2, "cmyk.jpg")] {
        let expected = lemniscate::data::decode::decode_file(&fixtures().join(name)).unwrap();
        assert!(files.train.load(index).unwrap() == expected, "{name}");
    }
    assert_eq!(files.test.unwrap().name(0), "a/palette.gif");
    let pixels = opened(&here.join("pixels.pack"));
    let generated = opened("synthetic:10x8".as_ref());
    for (a, b) in same_but_for_pixels(&generated, &pixels) {
        assert!(images(a) == images(b));
    }
}
