//! Unsupervised image features by memory-bank instance discrimination (Wu, Xiong, Yu, Lin, CVPR 2018).
//!
//! Every training image is its own class. An [encoder](model) maps an image to a unit vector `v`; a
//! [memory bank](bank) keeps one unit row per training image; an [objective] asks `v` of image `i` to be
//! closest to row `i`. [`train`] runs that loop over [`data`], [`checkpoint`] makes it survive anything, and
//! [`eval`] tells what the features are worth.
//!
//! Dependencies point one way: `data`, `model`, `bank`, `objective` ← `checkpoint`, `train`, `eval` ← `cli`.
//! Only [`cli`] and the binary print, read arguments or exit.

pub mod atomic;
pub mod bank;
pub mod checkpoint;
pub mod cli;
pub mod config;
mod cuda_kernels;
pub mod data;
pub mod error;
pub mod eval;
pub mod gallery;
pub mod interop;
pub mod model;
pub mod objective;
pub mod optim;
pub mod page;
pub mod pickle;
pub mod report;
pub mod rng;
pub mod serve;
mod simd;
pub mod train;

pub use error::{Error, Result};
