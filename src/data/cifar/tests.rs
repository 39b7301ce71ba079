//! Tiny data sets in all layouts, from folders and archives, whole and damaged.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cifar")
}

/// The pixel value that `tests/fixtures/cifar/make.py` writes.
fn pixel(file: usize, i: usize, c: usize, y: u32, x: u32) -> u8 {
    ((31 * file + 17 * i + 80 * c) as u32 + 7 * y + 5 * x) as u8
}

fn record(labels: &[u8], file: usize, i: usize) -> Vec<u8> {
    let mut bytes = labels.to_vec();
    for c in 0..3 {
        for y in 0..32 {
            bytes.extend((0..32).map(|x| pixel(file, i, c, y, x)));
        }
    }
    bytes
}

/// Two training images a file and one test image.
fn write_cifar_10_binary(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for file in 1..=5 {
        let records: Vec<_> = (0..2).flat_map(|i| record(&[((3 * file + i) % 10) as u8], file, i)).collect();
        fs::write(folder.join(format!("data_batch_{file}.bin")), records).unwrap();
    }
    fs::write(folder.join("test_batch.bin"), record(&[8], 6, 0)).unwrap();
}

fn check_images(data: &Dataset, first_file: usize, per_file: usize) {
    for index in 0..data.len() {
        let image = data.load(index).unwrap();
        assert_eq!(image.dimensions(), (32, 32));
        let (file, i) = (first_file + index / per_file, index % per_file);
        for (x, y, rgb) in image.enumerate_pixels() {
            assert_eq!(rgb.0, [0, 1, 2].map(|c| pixel(file, i, c, y, x)), "image {index} at {x},{y}");
        }
    }
}

fn check_cifar_10(splits: &Splits, suffix: &str, names: &[&str]) {
    let test = splits.test.as_ref().unwrap();
    assert_eq!((splits.train.len(), test.len()), (10, 1));
    assert_eq!(splits.train.labels().unwrap(), [3, 4, 6, 7, 9, 0, 2, 3, 5, 6]);
    assert_eq!(test.labels().unwrap(), [8]);
    assert_eq!(splits.train.classes(), names);
    assert_eq!(test.classes(), names);
    assert_eq!(splits.train.name(0), format!("data_batch_1{suffix}#0"));
    assert_eq!(splits.train.name(9), format!("data_batch_5{suffix}#1"));
    assert_eq!(test.name(0), format!("test_batch{suffix}#0"));
    check_images(&splits.train, 1, 2);
    check_images(test, 6, 1);
}

const NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const NUMBERS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Packs `folder` under `name` into a .tar.gz.
fn pack(folder: &Path, name: &str, archive: &Path) {
    let gz = GzEncoder::new(fs::File::create(archive).unwrap(), Compression::fast());
    let mut tar = tar::Builder::new(gz);
    tar.append_dir_all(name, folder).unwrap();
    tar.into_inner().unwrap().finish().unwrap();
}

fn detect_and_open(path: &Path) -> Result<Splits> {
    open(path, detect(path).unwrap_or_else(|| panic!("{} is not recognised", path.display())))
}

fn error(path: &Path) -> String {
    detect_and_open(path).unwrap_err().to_string()
}

#[test]
fn cifar_10_binary_from_folder_parent_and_archive() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("cifar-10-batches-bin");
    write_cifar_10_binary(&folder);
    assert_eq!(detect(&folder), Some(DataFormat::CifarBinary));
    check_cifar_10(&detect_and_open(&folder).unwrap(), ".bin", &NUMBERS);
    check_cifar_10(&detect_and_open(dir.path()).unwrap(), ".bin", &NUMBERS);

    fs::write(folder.join("batches.meta.txt"), NAMES.join("\n") + "\n\n").unwrap();
    check_cifar_10(&detect_and_open(&folder).unwrap(), ".bin", &NAMES);
    let archive = dir.path().join("cifar-10-binary.tar.gz");
    pack(&folder, "cifar-10-batches-bin", &archive);
    check_cifar_10(&detect_and_open(&archive).unwrap(), ".bin", &NAMES);

    // A renamed folder is still one, and the data are the same.
    let renamed = dir.path().join("mine");
    fs::rename(&folder, &renamed).unwrap();
    let print = |path: &Path| detect_and_open(path).unwrap().train.fingerprint().unwrap();
    assert_eq!(print(&renamed), print(&archive));
    fs::write(renamed.join("data_batch_2.bin"), [record(&[6], 2, 0), record(&[7], 2, 7)].concat()).unwrap();
    assert_ne!(print(&renamed), print(&archive));
}

