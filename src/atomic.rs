//! Replacing files so that a crash, at any instant, leaves the old content or the new, never a mixture.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// How the name of every temporary file ends; it begins with `.` and the name of the file it will replace.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Replaces `path` by what `write` writes: temporary file in the same folder, sync, rename, sync the folder.
///
/// # Errors
/// If anything fails; `path` then still holds what it held, and the temporary file is gone.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let mut temporary = temporary_beside(path)?;
    write(temporary.as_file_mut()).map_err(|e| Error::io(path, "write", e))?;
    commit(temporary, path)
}

/// Replaces `path` by `text`, as [`replace`] does.
///
/// # Errors
/// As [`replace`].
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    replace(path, |file| file.write_all(text.as_bytes()))
}

/// An empty file that will become `path`; dropped before [`commit`], it vanishes.
pub(crate) fn temporary_beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    let prefix = format!(".{}.", name(path));
    builder.prefix(&prefix).suffix(TEMPORARY);
    // Temporary files are private by default, but these become files that colleagues read: the umask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder(path)).map_err(|e| Error::io(path, "create a temporary file beside it", e))
}

/// Syncs `temporary` to the disk and gives it the name `path`.
pub(crate) fn commit(temporary: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    temporary.as_file().sync_all().map_err(|e| Error::io(path, "sync", e))?;
    temporary.persist(path).map_err(|e| Error::io(path, "replace", e.error))?;
    sync_folder(folder(path))
}

/// Makes `to` the same file as `from`: a hard link where the file system has them, otherwise a synced copy.
///
/// Fit for files that are only ever replaced, never written in place.
pub(crate) fn link_over(from: &Path, to: &Path) -> Result<()> {
    let link = folder(to).join(format!(".{}.link{TEMPORARY}", name(to)));
    let _ = fs::remove_file(&link);
    if fs::hard_link(from, &link).is_err() {
        return replace(to, |file| io::copy(&mut File::open(from)?, file).map(drop));
    }
    let renamed = fs::rename(&link, to).map_err(|e| Error::io(to, "replace", e));
    // Renaming one link over another link to the same file does nothing, and leaves both (POSIX).
    let _ = fs::remove_file(&link);
    renamed?;
    sync_folder(folder(to))
}

/// Makes the names in a folder durable. Some network file systems cannot; their servers already have.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|f| f.sync_all());
    match synced {
        Err(e) if !matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Err(Error::io(folder, "sync", e))
        }
        _ => Ok(()),
    }
}

/// Removes what writers killed in the middle have left of the files `names` in `folder`. Nobody may be
/// writing there now.
pub(crate) fn remove_leftovers(folder: &Path, names: &[&str]) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, "list", e))?;
        let file_name = entry.file_name();
        let Some(file_name) = file_name.to_str() else { continue };
        let ours = |name: &&str| {
            file_name
                .strip_prefix('.')
                .and_then(|rest| rest.strip_prefix(*name))
                .is_some_and(|rest| rest.starts_with('.') && rest.ends_with(TEMPORARY))
        };
        if names.iter().any(ours) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), "remove", e))?;
        }
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The names in a folder, sorted.
#[cfg(test)]
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder for one test.
#[cfg(test)]
pub(crate) fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_while_writing_keeps_the_old_file_and_leaves_no_temporary() {
        let (_dir, folder) = scratch();
        let path = folder.join("config.toml");
        write_text(&path, "old").unwrap();
        let error = replace(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("config.toml: cannot write"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names_in(&folder), ["config.toml"]);
    }

    #[test]
    fn a_failure_to_rename_leaves_no_temporary() {
        let (_dir, folder) = scratch();
        let path = folder.join("taken");
        fs::create_dir_all(path.join("by a folder")).unwrap();
        assert!(write_text(&path, "text").is_err());
        assert_eq!(names_in(&folder), ["taken"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_has_ordinary_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, folder) = scratch();
        let (ours, plain) = (folder.join("ours"), folder.join("plain"));
        write_text(&ours, "text").unwrap();
        fs::write(&plain, "text").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn linking_over_works_again_and_again_and_leaves_nothing() {
        let (_dir, folder) = scratch();
        let (from, to) = (folder.join("last.ckpt"), folder.join("best.ckpt"));
        write_text(&from, "one").unwrap();
        link_over(&from, &to).unwrap();
        link_over(&from, &to).unwrap();
        write_text(&from, "two").unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "one");
        link_over(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
        assert_eq!(names_in(&folder), ["best.ckpt", "last.ckpt"]);
    }

    #[test]
    fn only_our_leftovers_are_removed() {
        let (_dir, folder) = scratch();
        for name in [".last.ckpt.Ab12.tmp", ".best.ckpt.link.tmp", ".other.tmp", "last.ckpt.tmp", "last.ckpt"]
        {
            fs::write(folder.join(name), "").unwrap();
        }
        remove_leftovers(&folder, &["last.ckpt", "best.ckpt"]).unwrap();
        assert_eq!(names_in(&folder), [".other.tmp", "last.ckpt", "last.ckpt.tmp"]);
    }
}
