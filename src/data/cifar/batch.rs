//! One file of images and labels, binary or pickled.

use std::path::Path;

use super::{Layout, PIXELS};
use crate::error::{Error, Result};
use crate::pickle::numpy::{Dtype, ndarray};
use crate::pickle::{Id, Pickle};

/// The images and labels of several files, one after the other.
#[derive(Default)]
pub(super) struct Batches {
    /// `[N, 3, 32, 32]`.
    pub(super) pixels: Vec<u8>,
    /// `[N]`, each below the layout's number of classes.
    pub(super) labels: Vec<u32>,
    /// Each file's name and the index of its first image.
    pub(super) starts: Vec<(String, usize)>,
}

impl Batches {
    /// Adds a file of records, each a label (CIFAR-100: coarse, fine) and the pixels of an image.
    pub(super) fn add_binary(
        &mut self,
        name: &str,
        bytes: &[u8],
        layout: &Layout,
        path: &Path,
    ) -> Result<()> {
        let record = layout.label_bytes + PIXELS;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            let found = match bytes.len() {
                0 => "an empty file".into(),
                n => format!("{n} bytes, {} too many for {} records", n % record, n / record),
            };
            return Err(Error::format(path, format!("records of {record} bytes"), found));
        }
        self.start(name, bytes.len() / record);
        for (index, record) in bytes.chunks_exact(record).enumerate() {
            let (labels, pixels) = record.split_at(layout.label_bytes);
            let label = labels[labels.len() - 1];
            self.push_label(i64::from(label), index, layout, path)?;
            self.pixels.extend_from_slice(pixels);
        }
        Ok(())
    }

    /// Adds a pickled dict with `data`, `uint8 [n, 3072]`, and a list of labels.
    pub(super) fn add_pickle(
        &mut self,
        name: &str,
        bytes: &[u8],
        layout: &Layout,
        path: &Path,
    ) -> Result<()> {
        let (_, key) = layout.keys;
        let bad = |found: String| Error::format(path, format!("a pickled dict with data and {key}"), found);
        let pickle = Pickle::read(bytes).map_err(|error| bad(error.to_string()))?;
        let field = |key: &str| {
            let missing = || bad(format!("{} without {key:?}", pickle.describe(pickle.root())));
            pickle.entry(pickle.root(), key).ok_or_else(missing)
        };

        let data =
            ndarray(&pickle, field("data")?).map_err(|reason| bad(format!("data that is {reason}")))?;
        let count = match data.shape[..] {
            [count, PIXELS] if data.dtype == Dtype::U8 && !data.fortran && count > 0 => count,
            _ => {
                let order = if data.fortran { " by columns" } else { "" };
                let found = format!("{} {:?}{order}", data.dtype, data.shape);
                return Err(Error::format(path, format!("data of uint8 [n, {PIXELS}]"), found));
            }
        };
        let labels = field(key)?;
        let labels =
            pickle.items(labels).ok_or_else(|| bad(format!("{key} that is {}", pickle.describe(labels))))?;
        if labels.len() != count {
            return Err(Error::format(path, format!("{count} {key}"), format!("{} of them", labels.len())));
        }
        self.start(name, count);
        for (index, &label) in labels.iter().enumerate() {
            let label = number(&pickle, label)
                .ok_or_else(|| bad(format!("{key} of which number {index} is {}", pickle.describe(label))))?;
            self.push_label(label, index, layout, path)?;
        }
        self.pixels.extend_from_slice(&data.data);
        Ok(())
    }

    fn start(&mut self, name: &str, count: usize) {
        self.starts.push((name.to_owned(), self.labels.len()));
        self.labels.reserve(count);
        self.pixels.reserve(count * PIXELS);
    }

    fn push_label(&mut self, label: i64, index: usize, layout: &Layout, path: &Path) -> Result<()> {
        match u32::try_from(label) {
            Ok(label) if (label as usize) < layout.n_classes => {
                self.labels.push(label);
                Ok(())
            }
            _ => {
                let expected = format!("labels below {}", layout.n_classes);
                Err(Error::format(path, expected, format!("{label} for image {index}")))
            }
        }
    }
}

/// An integer of Python's or numpy's.
fn number(pickle: &Pickle<'_>, id: Id) -> Option<i64> {
    use crate::pickle::{Value, numpy::scalar};
    match scalar(pickle, id) {
        Some(Value::Int(value)) => Some(value),
        _ => pickle.int(id),
    }
}

/// The names in a text file, one a line.
pub(super) fn names_of_text(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The list of names under `key` in a pickled dict.
pub(super) fn names_of_pickle(bytes: &[u8], key: &str) -> Result<Vec<String>, String> {
    let pickle = Pickle::read(bytes).map_err(|error| error.to_string())?;
    let list = pickle.entry(pickle.root(), key);
    let list = list.ok_or_else(|| format!("{} without it", pickle.describe(pickle.root())))?;
    let names = pickle.items(list).ok_or_else(|| pickle.describe(list))?;
    names
        .iter()
        .map(|&name| match pickle.text(name) {
            Some(text) => Ok(text.into_owned()),
            None => Err(format!("{} among the names", pickle.describe(name))),
        })
        .collect()
}
