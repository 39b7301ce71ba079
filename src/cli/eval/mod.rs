//! `lemniscate eval`: weighted kNN of a checkpoint's features.

mod banks;
mod picture;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::banks::Banks;
use super::inputs::with_bar;
use super::say;
use super::settings::Settings;
use super::subject::{Subject, SubjectArguments};
use crate::atomic;
use crate::bank::MemoryBank;
use crate::config::name_of;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::knn::{self, Confusion, GridCell, Neighbors};
use crate::eval::monitor::{self, Queries};
use crate::model::Layer;
use crate::model::device::DeviceChoice;
use crate::report::confusion::confusion_svg;

/// What queries are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The bank as training left it.
    Live,
    /// Features of the training images, computed now with test-time preprocessing.
    Recomputed,
    /// Each in turn.
    Both,
}

/// Flags of `lemniscate eval`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lemniscate eval runs/a\n  lemniscate eval runs/a photos/ -k 1,20,200 -t 0.07,0.1 --bank both --json\n  \
lemniscate eval runs/a --picture neighbors.png --confusion confusion.svg --per-class"
)]
pub struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Neighbours that vote; a list tries each
    #[arg(short = 'k', long = "knn-k", value_name = "K", value_delimiter = ',', default_value = "200")]
    ks: Vec<usize>,
    /// Temperature of the vote; a list tries each [default: the checkpoint's]
    #[arg(short, long = "temperature", value_name = "TEMPERATURE", value_delimiter = ',')]
    temperatures: Vec<f64>,
    /// What the queries are compared with
    #[arg(long = "bank", value_enum, default_value = "recomputed")]
    source: Source,
    /// Where features are taken: embedding, pooled, stage1 to stage4 (averaged over their places); a list tries each
    #[arg(long = "layer", value_name = "LAYER", value_delimiter = ',', default_value = "embedding")]
    layers: Vec<Layer>,
    /// Print the accuracy of each class too
    #[arg(long)]
    per_class: bool,
    /// Draw which classes are taken for which into this SVG
    #[arg(long, value_name = "FILE")]
    confusion: Option<PathBuf>,
    /// Also draw some queries with their nearest training images into this PNG
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// The test of `train --resume CHECKPOINT --evaluate`: k = 200 and T of the checkpoint as published, against both
    /// banks. Of the training flags those that mean something here are taken, the others passed over, as published.
    ///
    /// # Errors
    /// If a value cannot be taken over.
    pub fn of(checkpoint: &Path, data: Option<PathBuf>, settings: &Settings) -> Result<Self> {
        let mut flags = settings.layer()?;
        let mut take = |key: &str| flags.remove(key);
        let wrong = |e: toml::de::Error| Error::usage(e.to_string().trim().to_owned());
        let ks = match take("knn-k") {
            Some(k) => vec![k.try_into().map_err(wrong)?],
            None => vec![200],
        };
        let temperatures = match take("temperature") {
            Some(t) => vec![t.try_into().map_err(wrong)?],
            None => Vec::new(),
        };
        let device = take("device").map(toml::Value::try_into).transpose().map_err(wrong)?;
        let workers = take("workers").map(toml::Value::try_into).transpose().map_err(wrong)?;
        let subject = SubjectArguments {
            checkpoint: checkpoint.to_owned(),
            data,
            data_format: settings.data_format(),
            test_data: settings.test_data.clone(),
            workers,
            device: device.unwrap_or(DeviceChoice::Auto),
        };
        let (layers, source) = (vec![Layer::Embedding], Source::Both);
        let (per_class, confusion, picture, json) = (false, None, None, false);
        Ok(Self { subject, ks, temperatures, source, layers, per_class, confusion, picture, json })
    }
}

/// One test: settings and numbers.
#[derive(Serialize)]
struct Row {
    layer: Layer,
    bank: Source,
    k: usize,
    temperature: f64,
    /// Shares, 0 to 1.
    top1: f64,
    top5: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_class: Option<Vec<f64>>,
}

/// More classes nobody looks at one by one, and what is counted grows with their square.
const MOST_CLASSES: usize = 4096;

/// A test of which more is wanted than its two numbers.
struct Detail {
    neighbors: Neighbors,
    /// Where a picture of it was asked for.
    confusion: Option<Confusion>,
    title: String,
}

