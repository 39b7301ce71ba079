//! `lemniscate linear`: what a linear classifier makes of frozen features.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::inputs::{set_threads, with_bar};
use super::say;
use super::subject::{Subject, SubjectArguments};
use crate::config::check_threads;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::linear::augmented::{self, Views};
use crate::eval::linear::cache::{self, Cache};
use crate::eval::linear::features::{self, Moments, Place, Standardiser};
use crate::eval::linear::sgd::SgdSettings;
use crate::eval::linear::{Examples, Outcome, lbfgs, solve, train};
use crate::eval::stratified;
use crate::model::Layer;

/// How the classifier is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// The optimum of logistic regression with L2, on cached features.
    Lbfgs,
    /// SGD with momentum and falling rate, as most papers do it.
    Sgd,
}

/// Strengths of L2 that are tried: from hardly any to much, for standardised features.
const L2: [f64; 5] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
/// Learning rates that are tried, for standardised features.
const RATES: [f64; 5] = [0.001, 0.003, 0.01, 0.03, 0.1];
/// Memory for features where the system does not say how much is free.
const MEMORY_GB: f64 = 8.0;

/// Flags of `lemniscate linear`.
#[derive(clap::Args)]
#[command(
    after_help = "What is swept (--l2 or --lr) is chosen on a part of the training images; then all of them are used. The test images choose nothing.\n\n\
Examples:\n  lemniscate linear runs/a\n  lemniscate linear runs/a --layer stage1,stage2,stage3,stage4,pooled\n  lemniscate linear runs/a --solver sgd --augment --epochs 100 --json"
)]
pub struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Where features are taken: embedding, pooled, stage1 to stage4 (pooled to about 9,000 numbers); a list tries each
    #[arg(long = "layer", value_name = "LAYER", value_delimiter = ',', default_value = "pooled")]
    layers: Vec<Layer>,
    /// How the classifier is found [default: lbfgs, or sgd with --augment]
    #[arg(long, value_enum)]
    solver: Option<Solver>,
    /// Train on random views, as the encoder was (SGD only; the encoder runs in every epoch)
    #[arg(long)]
    augment: bool,
    /// Strengths of L2 (lambda/2 · |W|², beside the mean loss) for lbfgs; of a list the best is chosen [default: 1e-5,1e-4,1e-3,1e-2,1e-1]
    #[arg(long, value_name = "LAMBDA", value_delimiter = ',')]
    l2: Vec<f64>,
    /// Most iterations of lbfgs
    #[arg(long, value_name = "N", default_value_t = 1000)]
    iterations: usize,
    /// Learning rates for sgd; of a list the best is chosen [default: 0.001,0.003,0.01,0.03,0.1]
    #[arg(long, value_name = "LR", value_delimiter = ',')]
    lr: Vec<f64>,
    /// Epochs of sgd; the rate falls to a tenth after 60 % and 80 % of them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// Images of a step of sgd
    #[arg(short, long, default_value_t = 256)]
    batch_size: usize,
    /// Weight decay of sgd
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Share of each class's training images that the sweep is judged by
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    held_out: f64,
    /// Of the images held out, of the order of sgd and of its random views
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Use features as they are, not with mean 0 and variance 1 in each number
    #[arg(long)]
    raw: bool,
    /// Most memory for features, in GB [default: half of what is free]
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// Keep features in this folder while they are needed, not in memory
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
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
    fn solver(&self) -> Solver {
        self.solver.unwrap_or(if self.augment { Solver::Sgd } else { Solver::Lbfgs })
    }

    /// What is swept.
    fn candidates(&self) -> Vec<f64> {
        let (given, usual) = match self.solver() {
            Solver::Lbfgs => (&self.l2, &L2),
            Solver::Sgd => (&self.lr, &RATES),
        };
        if given.is_empty() { usual.to_vec() } else { given.clone() }
    }

    fn sgd(&self) -> SgdSettings {
        let Arguments { batch_size, weight_decay, .. } = *self;
        SgdSettings { batch_size, weight_decay, ..SgdSettings::new(self.epochs) }
    }

    /// Refuses what contradicts itself.
    fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::usage(message));
        check_threads(self.threads as i64)?;
        match self.solver() {
            Solver::Lbfgs if self.augment => {
                return wrong(
                    "--augment changes the features in every epoch; it goes with --solver sgd".into(),
                );
            }
            Solver::Lbfgs if !self.lr.is_empty() => {
                return wrong("lbfgs has no learning rate; --lr goes with --solver sgd".into());
            }
            Solver::Sgd if !self.l2.is_empty() => {
                return wrong("--l2 goes with --solver lbfgs; sgd has --weight-decay".into());
            }
            _ => {}
        }
        if let Some(bad) = self.candidates().iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            return wrong(format!("--l2 and --lr must be positive, found {bad}"));
        }
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return wrong(format!("--held-out must lie between 0 and 1, found {}", self.held_out));
        }
        if self.batch_size == 0 || self.iterations == 0 {
            return wrong("--batch-size and --iterations must be at least 1".into());
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return wrong(format!("--weight-decay must not be negative, found {}", self.weight_decay));
        }
        if self.memory.is_some_and(|gb| !(gb.is_finite() && gb > 0.0)) {
            return wrong("--memory must be positive".into());
        }
        Ok(())
    }
}

