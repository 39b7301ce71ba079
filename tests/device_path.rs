//! What runs under CUDA, run on the CPU: bank, objectives, optimiser and images in tensor operations, beside the same run in
//! our own kernels. Results agree to rounding, and a checkpoint goes from either to the other.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

use std::cell::Cell;
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
use lemniscate::error::{Error, Result};
use lemniscate::eval::features::{Input, Uploader};
use lemniscate::model::{Precision, to_vec_f32};
use lemniscate::report::retrievals::RetrievalsWriter;
use lemniscate::report::{EpochStart, EvalRecord, MetricsWriter, Reporter, StepRecord, metrics};
use lemniscate::rng::Purpose;
use lemniscate::train::images::{MOST_BYTES, ResidentImages};
use lemniscate::train::replay::{Recorder, Replay, Twin, WARM_UP};
use lemniscate::train::state::{self, TrainState};
use lemniscate::train::step::{Objective, queue_batch};
use lemniscate::train::watch::{Facts, Watch};
use lemniscate::train::{Session, run, start};
use log::Level;
use tch::{Device, Tensor};

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

/// Keeps what is said.
#[derive(Default)]
struct Heard(Vec<(Level, String)>);

impl Reporter for Heard {
    fn epoch_started(&mut self, _: EpochStart) {}
    fn step(&mut self, _: u64, _: &StepRecord) {}
    fn epoch_finished(&mut self, _: u64) {}
    fn evaluation(&mut self, _: &EvalRecord) {}
    fn message(&mut self, level: Level, text: &str) {
        self.0.push((level, text.to_owned()));
    }
}

/// Goes on with `state` in `folder` to the end of `config`, and gives every step's loss.
fn train(folder: &Path, config: &TrainConfig, state: TrainState, by: By) -> Vec<f64> {
    let state = match by {
        By::Kernels => state,
        By::TensorOperations => state.in_tensor_operations(),
    };
    try_to_train(folder, config, state, by == By::TensorOperations, None, &mut Heard::default()).unwrap()
}

/// The same with `state` as it is, images on the device or from a loader, and steps by `replay`.
fn try_to_train(
    folder: &Path,
    config: &TrainConfig,
    state: TrainState,
    resident: bool,
    replay: Option<Replay>,
    reporter: &mut Heard,
) -> Result<Vec<f64>> {
    let splits = splits();
    let resident = resident.then(|| {
        let images = ResidentImages::new(&splits.train, &config.augmentation, Device::Cpu, MOST_BYTES);
        Rc::new(images.unwrap().expect("small images of one size"))
    });
    let folder = RunFolder::create(folder).unwrap();
    let metrics_path = folder.file("metrics.jsonl");
    let session = Session {
        objective: objective(config, &[]),
        identity: start::identify(&splits).unwrap(),
        metrics: MetricsWriter::create(&metrics_path).unwrap(),
        starting: true,
        retrievals: RetrievalsWriter::open(folder.file("retrievals.jsonl"), 0).unwrap(),
        events: None,
        watch: Watch::new(config.clone(), Facts::of(&splits, Device::Cpu), BTreeSet::new()),
        reporter,
        interrupt: Interrupt::default(),
        config: config.clone(),
        splits,
        resident,
        replay,
        state,
        folder,
    };
    run(session)?;
    let records = metrics::read(&metrics_path).unwrap().into_iter();
    Ok(records
        .filter_map(|record| match record {
            metrics::Record::Step(step) => Some(step.loss),
            _ => None,
        })
        .collect())
}

fn objective(config: &TrainConfig, excluded: &[u32]) -> Objective {
    Objective::new(config, start::noise(config, &splits().train).unwrap(), excluded.to_vec())
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
    let numbers = |tensor: &Tensor| to_vec_f32(tensor).into_iter().map(f64::from).collect();
    let weights =
        state.encoder.parameters().state().map(|entry| (entry.name.clone(), numbers(&entry.tensor)));
    let momentum = state.sgd.buffers().map(|(name, buffer)| (format!("momentum of {name}"), numbers(buffer)));
    weights.chain(momentum).collect()
}

const OBJECTIVES: [&str; 5] = [
    "objective = \"nce\"\nn-negatives = 32",
    "objective = \"softmax\"",
    "objective = \"sampled-softmax\"\nn-negatives = 32\nproximal = 0.1",
    "objective = \"nce\"\nn-negatives = 32\nnormalizer = \"running-average\"",
    "objective = \"nce\"\nn-negatives = 32\nbank-precision = \"bf16\"",
];

