//! `lemniscate cluster`: groups of similar images, and pairs that are nearly the same.

mod files;

use std::path::PathBuf;
use std::str::FromStr;

use serde_json::json;

use self::files::Results;
use super::embed::Split;
use super::inputs::{bar, with_bar, without_unreadable};
use super::say;
use super::subject::{Subject, SubjectArguments};
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::cluster::{Agreement, Clustering, Duplicates, KMeans, agreement, near_duplicates};
use crate::eval::describe::Describer;
use crate::gallery::thumbnails::Place;
use crate::model::Layer;

/// How many clusters to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// As many as there are classes; without labels √(N/2).
    Auto,
    /// So many.
    Number(usize),
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Count::Auto),
            Ok(number) if number > 0 => Ok(Count::Number(number)),
            _ => Err(format!("expected a number of clusters or auto, found '{text}'")),
        }
    }
}

/// Flags of `lemniscate cluster`.
#[derive(clap::Args)]
#[command(
    after_help = "Spherical k-means: images belong to the centre with the largest cosine. DIR gets clusters.json, \
assignments-C.csv for each C, duplicates.csv and clusters.html.\n\n\
Examples:\n  lemniscate cluster runs/a\n  lemniscate cluster runs/a photos/ --clusters 20,100 --duplicates 0.98 --out groups"
)]
pub struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Clusters to make: a number, or auto (the number of classes; √(N/2) without labels); a list does each
    #[arg(long, value_name = "C", value_delimiter = ',', default_value = "auto")]
    clusters: Vec<Count>,
    /// Times that clusters are sought from other first centres; the best result is kept
    #[arg(long, value_name = "N", default_value_t = 3)]
    restarts: usize,
    /// Cosine from which on two images count as nearly the same
    #[arg(long, value_name = "COSINE", default_value_t = 0.95)]
    duplicates: f32,
    /// Do not look for near-duplicates, which takes time that grows with the square of N
    #[arg(long)]
    no_duplicates: bool,
    /// Most pairs to list, the most similar; all are counted and grouped
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_pairs: usize,
    /// Where features are taken: embedding, pooled, or stage1 to stage4 (averaged over their places)
    #[arg(long, default_value = "embedding")]
    layer: Layer,
    /// Which images
    #[arg(long, value_enum, default_value = "train")]
    split: Split,
    /// Go on without unreadable images
    #[arg(long)]
    quarantine: bool,
    /// What the random choices depend on
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the results go [default: clusters in the run folder, or here]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the page keeps its images
    #[arg(long, value_enum, default_value = "auto")]
    thumbnails: Place,
}

/// Clusters, looks for pairs, writes and prints what was found.
pub fn run(arguments: Arguments) -> Result<()> {
    if arguments.restarts == 0 {
        return Err(Error::usage("--restarts must be at least 1"));
    }
    if !(-1.0..=1.0).contains(&arguments.duplicates) {
        return Err(Error::usage(format!(
            "--duplicates is a cosine, -1 to 1, found {}",
            arguments.duplicates
        )));
    }
    let subject = arguments.subject.open()?;
    subject.keep_freed_memory();
    let data = images(&arguments, &subject)?;
    let indices = data.trainable_indices();
    let counts = counts(&arguments.clusters, &data, indices.len())?;
    let out = arguments.out.clone().unwrap_or_else(|| {
        subject.run_folder().map_or_else(|| "clusters".into(), |run| run.join("clusters"))
    });
    std::fs::create_dir_all(&out).map_err(|e| Error::io(&out, "create the folder", e))?;
    say(subject.describe())?;
    let describer =
        Describer::Encoder { encoder: &subject.encoder, layer: arguments.layer, input: &subject.input };
    let dim = describer.dim();
    let rows = with_bar(indices.len(), "embedding images", |progress| {
        describer.vectors(&data, indices.clone(), progress)
    })?;
    let labels: Option<Vec<u32>> =
        data.labels().map(|labels| indices.iter().map(|&i| labels[i as usize]).collect());
    let mut clusterings = Vec::new();
    say("clusters  mean distance  rounds   sizes (least, median, most)    purity     NMI")?;
    for count in counts {
        let clustering = cluster(&arguments, &rows, dim, count);
        let agreement = labels.as_ref().map(|labels| agreement(&clustering.assignment, labels));
        say(line(count, &clustering, agreement))?;
        clusterings.push((count, clustering, agreement));
    }
    let duplicates = (!arguments.no_duplicates).then(|| duplicates(&arguments, &rows, dim));
    if let Some(found) = &duplicates {
        say(format_args!(
            "near-duplicates (cosine of at least {}): {} pairs in {} groups",
            arguments.duplicates,
            found.total,
            found.groups.len()
        ))?;
    }
    let results = Results {
        subject: &subject,
        data: &data,
        indices: &indices,
        layer: arguments.layer,
        seed: arguments.seed,
        threshold: arguments.duplicates,
        clusterings,
        duplicates,
    };
    results.write(&out, arguments.thumbnails)?;
    subject.record("clusters", results.records())?;
    say(format_args!("wrote {}", out.join(files::PAGE).display()))
}

