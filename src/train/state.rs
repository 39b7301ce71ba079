//! Everything that training changes, in one struct, and its way into a checkpoint and back.

use std::collections::BTreeMap;

use safetensors::Dtype;
use tch::{Device, Kind, Tensor, no_grad};

use crate::bank::{Bank, DeviceBank, MemoryBank, Rows};
use crate::checkpoint::format::{Checkpoint, CheckpointView, TensorBytes};
use crate::checkpoint::state::Progress;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::model::{Encoder, Precision, to_vec_f32};
use crate::objective::Normalizer;
use crate::optim::Sgd;

/// The encoder, its optimiser, the bank, Z and the counters.
pub struct TrainState {
    /// Maps images to unit vectors.
    pub encoder: Encoder,
    /// Momentum buffers and hyper-parameters.
    pub sgd: Sgd,
    /// One unit row per training image.
    pub bank: Bank,
    /// NCE's constant Z.
    pub normalizer: Normalizer,
    /// Where the run stands.
    pub progress: Progress,
}

/// Prefix of the encoder's parameters and buffers in a checkpoint.
pub const ENCODER: &str = "encoder.";
/// Prefix of SGD's momentum buffers.
pub const MOMENTUM: &str = "momentum.";
/// The bank's rows `[N, D]`.
pub const BANK: &str = "bank.memory";

/// Metadata: the settings, as TOML.
const CONFIG: &str = "config";
/// Metadata: what the training images were.
const DATA: &str = "data";
/// Metadata: where the state came from, if another program trained it.
const ORIGIN: &str = "origin";

/// Where a checkpoint came from that another program trained.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The file's name.
    pub file: String,
    /// What it was, in words.
    pub format: String,
    /// The settings that it stated. The others are guesses, which a resumed run may replace.
    pub stated: Vec<String>,
}

/// What the training data was, as a checkpoint remembers it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DataIdentity {
    /// Number of training images, N.
    pub images: usize,
    /// [`crate::data::dataset::Dataset::fingerprint`] of the training images; none where another program trained and
    /// did not say.
    pub fingerprint: Option<String>,
    /// Rows that never enter a batch.
    pub quarantined: Vec<u32>,
    /// Test images that are never asked about, because they cannot be read.
    pub test_quarantined: Vec<u32>,
    /// Class names, empty without labels.
    pub classes: Vec<String>,
}

impl DataIdentity {
    /// Whether `now` are the same images by name, size and label, as far as this can be told: where it cannot, their
    /// number decides.
    pub fn is_of(&self, now: &DataIdentity) -> bool {
        match &self.fingerprint {
            Some(fingerprint) => now.fingerprint.as_ref() == Some(fingerprint),
            None => self.images == now.images,
        }
    }
}

impl TrainState {
    /// The state of a run on the encoder's device. Where the bank is on a device, the optimiser's memory moves into one
    /// piece.
    pub fn new(encoder: Encoder, sgd: Sgd, bank: Bank, normalizer: Normalizer, progress: Progress) -> Self {
        let on_device = matches!(bank, Bank::Device(_));
        let mut state = TrainState { encoder, sgd, bank, normalizer, progress };
        if on_device {
            state.sgd.in_one_piece(state.encoder.parameters_mut());
        }
        state
    }

    /// The same state with everything in tensor operations, whatever the device: what a run under CUDA does, to be tried
    /// where there is none.
    pub fn in_tensor_operations(mut self) -> Self {
        let bank = self.bank.on_host();
        let bank = DeviceBank::new(&bank, self.encoder.device());
        self.bank = Bank::Device(bank);
        self.sgd.in_one_piece(self.encoder.parameters_mut());
        self
    }

    /// The whole state as a checkpoint, handed to `write`.
    ///
    /// # Errors
    /// Those of `write`, and [`Error::Usage`] for settings that TOML cannot hold.
    pub fn save(
        &self,
        config: &TrainConfig,
        data: &DataIdentity,
        write: impl FnOnce(&CheckpointView<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut view = CheckpointView::default();
        for entry in self.encoder.parameters().state() {
            view.tensors.push(host_bytes(format!("{ENCODER}{}", entry.name), &entry.tensor));
        }
        for (name, buffer) in self.sgd.buffers() {
            view.tensors.push(host_bytes(format!("{MOMENTUM}{name}"), buffer));
        }
        let bank = self.bank.on_host();
        let rows = bank.rows();
        view.tensors.push(TensorBytes::from_f32(BANK, [bank.len(), bank.dim()], &rows));
        let (config, data, progress) = (config.clone(), data.clone(), self.progress.clone());
        Saved { config, progress, data, origin: None }.store(&mut view)?;
        write(&view)
    }
}

/// A checkpoint's contents that need no network to be read: settings, counters, data.
pub struct Saved {
    /// The settings of the run.
    pub config: TrainConfig,
    /// Where the run stood.
    pub progress: Progress,
    /// What it was trained on.
    pub data: DataIdentity,
    /// Where it came from, if not from us.
    pub origin: Option<Origin>,
}

impl Saved {
    /// Reads the metadata of `checkpoint`.
    ///
    /// # Errors
    /// [`Error::Format`] if an entry is missing or malformed.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let refuse = |found: String| Error::format(checkpoint.path(), format!("the field `{CONFIG}`"), found);
        let text = checkpoint.metadata().get(CONFIG).ok_or_else(|| refuse("none".into()))?;
        let config: TrainConfig =
            toml::from_str(text).map_err(|e| refuse(format!("one that cannot be read ({e})")))?;
        // What is read from a file is checked like what is typed.
        config.validate().map_err(|e| refuse(format!("settings that are impossible ({e})")))?;
        let origin =
            checkpoint.metadata().contains_key(ORIGIN).then(|| checkpoint.get(ORIGIN)).transpose()?;
        Ok(Self { config, progress: Progress::load(checkpoint)?, data: checkpoint.get(DATA)?, origin })
    }

