//! Checkpoints and run folders.
