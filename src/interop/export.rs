//! Our checkpoints as files that other tools load.
//!
//! Names are torchvision's also for the CIFAR family: `downsample` and `fc`, where that family has `shortcut` and
//! `linear`; only the published layout keeps them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use safetensors::tensor::{TensorView, serialize};

use super::npy;
use super::onnx::{self, OnnxOptions};
use super::published::{Bank, Objective, Published, Script, Sgd};
use super::table::{CsvTable, Line, ParquetTable};
use super::torch::Archive;
use crate::atomic;
use crate::checkpoint::format::TensorBytes;
use crate::config::ObjectiveKind;
use crate::data::augment::Normalization;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::features::normalization;
use crate::model::{Family, Head, Precision, Role};
use crate::optim::lr;
use crate::train::start::Found;
use crate::train::state::{BANK, ENCODER, MOMENTUM, load_bank, load_encoder};

/// A checkpoint to be exported.
pub struct Export<'f> {
    found: &'f Found,
    /// The encoder's tensors in PyTorch's order, by our names, and whether they are parameters.
    names: Vec<(String, Role)>,
}

impl<'f> Export<'f> {
    /// Looks at `found`; nothing is written.
    ///
    /// # Errors
    /// If its encoder is not whole.
    pub fn new(found: &'f Found) -> Result<Self> {
        let encoder = load_encoder(&found.checkpoint, &found.saved.config, tch::Device::Cpu)?;
        let names = encoder.parameters().state().map(|entry| (entry.name.clone(), entry.role)).collect();
        Ok(Export { found, names })
    }

    fn family(&self) -> Family {
        self.found.saved.config.family
    }

