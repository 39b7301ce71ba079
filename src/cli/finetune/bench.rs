//! One network after the other, and the folder that keeps what is finished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::arguments::{Arguments, Start};
use crate::atomic;
use crate::checkpoint::format::save_atomic;
use crate::checkpoint::state::Progress;
use crate::cli::inputs::{absolute, bar, stored_path};
use crate::cli::subject::Subject;
use crate::config::{TrainConfig, name_of};
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::finetune::{self, FinetuneSettings};
use crate::eval::stratified;
use crate::interop::table::quoted;
use crate::model::{Encoder, Head};
use crate::train::start::{fresh_encoder, identify};
use crate::train::state::{Origin, Saved, load_trunk_only, save_encoder};

/// The settings that finished results belong to.
const SETTINGS: &str = "settings.json";
/// Finished results, a line each.
const RESULTS: &str = "results.jsonl";

/// Names a result.
pub(super) fn key(fraction: f64, start: Start) -> String {
    format!("{}-{fraction}", name_of(start))
}

/// Everything that all fractions share, and the folder that keeps what is finished.
pub(super) struct Bench<'a> {
    pub(super) subject: &'a Subject,
    pub(super) test: &'a Dataset,
    pub(super) settings: FinetuneSettings,
    /// Of the network with a classifier in the place of its head.
    pub(super) config: TrainConfig,
    pub(super) out: PathBuf,
    pub(super) finished: BTreeMap<String, Value>,
}

impl<'a> Bench<'a> {
    /// The settings, and what the folder has of them.
    pub(super) fn open(arguments: &Arguments, subject: &'a Subject, test: &'a Dataset) -> Result<Self> {
        let Subject { found, splits, encoder, .. } = subject;
        let out = match (&arguments.out, subject.run_folder()) {
            (Some(out), _) => out.clone(),
            (None, Some(run)) => run.join("finetune"),
            (None, None) => {
                return Err(Error::Usage {
                    message: format!(
                        "{} lies in no run folder, where results would go",
                        found.path().display()
                    ),
                    hint: Some("--out FOLDER says where they go".into()),
                });
            }
        };
        let settings = arguments.settings(&found.saved.config);
        let mut config = TrainConfig {
            embed_dim: splits.train.n_classes(),
            head: Head::Linear,
            seed: settings.seed,
            epochs: settings.epochs,
            batch_size: settings.batch_size,
            lr: settings.lr,
            weight_decay: settings.weight_decay,
            ..found.saved.config.clone()
        };
        if let Some(data) = &arguments.subject.data {
            config.data = stored_path(data, splits.format)?;
            config.data_format = splits.format;
            config.test_data = arguments.subject.test_data.as_deref().map(absolute).transpose()?;
        }
        let identity = json!({
            "encoder": encoder.parameters().hash(), "images": splits.train.fingerprint()?,
            "test_images": test.fingerprint()?, "settings": settings, "augmentation": config.augmentation,
            "precision": encoder.precision(),
        });
        let finished = open_folder(&out, &identity)?;
        Ok(Bench { subject, test, settings, config, out, finished })
    }

    /// The protocol in two lines.
    pub(super) fn describe(&self) -> String {
        let FinetuneSettings { epochs, batch_size, lr, milestones, momentum, weight_decay, seed } =
            &self.settings;
        format!(
            "fine-tuning the whole network with a new linear classifier on the pooled features: SGD, {epochs} epochs, batch {batch_size}, lr {lr}, ×0.1 after {} and {}, momentum {momentum}, weight decay {weight_decay}, seed {seed}; the run's augmentation\nin {}",
            milestones[0],
            milestones[1],
            self.out.display()
        )
    }

    /// The network before its first step. Both starts have the same classifier.
    fn network(&self, start: Start) -> Result<Encoder> {
        let device = self.subject.encoder.device();
        match start {
            Start::Scratch => Ok(fresh_encoder(&self.config, device)),
            Start::Pretrained | Start::Both => {
                load_trunk_only(&self.subject.found.checkpoint, &self.config, device)
            }
        }
    }

