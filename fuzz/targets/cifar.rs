//! CIFAR in all its layouts. The first byte says which one the rest is: a batch, a file of class names, or an archive.
#![no_main]

mod folder;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use folder::{folder, open_all};
use lemniscate::data::DataFormat::{CifarBinary, CifarPython};
use libfuzzer_sys::fuzz_target;

/// Files that hold images, and the one that names the classes.
const LAYOUTS: [(&[&str], &str); 4] = [
    (
        &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
            "test_batch.bin",
        ],
        "batches.meta.txt",
    ),
    (&["train.bin", "test.bin"], "fine_label_names.txt"),
    (
        &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"],
        "batches.meta",
    ),
    (&["train", "test"], "meta"),
];

/// A folder for each layout in which every batch is a link to one file, and every file of names to another.
fn folders() -> PathBuf {
    let root = folder();
    for (number, (batches, names)) in LAYOUTS.iter().enumerate() {
        let place = root.join(number.to_string());
        fs::create_dir(&place).expect("a folder");
        for batch in *batches {
            symlink("content", place.join(batch)).expect("a link");
        }
        symlink("names", place.join(names)).expect("a link");
    }
    root
}

/// Puts the right checksum into everything that lies where a tar archive has a header, so that more than the first check
/// is tried.
fn with_checksums(mut tar: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + 512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = String::from_utf8_lossy(&header[124..136]);
        let size = usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(512).saturating_add(size.div_ceil(512).saturating_mul(512));
    }
    tar
}

fn archive(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("written");
    open_all(path, None);
    for format in [CifarBinary, CifarPython] {
        open_all(path, Some(format));
    }
}

fuzz_target!(|data: &[u8]| {
    thread_local!(static ROOT: PathBuf = folders());
    let Some((&kind, rest)) = data.split_first() else { return };
    ROOT.with(|root| match kind % 10 {
        kind @ 0..=7 => {
            // Batches, or names beside a batch without images in it, which is refused after the names were read.
            let place = root.join((kind % 4).to_string());
            let (file, other) = if kind < 4 { ("content", "names") } else { ("names", "content") };
            fs::write(place.join(file), rest).expect("written");
            if kind < 4 {
                let _ = fs::remove_file(place.join(other));
            } else {
                fs::write(place.join(other), b"\x80").expect("written");
            }
            let format = if kind % 4 < 2 { CifarBinary } else { CifarPython };
            if let Some(splits) = open_all(&place, Some(format)) {
                assert!(splits.train.load(splits.train.len() - 1).is_ok());
            }
        }
        8 => archive(&root.join("some.tar.gz"), rest),
        _ => archive(&root.join("some.tar"), &with_checksums(rest.to_vec())),
    });
});
