//! `lemniscate serve`: a local page to search a data set with, and to watch a run.

use std::path::Path;
use std::time::Duration;

use super::inputs::{data_name, with_bar};
use super::say;
use super::subject::{Subject, SubjectArguments};
use crate::bank::MemoryBank;
use crate::checkpoint::signals::Interrupt;
use crate::config::name_of;
use crate::error::{Error, Result};
use crate::eval::features::embed_all;
use crate::model::Precision;
use crate::serve::{Facts, Server, State};
use crate::train::start;
use crate::train::state::load_bank;

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BankSource {
    /// The bank as training left it.
    Live,
    /// The embeddings of the images as the encoder sees them now.
    Recomputed,
}

/// Flags of `lemniscate serve`.
#[derive(clap::Args)]
#[command(
    after_help = "The newest checkpoint is read once, when the server starts; the curves follow a run that trains.\n\
Search by an uploaded or dropped image, by a random one, or by clicking what was found. /api describes the JSON behind it.\n\n\
Examples:\n  lemniscate serve runs/a\n  lemniscate serve model.pth photos/ --port 9000"
)]
pub struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Port to listen at; 0 takes any that is free
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Name or address to listen at; by default only this machine can reach it
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// What is searched [default: the live bank where it belongs to these images, otherwise recomputed]
    #[arg(long, value_enum)]
    bank: Option<BankSource>,
}

/// How often signals are looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Serves until Ctrl-C.
pub fn run(arguments: Arguments) -> Result<()> {
    // First of all: loading takes long, and a port in use is soon said.
    let server = Server::bind(&arguments.host, arguments.port)?;
    let subject = arguments.subject.open()?;
    say(subject.describe())?;
    let (bank, source) = bank(&subject, arguments.bank)?;
    let facts = facts(&subject, source);
    let Subject { splits, encoder, input, .. } = subject;
    let searched = splits.train.trainable_indices().len();
    let state = State::new(facts, splits, bank, encoder, input)?;
    if !server.is_local() {
        super::tell(&format!(
            "warning: everyone who can reach {} can look at these images; there is no password",
            server.address()
        ));
    }
    say(format_args!("searching {searched} images by the {source} bank"))?;
    let interrupt = Interrupt::install()?;
    say(format_args!("serving at http://{}/ (Ctrl-C ends it)", server.address()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Few of them work at a time; the others wait for their turn.
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .map_err(|e| Error::io("the server's threads", "start", e))?;
    let served = runtime.block_on(server.run(state, async {
        while !interrupt.interrupted() {
            tokio::time::sleep(LOOK).await;
        }
    }));
    // A decoder may still be busy with an image that nobody waits for.
    runtime.shutdown_background();
    served?;
    say("stopped")
}

/// The rows to search, and what they are called.
fn bank(subject: &Subject, wanted: Option<BankSource>) -> Result<(MemoryBank, &'static str)> {
    let Subject { found, splits, encoder, input } = subject;
    let is_own = found.saved.data.images > 0 && found.saved.data.is_of(&start::identify(splits)?);
    if wanted == Some(BankSource::Live) && !is_own {
        return Err(Error::Data {
            path: splits.root.clone(),
            reason: "the checkpoint has no bank of these images".into(),
            hint: Some("--bank recomputed computes the features of these images".into()),
        });
    }
    if is_own && wanted != Some(BankSource::Recomputed) {
        return Ok((load_bank(&found.checkpoint, Precision::Fp32)?, "live"));
    }
    let images = splits.train.trainable_indices().len();
    let (order, features) =
        with_bar(images, "embedding images", |progress| embed_all(encoder, &splits.train, input, progress))?;
    let dim = encoder.config().embed_dim as usize;
    // Rows of quarantined images stay zero; the search passes over them.
    let mut rows = vec![0.0; splits.train.len() * dim];
    for (&index, feature) in order.iter().zip(features.chunks_exact(dim)) {
        rows[index as usize * dim..][..dim].copy_from_slice(feature);
    }
    Ok((MemoryBank::from_rows(splits.train.len(), dim, rows), "recomputed"))
}

fn facts(subject: &Subject, bank: &'static str) -> Facts {
    let saved = &subject.found.saved;
    let path = subject.found.path();
    let run = subject.run_folder().map(|run| if run.as_os_str().is_empty() { Path::new(".") } else { run });
    let config = &saved.config;
    Facts {
        name: data_name(run.and_then(|run| run.canonicalize().ok()).as_deref().unwrap_or(path)),
        encoder: format!("{} ({}), {}-d", name_of(config.arch), name_of(config.family), config.embed_dim),
        checkpoint: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        epoch: saved.progress.epoch,
        step: saved.progress.step,
        bank,
        run: run.map(Path::to_owned),
    }
}
