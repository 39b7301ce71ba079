//! The curves of a run, read anew while it trains.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use serde_json::{Value, json};

use crate::checkpoint::run_folder;
use crate::error::{Error, Result};
use crate::report::curves::curves_svg;
use crate::report::metrics::{self, Record};

/// The file is not read more often than this, however many ask.
const PAUSE: Duration = Duration::from_secs(1);

/// A run's `metrics.jsonl`, and what was made of it last.
pub struct LiveMetrics {
    title: String,
    run: Option<PathBuf>,
    last: Mutex<Option<(Instant, Version, Arc<Snapshot>)>>,
}

/// Length and time of change: what tells one state of the file from another.
type Version = (u64, Option<SystemTime>);

/// What the file held at some time.
pub struct Snapshot {
    /// Epochs, steps and the newest value of everything measured.
    pub summary: Value,
    /// The curves.
    pub svg: Bytes,
}

impl LiveMetrics {
    /// The metrics of the run in folder `run`, if there is one.
    pub fn new(title: String, run: Option<PathBuf>) -> Self {
        LiveMetrics { title, run, last: Mutex::default() }
    }

    /// The newest state of the file; none without a run or before its first line. Blocks on the disk.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else.
    pub fn read(&self) -> Result<Option<Arc<Snapshot>>> {
        let Some(run) = &self.run else { return Ok(None) };
        let path = run.join(run_folder::METRICS);
        // The lock is held while the file is read: the others wait for the same answer.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, _, snapshot)) = &*last
            && when.elapsed() < PAUSE
        {
            return Ok(Some(Arc::clone(snapshot)));
        }
        let Some(version) = version(&path)? else { return Ok(None) };
        let snapshot = match last.take() {
            Some((_, before, snapshot)) if before == version => snapshot,
            _ => Arc::new(self.snapshot(&metrics::read(&path)?, version.0)),
        };
        *last = Some((Instant::now(), version, Arc::clone(&snapshot)));
        Ok(Some(snapshot))
    }

    fn snapshot(&self, records: &[Record], revision: u64) -> Snapshot {
        let mut newest = None;
        let mut evaluations: Vec<&metrics::EvalRecord> = Vec::new();
        for record in records {
            match record {
                Record::Step(step) => newest = Some(step),
                Record::Eval(eval) => {
                    let same = |other: &&metrics::EvalRecord| {
                        (&other.metric, &other.bank, &other.layer, other.k)
                            == (&eval.metric, &eval.bank, &eval.layer, eval.k)
                    };
                    match evaluations.iter_mut().find(|other| same(other)) {
                        Some(older) => *older = eval,
                        None => evaluations.push(eval),
                    }
                }
                Record::Note(_) => {}
            }
        }
        let steps = newest.map(|step| {
            json!({
                "epoch": step.epoch, "step": step.step, "loss": step.loss, "lr": step.lr,
                "images_per_s": step.images_per_s,
            })
        });
        let summary = json!({ "revision": revision, "newest": steps, "evaluations": evaluations });
        Snapshot { summary, svg: curves_svg(&self.title, records).into() }
    }
}

/// None if there is no such file, or nothing in it.
fn version(path: &Path) -> Result<Option<Version>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => Ok(None),
        Ok(metadata) => Ok(Some((metadata.len(), metadata.modified().ok()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}
