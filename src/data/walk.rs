//! Finding the image files under a folder: in parallel, without a system call per file, in a fixed order.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rayon::prelude::*;

use super::decode::EXTENSIONS;
use super::files::FileList;
use crate::error::{Error, Result};

/// Folders nested deeper than this are not entered: real data sets are not, and symbolic links that cross each
/// other could make paths without end.
const MAX_DEPTH: usize = 40;

/// Everything found under a root.
///
/// Folders are sorted bytewise by their first component, then by path, and files by name within their folder:
/// the order of torchvision's `ImageFolder`, so that banks of other programs keep their rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// The root (with an empty path) and every folder below it.
    pub dirs: Vec<WalkedDir>,
    /// Files passed over because their extension is not one of an image, hidden ones not counted.
    pub skipped: u64,
    /// Symbolic links passed over because they lead back into their own path.
    pub loops: u64,
}

/// One folder and the image files directly in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkedDir {
    /// Relative to the root, with `/`.
    pub path: Vec<u8>,
    /// Time of modification in ns since 1970, or 0 if that was too recent to be trusted: a change within the same
    /// tick of the file system's clock would not show.
    pub modified: u64,
    /// The names, end to end.
    pub names: Vec<u8>,
    /// End of each name in `names`.
    pub ends: Vec<u32>,
}

impl WalkedDir {
    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let name = &self.names[start..end as usize];
            start = end as usize;
            name
        })
    }

    /// The first component of the path: the class, in a folder of classes. `None` for the root.
    pub fn class(&self) -> Option<&[u8]> {
        self.path.split(|&b| b == b'/').next().filter(|class| !class.is_empty())
    }
}

impl Walk {
    /// Number of image files.
    pub fn n_files(&self) -> usize {
        self.dirs.iter().map(|dir| dir.ends.len()).sum()
    }

    /// Number of image files directly in the root.
    pub fn in_root(&self) -> usize {
        self.dirs.iter().filter(|dir| dir.path.is_empty()).map(|dir| dir.ends.len()).sum()
    }

    /// The folders directly in the root, ascending, empty ones included.
    pub fn classes(&self) -> Vec<&[u8]> {
        let mut classes: Vec<_> = self.dirs.iter().filter_map(WalkedDir::class).collect();
        classes.dedup();
        classes
    }

    /// The files of the folders that `keep` chooses.
    ///
    /// # Errors
    /// If there are more files than a `u32` can number.
    pub fn files(&self, root: &Path, keep: impl Fn(&WalkedDir) -> bool) -> Result<FileList> {
        let mut list = FileList::new(root);
        for dir in self.dirs.iter().filter(|dir| keep(dir)) {
            list.push_dir(&dir.path);
            for name in dir.names() {
                list.push(name)?;
            }
        }
        Ok(list)
    }

    /// Whether the same files are there, whatever the folders' times.
    pub fn same_files(&self, other: &Walk) -> bool {
        let pairs = || self.dirs.iter().zip(&other.dirs);
        self.dirs.len() == other.dirs.len()
            && pairs().all(|(a, b)| a.path == b.path && a.ends == b.ends && a.names == b.names)
    }
}

/// Device and inode of a folder and of those it is in.
struct Chain {
    id: (u64, u64),
    parent: Option<Arc<Chain>>,
}

impl Chain {
    fn holds(chain: &Option<Arc<Chain>>, id: (u64, u64)) -> bool {
        std::iter::successors(chain.as_ref(), |link| link.parent.as_ref()).any(|link| link.id == id)
    }
}

struct Pending {
    path: Vec<u8>,
    parents: Option<Arc<Chain>>,
    linked: bool,
}

