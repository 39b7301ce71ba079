//! `lemniscate neighbors`: queries and their nearest training images as a page, under one or several encoders.

mod against;
mod asked;

use std::path::PathBuf;

use serde_json::json;

use self::against::{Against, Opponent};
use self::asked::{Asked, Request};
use super::inputs::{bar, with_bar};
use super::say;
use super::subject::{Subject, SubjectArguments};
use crate::atomic;
use crate::bank::MemoryBank;
use crate::config::name_of;
use crate::error::{Error, Result};
use crate::eval::describe::Describer;
use crate::eval::knn::{self, SearchOptions};
use crate::eval::monitor::STAND_IN_QUERIES;
use crate::gallery::choose::choose;
use crate::gallery::retrievals::{Results, Retrievals};
use crate::gallery::thumbnails::{Place, Thumbnails};
use crate::gallery::{neighbors_page, tiles};
use crate::model::Layer;

/// What the checkpoint's queries are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Source {
    /// The bank as training left it.
    Live,
    /// Features of the training images, computed now with test-time preprocessing.
    Recomputed,
}

/// Flags of `lemniscate neighbors`.
#[derive(clap::Args)]
#[command(
    after_help = "Queries are test images, or training images (each without itself) where there are none. A query \
counts as a success if its nearest image is of its class. Precision is that of all queries asked, not of those shown.\n\n\
Examples:\n  lemniscate neighbors runs/a\n  lemniscate neighbors runs/a --queries 200 --against raw-pixels,resnet50.pth\n  \
lemniscate neighbors runs/a --queries holiday/*.jpg --out holiday.html"
)]
pub struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// How many queries to show, half of them successes and half failures; or image files to ask with
    #[arg(long, value_name = "N|FILES", num_args = 1.., value_delimiter = ',', default_value = "20")]
    queries: Vec<String>,
    /// Most test images to ask for; precision is theirs
    #[arg(long, value_name = "N", default_value_t = STAND_IN_QUERIES)]
    candidates: usize,
    /// To compare with: raw-pixels, or checkpoints (ours, PyTorch's, safetensors); FILE@LAYER says where features are
    /// taken [default: the embedding; the pooled features of a classifier]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    against: Vec<Against>,
    /// Neighbours of each query
    #[arg(short, long, default_value_t = 20)]
    k: usize,
    /// Where the checkpoint's features are taken: embedding, pooled, or stage1 to stage4
    #[arg(long, default_value = "embedding")]
    layer: Layer,
    /// What the checkpoint's queries are compared with
    #[arg(long = "bank", value_enum, default_value = "recomputed")]
    source: Source,
    /// What the choice of queries depends on
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The page [default: neighbors.html in the run folder, or here]
    #[arg(short, long, value_name = "PAGE.html")]
    out: Option<PathBuf>,
    /// Where the page keeps its images
    #[arg(long, value_enum, default_value = "auto")]
    thumbnails: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Searches, prints precisions, writes the page.
pub fn run(arguments: Arguments) -> Result<()> {
    if arguments.k == 0 || arguments.candidates == 0 {
        return Err(Error::usage("-k and --candidates must be at least 1"));
    }
    if arguments.source == Source::Live && arguments.layer != Layer::Embedding {
        return Err(Error::usage("the live bank holds embeddings; other layers go with --bank recomputed"));
    }
    let request = Request::of(&arguments.queries)?;
    let subject = arguments.subject.open()?;
    subject.keep_freed_memory();
    let live = (arguments.source == Source::Live).then(|| subject.live_bank()).transpose()?;
    let device = subject.encoder.device();
    let opponents: Vec<Opponent> =
        arguments.against.iter().map(|against| against.open(&subject, device)).collect::<Result<_>>()?;
    let page = arguments.out.clone().unwrap_or_else(|| {
        subject.run_folder().map_or_else(|| "neighbors.html".into(), |run| run.join("neighbors.html"))
    });
    if !arguments.json {
        say(subject.describe())?;
    }
    let asked = Asked::new(&request, &subject.splits, arguments.candidates, arguments.seed)?;
    let mut results = vec![own_results(&arguments, &subject, &asked, live.as_ref())?];
    for opponent in &opponents {
        results.push(search(
            opponent.name.clone(),
            opponent.about(),
            &opponent.describer(),
            &asked,
            &subject,
            arguments.k,
        )?);
    }
    let retrievals = Retrievals {
        asked: &asked.data,
        indices: &asked.indices,
        labels: asked.labels.as_deref(),
        train: &subject.splits.train,
        results,
    };
    report(&arguments, &subject, &retrievals)?;
    let shown = choose(&retrievals, request.shown().unwrap_or(asked.indices.len()), arguments.seed);
    let tiles = tiles(&retrievals, &shown);
    let progress = bar(tiles.len(), "making thumbnails");
    let thumbnails = Thumbnails::make(
        &tiles,
        [&subject.splits.train, &asked.data],
        arguments.thumbnails,
        &page,
        &|done| {
            progress.set_position(done as u64);
        },
    )?;
    progress.finish_and_clear();
    let lead = format!(
        "{}: {} of {} queries ({}), each with its nearest of {} training images of {}, by cosine.",
        subject.found.path().display(),
        shown.len(),
        asked.indices.len(),
        asked.what,
        subject.splits.train.len(),
        subject.splits.root.display()
    );
    let text = neighbors_page(&retrievals, &shown, &thumbnails, arguments.k, &lead);
    atomic::write_text(&page, &text)?;
    if arguments.json {
        return Ok(());
    }
    say(format_args!("wrote {}: {} queries, {} tiles", page.display(), shown.len(), tiles.len()))
}

