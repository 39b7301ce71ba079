//! Other programs' checkpoints as our own: weights under our names, bank, Z, momentum and counters where the file has
//! them, and settings that say which of them the file stated.

mod report;
mod settings;

use std::borrow::Cow;
use std::path::Path;

use safetensors::Dtype;

use self::report::{describe, list};
use super::contents::{Bank, Contents, Optimizer};
use super::recognise::{Hints, Match, Shapes, recognise};
use super::source::{Source, as_f32};
use super::torch::Tensor;
use crate::checkpoint::format::{Checkpoint, CheckpointView, Place, Places};
use crate::error::{Error, Result};
use crate::model::{Encoder, Head, Role};
use crate::train::state::{BANK, ENCODER, MOMENTUM};

pub use self::report::ImportReport;

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

/// Imports the file at `path`.
///
/// # Errors
/// If it is not one of the files that are read, holds no network of ours, less of it than
/// [`ImportOptions::accept`] asks for, or numbers that are not finite.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let source = Source::open(path)?;
    let (places, metadata, report) = source.with_contents(|contents| {
        let mut draft = Draft::new(&source, options, true);
        let (report, metadata) = draft.fill(contents)?;
        Ok((draft.places, metadata, report))
    })?;
    Ok(Imported { checkpoint: Checkpoint::assemble(path, source.into_map(), places, metadata), report })
}

/// What the file that is open as `source` would be as a checkpoint: the same as [`import`], but an incomplete match is no
/// error, and no number is looked at.
///
/// # Errors
/// As [`import`], but for what only the numbers tell.
pub fn examine(source: &Source, hints: Hints) -> Result<ImportReport> {
    let options = ImportOptions { hints, accept: Accept::Part };
    source.with_contents(|contents| Ok(Draft::new(source, &options, false).fill(contents)?.0))
}

/// A checkpoint in the making.
struct Draft<'s> {
    source: &'s Source,
    options: &'s ImportOptions,
    /// Whether numbers are looked at. If not, nothing is in its place.
    reads: bool,
    places: Places,
    notes: Vec<String>,
}

type Metadata = std::collections::BTreeMap<String, String>;

impl<'s> Draft<'s> {
    fn new(source: &'s Source, options: &'s ImportOptions, reads: bool) -> Self {
        Draft { source, options, reads, places: Places::new(), notes: Vec::new() }
    }

    fn refuse(&self, expected: &str, found: impl Into<String>) -> Error {
        Error::format(self.source.path(), expected, found)
    }

    fn fill(&mut self, contents: Contents<'_>) -> Result<(ImportReport, Metadata)> {
        let shapes: Vec<_> = contents.weights.iter().map(|(name, t)| (name.as_str(), t.shape())).collect();
        let shapes: &Shapes<'_> = &shapes;
        let (network, encoder) = recognise(shapes, &self.options.hints)
            .map_err(|found| self.refuse("a ResNet that we know", found))?;
        let enough = match self.options.accept {
            Accept::Complete => network.complete(),
            Accept::Trunk => network.trunk_is_complete(),
            Accept::Part => true,
        };
        if !enough {
            return Err(self.partial_match(&network));
        }
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
        if !self.reads {
            return Ok(Place::Memory(Vec::new()));
        }
        let bytes =
            as_f32(tensor).map_err(|found| self.refuse(&format!("finite floats in {name:.80}"), found))?;
        if tensor.dtype() != super::torch::Dtype::F32 {
            let note = format!("{} became float32", tensor.dtype());
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(match bytes {
            Cow::Borrowed(bytes) => match self.source.range_of(bytes) {
                Some(range) => Place::File(range),
                None => Place::Memory(bytes.to_vec()),
            },
            Cow::Owned(bytes) => Place::Memory(bytes),
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
}
