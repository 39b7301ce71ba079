//! MNIST-like files: images and labels, plain and gzipped. The first byte says which one the rest is.
#![no_main]

mod folder;

use std::fs;
use std::path::PathBuf;

use folder::{folder, open_all};
use lemniscate::data::DataFormat;
use libfuzzer_sys::fuzz_target;

/// Two grey images of 2 x 2 pixels, for labels to belong to.
const IMAGES: &[u8] = &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8];

fuzz_target!(|data: &[u8]| {
    thread_local!(static FOLDER: PathBuf = folder());
    let Some((&kind, rest)) = data.split_first() else { return };
    FOLDER.with(|folder| {
        let names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"];
        for name in names {
            let _ = fs::remove_file(folder.join(name));
            let _ = fs::remove_file(folder.join(format!("{name}.gz")));
        }
        let end = if kind & 1 == 1 { ".gz" } else { "" };
        let labels = kind & 2 == 2;
        fs::write(folder.join(format!("{}{end}", names[usize::from(labels)])), rest).expect("written");
        if labels {
            fs::write(folder.join(names[0]), IMAGES).expect("written");
        }
        if let Some(splits) = open_all(folder, Some(DataFormat::Idx)) {
            assert!(splits.train.load(0).is_ok());
        }
    });
});
