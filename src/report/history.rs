//! A run as its folder tells it, also one that is still training: settings, machine, steps, measurements, retrievals.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::machine::Machine;
use super::metrics::{self, EvalRecord, NoteRecord, Record, StepRecord};
use super::retrievals::{self, Snapshot};
use crate::checkpoint::run_folder;
use crate::error::{Error, Result};

/// What is kept of a step: a long run has millions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Optimiser steps, this one included.
    pub step: u64,
    /// Epochs done when it ended, with fractions.
    pub epochs: f64,
    /// Mean loss of its images.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Images per second.
    pub images_per_s: f64,
    /// Milliseconds it took.
    pub ms: f64,
    /// Of them, in the order of [`PARTS`].
    pub parts: [f64; PARTS.len()],
    /// ln Z, NaN where there is none.
    pub ln_z: f64,
}

/// What a step consists of, by the names of `metrics.jsonl`; what people call it stands beside.
pub const PARTS: [(&str, &str); 5] = [
    ("data_ms", "waiting for images"),
    ("forward_ms", "forward"),
    ("objective_ms", "objective"),
    ("backward_ms", "backward"),
    ("update_ms", "update"),
];

/// Everything that a run folder says without its checkpoints.
#[derive(Clone, Debug)]
pub struct History {
    /// The folder.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// `config.toml`.
    pub settings: toml::Table,
    /// `manifest.json`; null without one.
    pub manifest: Value,
    /// The machines it was made on, in order; none in runs of before they were kept.
    pub machines: Vec<Machine>,
    /// All steps.
    pub steps: Vec<Step>,
    /// All measurements, each with the optimiser steps done by then.
    pub evaluations: Vec<(u64, EvalRecord)>,
    /// Remarks, warnings and advice among them.
    pub notes: Vec<NoteRecord>,
    /// Results of `lemniscate eval` and its like.
    pub tests: Vec<Value>,
    /// What was found for the followed queries.
    pub retrievals: Vec<Snapshot>,
    /// When `metrics.jsonl` was last written.
    pub written: Option<SystemTime>,
}

impl History {
    /// Reads the run in `path`. Of the files only `config.toml` and `metrics.jsonl` have to be there.
    ///
    /// # Errors
    /// If there is no run in it, or a file is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let file = |name: &str| path.join(name);
        let text = |name: &str| match std::fs::read_to_string(file(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(file(name), "read", e)),
        };
        let no_run = |missing: &str| Error::Data {
            path: path.to_owned(),
            reason: format!("it is no run folder: there is no {missing} in it"),
            hint: Some("a run folder is what `lemniscate train` names when it starts".into()),
        };
        let settings = text(run_folder::CONFIG)?.ok_or_else(|| no_run(run_folder::CONFIG))?;
        let settings = settings.parse().map_err(|e: toml::de::Error| {
            Error::format(file(run_folder::CONFIG), "settings in TOML", e.message().to_owned())
        })?;
        let manifest: Value = match text(run_folder::MANIFEST)? {
            Some(text) => serde_json::from_str(&text).map_err(|e| {
                Error::format(file(run_folder::MANIFEST), "a manifest in JSON", e.to_string())
            })?,
            None => Value::Null,
        };
        let machines = serde_json::from_value(manifest["machines"].clone()).unwrap_or_default();
        let metrics_path = file(run_folder::METRICS);
        if !metrics_path.is_file() {
            return Err(no_run(run_folder::METRICS));
        }
        let (mut steps, mut evaluations, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        let mut done = 0;
        metrics::for_each(&metrics_path, |record| match record {
            Record::Step(record) => {
                done = record.step;
                steps.push((record.epoch, Step::of(&record)));
            }
            Record::Eval(record) => evaluations.push((done, record)),
            Record::Note(record) => notes.push(record),
        })?;
        let retrievals_path = file(run_folder::RETRIEVALS);
        let retrievals =
            if retrievals_path.is_file() { retrievals::read(&retrievals_path)? } else { Vec::new() };
        let tests = text(run_folder::EVALUATIONS)?.unwrap_or_default();
        Ok(History {
            path: path.to_owned(),
            name: name_of(path),
            settings,
            manifest,
            machines,
            steps: with_fractions(steps),
            evaluations,
            notes,
            tests: tests.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
            retrievals,
            written: std::fs::metadata(&metrics_path).and_then(|meta| meta.modified()).ok(),
        })
    }

