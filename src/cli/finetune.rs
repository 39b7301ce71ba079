//! `lemniscate finetune`: what an encoder is worth where few labels are to be had.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::inputs::{absolute, bar, set_threads, stored_path};
use super::say;
use super::subject::{Subject, SubjectArguments};
use crate::checkpoint::atomic;
use crate::checkpoint::format::save_atomic;
use crate::checkpoint::signals::Interrupt;
use crate::checkpoint::state::Progress;
use crate::config::{TrainConfig, check_threads, name_of};
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::finetune::{self, FinetuneSettings};
use crate::eval::stratified;
use crate::interop::table::quoted;
use crate::model::{Encoder, Head};
use crate::train::start::{fresh_encoder, identify};
use crate::train::state::{Origin, Saved, load_trunk_only, save_encoder};

/// Where the weights of the trunk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// From the checkpoint.
    Pretrained,
    /// Random ones: the control.
    Scratch,
    /// Each in turn.
    Both,
}

/// The settings that finished results belong to.
const SETTINGS: &str = "settings.json";
/// Finished results, a line each.
const RESULTS: &str = "results.jsonl";

/// Flags of `lemniscate finetune`.
#[derive(clap::Args)]
#[command(after_help = "Interrupted, it keeps what is finished in the folder; the same command goes on.\n\n\
Examples:\n  lemniscate finetune runs/a --label-fraction 0.01,0.02,0.1,0.2\n  lemniscate finetune model.pth photos/ --label-fraction 0.1 --start pretrained --out tuned")]
pub struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Share of each class's training images whose labels are used, at least one image a class; a list tries each
    #[arg(
        long = "label-fraction",
        value_name = "SHARE",
        value_delimiter = ',',
        default_value = "0.01,0.02,0.1,0.2"
    )]
    fractions: Vec<f64>,
    /// Weights to start from: the checkpoint's, random ones as a control, or each
    #[arg(long, value_enum, default_value = "both")]
    start: Start,
    /// Passes over the labelled images; the rate falls to a tenth after 3/7 and 6/7 of them
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// Learning rate
    #[arg(long, default_value_t = 0.01)]
    lr: f64,
    /// Images of a step [default: the run's]
    #[arg(short, long)]
    batch_size: Option<usize>,
    /// Weight decay [default: the run's]
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Of the chosen images, the first weights of what is new, the order and the random views
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where lists, results and networks go [default: finetune/ in the run folder]
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Threads that compute; 0: all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print the accuracy of each class too
    #[arg(long)]
    per_class: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn check(&self) -> Result<()> {
        check_threads(self.threads as i64)?;
        let wrong = |message: String| Err(Error::usage(message));
        if let Some(bad) = self.fractions.iter().find(|share| !(**share > 0.0 && **share <= 1.0)) {
            return wrong(format!("--label-fraction must lie above 0 and not above 1, found {bad}"));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return wrong(format!("--lr must be positive, found {}", self.lr));
        }
        if self.batch_size.is_some_and(|size| size < 2) {
            return wrong("--batch-size must be at least 2: BatchNorm needs more than one image".into());
        }
        if self.weight_decay.is_some_and(|decay| !(decay.is_finite() && decay >= 0.0)) {
            return wrong("--weight-decay must not be negative".into());
        }
        Ok(())
    }

    fn starts(&self) -> &'static [Start] {
        match self.start {
            Start::Both => &[Start::Pretrained, Start::Scratch],
            Start::Pretrained => &[Start::Pretrained],
            Start::Scratch => &[Start::Scratch],
        }
    }

    fn settings(&self, config: &TrainConfig) -> FinetuneSettings {
        FinetuneSettings {
            epochs: self.epochs,
            batch_size: self.batch_size.unwrap_or(config.batch_size).max(2),
            lr: self.lr,
            milestones: [3.0, 6.0].map(|part| (self.epochs as f64 * part / 7.0).round()).to_vec(),
            momentum: config.momentum,
            weight_decay: self.weight_decay.unwrap_or(config.weight_decay),
            seed: self.seed,
        }
    }
}