/// What the checkpoint itself finds.
fn own_results(
    arguments: &Arguments,
    subject: &Subject,
    asked: &Asked,
    live: Option<&MemoryBank>,
) -> Result<Results> {
    let Subject { found, encoder, input, splits } = subject;
    let config = &found.saved.config;
    let describer = Describer::Encoder { encoder, layer: arguments.layer, input };
    let name = against::name_of_checkpoint(&arguments.subject.checkpoint);
    let about = against::settings(config, arguments.layer) + &format!(", {} bank", name_of(arguments.source));
    let Some(bank) = live else { return search(name, about, &describer, asked, subject, arguments.k) };
    let features = with_bar(asked.indices.len(), "embedding queries", |progress| {
        describer.vectors(&asked.data, asked.indices.clone(), progress)
    })?;
    let own_rows = asked.are_training_images.then_some(&asked.indices[..]);
    let options = SearchOptions { own_rows, excluded_rows: splits.train.quarantined() };
    let neighbors = knn::nearest(&features, bank.stored(), bank.dim(), arguments.k, options);
    Ok(Results { name, about, neighbors })
}

fn search(
    name: String,
    about: String,
    describer: &Describer<'_>,
    asked: &Asked,
    subject: &Subject,
    k: usize,
) -> Result<Results> {
    let train = &subject.splits.train;
    let queries = with_bar(asked.indices.len(), "embedding queries", |progress| {
        describer.vectors(&asked.data, asked.indices.clone(), progress)
    })?;
    let own = asked.are_training_images.then_some(&asked.indices[..]);
    let total = train.len() - train.quarantined().len();
    let neighbors = with_bar(total, "searching the training images", |progress| {
        describer.nearest(&queries, own, train, k, progress)
    })?;
    Ok(Results { name, about, neighbors })
}

/// Prints the precisions, and records them in the run folder.
fn report(arguments: &Arguments, subject: &Subject, retrievals: &Retrievals<'_>) -> Result<()> {
    let (ks, precisions) = retrievals.precisions(arguments.k);
    if ks.is_empty() {
        let note = "no labels for these queries, so no precision and no frames";
        return if arguments.json { Ok(()) } else { say(note) };
    }
    let queries = retrievals.indices.len();
    let record = |(results, values): (&Results, &Vec<f64>)| {
        let at: serde_json::Map<_, _> =
            ks.iter().zip(values).map(|(k, value)| (k.to_string(), json!(value))).collect();
        json!({ "encoder": results.name, "settings": results.about, "queries": queries, "precision": at })
    };
    let records: Vec<_> = retrievals.results.iter().zip(&precisions).map(record).collect();
    if arguments.json {
        records.iter().try_for_each(say)?;
    } else {
        let width =
            retrievals.results.iter().map(|results| results.name.chars().count()).max().unwrap_or(0).max(20);
        let head: Vec<String> = ks.iter().map(|k| format!("{:>7}", format!("P@{k}"))).collect();
        say(format_args!("{:<width$} {}", format!("{queries} queries"), head.join(" ")))?;
        for (results, values) in retrievals.results.iter().zip(&precisions) {
            let values: Vec<String> = values.iter().map(|value| format!("{:>7.2}", 100.0 * value)).collect();
            say(format_args!("{:<width$} {}", results.name, values.join(" ")))?;
        }
    }
    subject.record("retrieval", records)
}
