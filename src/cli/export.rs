//! `lemniscate export`: a checkpoint as files that other tools load.

use std::path::PathBuf;

use super::inputs::open_run_data;
use super::say;
use crate::data::detect::DataFormat;
use crate::error::{Error, Result};
use crate::interop::{self, export::Export};
use crate::model::Head;

/// File formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Named tensors, torchvision's names
    Safetensors,
    /// PyTorch's zip format: torch.load(..., weights_only=True)
    Pth,
    /// Images in, embeddings out
    Onnx,
    /// NumPy: the bank
    Npy,
    /// A table: the bank with file names and labels
    Csv,
    /// The same table as Parquet
    Parquet,
}

/// Parts of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The network
    Encoder,
    /// The memory bank [N, D]
    Bank,
}

/// Arrangements of a .pth file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// The network's state dict
    StateDict,
    /// The published program's dictionary, bank and optimiser included
    Published,
}

/// Flags of `lemniscate export`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lemniscate export runs/a --to safetensors --out a.safetensors\n  \
lemniscate export runs/a --to pth --head none --out trunk.pth\n  \
lemniscate export runs/a --to onnx --normalize --out a.onnx\n  \
lemniscate export runs/a --to npy --out bank.npy")]
pub struct Arguments {
    /// A checkpoint (ours, PyTorch's, safetensors), or a run folder (its newest checkpoint)
    #[arg(value_name = "CKPT|RUN")]
    checkpoint: PathBuf,
    /// The images, for --to csv and parquet [default: those of the run]
    #[arg(value_name = "DATA")]
    data: Option<PathBuf>,
    /// Format of the file
    #[arg(long, value_enum)]
    to: Format,
    /// What to write [default: the encoder; the bank for npy, csv and parquet]
    #[arg(long, value_enum)]
    what: Option<Part>,
    /// Whether the head is written with the trunk
    #[arg(long, value_enum, default_value = "linear")]
    head: Head,
    /// How a .pth file is arranged
    #[arg(long, value_enum, default_value = "state-dict")]
    layout: Layout,
    /// The ONNX model takes pixels in 0..1 and normalises them itself
    #[arg(long)]
    normalize: bool,
    /// How DATA is laid out; detected unless given
    #[arg(long, value_enum)]
    data_format: Option<DataFormat>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Replace FILE if it is there
    #[arg(long)]
    force: bool,
}

/// Writes the file.
pub fn run(arguments: Arguments) -> Result<()> {
    let Arguments { to, head, layout, normalize, out, .. } = &arguments;
    let part = match (to, arguments.what) {
        (Format::Npy | Format::Csv | Format::Parquet, None) => Part::Bank,
        (_, what) => what.unwrap_or(Part::Encoder),
    };
    check(&arguments, part)?;
    let found = interop::find(&arguments.checkpoint)?;
    for note in &found.notes {
        super::note(note);
    }
    let export = Export::new(&found)?;
    match (to, part) {
        (Format::Safetensors, Part::Encoder) => export.safetensors(out, *head)?,
        (Format::Safetensors, Part::Bank) => export.bank_safetensors(out)?,
        (Format::Pth, _) if *layout == Layout::Published => export.published(out)?,
        (Format::Pth, _) => export.pth(out, *head)?,
        (Format::Onnx, _) => export.onnx(out, *normalize)?,
        (Format::Npy, _) => export.bank_npy(out)?,
        (Format::Csv | Format::Parquet, _) => {
            let splits = open_run_data(&found, arguments.data.as_deref(), arguments.data_format, None)?;
            export.bank_table(out, &splits.train, *to == Format::Parquet)?;
        }
    }
    say(format_args!("wrote {}", out.display()))
}

/// Refuses what no file can be.
fn check(arguments: &Arguments, part: Part) -> Result<()> {
    let Arguments { to, head, layout, normalize, out, force, .. } = arguments;
    let without = |broken: bool, message: &str| if broken { Err(Error::usage(message)) } else { Ok(()) };
    let bank_only = matches!(to, Format::Npy | Format::Csv | Format::Parquet);
    let table = matches!(to, Format::Csv | Format::Parquet);
    without(
        bank_only && part == Part::Encoder,
        "--to npy, csv and parquet write the bank; an encoder is no one table",
    )?;
    without(
        matches!(to, Format::Pth | Format::Onnx) && part == Part::Bank,
        "--what bank goes with --to safetensors, npy, csv or parquet; --to pth --layout published has it inside",
    )?;
    without(*layout == Layout::Published && *to != Format::Pth, "--layout published goes with --to pth")?;
    without(*normalize && *to != Format::Onnx, "--normalize goes with --to onnx")?;
    let headless = *head == Head::None;
    without(
        headless && (*to == Format::Onnx || *layout == Layout::Published || part == Part::Bank),
        "--head none goes with --to safetensors or pth (an ONNX model gives the pooled features beside the embedding)",
    )?;
    without(arguments.data.is_some() && !table, "DATA is for --to csv and parquet, which name the files")?;
    if out.exists() && !force {
        return Err(Error::Usage {
            message: format!("{} exists", out.display()),
            hint: Some("--force replaces it".into()),
        });
    }
    Ok(())
}
