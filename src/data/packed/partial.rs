//! A packed data set on its way: `OUT.part`, header and images, and `OUT.part.index`, the records of those images that
//! are known to be on the disk. A killed or interrupted packing goes on from there; a finished one is renamed to OUT.
//!
//! The index of a partial file: one line of JSON that says what is being packed, then entries of [`ENTRY`] bytes, a
//! [`Record`] and a CRC-32C over it and the line. Images are synced before their records are written, so that a
//! record never describes what a power cut took.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::form::{Form, Packed};
use super::format::{HEADER, Kind, Layout, RECORD, Record, VERSION, header, seal};
use crate::error::{Error, Result};

/// Bytes of an entry: record, checksum, zero.
const ENTRY: usize = RECORD + 8;
/// Records are written after this many bytes of images, or this much time.
const COMMIT_BYTES: u64 = 64 << 20;
const COMMIT_TIME: Duration = Duration::from_secs(2);

/// What is being packed: images of another kind are never mixed with them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) version: u32,
    pub(super) form: Form,
    /// Fingerprint and number of images of each split.
    pub(super) splits: Vec<(String, usize)>,
}

impl Plan {
    pub(super) fn new(form: Form, splits: Vec<(String, usize)>) -> Self {
        Plan { version: VERSION, form, splits }
    }

    fn images(&self) -> usize {
        self.splits.iter().map(|(_, images)| images).sum()
    }
}

pub(super) struct Partial {
    out: PathBuf,
    images: PathBuf,
    image_file: BufWriter<File>,
    index: PathBuf,
    index_file: File,
    /// Checksum of the plan's line.
    plan_crc: u32,
    records: Vec<Record>,
    /// Of the records, those that `index_file` has.
    committed: usize,
    /// Where the next image goes.
    end: u64,
    committed_end: u64,
    last_commit: Instant,
}

impl Partial {
    /// Goes on with what lies beside `out` and belongs to `plan`, or begins. `readable` is asked for each image that
    /// could not be read whether it can be now: then it and those after it are packed again.
    ///
    /// # Errors
    /// If something else is being packed there, by this process or another, or the files cannot be written.
    pub(super) fn open(out: &Path, plan: &Plan, readable: impl Fn(usize) -> bool) -> Result<Self> {
        let beside = |ending: &str| {
            let mut name = out.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (images, index) = (beside(".part"), beside(".part.index"));
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(path).map_err(|e| Error::io(path, "open", e))
        };
        let index_file = open(&index)?;
        lock(&index_file, &index)?;
        let mut line = serde_json::to_vec(plan).map_err(|e| Error::usage(format!("JSON: {e}")))?;
        line.push(b'\n');
        let plan_crc = crc32c::crc32c(&line);
        let mut partial = Partial {
            out: out.to_owned(),
            image_file: BufWriter::with_capacity(1 << 20, open(&images)?),
            images,
            index,
            index_file,
            plan_crc,
            records: Vec::new(),
            committed: 0,
            end: HEADER as u64,
            committed_end: 0,
            last_commit: Instant::now(),
        };
        partial.read(plan, &line)?;
        if let Some(row) = partial.unreadable().into_iter().find(|&row| readable(row)) {
            partial.records.truncate(row);
        }
        partial.rewind(&line)?;
        Ok(partial)
    }

