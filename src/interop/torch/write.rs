//! Files that `torch.load` opens, with `weights_only=True` too: the zip archive of PyTorch 1.6 and later.
//!
//! `archive/data.pkl` is the pickle, `archive/data/KEY` each tensor's bytes, stored as they are and at a multiple of
//! 64 bytes, so that `torch.load(mmap=True)` gets aligned tensors. The folder is called `archive` whatever the file is
//! called, as in what PyTorch writes to a buffer: the bytes do not depend on the file's name.
//!
//! Entries that PyTorch 2.11 adds and does without are left out: `.format_version` and `.storage_alignment`, by which a
//! file vouches for its writer's exact gaps between entries, and `.data/serialization_id`, a number for its own logs.

use std::borrow::Cow;
use std::io::{self, Seek, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::Dtype;
use crate::atomic;
use crate::checkpoint::format::TensorBytes;
use crate::error::{Error, Result};
use crate::pickle::{Global, Tree};

/// Where PyTorch wants storages to begin, in bytes.
const ALIGNMENT: u16 = 64;
/// The version of the layout, as every PyTorch since 1.6 states it.
const VERSION: &[u8] = b"3\n";

/// A file to be: tensors are added, a [`Tree`] is built of what that returns, and [`save`](Self::save) writes both.
///
/// ```
/// use lemniscate::checkpoint::format::TensorBytes;
/// use lemniscate::interop::torch::Archive;
/// use lemniscate::pickle::Tree;
///
/// let mut archive = Archive::new();
/// let weight = archive.tensor(TensorBytes::from_f32("weight", [1, 2], &[0.5, -0.5]))?;
/// let root = Tree::dict([("epoch", Tree::Int(3)), ("weight", weight)]);
/// let folder = tempfile::tempdir().expect("a folder for temporary files");
/// archive.save(&folder.path().join("model.pth"), &root)?;
/// # Ok::<(), lemniscate::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Archive<'a> {
    /// Each tensor's bytes; the key of a storage is its place here.
    storages: Vec<Cow<'a, [u8]>>,
}

impl<'a> Archive<'a> {
    /// A file without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor, which stays borrowed if it is, and returns what stands for it in this archive's pickle. Its name
    /// is not written.
    ///
    /// # Errors
    /// [`Error::State`] if PyTorch has no storages of its type: 4- and 6-bit, 8-bit floating-point, unsigned numbers of
    /// more than a byte.
    pub fn tensor(&mut self, tensor: TensorBytes<'a>) -> Result<Tree<'a>> {
        let types =
            Dtype::of_safetensors(tensor.dtype).and_then(|dtype| Some((dtype, dtype.storage_class()?)));
        let (dtype, class) = types.ok_or_else(|| Error::State {
            what: "PyTorch file",
            problems: vec![format!("{}: {:?}, of which PyTorch has no storages", tensor.name, tensor.dtype)],
        })?;
        let int = |n: usize| Tree::Int(n as i64);
        let mut strides = vec![1; tensor.shape.len()];
        for axis in (1..strides.len()).rev() {
            strides[axis - 1] = strides[axis] * tensor.shape[axis].max(1);
        }
        let storage = Tree::Persistent(Box::new(Tree::Tuple(vec![
            Tree::text("storage"),
            Tree::Global(Global { module: "torch", name: class }),
            Tree::text(self.storages.len().to_string()),
            Tree::text("cpu"),
            int(tensor.bytes.len() / dtype.size()),
        ])));
        self.storages.push(tensor.bytes);
        Ok(Tree::Call {
            function: Global { module: "torch._utils", name: "_rebuild_tensor_v2" },
            args: vec![
                storage,
                int(0),
                Tree::Tuple(tensor.shape.into_iter().map(int).collect()),
                Tree::Tuple(strides.into_iter().map(int).collect()),
                // Requires no gradient, and has no hooks for one.
                Tree::Bool(false),
                Tree::OrderedDict(Vec::new()),
            ],
        })
    }

    /// Adds `tensors` and returns the `OrderedDict` of them by name, as `state_dict()` gives it.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn state_dict(&mut self, tensors: impl IntoIterator<Item = TensorBytes<'a>>) -> Result<Tree<'a>> {
        let entry = |tensor: TensorBytes<'a>| Ok((tensor.name.clone(), self.tensor(tensor)?));
        Ok(Tree::ordered_dict(tensors.into_iter().map(entry).collect::<Result<Vec<_>>>()?))
    }

    /// Writes the file over `path` and syncs it; see [`atomic::replace`].
    ///
    /// # Errors
    /// If the file cannot be written; the old one is then intact.
    /// # Panics
    /// As [`write`](Self::write).
    pub fn save(&self, path: &Path, root: &Tree<'_>) -> Result<()> {
        atomic::replace(path, |file| self.write(file, root))
    }

    /// Writes the file to `out`, from its beginning. The same tensors and tree give the same bytes.
    ///
    /// # Errors
    /// Those of `out`.
    /// # Panics
    /// If a text in `root` takes 4 GiB.
    pub fn write(&self, out: impl Write + Seek, root: &Tree<'_>) -> io::Result<()> {
        let mut zip = ZipWriter::new(out);
        let mut entry = |name: &str, content: &[u8]| {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .with_alignment(ALIGNMENT)
                .large_file(content.len() as u64 >= u64::from(u32::MAX));
            zip.start_file(format!("archive/{name}"), options)?;
            zip.write_all(content)
        };
        entry("data.pkl", &root.to_pickle())?;
        entry("byteorder", b"little")?;
        for (key, storage) in self.storages.iter().enumerate() {
            entry(&format!("data/{key}"), storage)?;
        }
        entry("version", VERSION)?;
        zip.finish()?;
        Ok(())
    }
}
