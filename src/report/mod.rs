//! What a person sees of a run: progress, the metrics file, curves and contact sheets.
//!
//! Nothing here prints by itself: a [`Reporter`] is handed to the trainer by whoever started it.

pub mod comparison;
pub mod confusion;
pub mod contact_sheet;
pub mod curves;
pub mod eta;
mod finding;
pub mod history;
pub mod html;
pub mod log_file;
pub mod machine;
pub mod metrics;
mod panels;
mod plot;
pub mod progress;
pub mod retrievals;
pub mod tensorboard;
mod terminal;

pub use finding::Finding;
pub use metrics::{EvalRecord, MetricsWriter, Record, StepRecord};
pub use progress::{EpochStart, PlainReporter, Reporter, SilentReporter, Tee};
pub use terminal::TerminalReporter;
