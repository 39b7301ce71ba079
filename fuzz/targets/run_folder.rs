//! The other files of a run that are read back: `metrics.jsonl`, and the index of its images. The first byte says which.
#![no_main]

mod folder;

use std::fs;
use std::path::PathBuf;

use folder::folder;
use lemniscate::data::index;
use lemniscate::report::curves::curves_svg;
use lemniscate::report::{MetricsWriter, metrics};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    thread_local!(static FOLDER: PathBuf = folder());
    let Some((&kind, rest)) = data.split_first() else { return };
    FOLDER.with(|folder| match kind % 3 {
        0 => {
            let path = folder.join("metrics.jsonl");
            fs::write(&path, rest).expect("written");
            let Ok(records) = metrics::read(&path) else { return };
            assert!(curves_svg("fuzz", &records).starts_with("<svg"));
            // Continued after any of its lines, it is a file of records again.
            let half = rest[..rest.len() / 2].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let mut writer = MetricsWriter::resume(&path, half as u64).expect("a line ends there");
            writer.note(0, 0, "resumed").expect("written");
            assert!(metrics::read(&path).is_ok_and(|records| !records.is_empty()));
        }
        1 => {
            let path = folder.join("train.index");
            fs::write(&path, rest).expect("written");
            let _ = index::read(&path);
        }
        _ => {
            // With the hash that it should have, so that more than the first check is tried.
            let path = folder.join("train.index");
            fs::write(&path, [rest, blake3::hash(rest).as_bytes()].concat()).expect("written");
            let Ok(walk) = index::read(&path) else { return };
            let names: usize = walk.dirs.iter().map(|dir| dir.names().count()).sum();
            assert_eq!(names, walk.n_files());
            let _ = (walk.classes().len(), walk.in_root());
            let _ = walk.files(folder, |_| true).map(|files| lemniscate::data::ImageSource::len(&files));
            index::write(&path, &walk).expect("written");
            assert!(index::read(&path).is_ok_and(|again| again == walk));
        }
    });
});
