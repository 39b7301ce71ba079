//! The files of a CIFAR data set, wherever they are: a folder, or an archive read into memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{DataFormat, LAYOUTS, Layout, not_one};
use crate::error::{Error, Result};

/// At most this much is unpacked from an archive or read from a file: 2.5 times the largest CIFAR.
const MAX_BYTES: u64 = 512 << 20;

/// How far into an archive to look for a file that tells what it is.
const PEEK_BYTES: u64 = 64 << 20;

/// The files of one data set.
pub(super) enum Files {
    Folder(PathBuf),
    Archive { path: PathBuf, files: HashMap<String, Vec<u8>> },
}

impl Files {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Files::Folder(folder) => folder.join(name).is_file(),
            Files::Archive { files, .. } => files.contains_key(name),
        }
    }

    /// What to call the file in an error.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        match self {
            Files::Folder(path) | Files::Archive { path, .. } => path.join(name),
        }
    }

    /// The file's content; an archive gives it away.
    pub(super) fn take(&mut self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        match self {
            Files::Folder(_) => {
                let file = File::open(&path).map_err(|e| Error::io(&path, "open", e))?;
                let mut bytes = Vec::new();
                Limited { inner: file, left: MAX_BYTES }
                    .read_to_end(&mut bytes)
                    .map_err(|e| Error::io(&path, "read", e))?;
                Ok(bytes)
            }
            Files::Archive { files, .. } => {
                let missing = || Error::io(&path, "find", io::ErrorKind::NotFound.into());
                files.remove(name).ok_or_else(missing)
            }
        }
    }
}

/// The layouts found in `path` and in the published folders under it, in the order of [`LAYOUTS`].
pub(super) fn in_folder(path: &Path) -> Vec<(&'static Layout, PathBuf)> {
    let mut found = Vec::new();
    for layout in &LAYOUTS {
        let places = [path.to_owned(), path.join(layout.folder)];
        found.extend(places.into_iter().filter(|place| is_in(layout, place)).map(|place| (layout, place)));
    }
    found
}

fn is_in(layout: &Layout, folder: &Path) -> bool {
    layout.batches().any(|name| {
        let file = folder.join(name);
        // Files called `train` and `test` may be anything; these begin like a pickle.
        file.is_file() && (!matches!(name, "train" | "test") || first_bytes::<1>(&file) == Some([0x80]))
    })
}

pub(super) fn open_folder(path: &Path, format: DataFormat) -> Result<(&'static Layout, Files)> {
    let all = in_folder(path);
    let both = all.iter().any(|(layout, _)| layout.is_cifar_100() != all[0].0.is_cifar_100());
    if both {
        return Err(not_one(path, format, &all));
    }
    let Some((layout, folder)) = all.into_iter().find(|(layout, _)| layout.format == format) else {
        return Err(not_one(path, format, &[]));
    };
    Ok((layout, Files::Folder(folder)))
}

/// Whether `path` is named like an archive that may hold CIFAR.
pub(super) fn looks_like_archive(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    [".tar.gz", ".tgz", ".tar"].iter().any(|end| name.ends_with(end)) && path.is_file()
}

/// The layout that the first telling file of an archive belongs to.
pub(super) fn first_in_archive(path: &Path) -> Option<&'static Layout> {
    let mut archive = tar::Archive::new(unpacked(path, PEEK_BYTES).ok()?);
    for entry in archive.entries().ok()? {
        let entry = entry.ok()?;
        let Some((folder, name)) = place(&entry) else { continue };
        // The names of CIFAR-100's files are not telling by themselves, that of their folder is.
        let known = LAYOUTS
            .iter()
            .find(|layout| layout.has(&name) && (!layout.is_cifar_100() || folder.ends_with(layout.folder)));
        if known.is_some() {
            return known;
        }
    }
    None
}

/// Reads the wanted files of an archive into memory. Nothing is written, so paths in it lead nowhere.
pub(super) fn open_archive(path: &Path, format: DataFormat) -> Result<(&'static Layout, Files)> {
    let broken = |e| Error::io(path, "read the archive", e);
    let mut archive = tar::Archive::new(unpacked(path, MAX_BYTES)?);
    let mut folders: HashMap<PathBuf, HashMap<String, Vec<u8>>> = HashMap::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let Some((folder, name)) = place(&entry) else { continue };
        if !LAYOUTS.iter().any(|layout| layout.format == format && layout.has(&name)) {
            continue;
        }
        let declared = entry.size();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 != declared {
            let found = format!("{} bytes where the archive ends", bytes.len());
            return Err(Error::format(path.join(&name), format!("{declared} bytes"), found));
        }
        if folders.entry(folder).or_default().insert(name.clone(), bytes).is_some() {
            return Err(Error::format(path, "every file once", format!("{name} twice")));
        }
    }

    let mut found = Vec::new();
    for (folder, files) in &folders {
        for layout in LAYOUTS.iter().filter(|layout| layout.format == format) {
            if layout.batches().any(|name| files.contains_key(name)) {
                found.push((layout, folder.clone()));
            }
        }
    }
    let [(layout, folder)] = &found[..] else { return Err(not_one(path, format, &found)) };
    let files = folders.remove(folder).unwrap_or_default();
    Ok((layout, Files::Archive { path: path.to_owned(), files }))
}

/// Folder and name of an entry that is a file.
fn place<R: Read>(entry: &tar::Entry<'_, R>) -> Option<(PathBuf, String)> {
    if !entry.header().entry_type().is_file() {
        return None;
    }
    let path = entry.path().ok()?;
    Some((path.parent()?.to_owned(), path.file_name()?.to_str()?.to_owned()))
}

/// The content of a file, unpacked if it is gzipped, up to `limit` bytes.
fn unpacked(path: &Path, limit: u64) -> Result<Limited<Box<dyn Read>>> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let inner: Box<dyn Read> = match first_bytes(path) {
        Some([0x1f, 0x8b]) => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        _ => Box::new(BufReader::new(file)),
    };
    Ok(Limited { inner, left: limit })
}

fn first_bytes<const N: usize>(path: &Path) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    File::open(path).ok()?.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// A reader that fails when there is more than it should hold.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(format!("it holds more than {} MiB", MAX_BYTES >> 20)))?;
        Ok(count)
    }
}