/// Tests a checkpoint and prints the numbers.
pub fn run(arguments: Arguments) -> Result<()> {
    if let Some(t) = arguments.temperatures.iter().find(|t| !(t.is_finite() && **t > 0.0)) {
        return Err(Error::usage(format!("--temperature must be positive, found {t}")));
    }
    if arguments.ks.contains(&0) {
        return Err(Error::usage("-k must be at least 1"));
    }
    let subject = arguments.subject.open()?;
    subject.keep_freed_memory();
    let banks = Banks::new(&arguments, &subject)?;
    let Subject { splits, encoder, input, .. } = &subject;
    let n_queries = splits.test.as_ref().map_or(0, Dataset::len);
    let queries = with_bar(n_queries, "embedding test images", |progress| {
        monitor::queries_at(encoder, splits, input, &arguments.layers, progress)
    })?;
    if !arguments.json {
        say(subject.describe())?;
    }
    let banks = banks.compute(input)?;
    let Some(queries) = queries else {
        for (layer, source, bank) in &banks {
            if *layer == Layer::Embedding {
                report_label_free(arguments.json, *source, bank, &subject)?;
            }
        }
        if arguments.picture.is_some() || arguments.confusion.is_some() || arguments.per_class {
            return Err(Error::usage(
                "--picture, --confusion and --per-class need labels, and this data has none",
            ));
        }
        return Ok(());
    };
    let classes = splits.train.n_classes();
    if (arguments.confusion.is_some() || arguments.per_class) && classes > MOST_CLASSES {
        return Err(Error::usage(format!(
            "--confusion and --per-class are for at most {MOST_CLASSES} classes, and there are {classes}"
        )));
    }
    let temperature = subject.found.saved.config.temperature;
    let (rows, detail) = test(&arguments, encoder.device(), &banks, &queries, &splits.train, temperature);
    print_rows(arguments.json, &rows, &splits.train)?;
    let results: Vec<_> = rows.iter().map(|row| serde_json::json!(row)).collect();
    subject.record("knn", results)?;
    if let (Some(path), Some(confusion)) = (&arguments.confusion, &detail.confusion) {
        atomic::write_text(path, &confusion_svg(&detail.title, confusion, splits.train.classes()))?;
    }
    match &arguments.picture {
        Some(path) => picture::draw(path, splits, &queries[0], &detail.neighbors),
        None => Ok(()),
    }
}

/// Every k, T, layer and bank; and the details of the first layer's last bank with the first k and T.
fn test(
    request: &Arguments,
    device: tch::Device,
    banks: &[(Layer, Source, MemoryBank)],
    queries: &[Queries],
    train: &Dataset,
    temperature: f64,
) -> (Vec<Row>, Detail) {
    let temperatures =
        if request.temperatures.is_empty() { vec![temperature] } else { request.temperatures.clone() };
    let largest = request.ks.iter().copied().max().unwrap_or(1);
    let labels = train.labels().expect("queries have labels only where the training images have");
    let mut rows = Vec::new();
    let mut detail = None;
    for (layer, source, bank) in banks {
        let index =
            request.layers.iter().position(|l| l == layer).expect("a bank of a layer that was asked for");
        let queries = &queries[index];
        let neighbors = monitor::search(device, queries, bank, train, largest);
        let confusion = |k, temperature| {
            let scores = knn::vote(&neighbors, labels, train.n_classes(), k, temperature);
            Confusion::of(&scores, train.n_classes(), &queries.labels)
        };
        for GridCell { k, temperature, accuracy } in
            monitor::accuracies(&neighbors, queries, train, &request.ks, &temperatures)
        {
            rows.push(Row {
                layer: *layer,
                bank: *source,
                k,
                temperature,
                top1: accuracy.top1,
                top5: accuracy.top5,
                per_class: request.per_class.then(|| confusion(k, temperature).per_class()),
            });
        }
        if index == 0 {
            let (k, t) = (request.ks[0].min(neighbors.k), temperatures[0]);
            let title = format!("weighted kNN, {layer}, {} bank, k = {k}, T = {t}", name_of(*source));
            let confusion = request.confusion.is_some().then(|| confusion(k, t));
            detail = Some(Detail { confusion, title, neighbors });
        }
    }
    (rows, detail.expect("there is a first layer, and a bank of it"))
}

fn print_rows(json: bool, rows: &[Row], train: &Dataset) -> Result<()> {
    if json {
        for row in rows {
            say(serde_json::to_string(row).map_err(|e| Error::usage(format!("JSON: {e}")))?)?;
        }
        return Ok(());
    }
    // The layer is said only where there is a choice.
    let layers = rows.iter().any(|row| row.layer != Layer::Embedding);
    let layer = |row: Option<&Row>| match (layers, row) {
        (false, _) => String::new(),
        (true, None) => format!("{:<11}", "layer"),
        (true, Some(row)) => format!("{:<11}", row.layer.to_string()),
    };
    say(format_args!("{}weighted kNN        k       T   top-1   top-5", layer(None)))?;
    for row in rows {
        say(format_args!(
            "{}{:<12}  {:>7}  {:>6}  {:>6.2}  {:>6.2}",
            layer(Some(row)),
            name_of(row.bank),
            row.k,
            row.temperature,
            100.0 * row.top1,
            100.0 * row.top5
        ))?;
        for (class, share) in row.per_class.iter().flatten().enumerate() {
            let name = train.class_name(class as u32).unwrap_or_default();
            say(format_args!("    {name:<24} {:>6.2}", 100.0 * share))?;
        }
    }
    say(format_args!("chance: {:.2} %", 100.0 / train.n_classes() as f64))
}

fn report_label_free(json: bool, source: Source, bank: &MemoryBank, subject: &Subject) -> Result<()> {
    let Subject { found, splits, encoder, input } = subject;
    let config = &found.saved.config;
    let epoch = found.saved.progress.epoch;
    let measured =
        monitor::label_free(encoder, bank, &splits.train, &config.augmentation, input, config.seed, epoch)?;
    if json {
        return say(serde_json::json!({
            "bank": source, "own_row_first": measured.own_row_first,
            "alignment": measured.alignment, "uniformity": measured.uniformity, "images": measured.images,
        }));
    }
    say(format_args!(
        "no labels, so no kNN accuracy; {} bank, {} second views: own row first {:.2} %, alignment {:.4}, uniformity {:.4}",
        name_of(source),
        measured.images,
        100.0 * measured.own_row_first,
        measured.alignment,
        measured.uniformity
    ))
}
