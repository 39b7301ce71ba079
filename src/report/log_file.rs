//! `train.log`: what was said while a run went on, with times and levels, for a person who was not there.
//!
//! A line is `2026-03-14T15:02:03.123Z INFO  text`. Further lines of a text are indented, so that every line that starts
//! with a digit is a message. The file grows with every process that trains in the folder; nothing is cut off.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use log::{Level, LevelFilter};

use super::metrics::{EvalRecord, STARTUP, StepRecord};
use super::progress::{Epoch, EpochStart, Reporter, sentence};
use crate::checkpoint::run_folder::Utc;
use crate::error::{Error, Result};

/// A log file that is open; clones write to the same.
#[derive(Clone, Debug)]
pub struct LogFile {
    file: Arc<File>,
    level: LevelFilter,
}

impl LogFile {
    /// Goes on with the file at `path`, or starts it. Messages of less weight than `level` are left out.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path, level: LevelFilter) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Ok(LogFile { file: Arc::new(file.map_err(|e| Error::io(path, "open", e))?), level })
    }

    /// Adds a message, in one write. A full disk under a log is no reason to lose a run.
    pub fn write(&self, level: Level, text: &str) {
        if level <= self.level {
            let line = line(SystemTime::now(), level, text);
            let _ = (&*self.file).write_all(line.as_bytes());
        }
    }
}

fn line(now: SystemTime, level: Level, text: &str) -> String {
    format!("{} {level:<5} {}\n", Utc::of(now).stamp(), text.trim_end().replace('\n', "\n    "))
}

/// Writes a run's progress into a [`LogFile`]: epochs and measurements at `info`, steps at `debug`.
pub struct LogReporter {
    log: LogFile,
    print_freq: u64,
    epoch: Epoch,
}

impl LogReporter {
    /// Writes to `log`; of the steps one of `print_freq`.
    pub fn new(log: LogFile, print_freq: u64) -> Self {
        LogReporter { log, print_freq: print_freq.max(1), epoch: Epoch::default() }
    }

    fn summary(&self) -> String {
        let left = self.epoch.left().map(|left| format!("  {left}")).unwrap_or_default();
        format!("{}{left}", self.epoch.summary())
    }
}

impl Reporter for LogReporter {
    fn epoch_started(&mut self, start: EpochStart) {
        self.epoch.start(start);
        let EpochStart { epoch, epochs, batches, batches_done, .. } = start;
        let text =
            format!("epoch {}/{epochs} begins: {batches} batches, {batches_done} of them done", epoch + 1);
        self.log.write(Level::Debug, &text);
    }

    fn step(&mut self, batches_done: u64, step: &StepRecord) {
        self.epoch.step(batches_done, step);
        if let Some(seconds) = step.extra.get(STARTUP).and_then(serde_json::Value::as_f64) {
            self.log.write(
                Level::Info,
                &format!("the first step began {seconds:.2} s after the program was started"),
            );
        }
        if batches_done.is_multiple_of(self.print_freq) {
            let text = format!("step {}  lr {}  {}", step.step, step.lr, self.summary());
            self.log.write(Level::Debug, &text);
        }
    }

    fn epoch_finished(&mut self, epoch: u64) {
        let epochs = self.epoch.start.epochs;
        self.log.write(Level::Info, &format!("epoch {}/{epochs}  {}", epoch + 1, self.summary()));
    }

    fn evaluation(&mut self, evaluation: &EvalRecord) {
        self.log.write(Level::Info, &sentence(evaluation));
    }

    fn message(&mut self, level: Level, text: &str) {
        self.log.write(level, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::scratch;
    use std::time::Duration;

    #[test]
    fn lines_have_a_time_and_a_level() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(1_773_500_523_045);
        assert_eq!(
            line(moment, Level::Warn, "two\nlines\n"),
            "2026-03-14T15:02:03.045Z WARN  two\n    lines\n"
        );
        assert_eq!(line(SystemTime::UNIX_EPOCH, Level::Info, ""), "1970-01-01T00:00:00.000Z INFO  \n");
    }

    #[test]
    fn levels_decide_what_is_kept_and_a_second_process_goes_on() {
        let (_dir, folder) = scratch();
        let path = folder.join("train.log");
        let log = |level| {
            let mut reporter = LogReporter::new(LogFile::open(&path, level).unwrap(), 2);
            reporter.epoch_started(EpochStart {
                epoch: 0,
                epochs: 3,
                batches: 4,
                batches_done: 0,
                batches_to_limit: None,
            });
            for done in 1..=4 {
                let startup = (done == 1).then(|| (STARTUP.to_owned(), 1.25.into()));
                let extra = startup.into_iter().collect();
                reporter
                    .step(done, &StepRecord { step: done, lr: 0.03, loss: 5.0, extra, ..Default::default() });
            }
            reporter.epoch_finished(0);
            reporter.message(Level::Warn, "look here");
            let text = std::fs::read_to_string(&path).unwrap();
            text.lines().map(|line| line[25..].to_owned()).collect::<Vec<_>>()
        };
        let lines = log(LevelFilter::Info);
        assert_eq!(lines[0], "INFO  the first step began 1.25 s after the program was started");
        assert!(lines[1].starts_with("INFO  epoch 1/3  loss 5.0000"), "{lines:?}");
        assert_eq!(lines[2..], ["WARN  look here"]);
        let lines = log(LevelFilter::Debug);
        assert_eq!(lines.len(), 3 + 1 + 1 + 2 + 2, "{lines:?}");
        assert!(lines[5].starts_with("DEBUG step 2  lr 0.03  loss 5.0000"), "{lines:?}");
        assert_eq!(log(LevelFilter::Off).len(), 9);
    }
}