/// The labelled images of the two splits: which may be used, and what they are.
struct Labelled<'a> {
    train: &'a Dataset,
    test: &'a Dataset,
    train_order: Vec<u32>,
    train_labels: Vec<u32>,
    test_order: Vec<u32>,
    test_labels: Vec<u32>,
}

impl<'a> Labelled<'a> {
    fn of(subject: &'a Subject) -> Result<Self> {
        let splits = &subject.splits;
        let refuse = |reason: &str, hint: &str| Error::Data {
            path: splits.root.clone(),
            reason: reason.into(),
            hint: Some(hint.into()),
        };
        let train = &splits.train;
        let test = splits.test.as_ref().ok_or_else(|| {
            refuse("there are no test images to test a classifier on", "--test-data names some")
        })?;
        let labels = |data: &'a Dataset| {
            data.labels().ok_or_else(|| {
                refuse(
                    "a classifier needs labels, and these images have none",
                    "a folder for each class, or a list `path,label`, gives them",
                )
            })
        };
        let (of_train, of_test) = (labels(train)?, labels(test)?);
        if train.n_classes() < 2 {
            return Err(refuse(
                "there is one class, and nothing to tell apart",
                "a folder for each class gives more",
            ));
        }
        let (train_order, test_order) = (train.trainable_indices(), test.trainable_indices());
        let pick = |labels: &[u32], order: &[u32]| order.iter().map(|&i| labels[i as usize]).collect();
        let (train_labels, test_labels) = (pick(of_train, &train_order), pick(of_test, &test_order));
        Ok(Labelled { train, test, train_order, train_labels, test_order, test_labels })
    }
}

/// Finds the classifiers and prints what they reach.
pub fn run(arguments: Arguments) -> Result<()> {
    arguments.check()?;
    set_threads(arguments.threads)?;
    let subject = arguments.subject.open()?;
    let labelled = Labelled::of(&subject)?;
    let places = Place::of(&subject.encoder, subject.found.saved.config.image_size, &arguments.layers);
    let held_out = stratified::held_out(
        &labelled.train_labels,
        labelled.train.n_classes(),
        arguments.held_out,
        arguments.seed,
    );
    let needed = memory(&arguments, &labelled, &places, held_out.len());
    within(&arguments, needed)?;
    if !arguments.json {
        say(subject.describe())?;
        say(describe(&arguments, held_out.len(), labelled.train_order.len()))?;
    }
    let before = subject.encoder.parameters().hash();
    let outcomes = if arguments.augment {
        with_augmentation(&arguments, &subject, &labelled, &places, &held_out)?
    } else {
        on_cached_features(&arguments, &subject, &labelled, &places, &held_out)?
    };
    if subject.encoder.parameters().hash() != before {
        return Err(Error::EncoderChanged);
    }
    let results: Vec<_> = places
        .iter()
        .zip(&outcomes)
        .map(|(place, outcome)| result(&arguments, place, outcome, held_out.len()))
        .collect();
    print(&arguments, &places, &outcomes, &results, labelled.train)?;
    subject.record("linear", results)
}

/// Bytes of features that are kept, and of memory that the classifiers need.
fn memory(arguments: &Arguments, labelled: &Labelled<'_>, places: &[Place], held_out: usize) -> (u64, u64) {
    let kept =
        if arguments.augment { held_out } else { labelled.train_order.len() } + labelled.test_order.len();
    let features = places.iter().map(|place| cache::bytes(kept, place.dim())).sum();
    let heads = arguments.candidates().len();
    let classifier = |place: &Place| {
        let variables = (place.dim() + 1) * labelled.train.n_classes();
        match arguments.solver() {
            Solver::Lbfgs => heads * (lbfgs::numbers_kept(variables) * 8 + variables * 16),
            // Weights, momentum, gradient and their product with the rates, twice for each rate.
            Solver::Sgd => 2 * heads * variables * 16,
        }
    };
    let each = places.iter().map(classifier);
    // With augmentation all places are trained at once.
    let classifiers = if arguments.augment { each.sum() } else { each.max().unwrap_or(0) };
    (features, classifiers as u64)
}