    /// Puts it into a checkpoint that is to be saved.
    ///
    /// # Errors
    /// For settings that TOML cannot hold.
    pub fn store(&self, view: &mut CheckpointView<'_>) -> Result<()> {
        view.metadata.insert(CONFIG.to_owned(), self.config.to_toml()?);
        view.set(DATA, &self.data);
        self.progress.store(view);
        if let Some(origin) = &self.origin {
            view.set(ORIGIN, origin);
        }
        Ok(())
    }
}

/// The encoder of `checkpoint`, on `device`.
///
/// # Errors
/// If a parameter is missing, left over, or of the wrong shape.
pub fn load_encoder(checkpoint: &Checkpoint, config: &TrainConfig, device: Device) -> Result<Encoder> {
    let mut encoder = new_encoder(checkpoint, config, device)?;
    encoder.parameters_mut().load(&tensors_under(checkpoint, ENCODER)?)?;
    if let Some(name) = encoder.parameters().first_non_finite() {
        return Err(not_finite(checkpoint, &format!("{ENCODER}{name}")));
    }
    Ok(encoder)
}

/// A new encoder to be filled from `checkpoint`, once that holds as many numbers as `config` says that there are: a small
/// file must not make us allocate a large network.
fn new_encoder(checkpoint: &Checkpoint, config: &TrainConfig, device: Device) -> Result<Encoder> {
    let shape = config.encoder();
    shape.validate()?;
    let stored = checkpoint.tensors().filter(|tensor| tensor.name.starts_with(ENCODER));
    let stored: usize = stored.map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    // A trunk may come with another head than the configuration's, or none.
    let expected = shape.n_weights() - shape.n_head_weights();
    if stored < expected {
        return Err(Error::format(
            checkpoint.path(),
            format!("the {expected} numbers of a {}", crate::config::name_of(config.arch)),
            format!("{stored}"),
        ));
    }
    Ok(Encoder::new(shape, config.seed, device).with_precision(config.precision.resolve(device)))
}

fn not_finite(checkpoint: &Checkpoint, name: &str) -> Error {
    Error::format(checkpoint.path(), format!("finite numbers in {name}"), "a NaN or an infinity")
}

/// A new encoder of `config` whose trunk is that of `checkpoint`, and its head too where it has the same shape; and
/// whether it had.
///
/// # Errors
/// If the trunks are not of the same network.
pub fn load_trunk(checkpoint: &Checkpoint, config: &TrainConfig, device: Device) -> Result<(Encoder, bool)> {
    with_trunk(checkpoint, config, device, true)
}

/// A new encoder of `config` whose trunk is that of `checkpoint`, and whose head is new whatever its shape.
///
/// # Errors
/// If the trunks are not of the same network.
pub fn load_trunk_only(checkpoint: &Checkpoint, config: &TrainConfig, device: Device) -> Result<Encoder> {
    Ok(with_trunk(checkpoint, config, device, false)?.0)
}

fn with_trunk(
    checkpoint: &Checkpoint,
    config: &TrainConfig,
    device: Device,
    head_too: bool,
) -> Result<(Encoder, bool)> {
    let mut encoder = new_encoder(checkpoint, config, device)?;
    let mut stored = tensors_under(checkpoint, ENCODER)?;
    let head = format!("{}.", config.family.head_name());
    let ours: BTreeMap<String, Tensor> = encoder
        .parameters()
        .state()
        .filter(|entry| entry.name.starts_with(&head))
        .map(|entry| (entry.name.clone(), entry.tensor.detach()))
        .collect();
    let fits = ours.iter().all(|(name, own)| stored.get(name).is_some_and(|it| it.size() == own.size()));
    if !(fits && head_too) || ours.is_empty() {
        stored.retain(|name, _| !name.starts_with(&head));
        stored.extend(ours);
    }
    encoder.parameters_mut().load(&stored)?;
    if let Some(name) = encoder.parameters().first_non_finite() {
        return Err(not_finite(checkpoint, &format!("{ENCODER}{name}")));
    }
    Ok((encoder, fits))
}

