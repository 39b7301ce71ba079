//! A folder in memory for the targets whose readers take paths.

use std::path::{Path, PathBuf};

use lemniscate::data::{DataFormat, OpenOptions, Splits, open};

/// A new folder, in memory where the system has such a place. It stays behind when libFuzzer ends the process; `fuzz/run.sh`
/// removes it.
pub fn folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = tempfile::Builder::new().prefix("lemniscate-fuzz.").tempdir_in(parent);
    folder.expect("a temporary folder").keep()
}

/// Opens `path` as `format` and looks at all that was found, as `train` and `data` do.
#[allow(dead_code, reason = "not every target that has a folder holds images")]
pub fn open_all(path: &Path, format: Option<DataFormat>) -> Option<Splits> {
    let splits = open(path, format, &OpenOptions::default()).ok()?;
    for data in std::iter::once(&splits.train).chain(&splits.test) {
        assert!(!data.is_empty());
        assert!(data.labels().is_none_or(|labels| labels.len() == data.len()));
        for index in [0, data.len() - 1] {
            let _ = data.name(index);
            let class = data.label(index).map(|label| data.class_name(label));
            assert_ne!(class, Some(None), "a label without a class");
        }
        let _ = data.fingerprint();
    }
    Some(splits)
}
