//! `lemniscate embed`: the features of every image, in a file that other tools read.

use std::path::PathBuf;

use super::inputs::{bar, without_unreadable};
use super::say;
use super::subject::{Subject, SubjectArguments};
use crate::checkpoint::signals::Interrupt;
use crate::data::loader::View;
use crate::error::{Error, Result};
use crate::eval::features::{EVALUATION_BATCH, embed_each};
use crate::interop::embeddings::{Format, Identity, Partial};
use crate::model::Layer;

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
    #[command(flatten)]
    subject: SubjectArguments,
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
    let subject = arguments.subject.open()?;
    subject.keep_freed_memory();
    let Subject { found, splits, encoder, input } = subject;
    let config = &found.saved.config;
    let root = splits.root.clone();
    let data = match arguments.split {
        Split::Train => splits.train,
        Split::Test => splits.test.ok_or_else(|| Error::Data {
            path: root,
            reason: "there are no test images".into(),
            hint: Some("--split train embeds the others".into()),
        })?,
    };
    let data = if arguments.quarantine {
        without_unreadable(data, true, config.threads, config.read_timeout())?
    } else {
        data
    };
    let indices = data.trainable_indices();
    let identity = Identity {
        encoder: encoder.parameters().hash(),
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
        super::note(format_args!("going on after {done} images"));
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