/// Finds the image files under `root`, following symbolic links, skipping hidden names.
///
/// # Errors
/// If a folder cannot be listed.
pub fn walk(root: &Path) -> Result<Walk> {
    let mut found = Walk::default();
    let mut frontier = vec![Pending { path: Vec::new(), parents: None, linked: false }];
    let mut depth = 0;
    while !frontier.is_empty() {
        let listed: Vec<_> = frontier.par_iter().map(|pending| list(root, pending)).collect::<Result<_>>()?;
        frontier = Vec::new();
        for listing in listed {
            found.skipped += listing.skipped;
            let Some(dir) = listing.dir else {
                found.loops += 1;
                continue;
            };
            found.dirs.push(dir);
            if depth < MAX_DEPTH {
                frontier.extend(listing.below);
            } else {
                found.loops += listing.below.len() as u64;
            }
        }
        depth += 1;
    }
    found.dirs.par_sort_unstable_by(|a, b| (a.class(), &a.path).cmp(&(b.class(), &b.path)));
    Ok(found)
}

#[derive(Default)]
struct Listing {
    /// `None` if the folder is one of its own parents.
    dir: Option<WalkedDir>,
    below: Vec<Pending>,
    skipped: u64,
}

fn list(root: &Path, pending: &Pending) -> Result<Listing> {
    let path = root.join(std::ffi::OsStr::from_bytes(&pending.path));
    let fail = |source| Error::io(&path, "list the folder", source);
    // Before listing: what changes during it shows at the next check.
    let metadata = fs::metadata(&path).map_err(fail)?;
    let id = (metadata.dev(), metadata.ino());
    if pending.linked && Chain::holds(&pending.parents, id) {
        return Ok(Listing::default());
    }
    let parents = Some(Arc::new(Chain { id, parent: pending.parents.clone() }));

    let mut listing = Listing::default();
    let mut names: Vec<Vec<u8>> = Vec::new();
    for entry in fs::read_dir(&path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().into_vec();
        if name.starts_with(b".") {
            continue;
        }
        let mut kind = entry.file_type().map_err(fail)?;
        let linked = kind.is_symlink();
        if linked {
            // A dangling link is passed over unless it is named like an image: then it is an unreadable one.
            kind = match fs::metadata(entry.path()) {
                Ok(metadata) => metadata.file_type(),
                Err(_) if is_image(&name) => {
                    names.push(name);
                    continue;
                }
                Err(_) => continue,
            };
        }
        if kind.is_dir() {
            let below =
                if pending.path.is_empty() { name } else { [pending.path.as_slice(), b"/", &name].concat() };
            // Behind a link any folder may be one that we came through.
            let linked = linked || pending.linked;
            listing.below.push(Pending { path: below, parents: parents.clone(), linked });
        } else if is_image(&name) {
            names.push(name);
        } else {
            listing.skipped += 1;
        }
    }
    names.sort_unstable();
    let mut dir = WalkedDir {
        path: pending.path.clone(),
        modified: trusted_time(&metadata),
        names: Vec::with_capacity(names.iter().map(Vec::len).sum()),
        ends: Vec::with_capacity(names.len()),
    };
    for name in &names {
        dir.names.extend_from_slice(name);
        let end = u32::try_from(dir.names.len()).map_err(|_| Error::Data {
            path: path.clone(),
            reason: "the names in this one folder exceed 4 GiB".into(),
            hint: None,
        })?;
        dir.ends.push(end);
    }
    listing.dir = Some(dir);
    Ok(listing)
}

fn is_image(name: &[u8]) -> bool {
    let extension = name.iter().rposition(|&b| b == b'.').map_or(&b""[..], |dot| &name[dot + 1..]);
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes()))
}

fn trusted_time(metadata: &fs::Metadata) -> u64 {
    let Ok(modified) = metadata.modified() else { return 0 };
    let settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age > Duration::from_secs(2));
    if settled { nanoseconds(modified) } else { 0 }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Whether every folder of `walk` still has the time it had, so that no file was added, removed or renamed.
/// A system call per folder, not per file.
pub fn untouched(root: &Path, walk: &Walk) -> bool {
    walk.dirs.par_iter().all(|dir| {
        let path: PathBuf = root.join(std::ffi::OsStr::from_bytes(&dir.path));
        dir.modified != 0
            && fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|time| nanoseconds(time) == dir.modified)
    })
}
