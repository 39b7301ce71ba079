//! What runs under CUDA, run on the CPU: bank, objectives, optimiser and images in tensor operations, beside the same run in
//! our own kernels. Results agree to rounding, and a checkpoint goes from either to the other.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use lemniscate::bank::Bank;
use lemniscate::checkpoint::format::save_atomic;
use lemniscate::checkpoint::run_folder::RunFolder;
use lemniscate::checkpoint::signals::Interrupt;
use lemniscate::config::{Preset, TrainConfig};
use lemniscate::data::dataset::Splits;
use lemniscate::data::detect::{self, OpenOptions};
use lemniscate::data::loader::{Loader, LoaderOptions, View};
use lemniscate::eval::features::{Input, Uploader};
use lemniscate::model::to_vec_f32;
use lemniscate::report::retrievals::RetrievalsWriter;
use lemniscate::report::{MetricsWriter, SilentReporter, metrics};
use lemniscate::rng::Purpose;
use lemniscate::train::images::{MOST_BYTES, ResidentImages};
use lemniscate::train::state::{self, TrainState};
use lemniscate::train::step::{Objective, queue_batch};
use lemniscate::train::watch::{Facts, Watch};
use lemniscate::train::{Session, run, start};
use tch::Device;

const DATA: &str = "synthetic:96x16";

fn splits() -> Splits {
    detect::open(Path::new(DATA), None, &OpenOptions::default()).unwrap()
}

/// Small steps, so that rounding differences stay small.
fn config(more: &str) -> TrainConfig {
    let layer: toml::Table = format!(
        "arch = \"resnet18\"\nwidth = 4\nembed-dim = 16\nimage-size = 16\nbatch-size = 16\nepochs = 2\n\
         knn-k = 10\nworkers = 1\nprecision = \"fp32\"\nmonitor = \"knn\"\nlr = 0.002\n{more}"
    )
    .parse()
    .unwrap();
    TrainConfig::resolve(Preset::Cifar, Path::new(DATA), splits().format, &[("test", layer)]).unwrap()
}

/// Where things are computed.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Kernels,
    TensorOperations,
}

/// Goes on with `state` in `folder` to the end of `config`, and gives every step's loss.
fn train(folder: &Path, config: &TrainConfig, state: TrainState, by: By) -> Vec<f64> {
    let splits = splits();
    let resident = (by == By::TensorOperations).then(|| {
        let images = ResidentImages::new(&splits.train, &config.augmentation, Device::Cpu, MOST_BYTES);
        Rc::new(images.unwrap().expect("small images of one size"))
    });
    let folder = RunFolder::create(folder).unwrap();
    let metrics_path = folder.file("metrics.jsonl");
    let noise = start::noise(config, &splits.train).unwrap();
    let session = Session {
        objective: Objective::new(config, noise, Vec::new()),
        identity: start::identify(&splits).unwrap(),
        metrics: MetricsWriter::create(&metrics_path).unwrap(),
        retrievals: RetrievalsWriter::open(folder.file("retrievals.jsonl"), 0).unwrap(),
        events: None,
        watch: Watch::new(config.clone(), Facts::of(&splits, Device::Cpu), BTreeSet::new()),
        reporter: &mut SilentReporter,
        interrupt: Interrupt::default(),
        config: config.clone(),
        splits,
        resident,
        state: match by {
            By::Kernels => state,
            By::TensorOperations => state.in_tensor_operations(),
        },
        folder,
    };
    run(session).unwrap();
    metrics::read(&metrics_path)
        .unwrap()
        .into_iter()
        .filter_map(|record| match record {
            metrics::Record::Step(step) => Some(step.loss),
            _ => None,
        })
        .collect()
}

fn fresh(config: &TrainConfig) -> TrainState {
    start::fresh_state(config, &splits(), start::fresh_encoder(config, Device::Cpu), &mut |_| {}).unwrap()
}

fn saved(run: &Path, config: &TrainConfig) -> TrainState {
    let found = start::find(&run.join("last.ckpt")).unwrap();
    state::load(&found.checkpoint, &found.saved, config, Device::Cpu).unwrap()
}

/// The largest difference, relative where numbers are larger than 1.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert!(!a.is_empty() && a.len() == b.len(), "{} and {} numbers", a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f64::max)
}

/// Fails where numbers differ by more than `allowed`.
fn assert_close(expected: &[f64], found: &[f64], allowed: f64, what: &str) {
    let found = difference(expected, found);
    println!("{what}: largest difference {found:.1e}, allowed {allowed:.1e}");
    assert!(found < allowed, "{what}: difference {found:e}, allowed {allowed:e}");
}

fn rows(state: &TrainState) -> Vec<f64> {
    state.bank.on_host().rows().iter().map(|&x| f64::from(x)).collect()
}

/// Weights and momentum, by name.
fn learnt(state: &TrainState) -> BTreeMap<String, Vec<f64>> {
    let numbers = |tensor: &tch::Tensor| to_vec_f32(tensor).into_iter().map(f64::from).collect();
    let weights =
        state.encoder.parameters().state().map(|entry| (entry.name.clone(), numbers(&entry.tensor)));
    let momentum = state.sgd.buffers().map(|(name, buffer)| (format!("momentum of {name}"), numbers(buffer)));
    weights.chain(momentum).collect()
}

const OBJECTIVES: [&str; 4] = [
    "objective = \"nce\"\nn-negatives = 32",
    "objective = \"softmax\"",
    "objective = \"sampled-softmax\"\nn-negatives = 32\nproximal = 0.1",
    "objective = \"nce\"\nn-negatives = 32\nnormalizer = \"running-average\"",
];

