//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their binary and their Python version, from a folder or an archive.
//!
//! Images are 32×32 RGB, kept in memory as the files have them: planar, 3072 bytes each. CIFAR-100 is labelled
//! by its 100 fine classes. A data set that lacks a file is refused, not read as a smaller one.

mod batch;
mod files;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;

use self::batch::Batches;
use self::files::Files;
use super::{DataFormat, Dataset, ImageSource, Splits};
use crate::error::{Error, Result};

/// Side of an image in pixels.
const SIDE: usize = 32;
/// Bytes of one colour plane.
const PLANE: usize = SIDE * SIDE;
/// Bytes of an image.
const PIXELS: usize = 3 * PLANE;

/// One of the four published layouts.
struct Layout {
    format: DataFormat,
    /// The folder's name in the published archive.
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// Class names.
    names: &'static str,
    /// The key of the class names in a pickled `names`, and of the labels in a pickled batch.
    keys: (&'static str, &'static str),
    n_classes: usize,
    /// Bytes before the pixels of a binary record, the last of which is the label.
    label_bytes: usize,
}

static LAYOUTS: [Layout; 4] = [
    Layout {
        format: DataFormat::CifarBinary,
        folder: "cifar-10-batches-bin",
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: "test_batch.bin",
        names: "batches.meta.txt",
        keys: ("", ""),
        n_classes: 10,
        label_bytes: 1,
    },
    Layout {
        format: DataFormat::CifarBinary,
        folder: "cifar-100-binary",
        train: &["train.bin"],
        test: "test.bin",
        names: "fine_label_names.txt",
        keys: ("", ""),
        n_classes: 100,
        label_bytes: 2,
    },
    Layout {
        format: DataFormat::CifarPython,
        folder: "cifar-10-batches-py",
        train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        test: "test_batch",
        names: "batches.meta",
        keys: ("label_names", "labels"),
        n_classes: 10,
        label_bytes: 0,
    },
    Layout {
        format: DataFormat::CifarPython,
        folder: "cifar-100-python",
        train: &["train"],
        test: "test",
        names: "meta",
        keys: ("fine_label_names", "fine_labels"),
        n_classes: 100,
        label_bytes: 0,
    },
];

impl Layout {
    /// The files that hold images.
    fn batches(&self) -> impl Iterator<Item = &'static str> {
        self.train.iter().copied().chain([self.test])
    }

    /// Whether a file of this name belongs to the layout.
    fn has(&self, name: &str) -> bool {
        name == self.names || self.batches().any(|batch| batch == name)
    }

    fn is_cifar_100(&self) -> bool {
        self.n_classes == 100
    }
}

/// Which CIFAR layout is at `path`: the folder itself, the folder that holds it, or an archive of it.
pub fn detect(path: &Path) -> Option<DataFormat> {
    if path.is_dir() {
        return files::in_folder(path).first().map(|(layout, _)| layout.format);
    }
    files::looks_like_archive(path).then(|| files::first_in_archive(path).map(|layout| layout.format))?
}

/// Opens the CIFAR of `format` at `path`: the folder itself, the folder that holds it, or an archive of it.
///
/// # Errors
/// If a file is missing, damaged or of the wrong length, a label is out of range, or both CIFARs are there.
pub fn open(path: &Path, format: DataFormat) -> Result<Splits> {
    let (layout, mut files) =
        if path.is_dir() { files::open_folder(path, format)? } else { files::open_archive(path, format)? };

    let missing: Vec<_> = layout.batches().filter(|name| !files.has(name)).collect();
    if !missing.is_empty() {
        return Err(Error::Data {
            path: path.to_owned(),
            reason: format!("{} of {} is missing", missing.join(", "), layout.folder),
            hint: Some(format!("it consists of {}", layout.batches().collect::<Vec<_>>().join(", "))),
        });
    }
    let classes = class_names(layout, &mut files)?;
    let train = split(layout, &mut files, layout.train, &classes)?;
    let test = split(layout, &mut files, &[layout.test], &classes)?;
    Ok(Splits { train, test: Some(test), format, root: path.to_owned(), notes: Vec::new() })
}

/// The classes' names from the file of names, or else their numbers.
fn class_names(layout: &Layout, files: &mut Files) -> Result<Vec<String>> {
    if !files.has(layout.names) {
        return Ok((0..layout.n_classes).map(|class| class.to_string()).collect());
    }
    let path = files.path(layout.names);
    let bytes = files.take(layout.names)?;
    let names = match layout.format {
        DataFormat::CifarBinary => batch::names_of_text(&bytes),
        _ => batch::names_of_pickle(&bytes, layout.keys.0)
            .map_err(|reason| Error::format(&path, format!("a pickle with {}", layout.keys.0), reason))?,
    };
    if names.len() != layout.n_classes {
        let expected = format!("the names of {} classes", layout.n_classes);
        return Err(Error::format(&path, expected, format!("{} names", names.len())));
    }
    Ok(names)
}

fn split(layout: &Layout, files: &mut Files, names: &[&str], classes: &[String]) -> Result<Dataset> {
    let mut batches = Batches::default();
    for name in names {
        let path = files.path(name);
        let bytes = files.take(name)?;
        match layout.format {
            DataFormat::CifarBinary => batches.add_binary(name, &bytes, layout, &path)?,
            _ => batches.add_pickle(name, &bytes, layout, &path)?,
        }
    }
    let Batches { pixels, labels, starts } = batches;
    Dataset::labelled(layout.format, Arc::new(Planar { pixels, starts }), labels, classes.to_vec())
}

/// Images in memory, planar: all of red, then green, then blue.
struct Planar {
    /// `[N, 3, 32, 32]`.
    pixels: Vec<u8>,
    /// Each file's name and the index of its first image, ascending.
    starts: Vec<(String, usize)>,
}

impl ImageSource for Planar {
    fn len(&self) -> usize {
        self.pixels.len() / PIXELS
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        let planes = &self.pixels[index * PIXELS..][..PIXELS];
        Ok(RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            let at = y as usize * SIDE + x as usize;
            image::Rgb([planes[at], planes[PLANE + at], planes[2 * PLANE + at]])
        }))
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        let file = self.starts.partition_point(|&(_, start)| start <= index).saturating_sub(1);
        match self.starts.get(file) {
            Some((name, start)) => format!("{name}#{}", index - start).into(),
            None => format!("#{index}").into(),
        }
    }

    fn identify(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        hasher.update(&self.pixels);
        Ok(())
    }
}

/// An error about which of several data sets is meant, or none at all.
fn not_one(path: &Path, format: DataFormat, found: &[(&Layout, PathBuf)]) -> Error {
    let (reason, hint) = match found {
        [] => {
            let folders: Vec<_> =
                LAYOUTS.iter().filter(|l| l.format == format).map(|layout| layout.folder).collect();
            let first = LAYOUTS.iter().filter(|l| l.format == format).map(|layout| layout.train[0]);
            (
                format!("there is no {}", folders.join(" and no ")),
                format!("looked for files named like {}", first.collect::<Vec<_>>().join(" or ")),
            )
        }
        _ => {
            let places: Vec<_> = found.iter().map(|(_, place)| place.display().to_string()).collect();
            ("both CIFAR-10 and CIFAR-100 are there".into(), format!("give one of {}", places.join(", ")))
        }
    };
    Error::Data { path: path.to_owned(), reason, hint: Some(hint) }
}

#[cfg(test)]
mod tests;
