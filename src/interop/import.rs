//! Other programs' checkpoints as our own: weights under our names, bank, Z, momentum and counters where the file has
//! them, and settings that say which of them the file stated.

use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use serde::Serialize;

use super::contents::{Bank, Contents, Optimizer};
use super::recognise::{Hints, Match, Shapes, recognise};
use super::source::{Source, as_f32};
use super::torch::Tensor;
use crate::checkpoint::format::{Checkpoint, CheckpointView, Place, Places};
use crate::checkpoint::state::Progress;
use crate::config::{Monitor, ObjectiveKind, Preset, TrainConfig};
use crate::data::detect::DataFormat;
use crate::error::{Error, Result};
use crate::model::{Encoder, Family, Head, PrecisionChoice, Role};
use crate::optim::lr;
use crate::train::state::{BANK, DataIdentity, ENCODER, MOMENTUM, Origin, Saved};

/// How much of a network must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// All of it, and nothing else beside it.
    #[default]
    Complete,
    /// The trunk; heads of any form are passed over.
    Trunk,
    /// Whatever matches. What is missing starts as in a new encoder.
    Part,
}

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// What to look for.
    pub hints: Hints,
    /// How much of it must be there.
    pub accept: Accept,
}

/// A file as a checkpoint of ours, and how it became one.
pub struct Imported {
    /// Everything that `eval` and `train` need of it. It lies in the file where that is possible.
    pub checkpoint: Checkpoint,
    /// What was found.
    pub report: ImportReport,
}

/// What an import found, for a person or as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    /// The file's name.
    pub file: String,
    /// What kind of file it is, and how its parts lie in it.
    pub format: String,
    /// The network, and which tensors make it.
    pub network: Match,
    /// Tensors under that network's part of the file.
    pub n_tensors: usize,
    /// Rows and width of the memory bank.
    pub bank: Option<[usize; 2]>,
    /// Momentum buffers taken.
    pub momentum: usize,
    /// Epochs finished.
    pub epoch: Option<u64>,
    /// Best accuracy so far, per cent.
    pub best: Option<f64>,
    /// What a person should know beside.
    pub notes: Vec<String>,
}

/// Imports the file at `path`.
///
/// # Errors
/// If it is not one of the files that are read, holds no network of ours, less of it than
/// [`ImportOptions::accept`] asks for, or numbers that are not finite.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let source = Source::open(path)?;
    let (places, metadata, report) = source.with_contents(|contents| {
        let mut draft = Draft { source: &source, options, places: Places::new(), notes: Vec::new() };
        let (report, metadata) = draft.fill(contents)?;
        Ok((draft.places, metadata, report))
    })?;
    Ok(Imported { checkpoint: Checkpoint::assemble(path, source.into_map(), places, metadata), report })
}

/// What the file at `path` would be as a checkpoint: the same as [`import`], but an incomplete match is no error.
///
/// # Errors
/// As [`import`].
pub fn examine(path: &Path, hints: Hints) -> Result<ImportReport> {
    Ok(import(path, &ImportOptions { hints, accept: Accept::Part })?.report)
}

/// A checkpoint in the making.
struct Draft<'s> {
    source: &'s Source,
    options: &'s ImportOptions,
    places: Places,
    notes: Vec<String>,
}

type Metadata = std::collections::BTreeMap<String, String>;