/// From the same state each step does the same: loss, bank, weights, momentum. (Two whole runs cannot be compared so: a small
/// network at its start is unstable, and a difference in the last bit grows a hundredfold in a step or two.)
#[test]
fn every_step_in_tensor_operations_is_the_step_in_our_kernels() {
    let splits = splits();
    let folder = tempfile::tempdir().unwrap();
    for more in OBJECTIVES {
        let config = config(more);
        let noise = start::noise(&config, &splits.train).unwrap();
        let objective = Objective::new(&config, noise, Vec::new());
        let input = Input::new(config.family, config.image_size, 1);
        let on_host = Uploader::new(&input.normalization, Device::Cpu);
        let on_device = Uploader::normalizing_on(&input.normalization, Device::Cpu);
        let images = ResidentImages::new(&splits.train, &config.augmentation, Device::Cpu, MOST_BYTES);
        let images = images.unwrap().unwrap();
        let purpose = Purpose::Augmentation;
        let view = View::Train { transform: config.augmentation, seed: config.seed, epoch: 0, purpose };
        let order = splits.train.trainable_indices();
        let loader =
            Loader::new(Arc::clone(splits.train.source()), view, order, 16, LoaderOptions::default())
                .unwrap();
        let identity = start::identify(&splits).unwrap();
        let mut kernels = fresh(&config);
        for (step, batch) in (0..).zip(loader) {
            let batch = batch.unwrap();
            // The same state through a checkpoint.
            let path = folder.path().join("state.ckpt");
            kernels.progress.ln_z = kernels.normalizer.ln_z;
            kernels.save(&config, &identity, |view| save_atomic(&path, view)).unwrap();
            let found = start::find(&path).unwrap();
            let tensors = state::load(&found.checkpoint, &found.saved, &config, Device::Cpu).unwrap();
            let mut tensors = tensors.in_tensor_operations();
            let expected = queue_batch(
                &mut kernels,
                &objective,
                &batch.indices,
                || on_host.images(&batch),
                0.5,
                2,
                step,
            )
            .wait();
            let levels = || images.views(&batch.indices, config.seed, 0, purpose);
            let pixels = || on_device.images_of_levels(&levels());
            let found = queue_batch(&mut tensors, &objective, &batch.indices, pixels, 0.5, 2, step).wait();
            assert_close(&[expected.loss], &[found.loss], 5e-6, more);
            for (state, outcome) in [(&mut kernels, expected), (&mut tensors, found)] {
                state.sgd.step(state.encoder.parameters_mut(), outcome.gradients.unwrap(), config.lr);
            }
            assert_close(&rows(&kernels), &rows(&tensors), 2e-6, "bank");
            for ((name, a), (other, b)) in learnt(&kernels).iter().zip(&learnt(&tensors)) {
                assert_eq!(name, other);
                let (worst, largest) = (difference(a, b), a.iter().fold(1.0, |m: f64, x| m.max(x.abs())));
                assert!(worst < 1e-4 * largest, "{name} after step {step}: {worst:e} of {largest:e}");
            }
            let z = |state: &TrainState| state.normalizer.ln_z.unwrap_or(0.0);
            assert_close(&[z(&kernels)], &[z(&tensors)], 1e-6, "ln Z");
        }
    }
}

#[test]
fn whole_runs_are_cut_in_two_and_change_sides() {
    let folder = tempfile::tempdir().unwrap();
    for (number, more) in [OBJECTIVES[1], "n-negatives = 32\naccumulate = 3"].into_iter().enumerate() {
        let whole = config(more);
        let half = TrainConfig { epochs: 1, ..whole.clone() };
        let place = |name: &str| folder.path().join(format!("{name}{number}"));
        let kernels = train(&place("kernels"), &half, fresh(&half), By::Kernels);
        let tensors = train(&place("tensors"), &half, fresh(&half), By::TensorOperations);
        assert_close(&kernels[..2], &tensors[..2], 5e-6, more);
        // From either's checkpoint both go on alike.
        for first in ["kernels", "tensors"] {
            let from = |by, name: &str| {
                let state = saved(&place(first), &whole);
                assert!(matches!(state.bank, Bank::Host(_)), "a checkpoint does not say where its bank was");
                train(&place(&format!("{first}-{name}")), &whole, state, by)
            };
            let (a, b) = (from(By::Kernels, "kernels"), from(By::TensorOperations, "tensors"));
            assert_eq!(a.len(), kernels.len());
            assert_close(&a[..2], &b[..2], 5e-6, "from a checkpoint");
            if first == "tensors" {
                // The same twice is the same to the bit, and so is a run that was cut in two.
                let once = train(&place("once"), &whole, fresh(&whole), By::TensorOperations);
                assert_eq!(once, [&tensors[..], &b].concat());
                let bank = |name: &str| rows(&saved(&place(name), &whole));
                assert_eq!(bank("once"), bank("tensors-tensors"));
            }
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_moves_nothing() {
    let config = config("objective = \"nce\"\nn-negatives = 32");
    let mut state = fresh(&config).in_tensor_operations();
    let before = rows(&state);
    let noise = start::noise(&config, &splits().train).unwrap();
    let objective = Objective::new(&config, noise, Vec::new());
    let images = tch::Tensor::full([2, 3, 16, 16], f64::NAN, (tch::Kind::Float, Device::Cpu));
    let outcome = queue_batch(&mut state, &objective, &[0, 1], || images, 0.5, 1, 0).wait();
    assert!(outcome.loss.is_nan() && outcome.gradients.is_none());
    assert_eq!(rows(&state), before);
}
