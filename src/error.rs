//! Everything that can go wrong at the edges, in words a person can act on.

use std::path::{Path, PathBuf};

/// The result of everything that touches files, arguments or configuration.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, naming the culprit, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was attempted, as a verb phrase: "read", "create the run folder".
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file concerned.
        path: PathBuf,
        /// What a valid file has at this place.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// One image cannot be decoded.
    #[error("{image}: {reason}")]
    Image {
        /// The image's path or, inside a packed set, its name.
        image: String,
        /// Why.
        reason: String,
    },
    /// Images of a data set cannot be read; training would shift or corrupt bank rows.
    #[error("{} of {total} images cannot be read:\n{}", unreadable.len(), list(unreadable))]
    Unreadable {
        /// Images in the data set.
        total: usize,
        /// Name and reason of each unreadable image.
        unreadable: Vec<(String, String)>,
    },
    /// The data at a path is not usable as a data set.
    #[error("{}: {reason}", path.display())]
    Data {
        /// The data set's path.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
        /// What would help, if anything.
        hint: Option<String>,
    },
    /// Flags or settings that are impossible, alone or together. Exit code 2.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What would help, if anything.
        hint: Option<String>,
    },
    /// A run cannot be resumed as asked.
    #[error("cannot resume {}: {reason}", path.display())]
    Resume {
        /// The run folder or checkpoint.
        path: PathBuf,
        /// Why not.
        reason: String,
        /// What would help, if anything.
        hint: Option<String>,
    },
    /// An image's file system does not answer.
    #[error("{image}: cannot be read: it has taken {seconds} s so far; its file system seems to hang")]
    Slow {
        /// The image's path or, inside a packed set, its name.
        image: String,
        /// How long was waited, in seconds.
        seconds: f64,
    },
    /// The loss became infinite or NaN; the last good checkpoint is kept.
    #[error("the loss is {loss} at epoch {epoch}, step {step}; the images of that batch:\n{}", images.join("\n"))]
    NonFiniteLoss {
        /// The offending value.
        loss: f64,
        /// Epoch, counted from 0.
        epoch: u64,
        /// Optimiser step since the start of the run.
        step: u64,
        /// Names of the batch's images.
        images: Vec<String>,
    },
    /// A stored state does not belong to this encoder or optimiser; nothing of it was taken.
    #[error("this state does not fit the {what}:\n{}", state_list(problems))]
    State {
        /// What should have been filled: "encoder", "optimiser".
        what: &'static str,
        /// Each culprit's name and what is wrong with it.
        problems: Vec<String>,
    },
    /// An encoder that a test was to leave alone is another one afterwards.
    #[error(
        "the encoder changed while its features were tested: the result is void; this is a bug in lemniscate"
    )]
    EncoderChanged,
    /// libtorch refused an operation.
    #[error("{context}: {message}")]
    Torch {
        /// What was being done.
        context: String,
        /// libtorch's message, first line.
        message: String,
    },
    /// A worker thread died; its epoch is not silently shortened.
    #[error("a {worker} thread panicked; this is a bug in lemniscate")]
    Worker {
        /// Which kind of worker.
        worker: &'static str,
    },
    /// A run under way came to an end by something outside of it. Exit code that of the cause.
    #[error("{cause}")]
    Stopped {
        /// What ended it.
        cause: Box<Error>,
        /// What of the run is safe, and how to go on.
        kept: String,
    },
    /// A signal asked the program to stop; everything was saved. Exit code 130.
    #[error("interrupted; {saved}")]
    Interrupted {
        /// What was saved and how to go on.
        saved: String,
    },
}

/// At most this many unreadable images are listed; the rest are counted.
const LISTED: usize = 20;

fn list(items: &[(String, String)]) -> String {
    let mut lines: Vec<_> =
        items.iter().take(LISTED).map(|(name, reason)| format!("  {name}: {reason}")).collect();
    if items.len() > LISTED {
        lines.push(format!("  ... and {} more", items.len() - LISTED));
    }
    lines.join("\n")
}

fn state_list(problems: &[String]) -> String {
    let mut lines: Vec<_> = problems.iter().take(LISTED).map(|problem| format!("  {problem}")).collect();
    if problems.len() > LISTED {
        lines.push(format!("  ... and {} more", problems.len() - LISTED));
    }
    lines.join("\n")
}

impl Error {
    /// An I/O failure of `action` on `path`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), action, source }
    }

    /// A malformed file: what it should have held and what it held.
    pub fn format(path: impl AsRef<Path>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_owned(), expected: expected.into(), found: found.into() }
    }

    /// An impossible flag or combination.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::Usage { message: message.into(), hint: None }
    }

    /// What a person could do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Data { hint, .. } | Error::Usage { hint, .. } | Error::Resume { hint, .. } => hint.clone(),
            Error::Unreadable { .. } => Some(
                "mend or remove them, or pass --quarantine: they keep their rows but never enter a batch"
                    .into(),
            ),
            Error::Stopped { cause, kept } => {
                Some(cause.hint().map_or(kept.clone(), |hint| format!("{hint}; {kept}")))
            }
            Error::Slow { .. } => {
                Some("see that the file system answers; --read-timeout SECONDS waits longer".into())
            }
            Error::NonFiniteLoss { .. } => {
                Some("lower --lr, raise the temperature, or use --precision fp32".into())
            }
            _ => None,
        }
    }

    /// The process's exit code: 2 usage, 130 interrupted, 1 everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage { .. } => 2,
            Error::Interrupted { .. } => 130,
            Error::Stopped { cause, .. } => cause.exit_code(),
            _ => 1,
        }
    }
}
