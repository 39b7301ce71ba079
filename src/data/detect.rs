//! What a path holds, and opening it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::dataset::{Dataset, Splits};
use super::{cifar, folder, idx, list, packed, synthetic};
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
    /// One file made by `lemniscate pack`.
    Packed,
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
            DataFormat::Packed => "packed",
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

/// Opens `path` as `forced`, or as what it looks like: `synthetic` or `synthetic:...` where no such file is, a CIFAR
/// or idx folder or file, a packed file, a list (`.txt`, `.csv`, `.tsv`), a folder with `train/`, any other folder.
///
/// # Errors
/// If nothing usable is there; the error says what was looked for.
pub fn open(path: &Path, forced: Option<DataFormat>, options: &OpenOptions) -> Result<Splits> {
    let format = match forced {
        Some(format) => format,
        None => detect(path)?,
    };
    let mut splits = open_as(path, format, options, "")?;
    if let Some(test_path) = &options.test_path {
        let (test, notes) = open_test(test_path, &splits.train, options)?;
        splits.test = Some(test);
        splits.notes.extend(notes);
    }
    Ok(splits)
}

/// What `path` looks like.
///
/// # Errors
/// If there is nothing, or nothing known.
pub fn detect(path: &Path) -> Result<DataFormat> {
    let bad = |reason: &str, hint: &str| {
        Err(Error::Data { path: path.to_owned(), reason: reason.into(), hint: Some(hint.into()) })
    };
    if !path.exists() {
        let text = path.to_string_lossy();
        if text == "synthetic" || text.starts_with("synthetic:") {
            return Ok(DataFormat::Synthetic);
        }
        return bad("there is no such file or folder", "`synthetic` names the built-in generated set");
    }
    if packed::detect(path) {
        return Ok(DataFormat::Packed);
    }
    if let Some(format) = cifar::detect(path) {
        return Ok(format);
    }
    if idx::detect(path) {
        return Ok(DataFormat::Idx);
    }
    if path.is_dir() {
        let classes = path.join("train").is_dir();
        return Ok(if classes { DataFormat::Folder } else { DataFormat::Flat });
    }
    if list::is_named_so(path) {
        return Ok(DataFormat::List);
    }
    bad(
        "not a data set of a known kind",
        "read are folders of images, lists (.txt, .csv, .tsv), CIFAR-10 and CIFAR-100, idx files, and what `lemniscate pack` wrote",
    )
}

fn open_as(path: &Path, format: DataFormat, options: &OpenOptions, prefix: &str) -> Result<Splits> {
    let wrong_kind = |expected: &str| {
        let found = if path.is_dir() { "a folder" } else { "a file" };
        let reason = format!("{format} needs {expected}, and this is {found}");
        Err(Error::Data { path: path.to_owned(), reason, hint: None })
    };
    match format {
        DataFormat::Synthetic => synthetic::open(&path.to_string_lossy(), options.seed),
        _ if !path.exists() => {
            let reason = "there is no such file or folder".into();
            Err(Error::Data { path: path.to_owned(), reason, hint: None })
        }
        DataFormat::CifarBinary | DataFormat::CifarPython => cifar::open(path, format),
        DataFormat::Idx => idx::open(path),
        DataFormat::Packed if path.is_dir() => wrong_kind("a packed file"),
        DataFormat::Packed => packed::open(path),
        DataFormat::List if path.is_dir() => wrong_kind("a list file"),
        DataFormat::List => list::open(path),
        DataFormat::Folder | DataFormat::Flat if !path.is_dir() => wrong_kind("a folder"),
        DataFormat::Folder | DataFormat::Flat => folder::open(path, format, options, prefix),
    }
}

/// The images of `--test-data`: a data set's own test split, else all its images. In a plain folder, subfolders named
/// like `train`'s classes give labels.
fn open_test(path: &Path, train: &Dataset, options: &OpenOptions) -> Result<(Dataset, Vec<String>)> {
    let mut format = detect(path)?;
    if format == DataFormat::Flat && train.classes().iter().any(|class| path.join(class).is_dir()) {
        format = DataFormat::Folder;
    }
    let splits = open_as(path, format, options, "test-data-")?;
    let test = splits.test.unwrap_or(splits.train);
    let test = if train.labels().is_some() { test.aligned_with(train, path)? } else { test.without_labels() };
    let notes = if format == DataFormat::Flat { Vec::new() } else { splits.notes };
    Ok((test, notes))
}
