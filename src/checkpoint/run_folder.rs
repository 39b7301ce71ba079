//! The folder of a run: what is in it, who may write to it, and which checkpoint in it is good.
//!
//! One process at a time trains in a folder; reading needs no lock, since every file but the metrics and the
//! lock is only ever replaced as a whole. At every instant after the first [`save_last`](RunFolder::save_last)
//! at least one complete checkpoint is there under its name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::format::{self, Checkpoint, CheckpointView};
use crate::atomic;
use crate::error::{Error, Result};

/// The complete, resolved configuration.
pub const CONFIG: &str = "config.toml";
/// What the data was.
pub const MANIFEST: &str = "manifest.json";
/// Steps and evaluations, one JSON object a line.
pub const METRICS: &str = "metrics.jsonl";
/// Results of `lemniscate eval`, one JSON object a line.
pub const EVALUATIONS: &str = "evaluations.jsonl";
/// The newest checkpoint.
pub const LAST: &str = "last.ckpt";
/// The one before it.
pub const PREVIOUS: &str = "previous.ckpt";
/// The one the monitor liked best.
pub const BEST: &str = "best.ckpt";
/// What was found for the same few queries after each epoch, one JSON object a line.
pub const RETRIEVALS: &str = "retrievals.jsonl";
/// What was said while it ran.
pub const LOG: &str = "train.log";
/// Event files for TensorBoard.
pub const TENSORBOARD: &str = "tensorboard";
/// The page that `lemniscate report` writes.
pub const REPORT: &str = "report.html";
/// The training curves.
pub const CURVES: &str = "curves.svg";
/// Locked while a process trains here; holds its number.
pub const LOCK: &str = "lock";

/// Files that make a folder one that a new run must not write to.
const OF_A_RUN: [&str; 7] = [CONFIG, MANIFEST, METRICS, RETRIEVALS, LAST, PREVIOUS, BEST];

/// Files that only the process that holds the lock replaces: what a killed one has left half-written of them is nobody's.
const REPLACED: [&str; 11] = [
    CONFIG,
    MANIFEST,
    METRICS,
    RETRIEVALS,
    LAST,
    PREVIOUS,
    BEST,
    CURVES,
    "train.index",
    "val.index",
    "test.index",
];

/// A run's folder, locked for this process until dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Keeps the lock; `None` on a file system that has no locks.
    lock: Option<Lock>,
    /// Whether `last.ckpt` is known to be whole, so that it may take the place of the previous one.
    last_is_good: bool,
}

/// The newest checkpoint of a run that could be read.
#[derive(Debug)]
pub struct Loaded {
    /// The checkpoint; its path says which file it is.
    pub checkpoint: Checkpoint,
    /// Why it is not `last.ckpt`, if it isn't.
    pub warning: Option<String>,
}

impl RunFolder {
    /// Refuses a folder that holds a run; changes nothing.
    ///
    /// # Errors
    /// [`Error::Usage`], with how to go on.
    pub fn check_free(path: &Path) -> Result<()> {
        if !OF_A_RUN.iter().any(|name| fs::symlink_metadata(path.join(name)).is_ok()) {
            return Ok(());
        }
        Err(Error::Usage {
            message: format!("{} holds a run already", path.display()),
            hint: Some(format!(
                "continue it with --resume {}, or choose another folder with --out",
                path.display()
            )),
        })
    }