#[test]
fn cifar_10_python_from_folder_and_archive() {
    let folder = fixtures().join("cifar-10-batches-py");
    check_cifar_10(&detect_and_open(&folder).unwrap(), "", &NAMES);
    let dir = TempDir::new().unwrap();
    let archive = dir.path().join("cifar-10-python.tar.gz");
    pack(&folder, "cifar-10-batches-py", &archive);
    assert_eq!(detect(&archive), Some(DataFormat::CifarPython));
    check_cifar_10(&detect_and_open(&archive).unwrap(), "", &NAMES);
}

#[test]
fn batches_rewritten_by_python_3() {
    let dir = TempDir::new().unwrap();
    copy(&fixtures().join("cifar-10-batches-py"), dir.path());
    for protocol in [2, 4, 5] {
        let batch = fixtures().join(format!("rewritten/data_batch_1.p{protocol}"));
        fs::copy(batch, dir.path().join("data_batch_1")).unwrap();
        check_cifar_10(&detect_and_open(dir.path()).unwrap(), "", &NAMES);
    }
}

#[test]
fn cifar_100_has_fine_labels_in_both_layouts() {
    let dir = TempDir::new().unwrap();
    let train: Vec<_> = (0..3).flat_map(|i| record(&[i, 50 + 7 * i], 1, i as usize)).collect();
    fs::write(dir.path().join("train.bin"), train).unwrap();
    fs::write(dir.path().join("test.bin"), record(&[0, 0], 2, 0)).unwrap();
    let names: Vec<_> = (0..100).map(|i| format!("fine {i}")).collect();
    fs::write(dir.path().join("fine_label_names.txt"), names.join("\n")).unwrap();
    let archive = dir.path().join("cifar-100-python.tar.gz");
    pack(&fixtures().join("cifar-100-python"), "cifar-100-python", &archive);

    for path in [dir.path(), &fixtures().join("cifar-100-python"), &archive] {
        let splits = detect_and_open(path).unwrap();
        assert_eq!(splits.train.labels().unwrap(), [50, 57, 64]);
        assert_eq!(splits.test.as_ref().unwrap().labels().unwrap(), [0]);
        assert_eq!(splits.train.classes(), names);
        check_images(&splits.train, 1, 3);
        check_images(splits.test.as_ref().unwrap(), 2, 1);
    }
}

#[test]
fn other_things_are_not_taken_for_cifar() {
    let dir = TempDir::new().unwrap();
    assert_eq!(detect(dir.path()), None);
    assert_eq!(detect(&dir.path().join("nothing.tar.gz")), None);
    for split in ["train", "test"] {
        fs::create_dir_all(dir.path().join(split).join("class")).unwrap();
    }
    assert_eq!(detect(dir.path()), None);
    let lists = TempDir::new().unwrap();
    fs::write(lists.path().join("train"), "a list of something").unwrap();
    assert_eq!(detect(lists.path()), None);
    fs::write(lists.path().join("x.tar.gz"), "not gzipped").unwrap();
    assert_eq!(detect(&lists.path().join("x.tar.gz")), None);
    pack(lists.path(), "mine", &dir.path().join("mine.tar.gz"));
    assert_eq!(detect(&dir.path().join("mine.tar.gz")), None);
    let message = open(lists.path(), DataFormat::CifarBinary).unwrap_err();
    assert!(
        message.to_string().contains("there is no cifar-10-batches-bin and no cifar-100-binary"),
        "{message}"
    );
}

#[test]
fn errors_name_the_file_and_what_is_wrong() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    write_cifar_10_binary(path);
    let batch = path.join("data_batch_3.bin");
    let good = fs::read(&batch).unwrap();
    let expect = |parts: &[&str]| {
        let message = error(path);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };

    fs::write(&batch, &good[..good.len() - 1]).unwrap();
    expect(&["data_batch_3.bin: expected records of 3073 bytes", "found 6145 bytes, 3072 too many for 1"]);
    fs::write(&batch, "").unwrap();
    expect(&["data_batch_3.bin", "an empty file"]);
    let mut wrong = good.clone();
    wrong[3073] = 10;
    fs::write(&batch, wrong).unwrap();
    expect(&["data_batch_3.bin: expected labels below 10, found 10 for image 1"]);
    fs::remove_file(&batch).unwrap();
    fs::remove_file(path.join("test_batch.bin")).unwrap();
    expect(&["data_batch_3.bin, test_batch.bin of cifar-10-batches-bin is missing"]);
    fs::write(&batch, good).unwrap();
    fs::write(path.join("test_batch.bin"), record(&[1], 6, 0)).unwrap();
    fs::write(path.join("batches.meta.txt"), "cat\ndog\n").unwrap();
    expect(&["batches.meta.txt: expected the names of 10 classes, found 2 names"]);

    fs::write(path.join("train.bin"), record(&[0, 0], 0, 0)).unwrap();
    expect(&["both CIFAR-10 and CIFAR-100"]);
}