/// Refuses what does not fit.
fn within(arguments: &Arguments, (features, classifiers): (u64, u64)) -> Result<()> {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let needed = gb(classifiers) + if arguments.cache.is_some() { 0.0 } else { gb(features) };
    let most = arguments
        .memory
        .unwrap_or_else(|| cache::available_memory().map_or(MEMORY_GB, |free| gb(free) / 2.0));
    if needed <= most {
        return Ok(());
    }
    Err(Error::Usage {
        message: format!(
            "features take {:.1} GB and classifiers {:.1} GB, more than the {most:.1} GB that may be used",
            gb(features),
            gb(classifiers)
        ),
        hint: Some(
            "name fewer layers or settings; --cache FOLDER keeps features on disk; --augment keeps none of the training images; --memory GB allows more"
                .into(),
        ),
    })
}

/// The protocol in two lines.
fn describe(arguments: &Arguments, held_out: usize, images: usize) -> String {
    let what = match arguments.solver() {
        Solver::Lbfgs => "logistic regression with L2, full batch (L-BFGS)".to_owned(),
        Solver::Sgd => {
            let SgdSettings { epochs, batch_size, momentum, weight_decay, milestones } = arguments.sgd();
            format!(
                "SGD, {epochs} epochs, batch {batch_size}, momentum {momentum}, weight decay {weight_decay}, lr ×0.1 after {} and {}",
                milestones[0], milestones[1]
            )
        }
    };
    let views = if arguments.augment { "random views" } else { "no augmentation" };
    let scale = if arguments.raw { "as they are" } else { "standardised by the training images" };
    let choice = match arguments.candidates().len() {
        1 => format!("given, not chosen; all {images} training images"),
        n => format!("chosen from {n} on {held_out} held-out training images; tested with all {images}"),
    };
    format!(
        "linear classification, encoder frozen: {what}; {views}; features {scale}\n{}: {choice}",
        name(arguments)
    )
}

/// What is swept, in words.
fn name(arguments: &Arguments) -> &'static str {
    match arguments.solver() {
        Solver::Lbfgs => "L2",
        Solver::Sgd => "learning rate",
    }
}

/// What brings features to mean 0 and variance 1, or to themselves.
fn standardiser(moments: &Moments, raw: bool) -> Standardiser {
    if raw { Standardiser::identity(moments.dim()) } else { moments.standardiser() }
}

fn on_cached_features(
    arguments: &Arguments,
    subject: &Subject,
    labelled: &Labelled<'_>,
    places: &[Place],
    held_out: &[u32],
) -> Result<Vec<Outcome>> {
    let Subject { encoder, input, .. } = subject;
    let folder = arguments.cache.as_deref();
    let collect = |data: &Dataset, order: &[u32], what| {
        with_bar(order.len(), what, |progress| {
            features::collect(encoder, data, order, input, places, folder, progress)
        })
    };
    let mut trains = collect(labelled.train, &labelled.train_order, "embedding training images")?;
    let mut tests = collect(labelled.test, &labelled.test_order, "embedding test images")?;
    let mut marked = vec![false; labelled.train_order.len()];
    held_out.iter().for_each(|&position| marked[position as usize] = true);
    let candidates = arguments.candidates();
    let mut outcomes = Vec::new();
    for (train_features, test_features) in trains.iter_mut().zip(&mut tests) {
        if !arguments.raw {
            let mut moments = Moments::new(train_features.dim());
            moments.add(train_features.rows(0..train_features.len()));
            let standardiser = moments.standardiser();
            standardiser.apply(train_features.rows_mut());
            standardiser.apply(test_features.rows_mut());
        }
        let n_classes = labelled.train.n_classes();
        let device = encoder.device();
        let examples = |features, labels| Examples { features, labels, n_classes, device };
        let (learnt, tested) = (
            examples(train_features, &labelled.train_labels),
            examples(test_features, &labelled.test_labels),
        );
        outcomes.push(match arguments.solver() {
            Solver::Lbfgs => with_bar(arguments.iterations, "solving (at most)", |progress| {
                Ok(solve(&learnt, &tested, &marked, &candidates, arguments.iterations, progress))
            })?,
            Solver::Sgd => with_bar(arguments.epochs as usize, "training, epochs", |progress| {
                let (settings, seed) = (arguments.sgd(), arguments.seed);
                Ok(train(&learnt, &tested, &marked, &candidates, &settings, seed, progress))
            })?,
        });
    }
    Ok(outcomes)
}

