//! What a person sees of a run: progress, the metrics file, curves and contact sheets.
//!
//! Nothing here prints by itself: a [`Reporter`] is handed to the trainer by whoever started it.

pub mod confusion;
pub mod contact_sheet;
pub mod curves;
pub mod eta;
pub mod metrics;
pub mod progress;
mod terminal;

pub use metrics::{EvalRecord, MetricsWriter, Record, StepRecord};
pub use progress::{EpochStart, PlainReporter, Reporter, SilentReporter};
pub use terminal::TerminalReporter;