    /// Trains and tests one network; `check` says when to stop.
    pub(super) fn run_one(
        &self,
        fraction: f64,
        start: Start,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<Value> {
        let Subject { splits, input, found, .. } = self.subject;
        let train = &splits.train;
        let usable = train.trainable_indices();
        let all = train.labels().unwrap_or_default();
        let labels: Vec<u32> = usable.iter().map(|&i| all[i as usize]).collect();
        let seed = self.settings.seed;
        let chosen: Vec<u32> = stratified::label_fraction(&labels, train.n_classes(), fraction, seed)
            .into_iter()
            .map(|position| usable[position as usize])
            .collect();
        self.write_list(fraction, &chosen)?;
        let mut network = self.network(start)?;
        let steps = self.settings.epochs as usize * finetune::batches(chosen.len(), self.settings.batch_size);
        let progress = bar(steps, "fine-tuning");
        let loss = finetune::train(
            &mut network,
            train,
            &chosen,
            found.saved.config.augmentation,
            input,
            &self.settings,
            &mut |done| {
                progress.set_position(done as u64);
                check()
            },
        )?;
        progress.finish_and_clear();
        let progress = bar(self.test.len(), "testing");
        let reached = finetune::test(&network, self.test, input, &mut |done| {
            progress.set_position(done as u64);
            check()
        })?;
        progress.finish_and_clear();
        self.save(&network, fraction, start, steps, chosen.len())?;
        let mut result = json!({
            "start": start, "label_fraction": fraction, "images": chosen.len(), "loss": loss,
            "network": format!("{}.ckpt", key(fraction, start)),
        });
        for part in [json!(self.settings), json!(reached)] {
            if let (Some(all), Value::Object(part)) = (result.as_object_mut(), part) {
                all.extend(part);
            }
        }
        Ok(result)
    }

    /// The list of images whose labels are used.
    fn write_list(&self, fraction: f64, chosen: &[u32]) -> Result<()> {
        let train = &self.subject.splits.train;
        let mut text = String::from("row,name,label\n");
        for &index in chosen {
            let index = index as usize;
            let label = train.label(index).and_then(|label| train.class_name(label)).unwrap_or_default();
            text += &format!("{index},{},{}\n", quoted(&train.name(index)), quoted(label));
        }
        atomic::write_text(&self.out.join(format!("images-{fraction}.csv")), &text)
    }

    /// The network as a checkpoint without a bank: its embedding is the classifier's output at unit length.
    fn save(
        &self,
        network: &Encoder,
        fraction: f64,
        start: Start,
        steps: usize,
        images: usize,
    ) -> Result<()> {
        let found = &self.subject.found;
        let saved = Saved {
            config: self.config.clone(),
            progress: Progress {
                epoch: self.settings.epochs,
                step: steps as u64,
                images_seen: self.settings.epochs * images as u64,
                seed: self.settings.seed,
                ..Progress::default()
            },
            data: identify(&self.subject.splits)?,
            origin: Some(Origin {
                file: found.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
                format: format!("a network fine-tuned ({}) with {images} labels", name_of(start)),
                stated: Vec::new(),
            }),
        };
        let path = self.out.join(format!("{}.ckpt", key(fraction, start)));
        save_encoder(network, &saved, |view| save_atomic(&path, view))
    }

    /// Remembers a finished result, here and in the run folder.
    pub(super) fn keep(&mut self, fraction: f64, start: Start, result: &Value) -> Result<()> {
        self.finished.insert(key(fraction, start), result.clone());
        let lines: String = self.finished.values().map(|result| format!("{result}\n")).collect();
        atomic::write_text(&self.out.join(RESULTS), &lines)?;
        self.subject.record("finetune", [result.clone()])
    }
}

/// Opens the folder `out`, new or of the same settings; gives what is finished there.
fn open_folder(out: &Path, identity: &Value) -> Result<BTreeMap<String, Value>> {
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, "create", e))?;
    let path = out.join(SETTINGS);
    let read = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    };
    match read(&path)? {
        None => atomic::write_text(&path, &format!("{identity:#}\n"))?,
        Some(text) => {
            if serde_json::from_str::<Value>(&text).ok().as_ref() != Some(identity) {
                return Err(Error::Usage {
                    message: format!(
                        "{} holds results of another encoder, data set or settings",
                        out.display()
                    ),
                    hint: Some("--out OTHER keeps both".into()),
                });
            }
        }
    }
    let results = out.join(RESULTS);
    let mut finished = BTreeMap::new();
    for line in read(&results)?.unwrap_or_default().lines() {
        let malformed = || Error::format(&results, "a result of `finetune` on each line", line.to_owned());
        let result: Value = serde_json::from_str(line).map_err(|_| malformed())?;
        let (Some(start), Some(fraction)) = (result["start"].as_str(), result["label_fraction"].as_f64())
        else {
            return Err(malformed());
        };
        finished.insert(format!("{start}-{fraction}"), result);
    }
    Ok(finished)
}
