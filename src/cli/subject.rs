//! What every command that looks at features is given: a checkpoint, and images to use it with.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::inputs::open_run_data;
use crate::bank::MemoryBank;
use crate::checkpoint::run_folder;
use crate::config::name_of;
use crate::data::dataset::{Dataset, Splits};
use crate::data::detect::DataFormat;
use crate::error::{Error, Result};
use crate::eval::features::Input;
use crate::interop;
use crate::model::device::DeviceChoice;
use crate::model::{Encoder, Precision};
use crate::train::memory::{self, Estimate};
use crate::train::start::{self, Found};
use crate::train::state::{load_bank, load_encoder};

/// The flags that say which encoder looks at which images.
#[derive(clap::Args)]
pub struct SubjectArguments {
    /// A checkpoint (ours, PyTorch's, safetensors), or a run folder (its newest checkpoint)
    #[arg(value_name = "CKPT|RUN")]
    pub checkpoint: PathBuf,
    /// The images [default: those of the run]
    #[arg(value_name = "DATA")]
    pub data: Option<PathBuf>,
    /// How DATA is laid out; detected unless given
    #[arg(long, value_enum)]
    pub data_format: Option<DataFormat>,
    /// Test images kept elsewhere than in DATA
    #[arg(long, value_name = "PATH")]
    pub test_data: Option<PathBuf>,
    /// Decoding threads [default: the checkpoint's]
    #[arg(short = 'j', long, value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,
    /// auto, cpu, cuda, cuda:N or mps
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
}

/// An encoder and images, open.
pub struct Subject {
    /// The checkpoint and what it says of itself.
    pub found: Found,
    /// The images, without those that the run had in quarantine.
    pub splits: Splits,
    /// The checkpoint's encoder.
    pub encoder: Encoder,
    /// How the images become its input.
    pub input: Input,
}

impl SubjectArguments {
    /// Opens both, and prints what a person should know of the checkpoint.
    ///
    /// # Errors
    /// If either cannot be opened.
    pub fn open(&self) -> Result<Subject> {
        let found = interop::find(&self.checkpoint)?;
        for note in &found.notes {
            super::note(note);
        }
        let config = &found.saved.config;
        let device = self.device.resolve()?;
        let splits = open_run_data(&found, self.data.as_deref(), self.data_format, self.test_data.clone())?;
        let encoder = load_encoder(&found.checkpoint, config, device)?;
        let workers = self.workers.map_or(config.workers, usize::from);
        let input =
            Input::new(config.family, config.image_size, workers).with_read_timeout(config.read_timeout());
        Ok(Subject { found, splits, encoder, input })
    }
}

impl Subject {
    /// Keeps freed memory for the next batch where there is plenty, as `train` does: for commands that compute features of
    /// many images and end.
    pub fn keep_freed_memory(&self) {
        let Subject { found, splits, encoder, .. } = self;
        let images = splits.train.len() + splits.test.as_ref().map_or(0, Dataset::len);
        let estimate = Estimate::of_evaluation(&found.saved.config, images, encoder.device());
        if memory::available().is_some_and(|available| estimate.leaves_as_much(&available)) {
            memory::keep_freed();
        }
    }

    /// Checkpoint, network and images in two lines.
    pub fn describe(&self) -> String {
        let Subject { found, splits, .. } = self;
        let config = &found.saved.config;
        let queries = match &splits.test {
            Some(test) => format!("{} test images", test.len()),
            None => "leave-one-out on the training images (there is no test split)".into(),
        };
        format!(
            "{}: {} ({}), {}-d; {} epochs finished, {} steps\n{}: {} training images; {queries}",
            found.path().display(),
            name_of(config.arch),
            name_of(config.family),
            config.embed_dim,
            found.saved.progress.epoch,
            found.saved.progress.step,
            splits.root.display(),
            splits.train.len(),
        )
    }

    /// The bank as training left it, one row for each training image.
    ///
    /// # Errors
    /// If it is of other images, or there is none.
    pub fn live_bank(&self) -> Result<MemoryBank> {
        if !self.found.saved.data.is_of(&start::identify(&self.splits)?) {
            return Err(Error::Data {
                path: self.splits.root.clone(),
                reason: "these are not the images that the live bank's rows belong to".into(),
                hint: Some("--bank recomputed computes the features of these images".into()),
            });
        }
        load_bank(&self.found.checkpoint, Precision::Fp32)
    }

    /// The run folder that the checkpoint lies in, if it lies in one.
    pub fn run_folder(&self) -> Option<&Path> {
        self.found.path().parent().filter(|folder| folder.join(run_folder::CONFIG).is_file())
    }

    /// Adds results to the run folder's `evaluations.jsonl`, a line each, under `test` (the command's name for what
    /// was measured) beside which checkpoint and which images they are of; does nothing outside a run folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn record(&self, test: &str, results: impl IntoIterator<Item = Value>) -> Result<()> {
        let Some(run) = self.run_folder() else { return Ok(()) };
        let (found, splits) = (&self.found, &self.splits);
        let mut text = String::new();
        for result in results {
            let line = serde_json::json!({
                "checkpoint": found.path().file_name().map(|name| name.to_string_lossy()),
                "epoch": found.saved.progress.epoch, "step": found.saved.progress.step,
                "data": splits.root.to_string_lossy(), "images": splits.train.len(),
                "test_images": splits.test.as_ref().map(|test| test.len()),
                test: result,
            });
            text += &format!("{line}\n");
        }
        let path = run.join(run_folder::EVALUATIONS);
        let append = |path: &Path| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(text.as_bytes())
        };
        append(&path).map_err(|e| Error::io(&path, "add the results", e))
    }
}