/// An encoder without bank and momentum as a checkpoint, handed to `write`.
///
/// # Errors
/// Those of `write`, and [`Error::Usage`] for settings that TOML cannot hold.
pub fn save_encoder(
    encoder: &Encoder,
    saved: &Saved,
    write: impl FnOnce(&CheckpointView<'_>) -> Result<()>,
) -> Result<()> {
    let mut view = CheckpointView::default();
    for entry in encoder.parameters().state() {
        view.tensors.push(host_bytes(format!("{ENCODER}{}", entry.name), &entry.tensor));
    }
    saved.store(&mut view)?;
    write(&view)
}

/// The bank of `checkpoint`, rounded to `precision`.
///
/// # Errors
/// If it is missing or not `[N, D]` of 32-bit floats.
pub fn load_bank(checkpoint: &Checkpoint, precision: Precision) -> Result<MemoryBank> {
    let tensor = checkpoint.tensor(BANK)?;
    match (tensor.to_f32(), tensor.shape.as_slice()) {
        (Some(rows), &[n, dim]) if n > 0 && dim > 0 => {
            if let Some(at) = rows.iter().position(|number| !number.is_finite()) {
                return Err(not_finite(checkpoint, &format!("row {} of {BANK}", at / dim)));
            }
            Ok(MemoryBank::copy_of(n, dim, Rows::Fp32(&rows), precision))
        }
        (_, shape) => Err(Error::format(
            checkpoint.path(),
            format!("`{BANK}` as F32 [N, D]"),
            format!("{:?} {shape:?}", tensor.dtype),
        )),
    }
}

/// The whole state of `checkpoint`, ready to train on `device` with `config`.
///
/// # Errors
/// If anything is missing, left over, or of the wrong shape.
pub fn load(
    checkpoint: &Checkpoint,
    saved: &Saved,
    config: &TrainConfig,
    device: Device,
) -> Result<TrainState> {
    let encoder = load_encoder(checkpoint, config, device)?;
    let mut sgd = Sgd::new(encoder.parameters(), config.momentum, config.weight_decay);
    sgd.load_buffers(&tensors_under(checkpoint, MOMENTUM)?)?;
    let finite = |buffer: &Tensor| bool::try_from(no_grad(|| buffer.isfinite().all())).unwrap_or(false);
    if let Some((name, _)) = sgd.buffers().find(|(_, buffer)| !finite(buffer)) {
        return Err(not_finite(checkpoint, &format!("{MOMENTUM}{name}")));
    }
    let bank = load_bank(checkpoint, config.bank_precision)?;
    if (bank.len(), bank.dim()) != (saved.data.images, config.embed_dim) {
        return Err(Error::format(
            checkpoint.path(),
            format!("a bank of {} × {}", saved.data.images, config.embed_dim),
            format!("{} × {}", bank.len(), bank.dim()),
        ));
    }
    let fresh = Normalizer::new(config.normalizer.0, bank.len(), bank.dim(), config.temperature);
    let normalizer = Normalizer { ln_z: saved.progress.ln_z.or(fresh.ln_z), ..fresh };
    let bank = Bank::on(bank, device);
    Ok(TrainState::new(encoder, sgd, bank, normalizer, saved.progress.clone()))
}

/// A tensor's elements on the host, in C order, whatever its memory layout.
fn host_bytes(name: String, tensor: &Tensor) -> TensorBytes<'static> {
    let shape: Vec<usize> = tensor.size().into_iter().map(|n| n as usize).collect();
    let (dtype, bytes): (_, Vec<u8>) = match tensor.kind() {
        Kind::Int64 => {
            let mut values = vec![0i64; tensor.numel()];
            let count = values.len();
            tensor.to_device(Device::Cpu).contiguous().copy_data(&mut values, count);
            (Dtype::I64, values.into_iter().flat_map(i64::to_le_bytes).collect())
        }
        _ => (Dtype::F32, to_vec_f32(tensor).into_iter().flat_map(f32::to_le_bytes).collect()),
    };
    TensorBytes::new(name, dtype, shape, bytes)
}

/// The tensors whose names start with `prefix`, which is cut off.
fn tensors_under(checkpoint: &Checkpoint, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    let mut found = BTreeMap::new();
    for stored in checkpoint.tensors() {
        let Some(name) = stored.name.strip_prefix(prefix) else { continue };
        let kind = match stored.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::I64 => Kind::Int64,
            other => {
                let expected = format!("`{}` as F32 or I64", stored.name);
                return Err(Error::format(checkpoint.path(), expected, format!("{other:?}")));
            }
        };
        let shape: Vec<i64> = stored.shape.iter().map(|&n| n as i64).collect();
        let tensor = Tensor::f_from_data_size(&stored.bytes, &shape, kind).map_err(|e| {
            Error::format(checkpoint.path(), format!("`{}` as {shape:?}", stored.name), e.to_string())
        })?;
        found.insert(name.to_owned(), tensor);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
