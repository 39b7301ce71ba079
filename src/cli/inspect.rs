//! `lemniscate inspect`: what a checkpoint or a packed data set holds.

use std::path::PathBuf;

use super::say;
use crate::error::{Error, Result};
use crate::interop::inspect::{human, inspect};
use crate::interop::recognise::Hints;

/// Flags of `lemniscate inspect`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lemniscate inspect runs/a/last.ckpt\n  lemniscate inspect moco_v2.pth.tar --json\n  lemniscate inspect model.pth --prefix backbone."
)]
pub struct Arguments {
    /// A checkpoint of ours, a PyTorch file, safetensors, or a packed data set
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where in the file to look for the network
    #[arg(long)]
    prefix: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the tree, and what an import would make of it.
pub fn run(arguments: Arguments) -> Result<()> {
    let found = inspect(&arguments.file, Hints { prefix: arguments.prefix, head: None })?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&found).map_err(|e| Error::usage(format!("JSON: {e}")))?;
        return say(json);
    }
    say(format_args!("{}: {}, {}", found.file, found.format, human(found.size)))?;
    for (key, value) in &found.metadata {
        say(format_args!("{key}: {}", value.trim_end().replace('\n', "\n  ")))?;
    }
    say(format_args!("\n{}", found.tree().trim_end()))?;
    match &found.import {
        Some(Ok(report)) => say(format_args!("\nas an import\n{}", report.to_string().trim_end())),
        Some(Err(reason)) => say(format_args!("\nno import: {reason}")),
        None => Ok(()),
    }
}