/// The images that were asked for.
fn images(arguments: &Arguments, subject: &Subject) -> Result<Dataset> {
    let splits = &subject.splits;
    let data = match arguments.split {
        Split::Train => splits.train.clone(),
        Split::Test => splits.test.clone().ok_or_else(|| Error::Data {
            path: splits.root.clone(),
            reason: "there are no test images".into(),
            hint: Some("--split train takes the others".into()),
        })?,
    };
    let config = &subject.found.saved.config;
    match arguments.quarantine {
        true => without_unreadable(data, true, config.threads, config.read_timeout()),
        false => Ok(data),
    }
}

/// The numbers of clusters, each once.
fn counts(asked: &[Count], data: &Dataset, n: usize) -> Result<Vec<usize>> {
    let mut counts: Vec<usize> = Vec::new();
    for count in asked {
        let count = match count {
            Count::Number(number) if *number > n => {
                return Err(Error::usage(format!("--clusters {number}: there are {n} images")));
            }
            Count::Number(number) => *number,
            Count::Auto if data.n_classes() > 0 => data.n_classes().min(n),
            Count::Auto => ((n as f64 / 2.0).sqrt().round() as usize).clamp(1, n),
        };
        if !counts.contains(&count) {
            counts.push(count);
        }
    }
    Ok(counts)
}

fn cluster(arguments: &Arguments, rows: &[f32], dim: usize, count: usize) -> Clustering {
    let settings = KMeans { restarts: arguments.restarts, ..KMeans::new(count, arguments.seed) };
    let progress = bar(arguments.restarts * settings.max_iterations, "clustering");
    let found = settings.fit(rows, dim, &mut |restart, round, _| {
        progress.set_position((restart * settings.max_iterations + round) as u64);
    });
    progress.finish_and_clear();
    found
}

fn duplicates(arguments: &Arguments, rows: &[f32], dim: usize) -> Duplicates {
    let progress = bar(rows.len() / dim, "comparing all pairs");
    let found = near_duplicates(rows, dim, arguments.duplicates, arguments.max_pairs, &|done| {
        progress.set_position(done as u64);
    });
    progress.finish_and_clear();
    found
}

/// A clustering in a line of the printed table.
fn line(count: usize, clustering: &Clustering, agreement: Option<Agreement>) -> String {
    let mut sizes = clustering.sizes(count);
    sizes.sort_unstable();
    let agreement = agreement.map_or(String::new(), |Agreement { purity, nmi }| {
        format!("  {:>6.2} %  {nmi:>6.4}", 100.0 * purity)
    });
    let sizes = format!("{}, {}, {}", sizes[0], sizes[count / 2], sizes[count - 1]);
    let rounds = format!("{}{}", clustering.iterations, if clustering.converged { "" } else { "+" });
    format!("{count:>8}  {:>13.4}  {rounds:>6}   {sizes:<29}{agreement}", clustering.mean_distance)
}

impl Results<'_> {
    /// What goes into the run folder's record.
    fn records(&self) -> Vec<serde_json::Value> {
        let mut records: Vec<_> =
            self.clusterings.iter().map(|clustering| self.summary(clustering)).collect();
        if let Some(found) = &self.duplicates {
            records.push(json!({
                "layer": self.layer, "images": self.indices.len(), "duplicates_from": self.threshold,
                "pairs": found.total, "groups": found.groups.len(),
            }));
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_number_or_auto() {
        assert_eq!("auto".parse(), Ok(Count::Auto));
        assert_eq!("12".parse(), Ok(Count::Number(12)));
        assert!("0".parse::<Count>().is_err() && "many".parse::<Count>().unwrap_err().contains("'many'"));
    }
}
