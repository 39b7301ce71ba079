//! `lemniscate linear`: what a linear classifier makes of frozen features.

mod arguments;
mod output;

pub use arguments::Arguments;

use arguments::Solver;

use super::inputs::{bar, set_threads};
use super::say;
use super::subject::Subject;
use crate::checkpoint::signals::Interrupt;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::linear::augmented::{self, Views};
use crate::eval::linear::cache::{self, Cache};
use crate::eval::linear::features::{self, Moments, Place, Standardiser};
use crate::eval::linear::{Examples, Outcome, lbfgs, metric, solve, train};
use crate::eval::stratified;

/// Memory for features where the system does not say how much is free.
const MEMORY_GB: f64 = 8.0;

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
    let interrupt = Interrupt::install()?;
    if !arguments.json {
        say(subject.describe())?;
        say(output::describe(&arguments, held_out.len(), labelled.train_order.len()))?;
    }
    let before = subject.encoder.parameters().hash();
    let outcomes = if arguments.augment {
        with_augmentation(&arguments, &subject, &labelled, &places, &held_out, &interrupt)?
    } else {
        on_cached_features(&arguments, &subject, &labelled, &places, &held_out, &interrupt)?
    };
    if subject.encoder.parameters().hash() != before {
        return Err(Error::EncoderChanged);
    }
    let results: Vec<_> = places
        .iter()
        .zip(&outcomes)
        .map(|(place, outcome)| output::result(&arguments, place, outcome, held_out.len()))
        .collect();
    output::print(&arguments, &places, &outcomes, &results, labelled.train)?;
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
            Solver::Lbfgs => {
                heads * (lbfgs::numbers_kept(variables) * 8 + variables * 16)
                    + metric::bytes(place.dim(), heads)
            }
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

/// Does `work` under a progress bar, until it is done or somebody wants the program to stop.
fn with_bar<T>(
    total: usize,
    what: &'static str,
    interrupt: &Interrupt,
    work: impl FnOnce(&mut dyn FnMut(usize) -> Result<()>) -> Result<T>,
) -> Result<T> {
    let bar = bar(total, what);
    let result = work(&mut |done| {
        bar.set_position(done as u64);
        if interrupt.interrupted() {
            return Err(Error::Interrupted {
                saved: "no result was kept; the same command starts anew".into(),
            });
        }
        Ok(())
    });
    bar.finish_and_clear();
    result
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
    interrupt: &Interrupt,
) -> Result<Vec<Outcome>> {
    let Subject { encoder, input, .. } = subject;
    let folder = arguments.cache.as_deref();
    let collect = |data: &Dataset, order: &[u32], what| {
        with_bar(order.len(), what, interrupt, |progress| {
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
            Solver::Lbfgs => with_bar(arguments.iterations, "solving (at most)", interrupt, |progress| {
                solve(&learnt, &tested, &marked, &candidates, arguments.iterations, progress)
            })?,
            Solver::Sgd => {
                let (settings, seed) = (arguments.sgd(), arguments.seed);
                let steps = labelled.train_order.len() * settings.epochs as usize;
                with_bar(steps, "training", interrupt, |progress| {
                    train(&learnt, &tested, &marked, &candidates, &settings, seed, progress)
                })?
            }
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
    interrupt: &Interrupt,
) -> Result<Vec<Outcome>> {
    let Subject { encoder, input, found, .. } = subject;
    let Labelled { train: data, test, train_order, train_labels, test_order, test_labels } = labelled;
    let moments = with_bar(train_order.len(), "measuring features", interrupt, |progress| {
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
    let fitted = with_bar(train_order.len() * settings.epochs as usize, "training", interrupt, |progress| {
        augmented::fit(&views, places, &standardisers, &rates, &settings, progress)
    })?;
    let folder = arguments.cache.as_deref();
    let collect = |data: &Dataset, order: &[u32], what| -> Result<Vec<Cache>> {
        let mut caches = with_bar(order.len(), what, interrupt, |progress| {
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
