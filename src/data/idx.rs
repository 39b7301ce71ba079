//! MNIST-like data: idx files (LeCun, <http://yann.lecun.com/exdb/mnist/>), plain or gzipped.
//!
//! A folder holds `train-images-idx3-ubyte` and, where there are any, `train-labels-idx1-ubyte` and the same for
//! `t10k` or `test`; a prefix before `train` is allowed (EMNIST), and a dot for the second dash. Grey images become
//! RGB with three equal channels; a fourth axis of 3 is colour.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use image::RgbImage;

use super::{DataFormat, Dataset, ImageSource, Splits};
use crate::error::{Error, Result};

/// Where torchvision puts the files under the folder it is given.
const FOLDERS: [&str; 4] = ["", "raw", "MNIST/raw", "FashionMNIST/raw"];

/// Nothing compressed by deflate grows more than this.
const MAX_RATIO: u64 = 1032;

/// Images are at most this wide and high, so that no product of extents is absurd.
const MAX_SIDE: usize = 1 << 16;

/// Whether `path` is a folder with idx files of training images.
pub fn detect(path: &Path) -> bool {
    folder(path).is_some()
}

/// The folder in or under `path` that has the training images.
fn folder(path: &Path) -> Option<PathBuf> {
    let has_images =
        |folder: &PathBuf| candidates(folder, &["train"], "images").is_ok_and(|files| !files.is_empty());
    FOLDERS.iter().map(|folder| path.join(folder)).find(has_images)
}

/// Opens the idx files in `path`.
///
/// # Errors
/// If there are no training images, or a file is damaged or disagrees with its neighbour.
pub fn open(path: &Path) -> Result<Splits> {
    let none = || Error::Data {
        path: path.to_owned(),
        reason: "there is no train-images-idx3-ubyte, plain or .gz".into(),
        hint: None,
    };
    let folder = &folder(path).ok_or_else(none)?;

    let images = find(folder, &["train"], "images")?.ok_or_else(none)?;
    let train = Images::read(&images)?;
    let test = find(folder, &["t10k", "test"], "images")?.map(|file| Images::read(&file)).transpose()?;
    let train_labels = labels(folder, &["train"], &train)?;
    let test_labels = match &test {
        Some(test) => labels(folder, &["t10k", "test"], test)?,
        None => None,
    };

    let mut notes = Vec::new();
    // Classes are numbers, so both splits must count them alike: one split's labels alone say nothing.
    let (train, test) = match (train_labels, test_labels) {
        (Some(train_labels), test_labels) => {
            let largest = train_labels.iter().chain(test_labels.iter().flatten()).max().copied().unwrap_or(0);
            let classes: Vec<String> = (0..=largest).map(|class| class.to_string()).collect();
            let labelled = |images: Images, labels: Option<Vec<u32>>| match labels {
                Some(labels) => Dataset::labelled(DataFormat::Idx, Arc::new(images), labels, classes.clone()),
                None => Dataset::unlabelled(DataFormat::Idx, Arc::new(images)),
            };
            (labelled(train, Some(train_labels))?, test.map(|test| labelled(test, test_labels)).transpose()?)
        }
        (None, test_labels) => {
            if test_labels.is_some() {
                notes.push("the test labels are not used, as there are no training labels".into());
            }
            let unlabelled = |images: Images| Dataset::unlabelled(DataFormat::Idx, Arc::new(images));
            (unlabelled(train)?, test.map(unlabelled).transpose()?)
        }
    };
    Ok(Splits { train, test, format: DataFormat::Idx, root: path.to_owned(), notes })
}

/// Files in `folder` named like the `kind` ("images", "labels") of one of `splits`, sorted; plain ones before gzipped.
fn candidates(folder: &Path, splits: &[&str], kind: &str) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, "list", e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let plain = name.strip_suffix(".gz").unwrap_or(name);
        let Some(rest) = plain.strip_suffix("-ubyte") else { continue };
        let Some((stem, rank)) = rest.rsplit_once("idx") else { continue };
        let matches = splits.iter().any(|split| {
            let stem = stem.strip_suffix(['-', '.']).and_then(|stem| stem.strip_suffix(kind));
            let before = stem.and_then(|stem| stem.strip_suffix('-')).and_then(|s| s.strip_suffix(split));
            before.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
        });
        if matches && matches!(rank, "1" | "3" | "4") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The one file of its kind, if there is any.
fn find(folder: &Path, splits: &[&str], kind: &str) -> Result<Option<PathBuf>> {
    let found = candidates(folder, splits, kind)?;
    let unpacked = |path: &Path| path.to_string_lossy().trim_end_matches(".gz").to_owned();
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [plain, gzipped] if unpacked(plain) == unpacked(gzipped) => Ok(Some(plain.clone())),
        _ => {
            let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
            Err(Error::Data {
                path: folder.to_owned(),
                reason: format!("several files could be the {} {kind}: {}", splits[0], names.join(", ")),
                hint: Some("put the ones that belong together into a folder of their own".into()),
            })
        }
    }
}