#[test]
fn errors_of_pickled_batches_name_what_is_wrong() {
    let dir = TempDir::new().unwrap();
    copy(&fixtures().join("cifar-10-batches-py"), dir.path());
    let batch = dir.path().join("data_batch_4");
    let good = fs::read(&batch).unwrap();
    // Each replacement keeps the pickle's own lengths in order.
    for (from, to, message) in [
        (&b"U\x04data"[..], &b"U\x04date"[..], "a dict of 4 without \"data\""),
        (b"U\x06labels", b"U\x06lapels", "a dict of 4 without \"labels\""),
        (b"U\x02u1", b"U\x02i1", "data of uint8 [n, 3072], found int8 [2, 3072]"),
        (b"U\x02u1", b"U\x02u2", "a numpy array of uint16 [2, 3072] that holds 6144 bytes"),
        (b"U\x02u1", b"U\x02O8", "\"O8\", which are no plain numbers"),
        (b"K\x02M\x00\x0c\x86", b"K\x04M\x00\x06\x86", "found uint8 [4, 1536]"),
        (b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86", "[3, 3072] that holds 6144 bytes"),
        (b"\x80\x02}", b"\x80\x09}", "protocol 9"),
        (b"(K\x02K\x03e", b"(K\x02Nt0", "expected 2 labels, found 0"),
        (b"(K\x02K\x03e", b"(K\x02K\x0ae", "labels below 10, found 10 for image 1"),
        (b"(K\x02K\x03e", b"(K\x02Ne", "labels of which number 1 is None"),
    ] {
        let at = good.windows(from.len()).position(|window| window == from);
        let at = at.unwrap_or_else(|| panic!("{from:?} is not in the fixture"));
        fs::write(&batch, [&good[..at], to, &good[at + from.len()..]].concat()).unwrap();
        let found = error(dir.path());
        assert!(found.contains(message) && found.contains("data_batch_4"), "{found}\nshould say: {message}");
    }
}

#[test]
fn archives_are_bounded_and_damage_is_noticed() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("folder");
    write_cifar_10_binary(&folder);
    let whole = dir.path().join("whole.tar.gz");
    pack(&folder, "cifar-10-batches-bin", &whole);
    let bytes = fs::read(&whole).unwrap();
    let cut = dir.path().join("cut.tar.gz");
    for part in 0..16 {
        fs::write(&cut, &bytes[..bytes.len() * part / 16]).unwrap();
        let _ = detect(&cut);
        assert!(open(&cut, DataFormat::CifarBinary).is_err(), "{part}/16");
    }

    // A bomb: zeros without end, behind a name that is wanted.
    let bomb = dir.path().join("bomb.tar.gz");
    let mut gz = GzEncoder::new(fs::File::create(&bomb).unwrap(), Compression::fast());
    let mut header = tar::Header::new_gnu();
    header.set_path("cifar-10-batches-bin/data_batch_1.bin").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    gz.write_all(header.as_bytes()).unwrap();
    for _ in 0..513 {
        gz.write_all(&[0; 1 << 20]).unwrap();
    }
    gz.finish().unwrap();
    assert!(error(&bomb).contains("more than 512 MiB"), "{}", error(&bomb));
}

#[test]
fn every_flipped_byte_outside_the_pixels_is_an_error_or_a_data_set() {
    let dir = TempDir::new().unwrap();
    copy(&fixtures().join("cifar-100-python"), dir.path());
    let batch = dir.path().join("test");
    let good = fs::read(&batch).unwrap();
    for at in (0..good.len()).filter(|at| !(400..3000).contains(at)) {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        fs::write(&batch, bad).unwrap();
        if let Ok(splits) = open(dir.path(), DataFormat::CifarPython) {
            assert_eq!(splits.test.unwrap().load(0).unwrap().dimensions(), (32, 32));
        }
    }
    for end in (0..good.len()).filter(|at| !(400..3000).contains(at)) {
        fs::write(&batch, &good[..end]).unwrap();
        assert!(open(dir.path(), DataFormat::CifarPython).is_err(), "cut at {end}");
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