    /// Epochs that the settings ask for.
    pub fn epochs(&self) -> Option<u64> {
        self.settings.get("epochs")?.as_integer()?.try_into().ok()
    }

    /// Mean loss of the last hundred steps.
    pub fn last_loss(&self) -> Option<f64> {
        let last = &self.steps[self.steps.len().saturating_sub(100)..];
        mean(last.iter().map(|step| step.loss))
    }

    /// The median of the images per second.
    pub fn images_per_s(&self) -> Option<f64> {
        let mut speeds: Vec<f64> =
            self.steps.iter().map(|s| s.images_per_s).filter(|x| x.is_finite()).collect();
        let middle = speeds.len() / 2;
        (!speeds.is_empty()).then(|| *speeds.select_nth_unstable_by(middle, f64::total_cmp).1)
    }

    /// Hours spent on steps, measuring and saving not counted.
    pub fn hours(&self) -> f64 {
        self.steps.iter().map(|step| step.ms).filter(|ms| ms.is_finite()).sum::<f64>() / 3.6e6
    }

    /// The share of the steps' time that went into each of [`PARTS`].
    pub fn shares(&self) -> [f64; PARTS.len()] {
        let total: f64 = self.steps.iter().map(|step| step.ms).filter(|ms| ms.is_finite()).sum();
        std::array::from_fn(|i| {
            let part: f64 = self.steps.iter().map(|step| step.parts[i]).filter(|ms| ms.is_finite()).sum();
            if total > 0.0 { part / total } else { 0.0 }
        })
    }

    /// Names of the percentages that were measured, the one that chooses `best.ckpt` first.
    pub fn percentages(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (_, record) in self.evaluations.iter().filter(|(_, record)| record.is_percentage()) {
            if !names.contains(&record.metric) {
                names.push(record.metric.clone());
            }
        }
        let order = ["knn_top1", "view_top1", "nn_top1"];
        names.sort_by_key(|name| order.iter().position(|known| known == name).unwrap_or(order.len()));
        names
    }

    /// The monitor's name, its last value, its best value and the epoch (from 0) of that.
    pub fn monitor(&self) -> Option<(String, f64, f64, u64)> {
        let name = self.percentages().into_iter().next()?;
        let of_monitor =
            || self.evaluations.iter().map(|(_, r)| r).filter(|r| r.metric == name && r.value.is_finite());
        let last = of_monitor().next_back()?.value;
        let best = of_monitor().reduce(|best, r| if r.value > best.value { r } else { best })?;
        Some((name.clone(), last, best.value, best.epoch))
    }
}

impl Step {
    fn of(record: &StepRecord) -> Self {
        let part = |(key, _): (&str, &str)| match key {
            "data_ms" => record.data_ms,
            key => record.extra.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN),
        };
        Step {
            step: record.step,
            epochs: 0.0,
            loss: record.loss,
            lr: record.lr,
            images_per_s: record.images_per_s,
            ms: record.step_ms,
            parts: PARTS.map(part),
            ln_z: record.ln_z.unwrap_or(f64::NAN),
        }
    }
}

/// Gives steps their place in epochs: the last epoch may not be over, so the longest one tells how many steps make one.
fn with_fractions(steps: Vec<(u64, Step)>) -> Vec<Step> {
    let longest = steps.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len).max().unwrap_or(1) as f64;
    let mut placed = Vec::with_capacity(steps.len());
    for epoch in steps.chunk_by(|a, b| a.0 == b.0) {
        placed.extend(
            epoch.iter().enumerate().map(|(i, (number, step))| Step {
                epochs: *number as f64 + (i + 1) as f64 / longest,
                ..*step
            }),
        );
    }
    placed
}