impl Draft<'_> {
    fn refuse(&self, expected: &str, found: impl Into<String>) -> Error {
        Error::format(self.source.path(), expected, found)
    }

    fn fill(&mut self, contents: Contents<'_>) -> Result<(ImportReport, Metadata)> {
        let shapes: Vec<_> = contents.weights.iter().map(|(name, t)| (name.as_str(), t.shape())).collect();
        let shapes: &Shapes<'_> = &shapes;
        let network = recognise(shapes, &self.options.hints)
            .map_err(|found| self.refuse("a ResNet that we know", found))?;
        let enough = match self.options.accept {
            Accept::Complete => network.complete(),
            Accept::Trunk => network.trunk_is_complete(),
            Accept::Part => true,
        };
        if !enough {
            return Err(self.partial_match(&network));
        }
        let encoder = Encoder::new(network.config, 0, tch::Device::Cpu);
        self.take_weights(&network, &contents, &encoder)?;
        let bank = match &contents.bank {
            Some(bank) => self.take_bank(bank, &network)?,
            None => None,
        };
        let momentum = match &contents.optimizer {
            Some(optimizer) => self.take_momentum(optimizer, &network, &contents, &encoder)?,
            None => 0,
        };
        if bank.is_some() && momentum == 0 {
            self.notes.push("no momentum of SGD: a resumed run starts with none".into());
        }
        // A resumed run needs every buffer; where there is none it is zero, as SGD begins.
        for entry in encoder.parameters().trainable() {
            let shape: Vec<usize> = entry.tensor.size().iter().map(|&extent| extent as usize).collect();
            let zeros =
                || (Dtype::F32, shape.clone(), Place::Memory(vec![0; 4 * shape.iter().product::<usize>()]));
            self.places.entry(format!("{MOMENTUM}{}", entry.name)).or_insert_with(zeros);
        }
        if let Some(arch) = contents.arch.as_deref().filter(|arch| *arch != network.config.arch.to_string()) {
            self.notes.push(format!("the file calls it {arch:.40}"));
        }
        for (key, count) in &contents.others {
            self.notes.push(format!("`{key:.40}` holds {count} tensors more, which were not taken"));
        }
        if network.config.head == Head::Linear && network.config.embed_dim == 1000 {
            self.notes.push(
                "its head gives the 1,000 classes of ImageNet: an embedding is that vector at unit length; --head none \
                 takes the pooled features instead"
                    .into(),
            );
        }
        let saved = self.settings(&network, &contents, bank)?;
        let format = format!("{}: {}", self.source.describe(), contents.layout);
        let mut view = CheckpointView::default();
        saved.store(&mut view)?;
        let report = ImportReport {
            file: self.source.path().display().to_string(),
            format,
            n_tensors: network.matched.len() + network.left_over.len() + network.mismatched.len(),
            network,
            bank,
            momentum,
            epoch: contents.epoch,
            best: contents.best,
            notes: std::mem::take(&mut self.notes),
        };
        Ok((report, view.metadata))
    }

    fn partial_match(&self, network: &Match) -> Error {
        let mut lines = vec![format!(
            "a {} whose tensors match in part ({} of {})",
            describe(network),
            network.matched.len(),
            network.matched.len() + network.missing.len() + network.mismatched.len()
        )];
        for (what, names) in [
            ("missing", &network.missing),
            ("of another shape", &network.mismatched),
            ("left over", &network.left_over),
        ] {
            lines.extend(list(what, names));
        }
        lines.push(
            "  --partial takes what matches; --head none leaves a head out; --prefix says where to look"
                .into(),
        );
        self.refuse("a ResNet that we know, complete", lines.join("\n"))
    }

    fn take_weights(&mut self, network: &Match, contents: &Contents<'_>, encoder: &Encoder) -> Result<()> {
        for entry in encoder.parameters().state() {
            let shape: Vec<usize> = entry.tensor.size().iter().map(|&extent| extent as usize).collect();
            let name = format!("{ENCODER}{}", entry.name);
            let counter = entry.tensor.kind() == tch::Kind::Int64;
            let place = match network.matched.get(&entry.name).map(|&index| &contents.weights[index]) {
                Some((_, tensor)) if counter => Place::Memory(self.counter(tensor).to_le_bytes().to_vec()),
                Some((theirs, tensor)) => self.floats(theirs, tensor)?,
                None if counter => Place::Memory(vec![0; 8]),
                // Only where a partial match was asked for.
                None => {
                    let values = crate::model::to_vec_f32(&entry.tensor);
                    Place::Memory(values.into_iter().flat_map(f32::to_le_bytes).collect())
                }
            };
            let dtype = if counter { Dtype::I64 } else { Dtype::F32 };
            self.places.insert(name, (dtype, shape, place));
        }
        if !network.missing.is_empty() || !network.mismatched.is_empty() {
            self.notes.push("what the file has not starts as in a new encoder".into());
        }
        Ok(())
    }

    /// Steps that BatchNorm has counted. Nothing depends on them, so what is no integer counts as none.
    fn counter(&self, tensor: &Tensor<'_>) -> i64 {
        let value = tensor.to_tch().ok().map(|tensor| tensor.to_kind(tch::Kind::Int64).int64_value(&[]));
        value.unwrap_or(0)
    }

    /// A tensor as 32-bit floats: where it lies in the file if it lies there so.
    fn floats(&mut self, name: &str, tensor: &Tensor<'_>) -> Result<Place> {
        let bytes =
            as_f32(tensor).map_err(|found| self.refuse(&format!("finite floats in {name:.80}"), found))?;
        if tensor.dtype() != super::torch::Dtype::F32 {
            let note = format!("{} became float32", tensor.dtype());
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(match bytes {
            std::borrow::Cow::Borrowed(bytes) => match self.source.range_of(bytes) {
                Some(range) => Place::File(range),
                None => Place::Memory(bytes.to_vec()),
            },
            std::borrow::Cow::Owned(bytes) => Place::Memory(bytes),
        })
    }

    fn take_bank(&mut self, bank: &Bank<'_>, network: &Match) -> Result<Option<[usize; 2]>> {
        let &[n, dim] = bank.memory.shape() else {
            return Err(
                self.refuse("a memory bank [N, D]", format!("one of shape {:?}", bank.memory.shape()))
            );
        };
        let embed_dim = network.config.embed_dim;
        if n == 0 || u32::try_from(n).is_err() || dim as i64 != embed_dim {
            if self.options.accept == Accept::Complete {
                return Err(self.refuse(
                    &format!("a memory bank of N rows of {embed_dim}, as the encoder's embeddings"),
                    format!("one of {n} × {dim}"),
                ));
            }
            self.notes
                .push(format!("the memory bank of {n} × {dim} does not fit the encoder and was not taken"));
            return Ok(None);
        }
        let place = self.floats("the memory bank", &bank.memory)?;
        self.places.insert(BANK.into(), (Dtype::F32, vec![n, dim], place));
        Ok(Some([n, dim]))
    }

    /// Momentum by our names. PyTorch numbers parameters in the network's order, which is that of its state dict.
    fn take_momentum(
        &mut self,
        optimizer: &Optimizer<'_>,
        network: &Match,
        contents: &Contents<'_>,
        encoder: &Encoder,
    ) -> Result<usize> {
        let is_buffer = |name: &str| {
            ["running_mean", "running_var", "num_batches_tracked"].iter().any(|buffer| name.ends_with(buffer))
        };
        let parameters: Vec<usize> =
            (0..contents.weights.len()).filter(|&i| !is_buffer(&contents.weights[i].0)).collect();
        if optimizer.groups != 1 || parameters.len() != optimizer.momentum.len() {
            self.notes.push(format!(
                "the optimiser has {} parameters in {} groups, the network {} in its file: which momentum belongs to \
                 which cannot be told, and none was taken",
                optimizer.momentum.len(),
                optimizer.groups,
                parameters.len()
            ));
            return Ok(0);
        }
        let mut taken = 0;
        for entry in encoder.parameters().state().filter(|entry| entry.role == Role::Weight) {
            let Some(index) = network.matched.get(&entry.name) else { continue };
            let number = parameters.iter().position(|parameter| parameter == index);
            let Some(buffer) = number.and_then(|number| optimizer.momentum[number].as_ref()) else {
                continue;
            };
            let shape = contents.weights[*index].1.shape();
            if buffer.shape() != shape {
                return Err(self.refuse(
                    &format!("momentum of shape {shape:?} for {}", entry.name),
                    format!("{:?}", buffer.shape()),
                ));
            }
            let place = self.floats(&format!("the momentum of {}", entry.name), buffer)?;
            self.places.insert(format!("{MOMENTUM}{}", entry.name), (Dtype::F32, shape.to_vec(), place));
            taken += 1;
        }
        Ok(taken)
    }

    /// The settings of a run that this file could have come from: those it states, and the published ones.
    fn settings(
        &mut self,
        network: &Match,
        contents: &Contents<'_>,
        bank: Option<[usize; 2]>,
    ) -> Result<Saved> {
        let preset = match network.config.family {
            Family::Cifar => Preset::Cifar,
            Family::ImageNet => Preset::Imagenet,
        };
        let mut config = TrainConfig::preset(preset, Path::new(""), DataFormat::Folder);
        config.arch = network.config.arch;
        config.width = network.config.width as usize;
        config.embed_dim = network.config.embed_dim as usize;
        config.head = network.config.head;
        // The published monitor, which a stated best accuracy belongs to; and no rounding that the file did not know.
        config.monitor = Monitor::Nn;
        config.precision = PrecisionChoice::Fp32;
        let mut stated: Vec<&str> = vec!["arch", "family", "width", "embed-dim", "head"];
        let mut ln_z = None;
        if let (Some(bank), Some(_)) = (&contents.bank, bank) {
            let trained = contents.epoch.is_some_and(|epoch| epoch > 0);
            match bank.params[..] {
                [temperature, m] => {
                    (config.objective, config.n_negatives) = (ObjectiveKind::Softmax, 0);
                    (config.temperature, config.bank_momentum) = (clean(temperature), clean(m) as f32);
                }
                [k, temperature, z, m] => {
                    let softmax = bank.softmax || (z <= 0.0 && trained);
                    config.objective =
                        if softmax { ObjectiveKind::SampledSoftmax } else { ObjectiveKind::Nce };
                    config.n_negatives = k.max(0.0) as usize;
                    (config.temperature, config.bank_momentum) = (clean(temperature), clean(m) as f32);
                    ln_z = (z > 0.0 && !softmax).then(|| z.ln());
                }
                _ => {
                    let found = format!("{:?}", bank.params);
                    return Err(self.refuse("the bank's parameters [K, T, Z, m] or [T, m]", found));
                }
            }
            stated.extend(["objective", "n-negatives", "temperature", "bank-momentum"]);
        }
        let epoch = contents.epoch.unwrap_or(0);
        config.epochs = config.epochs.max(epoch);
        if let Some(optimizer) = &contents.optimizer {
            let last_epoch = epoch.saturating_sub(1) as f64;
            // The file keeps the rate of its last epoch; a run keeps that of its first.
            let factor = lr(1.0, &config.lr_schedule(), 0.0, config.epochs as f64, last_epoch);
            let base = optimizer.initial_lr.or(optimizer.lr.map(|lr| clean(lr / factor)));
            for (key, slot, value) in [
                ("lr", &mut config.lr, base),
                ("momentum", &mut config.momentum, optimizer.momentum_factor),
                ("weight-decay", &mut config.weight_decay, optimizer.weight_decay),
            ] {
                if let Some(value) = value {
                    *slot = value;
                    stated.push(key);
                }
            }
        }
        config.validate().map_err(|error| self.refuse("settings that a run can have", error.to_string()))?;
        let images = bank.map_or(0, |[n, _]| n);
        let progress = Progress {
            epoch,
            step: epoch * images.div_ceil(config.batch_size) as u64,
            images_seen: epoch * images as u64,
            ln_z,
            best: contents.best,
            best_epoch: contents.best.map(|_| epoch.saturating_sub(1)),
            ..Progress::default()
        };
        let file = self.source.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let data = DataIdentity {
            images,
            fingerprint: None,
            quarantined: Vec::new(),
            test_quarantined: Vec::new(),
            classes: Vec::new(),
        };
        let origin = Origin {
            file,
            format: self.source.describe(),
            stated: stated.into_iter().map(str::to_owned).collect(),
        };
        Ok(Saved { config, progress, data, origin: Some(origin) })
    }
}

