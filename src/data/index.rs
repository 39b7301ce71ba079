//! The sorted file index that is kept beside a run, so that resuming checks a folder instead of listing it again.
//!
//! Layout, integers little-endian: `LMNINDEX`, version `u32` = 1, folders `u64`, files passed over `u64`, loops
//! `u64`; for each folder: length of its path `u32`, path, time of modification in ns `u64`, number of files
//! `u32`, the end of each name `u32`, the names end to end; last the BLAKE3 hash of all before it, 32 bytes.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use super::walk::{Walk, WalkedDir, untouched, walk};
use crate::atomic;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"LMNINDEX";
const VERSION: u32 = 1;
const HASH: usize = 32;

/// How the files differ from an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Files that are new, in order.
    pub added: Vec<String>,
    /// Files that are gone, in order.
    pub removed: Vec<String>,
}

/// What checking an index found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// No folder changed; nothing was listed.
    Untouched(Walk),
    /// Some folder changed, but the same files are there; the walk has the new times.
    SameFiles(Walk),
    /// Files came or went; the walk is of what is there now.
    Changed(Walk, Changes),
}

/// Writes the index of `walk` to `path`, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, walk: &Walk) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, "create", source))?;
    }
    atomic::replace(path, |file| file.write_all(&encode(walk)))
}

/// Reads the index at `path`.
///
/// # Errors
/// If it cannot be read, or is damaged in any byte.
pub fn read(path: &Path) -> Result<Walk> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, "read the file index", source))?;
    decode(&bytes).map_err(|found| Error::format(path, "a lemniscate file index", found))
}

/// Compares an index with what is under `root` now: a system call per folder and, only if a folder changed, a new
/// listing. A file rewritten in place does not show here; its size shows in the data set's fingerprint.
///
/// # Errors
/// If `root` has to be listed and cannot be.
pub fn check(root: &Path, index: Walk) -> Result<Checked> {
    if untouched(root, &index) {
        return Ok(Checked::Untouched(index));
    }
    let now = walk(root)?;
    if now.same_files(&index) {
        return Ok(Checked::SameFiles(now));
    }
    let (before, after) = (paths(&index), paths(&now));
    let missing_from = |there: &[Vec<u8>], set: &[Vec<u8>]| -> Vec<String> {
        let set: HashSet<&Vec<u8>> = set.iter().collect();
        let missing = there.iter().filter(|path| !set.contains(path));
        missing.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    };
    let changes = Changes { added: missing_from(&after, &before), removed: missing_from(&before, &after) };
    if changes.added.is_empty() && changes.removed.is_empty() {
        return Ok(Checked::SameFiles(now));
    }
    Ok(Checked::Changed(now, changes))
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |names: &[String], what: &str| {
            let shown: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
            let more = if names.len() > shown.len() { ", ..." } else { "" };
            format!("{} {what} ({}{more})", names.len(), shown.join(", "))
        };
        match (self.added.is_empty(), self.removed.is_empty()) {
            (false, false) => {
                write!(f, "{}, {}", side(&self.added, "added"), side(&self.removed, "removed"))
            }
            (false, true) => f.write_str(&side(&self.added, "added")),
            (true, false) => f.write_str(&side(&self.removed, "removed")),
            (true, true) => f.write_str("nothing added or removed"),
        }
    }
}

fn paths(walk: &Walk) -> Vec<Vec<u8>> {
    let of = |dir: &WalkedDir| -> Vec<Vec<u8>> {
        let join = |name: &[u8]| match dir.path.as_slice() {
            b"" => name.to_vec(),
            path => [path, b"/", name].concat(),
        };
        dir.names().map(join).collect()
    };
    walk.dirs.iter().flat_map(of).collect()
}

fn encode(walk: &Walk) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    for count in [walk.dirs.len() as u64, walk.skipped, walk.loops] {
        out.extend(count.to_le_bytes());
    }
    for dir in &walk.dirs {
        out.extend((dir.path.len() as u32).to_le_bytes());
        out.extend(&dir.path);
        out.extend(dir.modified.to_le_bytes());
        out.extend((dir.ends.len() as u32).to_le_bytes());
        out.extend(dir.ends.iter().flat_map(|end| end.to_le_bytes()));
        out.extend(&dir.names);
    }
    let hash = blake3::hash(&out);
    out.extend(hash.as_bytes());
    out
}

/// Takes from the front of what is left, never more than there is.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, n: usize) -> std::result::Result<&'a [u8], String> {
        let (head, tail) = self.0.split_at_checked(n).ok_or("an index that ends too early")?;
        self.0 = tail;
        Ok(head)
    }

    fn u32(&mut self) -> std::result::Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes(4)?.try_into().map_err(|_| "no four bytes")?))
    }

    fn u64(&mut self) -> std::result::Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes(8)?.try_into().map_err(|_| "no eight bytes")?))
    }
}

