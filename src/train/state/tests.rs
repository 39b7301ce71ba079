use std::path::Path;

use super::*;
use crate::checkpoint::format::save_atomic;
use crate::config::Preset;
use crate::data::DataFormat;
use crate::train::start::fresh_encoder;

fn tiny() -> (TrainConfig, DataIdentity, TrainState) {
    let mut config = TrainConfig::preset(Preset::Cifar, Path::new("photos"), DataFormat::Flat);
    (config.width, config.embed_dim) = (1, 4);
    let encoder = fresh_encoder(&config, Device::Cpu);
    let state = TrainState {
        sgd: Sgd::new(encoder.parameters(), config.momentum, config.weight_decay),
        bank: Bank::Host(MemoryBank::random(3, 4, 0)),
        normalizer: Normalizer::new(config.normalizer.0, 3, 4, config.temperature),
        progress: Progress::default(),
        encoder,
    };
    let data = DataIdentity {
        images: 3,
        fingerprint: None,
        quarantined: Vec::new(),
        test_quarantined: Vec::new(),
        classes: Vec::new(),
    };
    (config, data, state)
}

/// Saves a [`tiny`] state, after `change` of what is written, and loads it again.
fn through_a_file(change: impl FnOnce(&mut TrainConfig, &mut Vec<TensorBytes<'_>>)) -> Result<TrainState> {
    through_a_file_from(MemoryBank::random(3, 4, 0), change)
}

/// The same with `bank` `[3, 4]`.
fn through_a_file_from(
    bank: MemoryBank,
    change: impl FnOnce(&mut TrainConfig, &mut Vec<TensorBytes<'_>>),
) -> Result<TrainState> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("last.ckpt");
    let (mut config, data, mut state) = tiny();
    state.bank = Bank::Host(bank);
    state
        .save(&config.clone(), &data, |view| {
            let mut view = view.clone();
            change(&mut config, &mut view.tensors);
            Saved { config, progress: state.progress.clone(), data: data.clone(), origin: None }
                .store(&mut view)?;
            save_atomic(&path, &view)
        })
        .unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let saved = Saved::read(&checkpoint)?;
    load(&checkpoint, &saved, &saved.config, Device::Cpu)
}

fn spoil(tensors: &mut [TensorBytes<'_>], name: &str, number: f32) {
    let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
    let last = tensor.bytes.len() - 4;
    tensor.bytes.to_mut()[last..].copy_from_slice(&number.to_le_bytes());
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    assert!(through_a_file(|_, _| ()).is_ok());
    for name in
        ["bank.memory", "encoder.conv1.weight", "encoder.layer4.1.bn2.running_var", "momentum.linear.bias"]
    {
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refused = through_a_file(|_, tensors| spoil(tensors, name, number));
            let error = refused.err().map(|error| error.to_string()).unwrap();
            assert!(error.contains(name) && error.contains("a NaN or an infinity"), "{error}");
        }
    }
}

#[test]
fn a_bank_comes_back_in_the_precision_that_is_asked_for() {
    let fp32 = MemoryBank::random(3, 4, 0);
    let bf16 = fp32.clone().in_precision(Precision::Bf16);
    for (bank, asked, expected) in [
        (&bf16, Precision::Bf16, bf16.clone()),
        (&bf16, Precision::Fp32, bf16.clone().in_precision(Precision::Fp32)),
        (&fp32, Precision::Bf16, bf16.clone()),
        (&fp32, Precision::Fp32, fp32.clone()),
    ] {
        let state = through_a_file_from(bank.clone(), |config, _| config.bank_precision = asked).unwrap();
        assert_eq!(*state.bank.on_host(), expected, "{} as {asked}", bank.precision());
    }
}

#[test]
fn a_small_file_that_claims_a_large_network_makes_no_large_network() {
    let refused = through_a_file(|config, _| {
        (config.arch, config.width) = (crate::model::Arch::ResNet152, 1024);
    });
    let error = refused.err().map(|error| error.to_string()).unwrap();
    assert!(error.contains("numbers of a resnet152"), "{error}");
}

#[test]
fn settings_that_nobody_could_have_trained_with_are_refused() {
    let refused = through_a_file(|config, _| config.workers = usize::MAX >> 1);
    assert!(refused.err().is_some_and(|error| error.to_string().contains("--workers")));
}
