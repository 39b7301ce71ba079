//! What runs under CUDA, run on the CPU: bank, objectives, optimiser and images in tensor operations, beside the same run in
//! our own kernels. Results agree to rounding, and a checkpoint goes from either to the other.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use lemniscate::bank::Bank;
use lemniscate::checkpoint::run_folder::RunFolder;
use lemniscate::checkpoint::signals::Interrupt;
use lemniscate::config::{Preset, TrainConfig};
use lemniscate::data::dataset::Splits;
use lemniscate::data::detect::{self, OpenOptions};
use lemniscate::report::retrievals::RetrievalsWriter;
use lemniscate::report::{MetricsWriter, SilentReporter, metrics};
use lemniscate::train::images::{MOST_BYTES, ResidentImages};
use lemniscate::train::state::{self, TrainState};
use lemniscate::train::step::Objective;
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
         knn-k = 10\nworkers = 1\nprecision = \"fp32\"\nmonitor = \"knn\"\nn-negatives = 32\nlr = 0.002\n{more}"
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

fn assert_close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert!(!a.is_empty() && a.len() == b.len(), "{what}: {} and {} steps", a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f64::max);
    println!("{what}: largest relative difference {worst:.1e}");
    assert!(worst < tolerance, "{what}: {worst:e}\n{a:?}\n{b:?}");
}

fn rows(state: &TrainState) -> Vec<f64> {
    state.bank.on_host().rows().iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn a_run_in_tensor_operations_is_the_run_in_our_kernels() {
    let folder = tempfile::tempdir().unwrap();
    for (number, more) in [
        "objective = \"nce\"",
        "objective = \"softmax\"",
        "objective = \"sampled-softmax\"\nproximal = 0.1",
        "objective = \"nce\"\naccumulate = 3\nnormalizer = \"running-average\"",
    ]
    .into_iter()
    .enumerate()
    {
        let config = config(more);
        let [kernels, tensors] =
            ["kernels", "tensors"].map(|name| folder.path().join(format!("{name}{number}")));
        let expected = train(&kernels, &config, fresh(&config), By::Kernels);
        let found = train(&tensors, &config, fresh(&config), By::TensorOperations);
        // Rounding differences grow from step to step, most where an activation changes its sign; an error would be larger
        // from the first one on.
        assert_close(&expected[..1], &found[..1], 2e-6, more);
        assert_close(&expected[..3], &found[..3], 2e-5, more);
        assert_close(&expected, &found, 2e-3, more);
        let (a, b) = (saved(&kernels, &config), saved(&tensors, &config));
        assert!(matches!(b.bank, Bank::Host(_)), "a checkpoint does not say where its bank was");
        assert_close(&rows(&a), &rows(&b), 5e-3, "bank");
        assert_eq!(a.progress.step, b.progress.step);
    }
}

#[test]
fn a_checkpoint_goes_from_one_to_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let whole = config("objective = \"nce\"");
    let half = TrainConfig { epochs: 1, ..whole.clone() };
    let place = |name: &str| folder.path().join(name);
    let expected = train(&place("whole"), &whole, fresh(&whole), By::Kernels);
    for (first, second) in [(By::Kernels, By::TensorOperations), (By::TensorOperations, By::Kernels)] {
        let name = format!("half{}", usize::from(first == By::Kernels));
        let mut losses = train(&place(&name), &half, fresh(&half), first);
        let state = saved(&place(&name), &whole);
        losses.extend(train(&place(&format!("{name}-rest")), &whole, state, second));
        assert_close(&expected, &losses, 2e-3, "half here, half there");
    }
    // The same twice is the same to the bit, and so is a run that was cut in two.
    let once = train(&place("once"), &whole, fresh(&whole), By::TensorOperations);
    let mut parts = train(&place("part1"), &half, fresh(&half), By::TensorOperations);
    parts.extend(train(&place("part2"), &whole, saved(&place("part1"), &whole), By::TensorOperations));
    assert_eq!(once, parts);
    assert_eq!(rows(&saved(&place("once"), &whole)), rows(&saved(&place("part2"), &whole)));
}

#[test]
fn a_loss_that_is_not_finite_moves_nothing() {
    let config = config("objective = \"nce\"");
    let mut state = fresh(&config).in_tensor_operations();
    let before = rows(&state);
    let noise = start::noise(&config, &splits().train).unwrap();
    let objective = Objective::new(&config, noise, Vec::new());
    let images = tch::Tensor::full([2, 3, 16, 16], f64::NAN, (tch::Kind::Float, Device::Cpu));
    let outcome = lemniscate::train::step::train_batch(&mut state, &objective, &[0, 1], || images, 0.5, 1, 0);
    assert!(outcome.loss.is_nan() && outcome.gradients.is_none());
    assert_eq!(rows(&state), before);
}