    /// Makes `path` the folder of a new run and locks it. The folder may exist, but not hold a run.
    ///
    /// # Errors
    /// If it holds a run already, is in use, or cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, "create the run folder", e))?;
        let lock = lock(&path)?;
        Self::check_free(&path)?;
        atomic::remove_leftovers(&path, &REPLACED)?;
        Ok(RunFolder { path, lock, last_is_good: false })
    }

    /// Creates the folder of a new run in `parent` (usually `runs`), named after the time in UTC, the data and the
    /// architecture: `runs/2026-03-14-1502-cifar10-resnet18`, with `-2`, `-3` ... if it exists.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_in(parent: &Path, data_name: &str, arch: &str) -> Result<Self> {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
        let name = default_name(SystemTime::now(), data_name, arch);
        let mut path = parent.join(&name);
        let mut number = 1u32;
        // Of several processes that try the same name at once, one creates the folder.
        while let Err(e) = fs::create_dir(&path) {
            if e.kind() != ErrorKind::AlreadyExists {
                return Err(Error::io(path, "create the run folder", e));
            }
            number += 1;
            path = parent.join(format!("{name}-{number}"));
        }
        Self::create(path)
    }

    /// Locks the folder of an existing run, and removes what a killed process may have left half-written.
    ///
    /// # Errors
    /// If there is no run in it, or another process is training there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if ![CONFIG, LAST, PREVIOUS].iter().any(|name| path.join(name).is_file()) {
            let reason = if path.is_dir() { "it holds no run" } else { "there is no such folder" };
            return Err(Error::Resume { path, reason: reason.into(), hint: None });
        }
        let lock = lock(&path)?;
        atomic::remove_leftovers(&path, &REPLACED)?;
        Ok(RunFolder { path, lock, last_is_good: false })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it: [`CONFIG`], [`METRICS`], ...
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether other processes are kept out. Some network file systems have no locks; a run may go on without.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Refuses to write where the folder is no longer the one that was locked: removed, moved away, or another run's by
    /// now because somebody removed the lock.
    fn check_ours(&self) -> Result<()> {
        let path = self.file(LOCK);
        let Some(Lock(held)) = &self.lock else { return Ok(()) };
        let gone = |found: &str| {
            let expected = "the run folder as it was when the run began";
            Err(Error::format(&self.path, expected, found))
        };
        match is_at(held, &path) {
            Ok(true) => Ok(()),
            Ok(false) if self.path.is_dir() => gone(
                "one that is no longer locked by this process: somebody has removed or replaced its lock",
            ),
            Ok(false) => gone("nothing: it was removed or moved away"),
            Err(e) => Err(Error::io(&path, "look at the lock", e)),
        }
    }

    /// Replaces a text file in it, atomically.
    ///
    /// # Errors
    /// If it cannot be written; the old one is then intact.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        self.check_ours()?;
        atomic::write_text(&self.file(name), text)
    }

    /// Saves `view` as `last.ckpt`; the one that was there becomes `previous.ckpt`.
    ///
    /// A `last.ckpt` that was not found good by [`load_latest`](Self::load_latest) nor written by this
    /// process is overwritten instead, so that a damaged file never takes the place of a good one.
    ///
    /// # Errors
    /// If it cannot be written; the good checkpoints are then still there.
    pub fn save_last(&mut self, view: &CheckpointView) -> Result<()> {
        self.check_ours()?;
        // A folder that vanishes in the middle of a save is not a file that cannot be renamed.
        self.replace_last(view).map_err(|error| self.check_ours().err().unwrap_or(error))
    }

    fn replace_last(&mut self, view: &CheckpointView) -> Result<()> {
        let (last, previous) = (self.file(LAST), self.file(PREVIOUS));
        let mut temporary = atomic::temporary_beside(&last)?;
        format::write(temporary.as_file_mut(), view).map_err(|e| Error::io(&last, "write", e))?;
        // Before anything is renamed, the new one is on the disk.
        temporary.as_file().sync_all().map_err(|e| Error::io(&last, "sync", e))?;
        if self.last_is_good && last.exists() {
            atomic::link_over(&last, &previous)?;
        }
        atomic::commit(temporary, &last)?;
        self.last_is_good = true;
        Ok(())
    }

    /// Makes `best.ckpt` the same as `last.ckpt` as it is now. Costs no space and no time where there are hard links.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_best(&self) -> Result<()> {
        self.check_ours()?;
        atomic::link_over(&self.file(LAST), &self.file(BEST))
    }

    /// The newest checkpoint to resume from; see [`load_latest`].
    ///
    /// # Errors
    /// As [`load_latest`].
    pub fn load_latest(&mut self) -> Result<Loaded> {
        let loaded = load_latest(&self.path)?;
        self.last_is_good = loaded.warning.is_none();
        Ok(loaded)
    }
}

