//! `metrics.jsonl`: what happened in a run, one JSON object a line.
//!
//! Each line is written by one call, so a crash leaves at most a torn last line. Checkpoints remember the
//! file's length; resuming cuts it back to that, so that no step appears twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::finding::Finding;
use crate::error::{Error, Result};

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// An optimiser step.
    Step(StepRecord),
    /// A measurement of the features.
    Eval(EvalRecord),
    /// Something worth remembering: resumed here, the disk was full.
    Note(NoteRecord),
}

/// One optimiser step. Numbers that are not finite are written as `null` and read as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Optimiser steps since the start of the run, this one included.
    pub step: u64,
    /// The loss, a mean over the step's images.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate of this step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Images trained on per second, over the whole step.
    #[serde(deserialize_with = "null_is_nan")]
    pub images_per_s: f64,
    /// The part of [`step_ms`](Self::step_ms) spent waiting for the loader, in milliseconds.
    #[serde(deserialize_with = "null_is_nan")]
    pub data_ms: f64,
    /// From the end of the step before to the end of this one, in milliseconds.
    #[serde(deserialize_with = "null_is_nan")]
    pub step_ms: f64,
    /// The logarithm of the partition constant Z, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ln_z: Option<f64>,
    /// Anything else, under its own name.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// Among [`StepRecord::extra`] of the first step that a process makes: seconds from its start to that step's. What the step
/// waits for its images is in its `data_ms`.
pub const STARTUP: &str = "startup_s";

/// One measurement of the features.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// The epoch just finished, counted from 0.
    pub epoch: u64,
    /// What was measured: `knn_top1`, `nn_top1`, `view_top1`, `alignment`, ... Names with `_top` are percentages.
    pub metric: String,
    /// Its value.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// Number of neighbours, where that means something.
    pub k: Option<u64>,
    /// Temperature of the votes, where that means something.
    pub temperature: Option<f64>,
    /// What was searched: `live` or `recomputed`.
    pub bank: String,
    /// What was compared: `embedding`, `pooled`, `layer4`, ...
    pub layer: String,
    /// How long it took, in seconds.
    #[serde(deserialize_with = "null_is_nan")]
    pub seconds: f64,
}

impl EvalRecord {
    /// Whether the value is a percentage.
    pub fn is_percentage(&self) -> bool {
        self.metric.contains("_top")
    }
}

/// A remark.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NoteRecord {
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Optimiser steps done by then.
    pub step: u64,
    /// What a [`Finding`] is about; other remarks have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// `warning` or `advice`, for a finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// The remark.
    pub text: String,
}

/// JSON has no NaN and no infinity; serde_json writes both as `null`.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Appends records to the file.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    /// Length of the file, all lines complete.
    bytes: u64,
}

impl MetricsWriter {
    /// Starts a new file.
    ///
    /// # Errors
    /// If it exists or cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        Ok(MetricsWriter { file: file.map_err(|e| Error::io(&path, "create", e))?, path, bytes: 0 })
    }

    /// Continues a file that had `bytes` bytes when the checkpoint was saved; what follows them is cut off,
    /// since it will happen again. Without a file, a new one is started.
    ///
    /// # Errors
    /// If the file is shorter than that, was changed at that place, or cannot be written.
    pub fn resume(path: impl Into<PathBuf>, bytes: u64) -> Result<Self> {
        let path = path.into();
        let opened = OpenOptions::new().read(true).append(true).open(&path);
        let mut file = match opened {
            Err(e) if e.kind() == ErrorKind::NotFound => return Self::create(path),
            opened => opened.map_err(|e| Error::io(&path, "open", e))?,
        };
        let length = file.metadata().map_err(|e| Error::io(&path, "read", e))?.len();
        let refuse = |reason: String| Error::Resume {
            path: path.clone(),
            reason,
            hint: Some(
                "move the file away to continue with a new one; the training itself is not affected".into(),
            ),
        };
        if length < bytes {
            return Err(refuse(format!(
                "it has {length} bytes, but had {bytes} when the checkpoint was saved"
            )));
        }
        if bytes > 0 {
            let mut end = [0];
            file.seek(SeekFrom::Start(bytes - 1))
                .and_then(|_| file.read_exact(&mut end))
                .map_err(|e| Error::io(&path, "read", e))?;
            if end != *b"\n" {
                return Err(refuse(format!(
                    "no line ends after {bytes} bytes, where one did when the checkpoint was saved"
                )));
            }
        }
        file.set_len(bytes).map_err(|e| Error::io(&path, "cut back", e))?;
        Ok(MetricsWriter { path, file, bytes })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// If it cannot be written; the file then ends with the last complete line.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("records are plain JSON");
        line.push(b'\n');
        if let Err(e) = self.file.write_all(&line) {
            let _ = self.file.set_len(self.bytes);
            return Err(Error::io(&self.path, "write", e));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Appends a step.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.write(&Record::Step(record.clone()))
    }

    /// Appends an evaluation.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.write(&Record::Eval(record.clone()))
    }

    /// Appends a remark.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn note(&mut self, epoch: u64, step: u64, text: impl Into<String>) -> Result<()> {
        self.write(&Record::Note(NoteRecord { epoch, step, text: text.into(), ..NoteRecord::default() }))
    }

    /// Appends something that a person should know, as a remark.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn finding(&mut self, epoch: u64, step: u64, finding: &Finding) -> Result<()> {
        let (about, weight) = (Some(finding.about.to_owned()), Some(finding.weight().to_owned()));
        self.write(&Record::Note(NoteRecord { epoch, step, about, weight, text: finding.text.clone() }))
    }

    /// Brings all lines to the disk and returns the file's length, for the checkpoint about to be saved: a power cut
    /// must not leave a checkpoint that remembers more lines than there are.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, "sync", e))?;
        Ok(self.bytes)
    }
}