    /// The encoder's tensors by torchvision's names, in PyTorch's order; with or without the head.
    fn encoder(&self, head: Head) -> Result<Vec<TensorBytes<'f>>> {
        let of_head = format!("{}.", self.family().head_name());
        let wanted =
            self.names.iter().filter(|(name, _)| head == Head::Linear || !name.starts_with(&of_head));
        wanted
            .map(|(name, _)| {
                let tensor = self.found.checkpoint.tensor(&format!("{ENCODER}{name}"))?;
                Ok(TensorBytes { name: torchvision_name(name, self.family()).into(), ..tensor })
            })
            .collect()
    }

    /// What a reader of the file should know, as text.
    fn metadata(&self) -> BTreeMap<String, String> {
        let config = &self.found.saved.config;
        let Normalization { mean, std } = normalization(config.family);
        BTreeMap::from([
            ("format".into(), "pt".into()),
            ("producer".into(), concat!("lemniscate ", env!("CARGO_PKG_VERSION")).into()),
            ("architecture".into(), config.arch.to_string()),
            ("family".into(), config.family.to_string()),
            ("width".into(), config.width.to_string()),
            ("embed_dim".into(), config.embed_dim.to_string()),
            ("image_size".into(), config.image_size.to_string()),
            ("mean".into(), format!("{mean:?}")),
            ("std".into(), format!("{std:?}")),
            ("epochs".into(), self.found.saved.progress.epoch.to_string()),
            ("embedding".into(), "the output divided by its Euclidean norm".into()),
        ])
    }

    /// The encoder as safetensors, with metadata that says what it is.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn safetensors(&self, out: &Path, head: Head) -> Result<()> {
        write_safetensors(out, self.encoder(head)?, self.metadata())
    }

    /// The encoder's state dict as PyTorch saves one; `torch.load(path, weights_only=True)` opens it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn pth(&self, out: &Path, head: Head) -> Result<()> {
        let mut archive = Archive::new();
        let root = archive.state_dict(self.encoder(head)?)?;
        archive.save(out, &root)
    }

    /// The whole state in the layout of the published program: that of its ImageNet script, or for the CIFAR family of
    /// its CIFAR script, which keeps no momentum.
    ///
    /// # Errors
    /// If there is no bank, the objective is one that the program did not have, or the file cannot be written.
    pub fn published(&self, out: &Path) -> Result<()> {
        let checkpoint = &self.found.checkpoint;
        let (config, progress) = (&self.found.saved.config, &self.found.saved.progress);
        let refuse =
            |found: &str| Error::format(checkpoint.path(), "what the published program can hold", found);
        let objective = match config.objective {
            ObjectiveKind::Softmax => Objective::FullSoftmax,
            ObjectiveKind::Nce => {
                Objective::Nce { n_negatives: config.n_negatives, z: progress.ln_z.map(f64::exp) }
            }
            ObjectiveKind::SampledSoftmax => return Err(refuse("a sampled softmax, which came after it")),
        };
        if config.head == Head::None {
            return Err(refuse("an encoder without a head"));
        }
        let tensor = |prefix: &str, name: &str| {
            let tensor = checkpoint.tensor(&format!("{prefix}{name}"))?;
            Ok(TensorBytes { name: name.to_owned().into(), ..tensor })
        };
        let arch = config.arch.to_string();
        let script = match config.family {
            Family::Cifar => Script::Cifar,
            Family::ImageNet => {
                let parameters = self.names.iter().filter(|(_, role)| *role == Role::Weight);
                let last_epoch = progress.epoch.saturating_sub(1) as f64;
                let rate = lr(
                    config.lr,
                    &config.lr_schedule(),
                    config.warmup_epochs,
                    config.epochs as f64,
                    last_epoch,
                );
                Script::ImageNet {
                    arch: &arch,
                    optimizer: Sgd {
                        lr: rate,
                        momentum: config.momentum,
                        weight_decay: config.weight_decay,
                        buffers: parameters.map(|(name, _)| tensor(MOMENTUM, name)).collect::<Result<_>>()?,
                    },
                }
            }
        };
        let memory = checkpoint.tensor(BANK)?;
        Published {
            script,
            epoch: progress.epoch,
            encoder: self.names.iter().map(|(name, _)| tensor(ENCODER, name)).collect::<Result<_>>()?,
            bank: Bank {
                memory,
                temperature: config.temperature,
                momentum: f64::from(config.bank_momentum),
                objective,
            },
            best: progress.best.unwrap_or(0.0) / 100.0,
        }
        .save(out)
    }

    /// The encoder as an ONNX model; with `normalize`, pixels in 0..1 go in and the model normalises them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn onnx(&self, out: &Path, normalize: bool) -> Result<()> {
        let config = &self.found.saved.config;
        let encoder = load_encoder(&self.found.checkpoint, config, tch::Device::Cpu)?;
        let options = OnnxOptions {
            normalization: normalize.then(|| normalization(config.family)),
            image_size: Some(config.image_size as usize),
        };
        let model = onnx::encode(&encoder, &options)?;
        atomic::replace(out, |file| file.write_all(&model))
    }

    /// The bank's rows `[N, D]` as a NumPy array.
    ///
    /// # Errors
    /// If there is no bank, or the file cannot be written.
    pub fn bank_npy(&self, out: &Path) -> Result<()> {
        let bank = load_bank(&self.found.checkpoint, Precision::Fp32)?;
        atomic::replace(out, |file| npy::write(file, &[bank.len(), bank.dim()], &bank.rows()))
    }

    /// The bank's rows `[N, D]` as the safetensors tensor `memory`.
    ///
    /// # Errors
    /// If there is no bank, or the file cannot be written.
    pub fn bank_safetensors(&self, out: &Path) -> Result<()> {
        let memory = TensorBytes { name: "memory".into(), ..self.found.checkpoint.tensor(BANK)? };
        write_safetensors(out, vec![memory], self.metadata())
    }

    /// The bank as a table of row, file name, label and numbers: Parquet, or CSV.
    ///
    /// # Errors
    /// If there is no bank, `images` are not those it belongs to, or the file cannot be written.
    pub fn bank_table(&self, out: &Path, images: &Dataset, parquet: bool) -> Result<()> {
        let bank = load_bank(&self.found.checkpoint, Precision::Fp32)?;
        if images.len() != bank.len() {
            let expected = format!("{} images, one for each row", bank.len());
            return Err(Error::format(out, expected, images.len().to_string()));
        }
        let each_line = |push: &mut dyn FnMut(Line<'_>) -> io::Result<()>| {
            (0..bank.len()).try_for_each(|row| {
                let label = images.label(row).and_then(|label| images.class_name(label));
                push(Line { row, name: &images.name(row), label, values: &bank.row(row) })
            })
        };
        atomic::replace(out, |file| {
            if parquet {
                let mut table = ParquetTable::new(file, bank.dim())?;
                each_line(&mut |line| table.push(line))?;
                return table.finish();
            }
            let mut table = CsvTable::new(file, bank.dim())?;
            each_line(&mut |line| table.push(line))?;
            table.finish()
        })
    }
}

fn torchvision_name(name: &str, family: Family) -> String {
    let name = name.replace(&format!(".{}.", family.shortcut_name()), ".downsample.");
    match name.strip_prefix(&format!("{}.", family.head_name())) {
        Some(part) => format!("fc.{part}"),
        None => name,
    }
}

fn write_safetensors(
    out: &Path,
    tensors: Vec<TensorBytes<'_>>,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (&*tensor.name, view.expect("a tensor's bytes fill its shape"))
    });
    let bytes = serialize(views, Some(metadata.into_iter().collect()))
        .map_err(|e| Error::format(out, "a safetensors file", e.to_string()))?;
    atomic::replace(out, |file| file.write_all(&bytes))
}
