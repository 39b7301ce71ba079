//! What a path holds, and opening it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::dataset::Splits;
use super::{cifar, idx, synthetic};
use crate::error::{Error, Result};

/// The layouts that are read; `--data-format` forces one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// `DIR/train/CLASS/*` with `DIR/val/CLASS/*` or `DIR/test/CLASS/*`.
    Folder,
    /// A folder of images without labels, nested as it likes.
    Flat,
    /// A text file of `path[,label]` lines.
    List,
    /// CIFAR-10 or CIFAR-100, binary version: folder or .tar.gz.
    CifarBinary,
    /// CIFAR-10 or CIFAR-100, Python version: folder or .tar.gz.
    CifarPython,
    /// MNIST-like idx files, plain or .gz.
    Idx,
    /// The built-in generated set.
    Synthetic,
}

impl fmt::Display for DataFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DataFormat::Folder => "folder",
            DataFormat::Flat => "flat",
            DataFormat::List => "list",
            DataFormat::CifarBinary => "cifar-binary",
            DataFormat::CifarPython => "cifar-python",
            DataFormat::Idx => "idx",
            DataFormat::Synthetic => "synthetic",
        })
    }
}

/// How to open a data set.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Folder in which the sorted file index is kept (a run folder); without one nothing is written.
    pub index_dir: Option<PathBuf>,
    /// Take the data as it is now even if it differs from the index in `index_dir`, and renew the index.
    pub accept_changes: bool,
    /// Seed of the generated set.
    pub seed: u64,
    /// Test images from somewhere else (`--test-data`), in any layout.
    pub test_path: Option<PathBuf>,
}

/// Opens `path` as `forced`, or as what it looks like.
///
/// # Errors
/// If nothing usable is there; the error says what was looked for.
pub fn open(path: &Path, forced: Option<DataFormat>, options: &OpenOptions) -> Result<Splits> {
    match forced {
        Some(DataFormat::Synthetic) => synthetic::open(&path.to_string_lossy(), options.seed),
        Some(format @ (DataFormat::CifarBinary | DataFormat::CifarPython)) => cifar::open(path, format),
        Some(DataFormat::Idx) => idx::open(path),
        _ if idx::detect(path) => idx::open(path),
        _ => match cifar::detect(path) {
            Some(format) => cifar::open(path, format),
            None => {
                Err(Error::Data { path: path.to_owned(), reason: "there is no image".into(), hint: None })
            }
        },
    }
}
