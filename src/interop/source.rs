//! Files with weights that another program wrote: PyTorch's in all containers, and safetensors.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;

use super::contents::{Contents, Named};
use super::torch::{Dtype, Tensor, TorchFile};
use crate::checkpoint::format;
use crate::error::{Error, Result};

/// What a file begins like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A checkpoint of ours, whole or not.
    Ours,
    /// One of PyTorch's containers.
    Torch,
    /// Safetensors that somebody else wrote.
    Safetensors,
    /// None of these.
    Unknown,
}

/// What the file at `path` begins like.
///
/// # Errors
/// If it cannot be read.
pub fn kind(path: &Path) -> Result<Kind> {
    let io = |e| Error::io(path, "read", e);
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(512).read_to_end(&mut start).map_err(io)?;
    Ok(if format::begins(&start) {
        Kind::Ours
    } else if super::torch::detect(path) {
        Kind::Torch
    } else if start.get(8) == Some(&b'{') {
        // Eight bytes of length, then JSON.
        Kind::Safetensors
    } else {
        Kind::Unknown
    })
}

/// A file of another program, open.
#[derive(Debug)]
pub enum Source {
    /// PyTorch's.
    Torch(TorchFile),
    /// Safetensors.
    Safetensors {
        /// Where it lies.
        path: PathBuf,
        /// Its bytes.
        map: Mmap,
    },
}

impl Source {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// If it is damaged, or none that is read; what it is instead is named where it can be.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() || kind(path)? != Kind::Safetensors {
            return Ok(Source::Torch(TorchFile::open(path)?));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        // SAFETY: the map is private and only read; as for every mapped file, whoever shortens it meanwhile stops us.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        SafeTensors::deserialize(&map)
            .map_err(|e| Error::format(path, "an intact safetensors file", e.to_string()))?;
        Ok(Source::Safetensors { path: path.to_owned(), map })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        match self {
            Source::Torch(file) => file.path(),
            Source::Safetensors { path, .. } => path,
        }
    }

    /// What it is and in which version, for a person.
    pub fn describe(&self) -> String {
        match self {
            Source::Torch(file) => format!("{}, version {}", file.container(), file.version()),
            Source::Safetensors { .. } => "safetensors".into(),
        }
    }

    /// Sorts what it holds and hands it to `use_it`.
    ///
    /// # Errors
    /// If a part that we know cannot be read, and those of `use_it`.
    pub fn with_contents<T>(&self, use_it: impl FnOnce(Contents<'_>) -> Result<T>) -> Result<T> {
        let refuse = |found: String| Error::format(self.path(), "tensors that can be read", found);
        match self {
            Source::Torch(file) => {
                let checkpoint = file.read()?;
                use_it(Contents::of(&checkpoint).map_err(refuse)?)
            }
            Source::Safetensors { map, .. } => {
                let weights = safetensors_tensors(map).map_err(refuse)?;
                use_it(Contents { layout: "named tensors".into(), weights, ..Contents::default() })
            }
        }
    }

    /// Where in the file `bytes` lie, if they are a part of it.
    pub(crate) fn range_of(&self, bytes: &[u8]) -> Option<Range<usize>> {
        let file: &[u8] = match self {
            Source::Torch(file) => file.file(),
            Source::Safetensors { map, .. } => map,
        };
        range_within(file, bytes)
    }

    /// The mapped file.
    pub(crate) fn into_map(self) -> Mmap {
        match self {
            Source::Torch(file) => file.into_map(),
            Source::Safetensors { map, .. } => map,
        }
    }
}

/// The tensors of a safetensors file, in the order of their names.
fn safetensors_tensors(map: &[u8]) -> Result<Named<'_>, String> {
    let file = SafeTensors::deserialize(map).map_err(|e| e.to_string())?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let dtype = Dtype::of_safetensors(view.dtype())
            .ok_or_else(|| format!("{name:.80} of type {:?}", view.dtype()))?;
        tensors.push((name.to_owned(), Tensor::plain(dtype, view.shape(), view.data())?));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

/// Where in `file` the slice `part` of it lies, if it is one.
fn range_within(file: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(file.as_ptr() as usize)?;
    let end = start.checked_add(part.len())?;
    (end <= file.len()).then_some(start..end)
}

/// A tensor's numbers as 32-bit floats: borrowed where the file has them so.
///
/// # Errors
/// If it holds something else than floats, or a number that is not finite.
pub(super) fn as_f32<'a>(tensor: &Tensor<'a>) -> Result<Cow<'a, [u8]>, String> {
    let bytes = match tensor.dtype() {
        Dtype::F32 => tensor.bytes(),
        Dtype::F16 | Dtype::BF16 | Dtype::F64 => {
            let values = crate::model::to_vec_f32(&tensor.to_tch()?);
            Cow::Owned(values.into_iter().flat_map(f32::to_le_bytes).collect())
        }
        other => return Err(format!("{other} where floats belong")),
    };
    let finite = bytes.as_chunks().0.iter().all(|number| f32::from_le_bytes(*number).is_finite());
    if finite { Ok(bytes) } else { Err("a number that is not finite".into()) }
}