/// The newest checkpoint of the run in `folder` that is whole: `last.ckpt`, or else `previous.ckpt`.
/// Needs no lock, so it may look into a run under way.
///
/// # Errors
/// If there is none; the error says why each was refused.
pub fn load_latest(folder: &Path) -> Result<Loaded> {
    let mut refused = Vec::new();
    for name in [LAST, PREVIOUS] {
        match Checkpoint::open(folder.join(name)) {
            Ok(checkpoint) => {
                let warning = refused.pop().map(|reason| format!("{reason}; continuing from {name} instead"));
                return Ok(Loaded { checkpoint, warning });
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                refused.push(format!("{}: there is none", folder.join(name).display()));
            }
            Err(error) => refused.push(error.to_string()),
        }
    }
    let present = |name: &str| folder.join(name).exists();
    let best = folder.join(BEST);
    let (reason, hint) = if present(LAST) || present(PREVIOUS) {
        (format!("no checkpoint in it can be used:\n  {}", refused.join("\n  ")), None)
    } else {
        let hint = "nothing is lost by starting it again: remove the folder, or choose another with --out";
        ("no checkpoint has been saved in it yet".into(), Some(hint.to_owned()))
    };
    let hint = if best.exists() { Some(format!("try --resume {}", best.display())) } else { hint };
    Err(Error::Resume { path: folder.to_owned(), reason, hint })
}

/// A lock that is held.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    /// Closing the file would do, but for a child that another thread is just starting: until it runs its own program it
    /// has the file open too.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Whether the open file `held` is what `path` names; not if nothing is there.
fn is_at(held: &File, path: &Path) -> io::Result<bool> {
    let held = held.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Locks a run folder. The system gives the lock back however the process ends.
fn lock(folder: &Path) -> Result<Option<Lock>> {
    let path = folder.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::io(&path, "open", e))?;
    match file.try_lock() {
        // Removed by somebody between opening and locking: what is locked then keeps nobody out.
        Ok(()) if !is_at(&file, &path).map_err(|e| Error::io(&path, "look at the lock", e))? => {
            return lock(folder);
        }
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let holder = holder.lines().next().filter(|line| !line.is_empty()).unwrap_or("another process");
            return Err(Error::Usage {
                message: format!("{} is in use: {holder} is training there", folder.display()),
                hint: Some("wait for it, stop it, or choose another folder with --out".into()),
            });
        }
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(Error::io(&path, "lock", e)),
    }
    let holder = format!("process {}{}\n", std::process::id(), on_host());
    file.set_len(0)
        .and_then(|()| file.write_all(holder.as_bytes()))
        .map_err(|e| Error::io(&path, "write", e))?;
    Ok(Some(Lock(file)))
}

/// ` on HOST`, where the system says so in a file: a shared folder may be in use on another machine.
fn on_host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { String::new() } else { format!(" on {}", name.trim()) }
}

/// `2026-03-14-1502-cifar10-resnet18`.
fn default_name(now: SystemTime, data_name: &str, arch: &str) -> String {
    let Utc { year, month, day, hour, minute, .. } = Utc::of(now);
    let (data, arch) = (plain(data_name), plain(arch));
    format!("{year:04}-{month:02}-{day:02}-{hour:02}{minute:02}-{data}-{arch}")
}

/// `text` with only lower-case letters, digits and single dashes.
fn plain(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let words: Vec<_> = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let mut name = if words.is_empty() { "data".into() } else { words.join("-") };
    name.truncate(60);
    name
}

/// A moment as people write it, in UTC.
pub(crate) struct Utc {
    year: u64,
    month: usize,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    millisecond: u32,
}

impl Utc {
    /// The parts of `time`; 1970 for a clock that stands before that.
    pub(crate) fn of(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        let (year, month, day) = date(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        Utc { year, month, day, hour, minute, second, millisecond: since.subsec_millis() }
    }

    /// `2026-03-14T15:02:03.123Z` (RFC 3339).
    pub(crate) fn stamp(&self) -> String {
        let Utc { year, month, day, hour, minute, second, millisecond } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
    }

    /// `2026-03-14 15:02 UTC`.
    pub(crate) fn minute(&self) -> String {
        let Utc { year, month, day, hour, minute, .. } = self;
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
#[path = "run_folder_tests.rs"]
mod tests;