/// A number that a person typed and a program kept in 32 bits, or multiplied by a power of ten, as it was typed.
fn clean(value: f64) -> f64 {
    format!("{value:.6e}").parse().unwrap_or(value)
}

fn describe(network: &Match) -> String {
    let c = &network.config;
    let head = match c.head {
        Head::Linear => format!("{}-d", c.embed_dim),
        Head::None => "no head".into(),
    };
    format!("{} ({} stem, width {}, {head})", c.arch, c.family, c.width)
}

/// At most this many names are listed.
const LISTED: usize = 12;

fn list(what: &str, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let shown: Vec<_> = names.iter().take(LISTED).map(|name| format!("\n    {name}")).collect();
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!("\n    ... and {more} more") } else { String::new() };
    Some(format!("  {what} ({}):{}{more}", names.len(), shown.concat()))
}

impl ImportReport {
    /// All of it in one line.
    pub fn summary(&self) -> String {
        let bank = self.bank.map(|[n, d]| format!(", memory bank {n} × {d}")).unwrap_or_default();
        let epoch = self.epoch.map(|epoch| format!(", {epoch} epochs")).unwrap_or_default();
        format!("{}: {}{bank}{epoch}", self.format, describe(&self.network))
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = &self.network;
        writeln!(f, "{}", self.file)?;
        writeln!(f, "  {}", self.format)?;
        writeln!(f, "network: {}", describe(network))?;
        let total = network.matched.len() + network.missing.len() + network.mismatched.len();
        write!(f, "  {} of {total} tensors matched", network.matched.len())?;
        if !network.prefix.is_empty() {
            write!(f, ", under `{}`", network.prefix)?;
        }
        if network.renamed > 0 {
            write!(f, ", {} renamed", network.renamed)?;
        }
        if !network.missing_counters.is_empty() {
            write!(f, ", {} counters of BatchNorm not in the file", network.missing_counters.len())?;
        }
        writeln!(f)?;
        for (what, names) in [
            ("missing", &network.missing),
            ("of another shape", &network.mismatched),
            ("left over under the prefix", &network.left_over),
            ("the head, not taken", &network.head_left),
            ("elsewhere in the file", &network.outside),
        ] {
            if let Some(list) = list(what, names) {
                writeln!(f, "{list}")?;
            }
        }
        if !network.other_prefixes.is_empty() {
            writeln!(f, "  also under: {} (choose with --prefix)", network.other_prefixes.join(", "))?;
        }
        match self.bank {
            Some([n, d]) => writeln!(f, "memory bank: {n} × {d}")?,
            None => writeln!(f, "memory bank: none, so it can be tested and started from, but not resumed")?,
        }
        if self.momentum > 0 {
            writeln!(f, "momentum: {} buffers", self.momentum)?;
        }
        if let Some(epoch) = self.epoch {
            writeln!(f, "epochs finished: {epoch}")?;
        }
        if let Some(best) = self.best {
            writeln!(f, "best accuracy: {best:.2} %")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
