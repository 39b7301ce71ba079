//! `retrievals.jsonl`: what was found for the same few queries after each epoch, one JSON object a line.
//!
//! Its size does not depend on the data: at most about a hundred lines of a few kilobytes. A resumed run cuts off what it
//! will do again: the lines of epochs that its checkpoint has not finished.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::contact_sheet::{OTHER, SAME, Tile, contact_sheet};
use crate::atomic;
use crate::data::dataset::Splits;
use crate::error::{Error, Result};
use crate::eval::retrieval::Retrieval;

/// Lines that a run keeps, but for its first epochs and its last.
const LINES: u64 = 100;
/// The first epochs change most; they are all kept.
const FIRST: u64 = 10;

/// One line: all queries after an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The epoch just finished, counted from 0.
    pub epoch: u64,
    /// Optimiser steps done by then.
    pub step: u64,
    /// What was found.
    pub queries: Vec<Retrieval>,
}

/// Whether a snapshot is taken after `epoch` (from 0) of `epochs`.
pub fn due(epoch: u64, epochs: u64) -> bool {
    let every = epochs.div_ceil(LINES).max(1);
    epoch < FIRST || (epoch + 1).is_multiple_of(every) || epoch + 1 == epochs
}

/// Appends snapshots to the file.
#[derive(Debug)]
pub struct RetrievalsWriter {
    path: PathBuf,
    file: File,
}

impl RetrievalsWriter {
    /// Goes on with the file at `path`, or starts it: lines of the `finished` epochs stay, others are cut off.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn open(path: impl Into<PathBuf>, finished: u64) -> Result<Self> {
        let path = path.into();
        let kept: Vec<Snapshot> = match read(&path) {
            Ok(snapshots) => snapshots,
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(Error::Resume {
                    path,
                    reason: error.to_string(),
                    hint: Some(
                        "move the file away to continue with a new one; the training itself is not affected"
                            .into(),
                    ),
                });
            }
        };
        let lines: String = kept.iter().filter(|snapshot| snapshot.epoch < finished).map(line).collect();
        if path.exists() {
            atomic::write_text(&path, &lines)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path);
        Ok(RetrievalsWriter { file: file.map_err(|e| Error::io(&path, "open", e))?, path })
    }

    /// Adds a snapshot and brings it to the disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.file
            .write_all(line(snapshot).as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io(&self.path, "write", e))
    }
}

fn line(snapshot: &Snapshot) -> String {
    serde_json::to_string(snapshot).expect("snapshots are plain JSON") + "\n"
}

/// A picture of `snapshot`: a row for each query, itself first, frames by whether the class agrees.
///
/// # Errors
/// An image that cannot be read.
///
/// # Panics
/// If the snapshot is of other data, which has fewer images.
pub fn sheet(snapshot: &Snapshot, splits: &Splits, tile_px: u32) -> Result<RgbImage> {
    let mut rows = Vec::new();
    for Retrieval { test, query, found } in &snapshot.queries {
        let asked = if *test { splits.test.as_ref().unwrap_or(&splits.train) } else { &splits.train };
        let mut row = vec![Tile { image: asked.load(query.row as usize)?, frame: None }];
        for one in found {
            let frame = one.label.map(|label| if Some(label) == query.label { SAME } else { OTHER });
            row.push(Tile { image: splits.train.load(one.row as usize)?, frame });
        }
        rows.push(row);
    }
    Ok(contact_sheet(&rows, tile_px))
}

/// Reads the file, also one that is being written: a torn last line is left out.
///
/// # Errors
/// If it cannot be read, or a complete line is not a snapshot.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Snapshot>> {
    let path = path.as_ref();
    let io = |e| Error::io(path, "read", e);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut snapshots = Vec::new();
    for number in 1.. {
        let mut line = Vec::new();
        file.read_until(b'\n', &mut line).map_err(io)?;
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let refuse = |e| Error::format(path, "retrievals", format!("line {number}: {e}"));
        snapshots.push(serde_json::from_slice(line).map_err(refuse)?);
    }
    Ok(snapshots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::scratch;
    use crate::eval::retrieval::Shown;
    use std::fs;

    fn snapshot(epoch: u64) -> Snapshot {
        let query = Shown { row: 3, name: "cat/3.png".into(), label: Some(1), similarity: None };
        let found = vec![Shown { row: 9, name: "dog/9.png".into(), label: None, similarity: Some(0.7153) }];
        Snapshot { epoch, step: 10 * (epoch + 1), queries: vec![Retrieval { test: true, query, found }] }
    }

    #[test]
    fn lines_are_as_documented_and_cut_back_by_epoch() {
        let (_dir, folder) = scratch();
        let path = folder.join("retrievals.jsonl");
        let mut writer = RetrievalsWriter::open(&path, 0).unwrap();
        for epoch in 0..3 {
            writer.append(&snapshot(epoch)).unwrap();
        }
        let first = r#"{"epoch":0,"step":10,"queries":[{"test":true,"query":{"row":3,"name":"cat/3.png","label":1},"found":[{"row":9,"name":"dog/9.png","label":null,"similarity":0.7153}]}]}"#;
        assert!(fs::read_to_string(&path).unwrap().starts_with(&format!("{first}\n")));
        assert_eq!(read(&path).unwrap(), [0, 1, 2].map(snapshot));
        // Killed while it wrote; two epochs are finished, the third will be done again.
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"epo").unwrap();
        let mut writer = RetrievalsWriter::open(&path, 2).unwrap();
        assert_eq!(read(&path).unwrap(), [0, 1].map(snapshot));
        writer.append(&snapshot(2)).unwrap();
        assert_eq!(read(&path).unwrap(), [0, 1, 2].map(snapshot));
        fs::write(&path, "nonsense\n").unwrap();
        let error = RetrievalsWriter::open(&path, 2).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn a_long_run_keeps_about_a_hundred() {
        let kept = |epochs: u64| (0..epochs).filter(|&epoch| due(epoch, epochs)).count();
        assert_eq!([1, 10, 100].map(kept), [1, 10, 100]);
        for epochs in [101, 200, 999, 10_000] {
            assert!((50..=112).contains(&kept(epochs)), "{epochs}: {}", kept(epochs));
            assert!(due(epochs - 1, epochs));
        }
    }
}
