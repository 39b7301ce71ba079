//! Checkpoints and run folders: plain bytes on disk that survive kills, full disks and flipped bits.
//!
//! [`mod@format`] is the file, [`state`] the counters in it, [`run_folder`] the folder around it,
//! [`signals`] how a run is asked to stop. Nothing here knows tensors: the trainer hands
//! over byte slices and gets byte slices back. The files are described in `docs/formats.md`.

pub mod format;
pub mod run_folder;
pub mod signals;
pub mod state;

pub use format::{Checkpoint, CheckpointView, TensorBytes};
pub use run_folder::{Loaded, RunFolder};
pub use signals::Interrupt;
pub use state::Progress;