/// From the same state each step does the same: loss, bank, weights, momentum. (Two whole runs cannot be compared so: a small
/// network at its start is unstable, and a difference in the last bit grows a hundredfold in a step or two.)
#[test]
fn every_step_in_tensor_operations_is_the_step_in_our_kernels() {
    let splits = splits();
    let folder = tempfile::tempdir().unwrap();
    for more in OBJECTIVES {
        let config = config(more);
        let objective = objective(&config, &[]);
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
            // What differs in f32's last bits may be rounded to neighbours in bf16.
            let rounding = if config.bank_precision == Precision::Bf16 { 2f64.powi(-8) } else { 0.0 };
            assert_close(&rows(&kernels), &rows(&tensors), 2e-6 + rounding, "bank");
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
    let objective = objective(&config, &[]);
    let images = Tensor::full([2, 3, 16, 16], f64::NAN, (tch::Kind::Float, Device::Cpu));
    let outcome = queue_batch(&mut state, &objective, &[0, 1], || images, 0.5, 1, 0).wait();
    assert!(outcome.loss.is_nan() && outcome.gradients.is_none());
    assert_eq!(rows(&state), before);
}

/// A twin of CUDA graphs that counts recordings and replays, and refuses to record if it is to.
struct Counting {
    counts: Rc<Cell<[usize; 2]>>,
    refuses: bool,
}

impl Recorder for Counting {
    fn record(&mut self, step: &mut dyn FnMut()) -> std::result::Result<(), String> {
        if self.refuses {
            return Err("an operation is not permitted".into());
        }
        let [records, replays] = self.counts.get();
        self.counts.set([records + 1, replays]);
        Twin.record(step)
    }

    fn replay(&mut self, step: &mut dyn FnMut()) -> std::result::Result<(), String> {
        let [records, replays] = self.counts.get();
        self.counts.set([records, replays + 1]);
        Twin.replay(step)
    }
}

fn counting(config: &TrainConfig, refuses: bool) -> (Replay, Rc<Cell<[usize; 2]>>) {
    let counts = Rc::new(Cell::new([0; 2]));
    let recorder = Counting { counts: Rc::clone(&counts), refuses };
    (Replay::new(Box::new(recorder), config, Device::Cpu), counts)
}

/// A learning rate that differs from step to step, and a smaller batch at the end of each epoch of five.
fn config_with_a_small_batch(more: &str) -> TrainConfig {
    TrainConfig { batch_size: 20, ..config(&format!("schedule = \"cosine\"\n{more}")) }
}

const SOFTMAX: &str = "objective = \"softmax\"";

#[test]
fn replayed_steps_are_the_queued_steps_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (number, (more, resident)) in [("", true), ("proximal = 0.1", false)].into_iter().enumerate() {
        let config = config_with_a_small_batch(&format!("{SOFTMAX}\n{more}"));
        let place = |name: &str| folder.path().join(format!("{name}{number}"));
        let queued = train(&place("queued"), &config, fresh(&config), By::TensorOperations);
        let replayed = |name: &str, config: &TrainConfig, state: TrainState| {
            let (replay, counts) = counting(config, false);
            let (state, mut heard) = (state.in_tensor_operations(), Heard::default());
            let losses = try_to_train(&place(name), config, state, resident, Some(replay), &mut heard);
            let said = heard.0.iter().filter(|(_, text)| text.contains("CUDA graph")).count();
            assert_eq!(said, counts.get()[0], "{:?}", heard.0);
            (losses.unwrap(), counts.get())
        };
        let same_end = |name: &str| {
            let (a, b) = (saved(&place("queued"), &config), saved(&place(name), &config));
            assert_eq!((rows(&a), learnt(&a)), (rows(&b), learnt(&b)), "{name}");
        };
        let (losses, counts) = replayed("replayed", &config, fresh(&config));
        assert_eq!(losses, queued);
        assert_eq!(counts, [1, 2 * 4 - WARM_UP], "of five batches in each epoch four are of the full size");
        same_end("replayed");
        // Cut in the middle of an epoch, after replays and before the end.
        let cut = TrainConfig { max_steps: Some(7), ..config.clone() };
        let (first, _) = replayed("cut", &cut, fresh(&config));
        let (rest, counts) = replayed("resumed", &config, saved(&place("cut"), &config));
        assert_eq!([first, rest].concat(), queued);
        assert_eq!(counts, [0, 0], "two batches of the full size are left");
        same_end("resumed");
    }
}

#[test]
fn what_cannot_be_replayed_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let softmax = config(SOFTMAX);
    let (replay, _) = counting(&softmax, false);
    let (kernels, tensors) = (fresh(&softmax), fresh(&softmax).in_tensor_operations());
    let indices: Vec<u32> = (0..16).collect();
    let takes = |state: &TrainState, more: &str, excluded: &[u32], indices: &[u32]| {
        replay.takes(state, &objective(&config(more), excluded), indices)
    };
    assert!(takes(&tensors, SOFTMAX, &[], &indices));
    assert!(!takes(&kernels, SOFTMAX, &[], &indices), "the bank is on the host");
    assert!(!takes(&tensors, SOFTMAX, &[3], &indices), "a row is excluded");
    assert!(!takes(&tensors, SOFTMAX, &[], &indices[1..]), "a smaller batch");
    for more in [OBJECTIVES[0], OBJECTIVES[2], OBJECTIVES[3]] {
        assert!(!takes(&tensors, more, &[], &indices), "negatives are drawn on the host");
    }
    // Groups, and a device that will not record.
    for (name, more, refuses) in [("group", "accumulate = 2", false), ("refused", "", true)] {
        let config = config_with_a_small_batch(&format!("{SOFTMAX}\n{more}"));
        let place = |other: &str| folder.path().join(format!("{name}{other}"));
        let queued = train(&place("queued"), &config, fresh(&config), By::TensorOperations);
        let (replay, counts) = counting(&config, refuses);
        let (state, mut heard) = (fresh(&config).in_tensor_operations(), Heard::default());
        let losses = try_to_train(&place("other"), &config, state, true, Some(replay), &mut heard).unwrap();
        assert_eq!((losses, counts.get()), (queued, [0, 0]));
        let warned = heard.0.contains(&(
            Level::Warn,
            "training goes on without CUDA graphs: an operation is not permitted".into(),
        ));
        assert_eq!(warned, refuses, "{:?}", heard.0);
    }
}