/// Reads a metrics file, also one that is being written: a torn last line is left out, and so are lines of a
/// kind that this version does not know.
///
/// # Errors
/// If it cannot be read, or a complete line is not a record.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for_each(path, |record| records.push(record))?;
    Ok(records)
}

/// As [`read`], one record at a time: a long run has millions.
///
/// # Errors
/// As [`read`].
pub fn for_each(path: impl AsRef<Path>, mut each: impl FnMut(Record)) -> Result<()> {
    let path = path.as_ref();
    let io = |e| Error::io(path, "read", e);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        file.read_until(b'\n', &mut line).map_err(io)?;
        // No end of the line: torn, or the end of the file.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let refuse = |e| Error::format(path, "a record", format!("line {number}: {e}"));
        let value: Value = serde_json::from_slice(line).map_err(refuse)?;
        let known = |kind: &str| ["step", "eval", "note"].contains(&kind);
        if value.get("kind").and_then(Value::as_str).is_some_and(|kind| !known(kind)) {
            continue;
        }
        each(serde_json::from_value(value).map_err(refuse)?);
    }
    Ok(())
}

/// What the findings of a metrics file are about, so that a resumed run says nothing twice. A file that cannot be read
/// has none: this decides no result.
pub fn said(path: impl AsRef<Path>) -> BTreeSet<String> {
    let Ok(file) = File::open(path) else { return BTreeSet::new() };
    let notes = BufReader::new(file)
        .split(b'\n')
        .map_while(std::result::Result::ok)
        .filter(|line| line.starts_with(br#"{"kind":"note""#));
    notes.filter_map(|line| serde_json::from_slice::<NoteRecord>(&line).ok()?.about).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::scratch;
    use std::fs;

    fn step(step: u64) -> StepRecord {
        StepRecord {
            epoch: 1,
            step,
            loss: 8.5,
            lr: 0.03,
            images_per_s: 150.0,
            data_ms: 0.5,
            step_ms: 850.25,
            ..Default::default()
        }
    }

    fn eval() -> EvalRecord {
        EvalRecord {
            epoch: 1,
            metric: "knn_top1".into(),
            value: 34.5,
            k: Some(200),
            temperature: Some(0.1),
            bank: "live".into(),
            layer: "embedding".into(),
            seconds: 2.5,
        }
    }

    #[test]
    fn the_lines_are_as_documented() {
        let (_dir, folder) = scratch();
        let path = folder.join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).unwrap();
        let mut first = step(7);
        first.ln_z = Some(11.5);
        first.extra.insert("grad_norm".into(), 0.25.into());
        writer.step(&first).unwrap();
        writer.evaluation(&eval()).unwrap();
        writer.note(1, 7, "resumed").unwrap();
        let expected = r#"{"kind":"step","epoch":1,"step":7,"loss":8.5,"lr":0.03,"images_per_s":150.0,"data_ms":0.5,"step_ms":850.25,"ln_z":11.5,"grad_norm":0.25}
{"kind":"eval","epoch":1,"metric":"knn_top1","value":34.5,"k":200,"temperature":0.1,"bank":"live","layer":"embedding","seconds":2.5}
{"kind":"note","epoch":1,"step":7,"text":"resumed"}
"#;
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(writer.sync().unwrap(), expected.len() as u64);
        let note = NoteRecord { epoch: 1, step: 7, text: "resumed".into(), ..Default::default() };
        assert_eq!(read(&path).unwrap(), [Record::Step(first), Record::Eval(eval()), Record::Note(note)]);
    }

    #[test]
    fn findings_are_notes_and_are_remembered() {
        let (_dir, folder) = scratch();
        let path = folder.join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).unwrap();
        writer.note(0, 0, "resumed").unwrap();
        writer.finding(1, 7, &Finding::warning("loader-bound", "slow")).unwrap();
        writer.finding(1, 7, &Finding::advice("precision", "bf16")).unwrap();
        writer.file.write_all(b"{\"kind\":\"no").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected =
            r#"{"kind":"note","epoch":1,"step":7,"about":"loader-bound","weight":"warning","text":"slow"}"#;
        assert!(text.contains(expected), "{text}");
        assert_eq!(said(&path), ["loader-bound", "precision"].map(String::from).into());
        assert_eq!(said(folder.join("none")), BTreeSet::new());
        assert_eq!(read(&path).unwrap().len(), 3);
    }

    #[test]
    fn what_is_not_finite_is_null_and_comes_back_as_nan() {
        let record = Record::Step(StepRecord { loss: f64::NAN, images_per_s: f64::INFINITY, ..step(1) });
        let line = serde_json::to_string(&record).unwrap();
        assert!(line.contains(r#""loss":null"#) && line.contains(r#""images_per_s":null"#), "{line}");
        let Record::Step(back) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        assert!(back.loss.is_nan() && back.images_per_s.is_nan() && back.extra.is_empty());
        let line = serde_json::to_string(&EvalRecord { k: None, temperature: None, ..eval() }).unwrap();
        assert!(line.contains(r#""k":null,"temperature":null"#), "{line}");
    }

    #[test]
    fn resuming_cuts_off_what_will_happen_again() {
        let (_dir, folder) = scratch();
        let path = folder.join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).unwrap();
        writer.step(&step(1)).unwrap();
        let saved = writer.sync().unwrap();
        writer.step(&step(2)).unwrap();
        writer.file.write_all(b"{\"kind\":\"st").unwrap();
        drop(writer);
        let mut writer = MetricsWriter::resume(&path, saved).unwrap();
        writer.step(&step(2)).unwrap();
        assert_eq!(read(&path).unwrap(), [Record::Step(step(1)), Record::Step(step(2))]);
        assert_eq!(writer.sync().unwrap(), fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn a_file_that_is_not_the_one_of_the_checkpoint_is_refused() {
        let (_dir, folder) = scratch();
        let path = folder.join("metrics.jsonl");
        MetricsWriter::create(&path).unwrap().step(&step(1)).unwrap();
        let before = fs::read(&path).unwrap();
        let short = MetricsWriter::resume(&path, 10_000).unwrap_err();
        assert!(short.to_string().contains("but had 10000 when the checkpoint was saved"), "{short}");
        assert!(short.hint().is_some());
        let inside = MetricsWriter::resume(&path, 20).unwrap_err();
        assert!(inside.to_string().contains("no line ends after 20 bytes"), "{inside}");
        assert!(MetricsWriter::create(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
        fs::remove_file(&path).unwrap();
        MetricsWriter::resume(&path, 10_000).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn reading_tolerates_a_torn_end_and_unknown_kinds_but_not_nonsense() {
        let (_dir, folder) = scratch();
        let path = folder.join("metrics.jsonl");
        let whole = serde_json::to_string(&Record::Step(step(1))).unwrap() + "\n";
        for cut in 0..whole.len() {
            fs::write(&path, whole.clone() + &whole[..cut]).unwrap();
            assert_eq!(read(&path).unwrap().len(), 1, "{cut}");
        }
        fs::write(&path, whole.clone() + "{\"kind\":\"gpu\",\"watts\":300}\n" + &whole).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        for nonsense in ["nonsense\n", "{}\n", "{\"kind\":\"step\"}\n", "\n", "\u{0}\n"] {
            fs::write(&path, whole.clone() + nonsense).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }
}
