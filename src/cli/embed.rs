//! `lemniscate embed`: the features of every image, in a file that other tools read.

use std::path::PathBuf;

use super::inputs::{bar, open_run_data, without_unreadable};
use super::say;
use crate::checkpoint::signals::Interrupt;
use crate::data::detect::DataFormat;
use crate::data::loader::View;
use crate::error::{Error, Result};
use crate::eval::features::{EVALUATION_BATCH, Input, embed_each};
use crate::interop;
use crate::interop::embeddings::{Format, Identity, Partial};
use crate::model::device::DeviceChoice;
use crate::model::{Encoder, Layer, to_vec_f32};
use crate::train::state::load_encoder;

/// Parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    /// The training images; all images of a bare folder or a list.
    Train,
    /// The test images.
    Test,
}

/// Flags of `lemniscate embed`.
#[derive(clap::Args)]
#[command(
    after_help = "Interrupted, it keeps what it has beside FILE (FILE.part) and goes on with it when it is started again.\n\n\
Examples:\n  lemniscate embed runs/a photos/ --out photos.parquet\n  lemniscate embed runs/a --split test --layer pooled --out test.npy"
)]
pub struct Arguments {
    /// A checkpoint (ours, PyTorch's, safetensors), or a run folder (its newest checkpoint)
    #[arg(value_name = "CKPT|RUN")]
    checkpoint: PathBuf,
    /// The images [default: those of the run]
    #[arg(value_name = "DATA")]
    data: Option<PathBuf>,
    /// The file: .npy, .safetensors (arrays, row = image), .parquet or .csv (tables with names and labels)
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// embedding (unit vectors), pooled, or stage1 to stage4 (averaged over their places)
    #[arg(long, default_value = "embedding")]
    layer: Layer,
    /// Which images
    #[arg(long, value_enum, default_value = "train")]
    split: Split,
    /// Go on without unreadable images: NaN in an array, left out of a table
    #[arg(long)]
    quarantine: bool,
    /// How DATA is laid out; detected unless given
    #[arg(long, value_enum)]
    data_format: Option<DataFormat>,
    /// Test images kept elsewhere than in DATA
    #[arg(long, value_name = "PATH")]
    test_data: Option<PathBuf>,
    /// Decoding threads [default: the checkpoint's]
    #[arg(short = 'j', long)]
    workers: Option<usize>,
    /// auto, cpu, cuda, cuda:N or mps
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Replace FILE if it is there
    #[arg(long)]
    force: bool,
}

/// Embeds and writes.
pub fn run(arguments: Arguments) -> Result<()> {
    let format = Format::of(&arguments.out)?;
    if arguments.out.exists() && !arguments.force {
        return Err(Error::Usage {
            message: format!("{} exists", arguments.out.display()),
            hint: Some("--force replaces it".into()),
        });
    }
    if arguments.workers == Some(0) {
        return Err(Error::usage("--workers must be at least 1"));
    }
    let found = interop::find(&arguments.checkpoint)?;
    for note in &found.notes {
        eprintln!("note: {note}");
    }
    let config = &found.saved.config;
    let splits =
        open_run_data(&found, arguments.data.as_deref(), arguments.data_format, arguments.test_data)?;
    let root = splits.root.clone();
    let data = match arguments.split {
        Split::Train => splits.train,
        Split::Test => splits.test.ok_or_else(|| Error::Data {
            path: root,
            reason: "there are no test images".into(),
            hint: Some("--split train embeds the others".into()),
        })?,
    };
    let data = if arguments.quarantine { without_unreadable(data, true, config.threads)? } else { data };
    let device = arguments.device.resolve()?;
    let encoder = load_encoder(&found.checkpoint, config, device)?;
    let input = Input::new(config.family, config.image_size, arguments.workers.unwrap_or(config.workers));
    let indices = data.trainable_indices();
    let identity = Identity {
        encoder: hash(&encoder),
        data: data.fingerprint()?,
        images: indices.len(),
        layer: arguments.layer.to_string(),
        image_size: config.image_size,
        dim: encoder.config().dim_at(arguments.layer) as usize,
    };
    let dim = identity.dim;
    let mut partial = Partial::open(&arguments.out, identity, EVALUATION_BATCH)?;
    let done = partial.done();
    if done > 0 {
        eprintln!("note: going on after {done} images");
    }
    let interrupt = Interrupt::install()?;
    let progress = bar(indices.len(), "embedding images");
    progress.set_position(done as u64);
    let view = View::Test { transform: input.transform };
    embed_each(&encoder, &data, indices[done..].to_vec(), view, &input, &[arguments.layer], |_, rows| {
        partial.push(&rows[0])?;
        progress.set_position(partial.done() as u64);
        if interrupt.interrupted() && partial.done() < indices.len() {
            return Err(Error::Interrupted {
                saved: format!(
                    "{} of {} images are kept; the same command goes on",
                    partial.done(),
                    indices.len()
                ),
            });
        }
        Ok(())
    })?;
    progress.finish_and_clear();
    partial.finish(&arguments.out, format, &data, &indices)?;
    say(format_args!(
        "wrote {}: {} of {} images, {dim} numbers each ({})",
        arguments.out.display(),
        indices.len(),
        data.len(),
        arguments.layer
    ))
}

/// BLAKE3 of an encoder's tensors.
fn hash(encoder: &Encoder) -> String {
    let mut hasher = blake3::Hasher::new();
    for entry in encoder.parameters().state() {
        hasher.update(entry.name.as_bytes());
        for value in to_vec_f32(&entry.tensor) {
            hasher.update(&value.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}
