//! `lemniscate import`: another program's checkpoint as one of ours.

use std::path::PathBuf;

use super::say;
use crate::checkpoint::format::save_atomic;
use crate::error::{Error, Result};
use crate::interop::import::{Accept, ImportOptions, import};
use crate::interop::recognise::Hints;
use crate::model::Head;

/// Flags of `lemniscate import`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lemniscate import lemniscate_resnet18.pth.tar --out lemniscate_resnet18.ckpt\n  \
lemniscate import moco_v2.pth.tar --prefix module.encoder_q --head none --partial --out moco.ckpt"
)]
pub struct Arguments {
    /// A PyTorch file or safetensors
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to write the checkpoint [default: only say what was found]
    #[arg(short, long, value_name = "CKPT")]
    out: Option<PathBuf>,
    /// What stands in front of the network's names; guessed unless given
    #[arg(long)]
    prefix: Option<String>,
    /// Whether to take a head; taken if there is one unless given
    #[arg(long, value_enum)]
    head: Option<Head>,
    /// Take what matches, although tensors are missing or left over
    #[arg(long)]
    partial: bool,
    /// Replace CKPT if it is there
    #[arg(long, requires = "out")]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Imports and says what matched.
pub fn run(arguments: Arguments) -> Result<()> {
    if let Some(out) = arguments.out.as_deref().filter(|out| out.exists() && !arguments.force) {
        return Err(Error::Usage {
            message: format!("{} exists", out.display()),
            hint: Some("--force replaces it".into()),
        });
    }
    let accept = if arguments.partial { Accept::Part } else { Accept::Complete };
    let hints = Hints { prefix: arguments.prefix, head: arguments.head };
    let imported = import(&arguments.file, &ImportOptions { hints, accept })?;
    if let Some(out) = &arguments.out {
        save_atomic(out, &imported.checkpoint.view())?;
    }
    if arguments.json {
        let json = serde_json::to_string_pretty(&imported.report);
        return say(json.map_err(|e| Error::usage(format!("JSON: {e}")))?);
    }
    say(imported.report.to_string().trim_end())?;
    match &arguments.out {
        Some(out) => say(format_args!("wrote {}", out.display())),
        None => say("nothing written; --out CKPT writes it"),
    }
}
