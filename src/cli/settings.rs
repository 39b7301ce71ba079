//! The settings of a run as flags: one for each key of [`crate::config::TrainConfig`], with the published names
//! beside the descriptive ones.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::{BankInit, CudaGraphs, Monitor, NormalizerChoice, ObjectiveKind, ScheduleKind};
use crate::data::detect::DataFormat;
use crate::error::{Error, Result};
use crate::model::device::DeviceChoice;
use crate::model::{Arch, Family, Head, Precision, PrecisionChoice};

/// Flags that change settings; those not given stay out of the table.
#[derive(clap::Args, Serialize, Debug, Default)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// How DATA is laid out; detected unless given
    #[arg(long, value_enum, help_heading = "Data")]
    data_format: Option<DataFormat>,
    /// Test images kept elsewhere than in DATA
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub test_data: Option<PathBuf>,
    /// Go on without unreadable images: they keep their rows but never enter a batch
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Data")]
    quarantine: Option<bool>,
    /// Decoding threads [default: chosen from the cores]
    #[arg(short = 'j', long, help_heading = "Data")]
    workers: Option<usize>,
    /// Seconds that one image may take before its file system is taken to hang [default: 300]
    #[arg(long, value_name = "SECONDS", help_heading = "Data")]
    read_timeout: Option<f64>,

    /// Depth of the residual network
    #[arg(short, long, value_enum, help_heading = "Encoder")]
    arch: Option<Arch>,
    /// Stem, head and initialisation [default: the preset's]
    #[arg(long, value_enum, help_heading = "Encoder")]
    family: Option<Family>,
    /// Numbers in an embedding
    #[arg(long, visible_alias = "low-dim", alias = "low_dim", value_name = "D", help_heading = "Encoder")]
    embed_dim: Option<usize>,
    /// Channels of the first stage
    #[arg(long, help_heading = "Encoder")]
    width: Option<usize>,
    /// What makes the embedding of the pooled features
    #[arg(long, value_enum, help_heading = "Encoder")]
    head: Option<Head>,
    /// Side of the square training images, pixels
    #[arg(long, value_name = "PX", help_heading = "Encoder")]
    image_size: Option<u32>,

    /// What is minimised
    #[arg(long, value_enum, help_heading = "Objective")]
    objective: Option<ObjectiveKind>,
    /// Noise samples for each image of a batch; 0 for the full softmax
    #[arg(
        short = 'K',
        long,
        visible_alias = "nce-k",
        alias = "nce_k",
        value_name = "K",
        help_heading = "Objective"
    )]
    n_negatives: Option<usize>,
    /// Divides every similarity
    #[arg(
        short = 'T',
        long,
        visible_alias = "nce-t",
        alias = "nce_t",
        value_name = "T",
        help_heading = "Objective"
    )]
    temperature: Option<f64>,
    /// Weight of the old row when the bank moves
    #[arg(long, visible_alias = "nce-m", alias = "nce_m", value_name = "M", help_heading = "Objective")]
    bank_momentum: Option<f32>,
    /// What the bank holds before the first step
    #[arg(long, value_enum, help_heading = "Objective")]
    bank_init: Option<BankInit>,
    /// What the bank's rows are stored in; bf16 halves its memory
    #[arg(long, value_enum, help_heading = "Objective")]
    bank_precision: Option<Precision>,
    /// NCE's constant Z: first-batch, running-average, analytic, or a number
    #[arg(long, value_name = "Z", help_heading = "Objective")]
    normalizer: Option<NormalizerChoice>,
    /// A file of one non-negative weight per training image: the noise distribution
    #[arg(long, value_name = "FILE", help_heading = "Objective")]
    noise_weights: Option<PathBuf>,
    /// Weight of the proximal term (paper, Eq. 9)
    #[arg(long, value_name = "LAMBDA", help_heading = "Objective")]
    proximal: Option<f64>,

    /// Passes over the training images
    #[arg(long, help_heading = "Optimisation")]
    epochs: Option<u64>,
    /// Epoch to count from in a fresh run
    #[arg(long, help_heading = "Optimisation")]
    start_epoch: Option<u64>,
    /// Images in a batch
    #[arg(short, long, value_name = "B", help_heading = "Optimisation")]
    batch_size: Option<usize>,
    /// Learning rate
    #[arg(long, alias = "learning-rate", help_heading = "Optimisation")]
    lr: Option<f64>,
    /// Momentum of SGD
    #[arg(long, help_heading = "Optimisation")]
    momentum: Option<f64>,
    /// Weight decay, on every parameter
    #[arg(long, visible_alias = "wd", help_heading = "Optimisation")]
    weight_decay: Option<f64>,
    /// How the learning rate falls
    #[arg(long, value_enum, help_heading = "Optimisation")]
    schedule: Option<ScheduleKind>,
    /// Epochs at which the step schedule multiplies by 0.1
    #[arg(long, value_delimiter = ',', value_name = "EPOCHS", help_heading = "Optimisation")]
    milestones: Option<Vec<u64>>,
    /// Epochs of linear warm-up
    #[arg(long, value_name = "EPOCHS", help_heading = "Optimisation")]
    warmup_epochs: Option<f64>,
    /// Batches averaged into one optimiser step
    #[arg(
        long,
        visible_alias = "iter-size",
        alias = "iter_size",
        value_name = "N",
        help_heading = "Optimisation"
    )]
    accumulate: Option<usize>,

    /// Arithmetic of the convolutions
    #[arg(long, value_enum, help_heading = "Machine")]
    precision: Option<PrecisionChoice>,
    /// auto, cpu, cuda, cuda:N or mps
    #[arg(long, help_heading = "Machine")]
    device: Option<DeviceChoice>,
    /// Whether whole training steps on a CUDA device are recorded once and replayed [default: auto]
    #[arg(long, value_enum, help_heading = "Machine")]
    cuda_graphs: Option<CudaGraphs>,
    /// Threads of the network and the losses; 0 for one a core
    #[arg(long, help_heading = "Machine")]
    threads: Option<usize>,
    /// Seed of every random decision
    #[arg(long, help_heading = "Machine")]
    seed: Option<u64>,

    /// What is measured after each epoch and chooses best.ckpt
    #[arg(long, value_enum, help_heading = "Watching")]
    monitor: Option<Monitor>,
    /// Neighbours that vote in the weighted-kNN monitor
    #[arg(long, value_name = "K", help_heading = "Watching")]
    knn_k: Option<usize>,
    /// Steps between two lines of progress
    #[arg(short, long, help_heading = "Watching")]
    print_freq: Option<u64>,
    /// Minutes between two checkpoints inside an epoch
    #[arg(long, value_name = "MINUTES", help_heading = "Watching")]
    save_every: Option<f64>,
    /// End the run after so many optimiser steps
    #[arg(long, value_name = "STEPS", help_heading = "Watching")]
    max_steps: Option<u64>,
}

impl Settings {
    /// The given flags as a layer of settings.
    ///
    /// # Errors
    /// If a path is not UTF-8, which a `config.toml` cannot hold.
    pub fn layer(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(|e| Error::usage(format!("the flags: {e}")))
    }

    /// The layout that was asked for, if any.
    pub fn data_format(&self) -> Option<DataFormat> {
        self.data_format
    }
}
