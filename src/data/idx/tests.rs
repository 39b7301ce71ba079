//! Small idx files, whole and damaged.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;

fn idx(extents: &[u32], content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, extents.len() as u8];
    bytes.extend(extents.iter().flat_map(|extent| extent.to_be_bytes()));
    bytes.extend_from_slice(content);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, if name.ends_with(".gz") { gz(bytes) } else { bytes.to_vec() }).unwrap();
}

/// Three training images of 2 rows and 4 columns, two test images.
fn mnist(dir: &Path, dash: &str, end: &str) {
    let pixels: Vec<u8> = (0..24).collect();
    write(dir, &format!("train-images{dash}idx3-ubyte{end}"), &idx(&[3, 2, 4], &pixels));
    write(dir, &format!("train-labels{dash}idx1-ubyte{end}"), &idx(&[3], &[4, 0, 2]));
    write(dir, &format!("t10k-images{dash}idx3-ubyte{end}"), &idx(&[2, 2, 4], &pixels[8..]));
    write(dir, &format!("t10k-labels{dash}idx1-ubyte{end}"), &idx(&[2], &[0, 5]));
}

#[test]
fn plain_gzipped_and_in_torchvisions_folders() {
    for (folder, dash, end) in [("", "-", ""), ("", "-", ".gz"), ("MNIST/raw", "-", ""), ("raw", ".", ".gz")]
    {
        let dir = TempDir::new().unwrap();
        assert!(!detect(dir.path()));
        mnist(&dir.path().join(folder), dash, end);
        assert!(detect(dir.path()), "{folder} {dash} {end}");
        let Splits { train, test, notes, .. } = open(dir.path()).unwrap();
        let test = test.unwrap();
        assert_eq!((train.len(), test.len(), notes.len()), (3, 2, 0));
        assert_eq!((train.labels().unwrap(), test.labels().unwrap()), (&[4, 0, 2][..], &[0, 5][..]));
        assert_eq!(train.classes(), ["0", "1", "2", "3", "4", "5"]);
        assert_eq!(test.classes(), train.classes());
        assert_eq!(train.name(1), format!("train-images{dash}idx3-ubyte{end}#1"));
        let image = train.load(1).unwrap();
        assert_eq!(image.dimensions(), (4, 2));
        for (x, y, rgb) in image.enumerate_pixels() {
            assert_eq!(rgb.0, [(8 + 4 * y + x) as u8; 3]);
        }
        assert_eq!(test.load(0).unwrap(), image);
    }
}

#[test]
fn labels_may_be_missing() {
    let dir = TempDir::new().unwrap();
    mnist(dir.path(), "-", "");
    fs::remove_file(dir.path().join("t10k-labels-idx1-ubyte")).unwrap();
    let splits = open(dir.path()).unwrap();
    assert_eq!((splits.train.n_classes(), splits.test.unwrap().labels()), (5, None));
    mnist(dir.path(), "-", "");
    fs::remove_file(dir.path().join("train-labels-idx1-ubyte")).unwrap();
    let splits = open(dir.path()).unwrap();
    assert_eq!((splits.train.labels(), splits.test.unwrap().labels()), (None, None));
    assert_eq!(splits.notes.len(), 1);
    fs::remove_file(dir.path().join("t10k-images-idx3-ubyte")).unwrap();
    assert!(open(dir.path()).unwrap().test.is_none());
    fs::remove_file(dir.path().join("train-images-idx3-ubyte")).unwrap();
    assert!(!detect(dir.path()));
    assert!(open(dir.path()).unwrap_err().to_string().contains("no train-images-idx3-ubyte"));
}

#[test]
fn colour_has_a_fourth_axis() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "train-images-idx4-ubyte.gz", &idx(&[1, 1, 2, 3], &[1, 2, 3, 4, 5, 6]));
    let image = open(dir.path()).unwrap().train.load(0).unwrap();
    assert_eq!(image.into_raw(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_prefix_is_allowed_and_an_ambiguity_refused() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "emnist-letters-train-images-idx3-ubyte.gz", &idx(&[1, 1, 1], &[7]));
    assert_eq!(open(dir.path()).unwrap().train.len(), 1);
    write(dir.path(), "emnist-letters-train-images-idx3-ubyte", &idx(&[2, 1, 1], &[7, 8]));
    assert_eq!(open(dir.path()).unwrap().train.len(), 2, "the plain file is preferred");
    write(dir.path(), "emnist-digits-train-images-idx3-ubyte", &idx(&[1, 1, 1], &[7]));
    let message = open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("emnist-digits-") && message.contains("emnist-letters-"), "{message}");
}

#[test]
fn errors_name_the_file_and_what_is_wrong() {
    let pixels = [7; 8];
    for (file, bytes, message) in [
        ("train-images", idx(&[1, 2], &[1, 2]), "expected extents [images, rows, columns]"),
        ("train-images", idx(&[1, 2, 2, 2], &pixels), "found [1, 2, 2, 2]"),
        ("train-images", idx(&[0, 2, 4], &[]), "found [0, 2, 4]"),
        (
            "train-images",
            idx(&[1, 2, 4], &pixels[..7]),
            "expected the content of extents [1, 2, 4], found 7 bytes after them",
        ),
        ("train-images", idx(&[1, 2, 3], &pixels), "expected 6 bytes of content, found more"),
        ("train-images", idx(&[u32::MAX, u32::MAX, u32::MAX], &pixels), "expected the content of extents"),
        (
            "train-images",
            b"\x00\x00\x0d\x01\0\0\0\x01".to_vec(),
            "expected bytes (idx type 08), found idx type 0d",
        ),
        ("train-images", b"\x89PNG....".to_vec(), "expected an idx file"),
        ("train-images", b"\0\0\x08\x03\0\0".to_vec(), "cannot read"),
        ("train-labels", idx(&[2], &[1, 2]), "expected labels of 1 images, found extents [2]"),
    ] {
        let dir = TempDir::new().unwrap();
        write(dir.path(), "train-images-idx3-ubyte", &idx(&[1, 2, 4], &pixels));
        let name = if file == "train-images" { "train-images-idx3-ubyte" } else { "train-labels-idx1-ubyte" };
        write(dir.path(), name, &bytes);
        let found = open(dir.path()).unwrap_err().to_string();
        assert!(found.contains(message) && found.contains(name), "{found}\nshould say: {message}");
    }
}

#[test]
fn a_compressed_claim_is_bounded_by_what_is_there() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    write(path, "train-images-idx3-ubyte.gz", &idx(&[60_000, 28, 28], &[0; 100]));
    assert!(open(path).unwrap_err().to_string().contains("bytes compressed"));
    // Far more behind the header than it declares is left unread.
    write(path, "train-images-idx3-ubyte.gz", &idx(&[1, 1, 1], &[0; 10_000_000]));
    assert!(open(path).unwrap_err().to_string().contains("more of them"));
}

#[test]
fn damaged_files_cost_an_error_at_most() {
    let whole = idx(&[3, 2, 4], &[9; 24]);
    for end in ["", ".gz"] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(format!("train-images-idx3-ubyte{end}"));
        let bytes = if end.is_empty() { whole.clone() } else { gz(&whole) };
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(open(dir.path()).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                fs::write(&path, bad).unwrap();
                if let Ok(splits) = open(dir.path()) {
                    splits.train.load(0).unwrap();
                }
            }
        }
    }
}