/// The same levels for all batches of 16.
fn levels() -> Tensor {
    let pixels = (0..16 * 16 * 16 * 3).map(|i: u32| (i * i % 251) as u8).collect::<Vec<_>>();
    Tensor::from_slice(&pixels).view([16, 16, 16, 3])
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    to_vec_f32(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_replayed_loss_that_is_not_finite_moves_nothing() {
    let config = config(SOFTMAX);
    let (mut replay, counts) = counting(&config, false);
    let objective = objective(&config, &[]);
    let mut state = fresh(&config).in_tensor_operations();
    let indices: Vec<u32> = (0..16).collect();
    let mut step = |state: &mut TrainState| {
        let queued = replay.queue(state, &objective, &indices, &levels(), 0.01, 0).unwrap();
        assert!(queued.waits());
        queued.wait()
    };
    let everything = |state: &TrainState| {
        let Bank::Device(bank) = &state.bank else { panic!("the bank is in tensor operations") };
        let weights = state.encoder.parameters().trainable().map(|entry| &entry.tensor);
        let tensors = weights.chain(state.sgd.buffers().map(|(_, buffer)| buffer)).chain([bank.rows()]);
        tensors.flat_map(bits).collect::<Vec<_>>()
    };
    let row = |state: &TrainState| match &state.bank {
        Bank::Device(bank) => bank.rows().get(40),
        Bank::Host(_) => panic!("the bank is in tensor operations"),
    };
    let (mut last, mut before) = (f64::INFINITY, Vec::new());
    // While warming up, and of a recording.
    for steps in [1, WARM_UP + 2] {
        for _ in 0..steps {
            last = step(&mut state).loss;
            assert!(last.is_finite());
            let now = everything(&state);
            assert_ne!(now, before);
            before = now;
        }
        let good = row(&state).copy();
        let _ = row(&state).fill_(f64::NAN);
        let (bad, statistics) = (everything(&state), state.encoder.parameters().hash());
        let outcome = step(&mut state);
        assert!(outcome.loss.is_nan() && outcome.gradients.is_none());
        assert_eq!(everything(&state), bad);
        assert_ne!(state.encoder.parameters().hash(), statistics, "BatchNorm has seen the batch");
        row(&state).copy_(&good);
    }
    assert!(step(&mut state).loss < last);
    assert_eq!(counts.get()[0], 1, "and the recording is still good");

    let folder = tempfile::tempdir().unwrap();
    let _ = row(&state).fill_(f64::NAN);
    let (replay, _) = counting(&config, false);
    let ended =
        try_to_train(&folder.path().join("run"), &config, state, true, Some(replay), &mut Heard::default());
    assert!(matches!(ended, Err(Error::NonFiniteLoss { .. })), "{ended:?}");
}

#[test]
fn weights_that_move_are_recorded_anew() {
    let config = config(SOFTMAX);
    let (mut replay, counts) = counting(&config, false);
    let objective = objective(&config, &[]);
    let indices: Vec<u32> = (0..16).collect();
    let uploader = Uploader::normalizing_on(&Input::new(config.family, 16, 1).normalization, Device::Cpu);
    let (mut queued, mut replayed) =
        (fresh(&config).in_tensor_operations(), fresh(&config).in_tensor_operations());
    let mut steps = |replayed: &mut TrainState, count: u64| {
        for draw in 0..count {
            let images = || uploader.images_of_levels(&levels());
            let expected = queue_batch(&mut queued, &objective, &indices, images, 0.5, 1, draw).wait();
            let lr = 0.01 / (draw + 1) as f64;
            queued.sgd.step(queued.encoder.parameters_mut(), expected.gradients.unwrap(), lr);
            let found = replay.queue(replayed, &objective, &indices, &levels(), lr, draw).unwrap().wait();
            assert_eq!(found.loss, expected.loss, "step {draw}");
        }
    };
    steps(&mut replayed, 5);
    assert_eq!(counts.get(), [1, 5 - WARM_UP]);
    replayed = replayed.in_tensor_operations();
    steps(&mut replayed, 5);
    assert_eq!(counts.get(), [2, 2 * (5 - WARM_UP)]);
}