/// The mean of what is finite.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.filter(|x| x.is_finite()).fold((0.0, 0u64), |(sum, n), x| (sum + x, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// The name of a run folder, also of `.`.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::atomic::scratch;
    use crate::report::{Finding, MetricsWriter};
    use std::fs;

    /// A folder with a run of two epochs of four steps, and a step of a third.
    pub fn run(folder: &Path, config: &str) -> PathBuf {
        let path = folder.join("runs <a> & b");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.toml"), config).unwrap();
        fs::write(path.join("manifest.json"), r#"{"root":"x","machines":[{"cpu":"Some CPU","cores":2}]}"#)
            .unwrap();
        let mut metrics = MetricsWriter::create(path.join("metrics.jsonl")).unwrap();
        for step in 1..=9 {
            let epoch = (step - 1) / 4;
            let mut record = StepRecord { epoch, step, loss: 9.0 - step as f64 / 2.0, ..Default::default() };
            (record.lr, record.step_ms, record.data_ms) = (0.03, 100.0, 25.0);
            record.images_per_s = 100.0 + step as f64;
            record.extra.insert("forward_ms".into(), 50.0.into());
            metrics.step(&record).unwrap();
            if step % 4 == 0 {
                for (metric, value) in
                    [("nn_top1", 20.0), ("knn_top1", 30.0 - epoch as f64), ("effective_rank", 12.5)]
                {
                    let (metric, bank) = (metric.to_owned(), "live".to_owned());
                    metrics
                        .evaluation(&EvalRecord { epoch, metric, value, bank, ..Default::default() })
                        .unwrap();
                }
            }
        }
        metrics.finding(1, 8, &Finding::warning("loader-bound", "waits <often>")).unwrap();
        path
    }

    #[test]
    fn a_folder_is_read_with_whatever_is_in_it() {
        let (_dir, folder) = scratch();
        let path = run(&folder, "epochs = 3\n");
        let history = History::read(&path).unwrap();
        assert_eq!((history.name.as_str(), history.epochs()), ("runs <a> & b", Some(3)));
        assert_eq!(history.steps.len(), 9);
        let places: Vec<f64> = history.steps.iter().map(|step| step.epochs).collect();
        assert_eq!(places, [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25]);
        assert_eq!(history.monitor(), Some(("knn_top1".into(), 29.0, 30.0, 0)));
        assert_eq!(history.evaluations[0].0, 4);
        assert_eq!(history.last_loss(), Some(6.5));
        assert_eq!(history.images_per_s(), Some(105.0));
        assert_eq!(history.shares()[..2], [0.25, 0.5]);
        assert!((history.hours() - 0.9 / 3600.0).abs() < 1e-12);
        assert_eq!((history.notes.len(), history.machines[0].cores), (1, 2));
        assert!(history.retrievals.is_empty() && history.tests.is_empty() && history.written.is_some());
    }

    #[test]
    fn a_run_that_has_just_begun_is_a_run_and_other_folders_are_none() {
        let (_dir, folder) = scratch();
        let path = run(&folder, "epochs = 3\n");
        fs::write(path.join("metrics.jsonl"), "{\"kind\":\"st").unwrap();
        let history = History::read(&path).unwrap();
        assert_eq!((history.steps.len(), history.last_loss(), history.monitor()), (0, None, None));
        assert_eq!((history.images_per_s(), history.hours(), history.shares()), (None, 0.0, [0.0; 5]));
        fs::write(path.join("config.toml"), "epochs = ").unwrap();
        assert!(History::read(&path).unwrap_err().to_string().contains("config.toml"));
        fs::write(path.join("config.toml"), "epochs = 3\n").unwrap();
        for missing in ["metrics.jsonl", "config.toml"] {
            fs::remove_file(path.join(missing)).unwrap();
            let error = History::read(&path).unwrap_err();
            assert!(error.to_string().contains("no run folder"), "{error}");
        }
    }
}