fn with_augmentation(
    arguments: &Arguments,
    subject: &Subject,
    labelled: &Labelled<'_>,
    places: &[Place],
    held_out: &[u32],
) -> Result<Vec<Outcome>> {
    let Subject { encoder, input, found, .. } = subject;
    let Labelled { train: data, test, train_order, train_labels, test_order, test_labels } = labelled;
    let moments = with_bar(train_order.len(), "measuring features", |progress| {
        features::moments(encoder, data, train_order, input, places, progress)
    })?;
    let standardisers: Vec<_> = moments.iter().map(|m| standardiser(m, arguments.raw)).collect();
    let mut marked = vec![false; data.len()];
    let held_order: Vec<u32> = held_out.iter().map(|&position| train_order[position as usize]).collect();
    held_order.iter().for_each(|&index| marked[index as usize] = true);
    let views = Views {
        encoder,
        data,
        transform: found.saved.config.augmentation,
        input,
        seed: arguments.seed,
        held_out: &marked,
    };
    let (rates, settings) = (arguments.candidates(), arguments.sgd());
    let fitted = with_bar(train_order.len() * settings.epochs as usize, "training", |progress| {
        augmented::fit(&views, places, &standardisers, &rates, &settings, progress)
    })?;
    let folder = arguments.cache.as_deref();
    let collect = |data: &Dataset, order: &[u32], what| -> Result<Vec<Cache>> {
        let mut caches = with_bar(order.len(), what, |progress| {
            features::collect(encoder, data, order, input, places, folder, progress)
        })?;
        caches.iter_mut().zip(&standardisers).for_each(|(cache, by)| by.apply(cache.rows_mut()));
        Ok(caches)
    };
    let held = collect(data, &held_order, "embedding held-out images")?;
    let tests = collect(test, test_order, "embedding test images")?;
    let held_labels: Vec<u32> = held_out.iter().map(|&position| train_labels[position as usize]).collect();
    let (n_classes, device) = (data.n_classes(), encoder.device());
    let outcomes = fitted.iter().zip(held.iter().zip(&tests)).map(|(fitted, (held, test))| {
        let held = Examples { features: held, labels: &held_labels, n_classes, device };
        let test = Examples { features: test, labels: test_labels, n_classes, device };
        augmented::outcome(fitted, &held, &test)
    });
    Ok(outcomes.collect())
}

/// One layer's result with all its settings.
fn result(arguments: &Arguments, place: &Place, outcome: &Outcome, held_out: usize) -> serde_json::Value {
    let mut value = json!({
        "layer": place.layer, "grid": place.grid, "numbers": place.dim(), "solver": arguments.solver(),
        "augment": arguments.augment, "standardised": !arguments.raw, "seed": arguments.seed,
        "held_out_images": if arguments.candidates().len() > 1 { held_out } else { 0 },
        "swept": match arguments.solver() { Solver::Lbfgs => "l2", Solver::Sgd => "lr" },
    });
    let more = match arguments.solver() {
        Solver::Lbfgs => json!({ "most_iterations": arguments.iterations }),
        Solver::Sgd => json!(arguments.sgd()),
    };
    for part in [more, json!(outcome)] {
        if let (Some(all), serde_json::Value::Object(part)) = (value.as_object_mut(), part) {
            all.extend(part);
        }
    }
    value
}

fn print(
    arguments: &Arguments,
    places: &[Place],
    outcomes: &[Outcome],
    results: &[serde_json::Value],
    train: &Dataset,
) -> Result<()> {
    if arguments.json {
        return results.iter().try_for_each(say);
    }
    say(format_args!("layer       numbers  {:>13}  held-out   top-1   top-5", name(arguments)))?;
    for (place, outcome) in places.iter().zip(outcomes) {
        let chosen = outcome.candidates.iter().find(|c| c.setting == outcome.chosen);
        let held_out = chosen
            .and_then(|c| c.held_out_top1)
            .map_or("-".to_owned(), |share| format!("{:.2}", 100.0 * share));
        say(format_args!(
            "{:<10}  {:>7}  {:>13}  {held_out:>8}  {:>6.2}  {:>6.2}",
            place.layer.to_string(),
            place.dim(),
            outcome.chosen,
            100.0 * outcome.top1,
            100.0 * outcome.top5
        ))?;
        if outcome.converged == Some(false) {
            let norm = outcome.gradient_norm.unwrap_or(f64::NAN);
            say(format_args!(
                "    not converged after {} iterations: gradient {norm:.1e}",
                outcome.iterations
            ))?;
        }
        if arguments.per_class {
            for (class, share) in outcome.per_class.iter().enumerate() {
                let name = train.class_name(class as u32).unwrap_or_default();
                say(format_args!("    {name:<24} {:>6.2}", 100.0 * share))?;
            }
        }
    }
    say(format_args!("chance: {:.2} %; the encoder is unchanged", 100.0 / train.n_classes() as f64))
}
