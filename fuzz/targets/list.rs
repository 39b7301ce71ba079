//! List files. The first byte says what separates the fields.
#![no_main]

mod folder;

use std::fs;
use std::path::PathBuf;

use folder::{folder, open_all};
use lemniscate::data::DataFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    thread_local!(static FOLDER: PathBuf = folder());
    let Some((&kind, rest)) = data.split_first() else { return };
    FOLDER.with(|folder| {
        let path = folder.join(if kind & 1 == 1 { "list.tsv" } else { "list.csv" });
        fs::write(&path, rest).expect("written");
        if let Some(splits) = open_all(&path, Some(DataFormat::List)) {
            // A row for a line, and no more classes than rows.
            let lines = rest.split(|&byte| byte == b'\n').count();
            assert!(splits.train.len() <= lines && splits.train.n_classes() <= splits.train.len());
        }
    });
});