fn decode(bytes: &[u8]) -> std::result::Result<Walk, String> {
    let (body, hash) = bytes
        .len()
        .checked_sub(HASH)
        .and_then(|end| bytes.split_at_checked(end))
        .ok_or_else(|| format!("{} bytes", bytes.len()))?;
    if !body.starts_with(MAGIC) {
        return Err("another kind of file".into());
    }
    if blake3::hash(body).as_bytes() != hash {
        return Err("a damaged one: its hash does not match".into());
    }
    let mut cursor = Cursor(&body[MAGIC.len()..]);
    let version = cursor.u32()?;
    if version != VERSION {
        return Err(format!("version {version}, and this program reads version {VERSION}"));
    }
    let dirs = cursor.u64()?;
    let mut walk = Walk { dirs: Vec::new(), skipped: cursor.u64()?, loops: cursor.u64()? };
    for _ in 0..dirs {
        let length = cursor.u32()? as usize;
        let path = cursor.bytes(length)?.to_vec();
        let modified = cursor.u64()?;
        let files = cursor.u32()? as usize;
        let ends: Vec<u32> = cursor
            .bytes(files.checked_mul(4).ok_or("too many files")?)?
            .chunks_exact(4)
            .map(|end| u32::from_le_bytes([end[0], end[1], end[2], end[3]]))
            .collect();
        if !ends.is_sorted() {
            return Err("names that end before they begin".into());
        }
        let names = cursor.bytes(ends.last().copied().unwrap_or(0) as usize)?.to_vec();
        walk.dirs.push(WalkedDir { path, modified, names, ends });
    }
    if !cursor.0.is_empty() {
        return Err(format!("{} bytes too many", cursor.0.len()));
    }
    Ok(walk)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Folders as if nobody had touched them for an hour.
    fn age(root: &Path) {
        for dir in walkdir::WalkDir::new(root).into_iter().map(|entry| entry.unwrap()) {
            if dir.file_type().is_dir() {
                let hour_ago = SystemTime::now() - Duration::from_secs(3600);
                File::open(dir.path()).unwrap().set_modified(hour_ago).unwrap();
            }
        }
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        age(root.path());
        root
    }

    #[test]
    fn an_index_survives_the_disk_and_no_byte_of_it_may_change() {
        let root = tree(&["b/2.png", "b/10.png", "a/x/1.jpg", "a/notes.txt", "0.gif"]);
        let found = walk(root.path()).unwrap();
        let path = root.path().join("new/run/train.index");
        write(&path, &found).unwrap();
        assert_eq!(read(&path).unwrap(), found);

        let bytes = encode(&found);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(decode(&flipped).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    /// With a valid hash, so that parsing itself meets the lengths.
    #[test]
    fn lengths_are_not_trusted() {
        let root = tree(&["b/2.png", "b/10.png"]);
        let bytes = encode(&walk(root.path()).unwrap());
        let body = &bytes[..bytes.len() - HASH];
        for at in 0..body.len() {
            for value in [0, 0x7F, 0xFF] {
                let mut forged = body.to_vec();
                forged[at] = value;
                forged.extend(*blake3::hash(&forged).as_bytes());
                let _ = decode(&forged);
            }
        }
    }

    #[test]
    fn checking_finds_what_came_and_went() {
        let root = tree(&["a/1.png", "a/2.png", "b/3.png"]);
        let index = walk(root.path()).unwrap();
        assert!(matches!(check(root.path(), index.clone()).unwrap(), Checked::Untouched(_)));

        // Something that is no image changes the folder, not the files.
        fs::write(root.path().join("a/readme.txt"), "").unwrap();
        assert!(matches!(check(root.path(), index.clone()).unwrap(), Checked::SameFiles(_)));

        fs::remove_file(root.path().join("a/2.png")).unwrap();
        fs::create_dir(root.path().join("c")).unwrap();
        fs::write(root.path().join("c/4.png"), "").unwrap();
        let Checked::Changed(now, changes) = check(root.path(), index.clone()).unwrap() else { panic!() };
        assert_eq!(now.n_files(), 3);
        assert_eq!(changes.to_string(), "1 added (c/4.png), 1 removed (a/2.png)");

        fs::remove_dir_all(root.path().join("b")).unwrap();
        let Checked::Changed(_, changes) = check(root.path(), index).unwrap() else { panic!() };
        assert_eq!(changes.removed, ["a/2.png", "b/3.png"]);
    }

    /// A change within the same tick of the clock would otherwise never show.
    #[test]
    fn a_folder_changed_just_now_is_not_trusted() {
        let root = tree(&["a/1.png"]);
        fs::write(root.path().join("a/2.png"), "").unwrap();
        let index = walk(root.path()).unwrap();
        assert!(matches!(check(root.path(), index).unwrap(), Checked::SameFiles(_)));
    }
}
