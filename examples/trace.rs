//! Records a short fp32 run so that PyTorch can repeat it: starting weights and bank, and for each step the batch as
//! the loader made it, its indices, the negatives that were drawn, and the loss.
//!
//!     cargo run --release --example trace -- DATA OUT.safetensors STEPS BATCH K
//!
//! benches/parity.py reads the file, repeats the run in PyTorch and states the largest difference.

#![allow(clippy::print_stdout, reason = "an example that reports as it goes")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use lemniscate::bank::draw_negatives;
use lemniscate::config::{BankInit, Preset, TrainConfig};
use lemniscate::data::detect::{self, OpenOptions};
use lemniscate::data::loader::{Loader, LoaderOptions, View, epoch_order};
use lemniscate::eval::features::{Input, input_tensor};
use lemniscate::model::to_vec_f32;
use lemniscate::rng::Purpose;
use lemniscate::train::start;
use lemniscate::train::step::{Objective, queue_batch};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, out, steps, batch, k] = &arguments[..] else {
        return Err("usage: trace DATA OUT.safetensors STEPS BATCH K".into());
    };
    let (steps, batch_size): (u64, usize) = (steps.parse()?, batch.parse()?);
    let splits = detect::open(Path::new(data), None, &OpenOptions::default())?;
    let layer: toml::Table =
        format!("n-negatives = {k}\nbatch-size = {batch_size}\nprecision = \"fp32\"").parse()?;
    let config = TrainConfig::resolve(Preset::Cifar, Path::new(data), splits.format, &[("trace", layer)])?;
    assert_eq!(config.bank_init, BankInit::Random, "the published start");
    let encoder = start::fresh_encoder(&config, tch::Device::Cpu);
    let mut state = start::fresh_state(&config, &splits, encoder, &mut |_| {})?;
    let noise = start::noise(&config, &splits.train)?;
    let mut record = Recording::default();
    for entry in state.encoder.parameters().state() {
        if entry.tensor.kind() == tch::Kind::Float {
            record.floats(format!("encoder.{}", entry.name), &to_vec_f32(&entry.tensor), entry.tensor.size());
        }
    }
    let bank = state.bank.on_host();
    record.floats("bank".into(), &bank.rows(), vec![bank.len() as i64, bank.dim() as i64]);

    let input = Input::new(config.family, config.image_size, 1);
    let order = epoch_order(&splits.train.trainable_indices(), config.seed, 0);
    let view = View::Train {
        transform: config.augmentation,
        seed: config.seed,
        epoch: 0,
        purpose: Purpose::Augmentation,
    };
    let loader = Loader::new(
        Arc::clone(splits.train.source()),
        view,
        order,
        batch_size,
        LoaderOptions { workers: 1, ..LoaderOptions::default() },
    )?;
    let objective = Objective::new(&config, noise.clone(), Vec::new());
    let mut losses = Vec::new();
    for (step, batch) in (0..steps).zip(loader) {
        let batch = batch?;
        let drawn = draw_negatives(&noise, config.seed, step, batch.indices.len(), config.n_negatives);
        let side = i64::from(batch.size);
        let b = batch.indices.len() as i64;
        record.bytes(format!("pixels.{step}"), Dtype::U8, batch.pixels.clone(), vec![b, side, side, 3]);
        record.integers(format!("indices.{step}"), &batch.indices, vec![b]);
        record.integers(format!("negatives.{step}"), &drawn, vec![b, config.n_negatives as i64]);
        let images = || input_tensor(&batch, &input.normalization);
        let outcome =
            queue_batch(&mut state, &objective, &batch.indices, images, config.bank_momentum, 1, step).wait();
        losses.push(outcome.loss as f32);
        let gradients = outcome.gradients.ok_or("the loss is not finite")?;
        state.sgd.step(state.encoder.parameters_mut(), gradients, config.lr);
        println!("step {step} loss {:.6}", outcome.loss);
    }
    record.floats("losses".into(), &losses, vec![losses.len() as i64]);
    let bank = state.bank.on_host();
    record.floats("bank_after".into(), &bank.rows(), vec![bank.len() as i64, bank.dim() as i64]);
    record.write(Path::new(out))
}

/// Named tensors to be written as one safetensors file.
#[derive(Default)]
struct Recording(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Recording {
    fn bytes(&mut self, name: String, dtype: Dtype, bytes: Vec<u8>, shape: Vec<i64>) {
        self.0.push((name, dtype, shape.into_iter().map(|n| n as usize).collect(), bytes));
    }

    fn floats(&mut self, name: String, values: &[f32], shape: Vec<i64>) {
        self.bytes(name, Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect(), shape);
    }

    fn integers(&mut self, name: String, values: &[u32], shape: Vec<i64>) {
        self.bytes(name, Dtype::I32, values.iter().flat_map(|v| v.to_le_bytes()).collect(), shape);
    }

    fn write(self, path: &Path) -> Result<(), Box<dyn Error>> {
        let views = self
            .0
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        Ok(safetensors::serialize_to_file(views, None, path)?)
    }
}