    /// Reads the records that are there, up to the first that is not whole.
    fn read(&mut self, plan: &Plan, line: &[u8]) -> Result<()> {
        let io = |e| Error::io(&self.index, "read", e);
        let images = self.image_file.get_ref().metadata().map_err(io)?.len();
        let mut reader = BufReader::new(&self.index_file);
        let mut known = Vec::new();
        reader.by_ref().take(1 << 20).read_until(b'\n', &mut known).map_err(io)?;
        if known != line {
            // A line that was torn is worth nothing, as long as nothing was packed by it.
            if serde_json::from_slice::<Plan>(&known).is_ok() && images > HEADER as u64 {
                return Err(Error::Usage {
                    message: format!(
                        "{} holds other images, or the same in another form",
                        self.images.display()
                    ),
                    hint: Some("finish it with the command it was begun with, or remove the file".into()),
                });
            }
            return Ok(());
        }
        let mut end = HEADER as u64;
        let mut entry = [0; ENTRY];
        while self.records.len() < plan.images() {
            match reader.read_exact(&mut entry) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                read => read.map_err(io)?,
            }
            let (bytes, crc) = entry.split_at(RECORD);
            let Ok(bytes) = bytes.try_into() else { break };
            let Ok(record) = Record::decode(bytes) else { break };
            end += u64::from(record.length);
            if crc != checksum(self.plan_crc, bytes) || end > images {
                break;
            }
            self.records.push(record);
        }
        Ok(())
    }

    /// Makes both files end with the last record that counts.
    fn rewind(&mut self, line: &[u8]) -> Result<()> {
        let (records, done) = (&self.records, self.records.len());
        self.end = HEADER as u64 + records.iter().map(|record| u64::from(record.length)).sum::<u64>();
        self.committed = done;
        self.committed_end = self.end;
        let index_end = (line.len() + done * ENTRY) as u64;
        let index = |file: &mut File| {
            if done == 0 {
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
                file.write_all(line)?;
            }
            file.set_len(index_end)?;
            file.seek(SeekFrom::End(0))
        };
        index(&mut self.index_file).map_err(|e| Error::io(&self.index, "write", e))?;
        let (end, file) = (self.end, self.image_file.get_mut());
        let images = |file: &mut File| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header())?;
            file.set_len(end)?;
            file.seek(SeekFrom::End(0))
        };
        images(file).map_err(|e| Error::io(&self.images, "write", e))?;
        Ok(())
    }

    /// Records so far.
    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Rows, counted through all splits, of images that could not be read.
    fn unreadable(&self) -> Vec<usize> {
        let unreadable = |&row: &usize| self.records[row].kind == Kind::Unreadable;
        (0..self.records.len()).filter(unreadable).collect()
    }

    /// Adds the next image.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn push(&mut self, image: &Packed, record: Record) -> Result<()> {
        self.image_file.write_all(&image.bytes).map_err(|e| Error::io(&self.images, "write", e))?;
        self.end += image.bytes.len() as u64;
        self.records.push(record);
        if self.end - self.committed_end >= COMMIT_BYTES || self.last_commit.elapsed() >= COMMIT_TIME {
            self.commit()?;
        }
        Ok(())
    }

    /// Makes sure that what was packed so far need not be packed again.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn commit(&mut self) -> Result<()> {
        let images = |file: &mut BufWriter<File>| {
            file.flush()?;
            file.get_ref().sync_data()
        };
        images(&mut self.image_file).map_err(|e| Error::io(&self.images, "write", e))?;
        let mut entries = Vec::new();
        for record in &self.records[self.committed..] {
            let bytes = record.encode();
            entries.extend(bytes);
            entries.extend(checksum(self.plan_crc, &bytes));
        }
        let index = |file: &mut File| {
            file.write_all(&entries)?;
            file.sync_data()
        };
        index(&mut self.index_file).map_err(|e| Error::io(&self.index, "write", e))?;
        self.committed = self.records.len();
        self.committed_end = self.end;
        self.last_commit = Instant::now();
        Ok(())
    }

    /// Adds `index` and the footer and gives the file its name.
    ///
    /// # Errors
    /// If it cannot be written; what was packed is kept then.
    pub(super) fn finish(mut self, index: Vec<u8>) -> Result<()> {
        self.commit()?;
        let io = |e| Error::io(&self.images, "write", e);
        let mut file = self.image_file.into_inner().map_err(|e| io(e.into_error()))?;
        file.write_all(&seal(self.end, index)).map_err(io)?;
        file.sync_all().map_err(io)?;
        // What is published can be opened.
        // SAFETY: the map is private and only read; as for every mapped file, whoever shortens it meanwhile stops us.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Layout::read(&map).map_err(|found| Error::format(&self.images, "what was just written", found))?;
        std::fs::rename(&self.images, &self.out).map_err(|e| Error::io(&self.out, "replace", e))?;
        let folder =
            self.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Some network file systems cannot sync a folder; the name is theirs to keep.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        std::fs::remove_file(&self.index).map_err(|e| Error::io(&self.index, "remove", e))
    }
}

fn checksum(plan_crc: u32, record: &[u8]) -> [u8; 8] {
    u64::from(crc32c::crc32c_append(plan_crc, record)).to_le_bytes()
}

/// Keeps other processes out until the file is closed; where there are no locks, nothing does.
fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::usage(format!("{}: another process is packing there", path.display())))
        }
        Err(TryLockError::Error(e)) if e.kind() != io::ErrorKind::Unsupported => {
            Err(Error::io(path, "lock", e))
        }
        _ => Ok(()),
    }
}