/// Fine-tunes, tests, and prints what is reached.
pub fn run(arguments: Arguments) -> Result<()> {
    arguments.check()?;
    set_threads(arguments.threads)?;
    let subject = arguments.subject.open()?;
    let test = labelled_test(&subject)?;
    let mut bench = Bench::open(&arguments, &subject, test)?;
    if !arguments.json {
        say(subject.describe())?;
        say(bench.describe())?;
    }
    let plan: Vec<(f64, Start)> = arguments
        .fractions
        .iter()
        .flat_map(|&fraction| arguments.starts().iter().map(move |&start| (fraction, start)))
        .collect();
    let interrupt = Interrupt::install()?;
    let mut results = Vec::new();
    for &(fraction, start) in &plan {
        let result = match bench.finished.get(&key(fraction, start)) {
            Some(result) => result.clone(),
            None => bench.run_one(fraction, start, &|| {
                let kept = format!(
                    "{} of {} are finished, in {}; the same command goes on",
                    results.len(),
                    plan.len(),
                    bench.out.display()
                );
                if interrupt.interrupted() { Err(Error::Interrupted { saved: kept }) } else { Ok(()) }
            })?,
        };
        if !bench.finished.contains_key(&key(fraction, start)) {
            bench.keep(fraction, start, &result)?;
        }
        results.push(result);
    }
    print(&arguments, &plan, &results, &subject.splits.train)
}

/// The test images, if both splits can be learnt from and tested with.
fn labelled_test(subject: &Subject) -> Result<&Dataset> {
    let splits = &subject.splits;
    let refuse = |reason: &str, hint: &str| {
        Err(Error::Data { path: splits.root.clone(), reason: reason.into(), hint: Some(hint.into()) })
    };
    let Some(test) = &splits.test else {
        return refuse("there are no test images to test a classifier on", "--test-data names some");
    };
    if splits.train.labels().is_none() || test.labels().is_none() || splits.train.n_classes() < 2 {
        return refuse(
            "fine-tuning needs labels of two classes or more",
            "a folder for each class, or a list `path,label`, gives them",
        );
    }
    Ok(test)
}

/// Names a result.
fn key(fraction: f64, start: Start) -> String {
    format!("{}-{fraction}", name_of(start))
}

/// Everything that all fractions share, and the folder that keeps what is finished.
struct Bench<'a> {
    subject: &'a Subject,
    test: &'a Dataset,
    settings: FinetuneSettings,
    /// Of the network with a classifier in the place of its head.
    config: TrainConfig,
    out: PathBuf,
    finished: BTreeMap<String, Value>,
}

impl<'a> Bench<'a> {
    fn open(arguments: &Arguments, subject: &'a Subject, test: &'a Dataset) -> Result<Self> {
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

    fn describe(&self) -> String {
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
    fn run_one(&self, fraction: f64, start: Start, check: &dyn Fn() -> Result<()>) -> Result<Value> {
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
    fn keep(&mut self, fraction: f64, start: Start, result: &Value) -> Result<()> {
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

fn print(arguments: &Arguments, plan: &[(f64, Start)], results: &[Value], train: &Dataset) -> Result<()> {
    if arguments.json {
        return results.iter().try_for_each(say);
    }
    say("labels    images  start         top-1   top-5")?;
    let percent = |value: &Value| 100.0 * value.as_f64().unwrap_or(f64::NAN);
    for ((fraction, start), result) in plan.iter().zip(results) {
        say(format_args!(
            "{:>6} %  {:>6}  {:<10}  {:>7.2}  {:>6.2}",
            100.0 * fraction,
            result["images"],
            name_of(*start),
            percent(&result["top1"]),
            percent(&result["top5"])
        ))?;
        if arguments.per_class {
            for (class, share) in result["per_class"].as_array().into_iter().flatten().enumerate() {
                let name = train.class_name(class as u32).unwrap_or_default();
                say(format_args!("    {name:<24} {:>6.2}", percent(share)))?;
            }
        }
    }
    say(format_args!("chance: {:.2} %", 100.0 / train.n_classes() as f64))
}
