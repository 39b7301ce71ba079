//! Folders of images, with classes ([`DataFormat::Folder`]) or without ([`DataFormat::Flat`]).
//!
//! The rules: a folder that contains `train/` is a `Folder`: what is under `train/` gets bank rows, what is under
//! `val/` (or, without images there, `test/`) is for testing. Each folder directly under `train/` is a class, however
//! deep its images lie; classes are numbered in the order of their names, as torchvision's `ImageFolder` does. If
//! all images lie directly in `train/`, there are no labels. Any other folder is `Flat`: all images under it,
//! without labels, unless `Folder` is forced, which makes its own subfolders the classes.

use std::path::Path;
use std::sync::Arc;

use super::dataset::{Dataset, Splits};
use super::decode::EXTENSIONS;
use super::detect::{DataFormat, OpenOptions};
use super::index::{self, Checked};
use super::walk::{Walk, walk};
use crate::error::{Error, Result};

/// Opens the folder `root` as `format`; `prefix` distinguishes index files of several folders in one run.
///
/// # Errors
/// If it cannot be listed, holds no image, or changed since its index was written.
pub(super) fn open(root: &Path, format: DataFormat, options: &OpenOptions, prefix: &str) -> Result<Splits> {
    let mut notes = Vec::new();
    let mut find = |path: &Path, split: &str| find(path, &format!("{prefix}{split}"), options, &mut notes);
    if format == DataFormat::Flat {
        let found = find(root, "train")?;
        let train = unlabelled(root, format, &found)?;
        let classes = found.classes().len();
        if classes > 1 {
            notes.push(format!(
                "{} has no train/ folder: images without labels; --data-format folder makes its {classes} folders classes",
                root.display()
            ));
        }
        return Ok(Splits { train, test: None, format, root: root.to_owned(), notes });
    }

    let train_root = if root.join("train").is_dir() { root.join("train") } else { root.to_owned() };
    let found = find(&train_root, "train")?;
    let mut tests = Vec::new();
    if train_root != root {
        for name in ["val", "test"] {
            if root.join(name).is_dir() {
                tests.push((name, find(&root.join(name), name)?));
            }
        }
    }
    let train = if found.in_root() < found.n_files() {
        labelled(&train_root, &found, &mut notes)?
    } else if train_root != root {
        unlabelled(&train_root, format, &found)?
    } else {
        return Err(Error::Data {
            path: root.to_owned(),
            reason: "there is neither a train/ folder nor a subfolder with images".into(),
            hint: Some("--data-format flat takes the images without labels".into()),
        });
    };

    let chosen = tests.iter().position(|(_, found)| found.n_files() > 0);
    let mut test = None;
    if let Some((name, found)) = chosen.map(|chosen| &tests[chosen]) {
        let path = root.join(name);
        test = Some(if train.labels().is_none() {
            unlabelled(&path, format, found)?
        } else if found.in_root() == found.n_files() {
            notes.push(format!("{name}/ has no class folders: its images have no labels"));
            unlabelled(&path, format, found)?
        } else {
            labelled(&path, found, &mut notes)?.aligned_with(&train, &path)?
        });
    }
    for (i, (name, found)) in tests.iter().enumerate() {
        if found.n_files() == 0 {
            notes.push(format!("{name}/ holds no image"));
        } else if chosen != Some(i) {
            notes.push(format!("val/ is used for testing, {name}/ is not"));
        }
    }
    Ok(Splits { train, test, format, root: root.to_owned(), notes })
}

/// Lists `root`, or checks the index of an earlier listing and uses that.
fn find(root: &Path, name: &str, options: &OpenOptions, notes: &mut Vec<String>) -> Result<Walk> {
    let found = match &options.index_dir {
        None => walk(root)?,
        Some(folder) => indexed(root, &folder.join(format!("{name}.index")), options, notes)?,
    };
    if found.skipped > 0 {
        notes.push(format!(
            "{}: {} files without an image's extension were passed over",
            root.display(),
            found.skipped
        ));
    }
    if found.loops > 0 {
        notes.push(format!("{}: {} links that lead back were not followed", root.display(), found.loops));
    }
    Ok(found)
}

fn indexed(root: &Path, path: &Path, options: &OpenOptions, notes: &mut Vec<String>) -> Result<Walk> {
    if !path.exists() {
        let found = walk(root)?;
        index::write(path, &found)?;
        return Ok(found);
    }
    // The index saves time, nothing else: with a broken one the folder is listed again, and whether it still is the
    // same data is for the checkpoint's fingerprint to say.
    let checked = match index::read(path) {
        Ok(walk) => index::check(root, walk)?,
        Err(error) => {
            notes.push(format!("{error}; the folder was listed again"));
            Checked::SameFiles(walk(root)?)
        }
    };
    let found = match checked {
        Checked::Untouched(found) => return Ok(found),
        Checked::SameFiles(found) => found,
        Checked::Changed(found, changes) if options.accept_changes => {
            notes.push(format!("{}: changed since the run began: {changes}", root.display()));
            found
        }
        Checked::Changed(_, changes) => {
            return Err(Error::Data {
                path: root.to_owned(),
                reason: format!("the images changed since the run began: {changes}"),
                hint: Some(
                    "bank rows would belong to other images; restore the files or start a new run".into(),
                ),
            });
        }
    };
    index::write(path, &found)?;
    Ok(found)
}

fn unlabelled(root: &Path, format: DataFormat, found: &Walk) -> Result<Dataset> {
    if found.n_files() == 0 {
        return Err(Error::Data {
            path: root.to_owned(),
            reason: "there is no image".into(),
            hint: Some(format!("looked for files named .{}", EXTENSIONS.join(", ."))),
        });
    }
    Dataset::unlabelled(format, Arc::new(found.files(root, |_| true)?))
}

fn labelled(root: &Path, found: &Walk, notes: &mut Vec<String>) -> Result<Dataset> {
    let classes = found.classes();
    let names: Vec<String> = classes.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut distinct = names.clone();
    distinct.sort_unstable();
    if let Some(pair) = distinct.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::Data {
            path: root.to_owned(),
            reason: format!("two class folders look the same once shown as UTF-8: {:?}", pair[0]),
            hint: Some("rename one".into()),
        });
    }
    let mut counts = vec![0usize; classes.len()];
    let mut labels = Vec::with_capacity(found.n_files());
    for dir in &found.dirs {
        let Some(class) = dir.class() else { continue };
        let label = classes.binary_search(&class).unwrap_or_else(|at| at);
        counts[label] += dir.ends.len();
        labels.resize(labels.len() + dir.ends.len(), label as u32);
    }
    let empty: Vec<&str> =
        names.iter().zip(&counts).filter(|&(_, &count)| count == 0).map(|(name, _)| name.as_str()).collect();
    if !empty.is_empty() {
        let shown = empty.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        notes.push(format!("{}: {} classes hold no image: {shown}", root.display(), empty.len()));
    }
    if found.in_root() > 0 {
        notes.push(format!(
            "{}: {} images lie outside the class folders and are not used",
            root.display(),
            found.in_root()
        ));
    }
    let files = found.files(root, |dir| !dir.path.is_empty())?;
    Dataset::labelled(DataFormat::Folder, Arc::new(files), labels, names)
}