/// The labels that belong to `images`, if there is a file of them.
fn labels(folder: &Path, splits: &[&str], images: &Images) -> Result<Option<Vec<u32>>> {
    let Some(path) = find(folder, splits, "labels")? else { return Ok(None) };
    let (extents, labels) = read(&path)?;
    match extents[..] {
        [count] if count == images.count => Ok(Some(labels.into_iter().map(u32::from).collect())),
        _ => Err(Error::format(
            &path,
            format!("labels of {} images", images.count),
            format!("extents {extents:?}"),
        )),
    }
}

/// Reads an idx file of bytes: its extents and its content.
fn read(path: &Path) -> Result<(Vec<usize>, Vec<u8>)> {
    let failed = |e| Error::io(path, "read", e);
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let size = file.metadata().map_err(failed)?.len();
    let gzipped = path.extension().is_some_and(|extension| extension == "gz");
    let mut reader: Box<dyn Read> = match gzipped {
        true => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        false => Box::new(BufReader::new(file)),
    };

    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(failed)?;
    let [0, 0, kind, rank @ 1..=4] = magic else {
        return Err(Error::format(path, "an idx file, which begins 00 00", format!("{magic:02x?}")));
    };
    if kind != 8 {
        return Err(Error::format(path, "bytes (idx type 08)", format!("idx type {kind:02x}")));
    }
    let mut extents = Vec::new();
    for _ in 0..rank {
        let mut extent = [0; 4];
        reader.read_exact(&mut extent).map_err(failed)?;
        extents.push(u32::from_be_bytes(extent) as usize);
    }

    // A bogus length must fail before memory is taken for it.
    let most = match gzipped {
        true => size.saturating_mul(MAX_RATIO),
        false => size.saturating_sub(4 + 4 * u64::from(rank)),
    };
    let bytes = extents.iter().try_fold(1u64, |bytes, &extent| bytes.checked_mul(extent as u64));
    let Some(bytes) = bytes.filter(|&bytes| bytes <= most) else {
        let found =
            if gzipped { format!("{size} bytes compressed") } else { format!("{most} bytes after them") };
        return Err(Error::format(path, format!("the content of extents {extents:?}"), found));
    };
    let mut content = Vec::new();
    reader.by_ref().take(bytes).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 != bytes {
        return Err(Error::format(
            path,
            format!("{bytes} bytes of content"),
            format!("{} bytes", content.len()),
        ));
    }
    if reader.read(&mut [0]).map_err(failed)? != 0 {
        return Err(Error::format(path, format!("{bytes} bytes of content"), "more of them".to_owned()));
    }
    Ok((extents, content))
}

/// Images in memory as the file has them.
struct Images {
    /// The file's name.
    name: String,
    count: usize,
    height: usize,
    width: usize,
    /// 1 grey, 3 colour.
    channels: usize,
    /// `[count, height, width, channels]`.
    pixels: Vec<u8>,
}

impl Images {
    fn read(path: &Path) -> Result<Self> {
        let (extents, pixels) = read(path)?;
        let (count, height, width, channels) = match extents[..] {
            [count, height, width] => (count, height, width, 1),
            [count, height, width, 3] => (count, height, width, 3),
            _ => {
                let expected = "extents [images, rows, columns] or [images, rows, columns, 3]";
                return Err(Error::format(path, expected, format!("{extents:?}")));
            }
        };
        if extents.contains(&0) || height.max(width) > MAX_SIDE {
            return Err(Error::format(
                path,
                format!("images of 1 to {MAX_SIDE} pixels a side"),
                format!("{extents:?}"),
            ));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Images { name, count, height, width, channels, pixels })
    }
}

impl ImageSource for Images {
    fn len(&self) -> usize {
        self.count
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        let size = self.height * self.width * self.channels;
        let pixels = &self.pixels[index * size..][..size];
        let rgb = match self.channels {
            3 => pixels.to_vec(),
            _ => pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
        };
        RgbImage::from_raw(self.width as u32, self.height as u32, rgb).ok_or_else(|| Error::Image {
            image: self.name(index).into_owned(),
            reason: format!("{} × {} pixels do not fit an image", self.width, self.height),
        })
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        format!("{}#{index}", self.name).into()
    }

    fn identify(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        for extent in [self.height, self.width, self.channels] {
            hasher.update(&(extent as u64).to_le_bytes());
        }
        hasher.update(&self.pixels);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
