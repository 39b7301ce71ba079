//! Checkpoints of the program that was published with the paper (2018, `lemniscate.pytorch`).

mod write;

pub use write::{Bank, Objective, Published, Script, Sgd};
