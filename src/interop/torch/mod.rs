//! Files that `torch.save` wrote, read without Python and without running anything; and files for `torch.load`.
//!
//! Three containers hold the same thing, a pickle that refers to raw storages: the zip archive (PyTorch 1.6
//! and later), the legacy stream before it, and the tar archive of the first releases. A file is
//! mapped, not read: [`TorchFile::open`] looks at the pickle and at where storages lie, and a tensor's bytes are
//! touched when they are asked for. Device tags are ignored; what is no plain tensor (TorchScript, quantised, sharded)
//! is refused by name.
//!
//! [`Archive`] writes the first of the three, from borrowed tensors.

mod dtype;
mod legacy;
mod rebuild;
mod tar;
mod tensor;
#[cfg(test)]
mod tests;
mod write;
mod zip;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use self::dtype::Dtype;
pub use self::rebuild::Checkpoint;
pub use self::tensor::Tensor;
pub use self::write::Archive;
use crate::error::{Error, Result};
use crate::pickle::Pickle;

/// Which container a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// The zip archive of PyTorch 1.6 and later.
    Zip,
    /// The stream of PyTorch 0.1.10 to 1.5, and of `_use_new_zipfile_serialization=False`.
    Legacy,
    /// The tar archive of the first releases.
    Tar,
}

impl std::fmt::Display for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Container::Zip => "PyTorch zip archive",
            Container::Legacy => "PyTorch legacy stream",
            Container::Tar => "PyTorch tar archive",
        })
    }
}

/// A file of PyTorch's, open.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    map: Mmap,
    layout: Layout,
}

/// Where things lie in a file. All ranges are within it.
#[derive(Debug)]
struct Layout {
    container: Container,
    /// The container's own version, as it says.
    version: String,
    pickle: Range<usize>,
    /// Each storage's bytes by its key.
    storages: HashMap<String, Range<usize>>,
    /// Whether storages have the most significant byte first.
    big_endian: bool,
    /// Tensors that are described outside the pickle, by key; only the tar archive has them.
    tensors: HashMap<String, tar::Described>,
}

impl TorchFile {
    /// Maps a file and finds its parts.
    ///
    /// # Errors
    /// If it is no such file, a damaged one, or one of a kind that is refused: TorchScript, quantised or sharded.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let sharded = path.join(".metadata").exists();
            let found = if sharded { "a sharded (distributed) checkpoint" } else { "a folder" };
            return Err(refused(path, found));
        }
        let name = path.to_string_lossy();
        if name.ends_with(".index.json") || name.ends_with(".distcp") {
            return Err(refused(path, "a part of a sharded checkpoint"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        // SAFETY: the map is private and only read. As everywhere files are mapped, another process that shortens
        // the file meanwhile makes reading it fail with a signal; checkpoints are replaced by renaming, not in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        let layout = find_layout(&map).map_err(|problem| problem.at(path))?;
        let file = TorchFile { path: path.to_owned(), map, layout };
        file.read()?;
        Ok(file)
    }

    /// Reads the pickle: what the file holds, its tensors not yet touched.
    ///
    /// # Errors
    /// If the pickle is damaged, or refers to something of a kind that is refused.
    pub fn read(&self) -> Result<Checkpoint<'_>> {
        let checkpoint = Pickle::read(&self.map[self.layout.pickle.clone()])
            .map_err(|error| Problem::Damaged(error.to_string()))
            .and_then(|pickle| Checkpoint::new(pickle, &self.map, &self.layout));
        checkpoint.map_err(|problem| problem.at(&self.path))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which container the file is.
    pub fn container(&self) -> Container {
        self.layout.container
    }

    /// The version that the container states of itself.
    pub fn version(&self) -> &str {
        &self.layout.version
    }

    /// Whether the tensors were written with the most significant byte first; they are turned when they are read.
    pub fn big_endian(&self) -> bool {
        self.layout.big_endian
    }

    /// The mapped file, to be kept where its tensors are looked at later.
    pub(crate) fn into_map(self) -> Mmap {
        self.map
    }

    /// The file's bytes.
    pub(crate) fn file(&self) -> &[u8] {
        &self.map
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> usize {
        self.map.len()
    }
}

/// Whether the file at `path` begins as one of PyTorch's does.
pub fn detect(path: &Path) -> bool {
    let mut start = [0; 512];
    let read = File::open(path).and_then(|mut file| {
        let mut filled = 0;
        while let count @ 1.. = std::io::Read::read(&mut file, &mut start[filled..])? {
            filled += count;
        }
        Ok(filled)
    });
    let start = &start[..read.unwrap_or(0)];
    zip::begins(start) || legacy::begins(start) || tar::begins(start)
}

/// Why a file is not read.
#[derive(Debug)]
enum Problem {
    /// It does not hold together.
    Damaged(String),
    /// It is whole, but of a kind that is not for us.
    Refused(String),
}

impl Problem {
    fn at(self, path: &Path) -> Error {
        match self {
            Problem::Damaged(found) => Error::format(path, "an intact PyTorch file", found),
            Problem::Refused(found) => refused(path, &found),
        }
    }
}

impl From<String> for Problem {
    fn from(reason: String) -> Self {
        Problem::Damaged(reason)
    }
}

fn refused(path: &Path, found: &str) -> Error {
    Error::format(path, "plain tensors in one file of PyTorch's", found)
}

fn find_layout(map: &[u8]) -> Result<Layout, Problem> {
    if zip::begins(map) {
        zip::layout(map)
    } else if legacy::begins(map) {
        legacy::layout(map)
    } else if tar::begins(map) {
        tar::layout(map)
    } else if map.first() == Some(&0x80) && Pickle::read(map).is_ok() {
        Err(Problem::Refused("a plain pickle, which torch.save did not write".into()))
    } else {
        Err(Problem::Refused("something else: neither a zip nor a tar archive nor a legacy stream".into()))
    }
}
