//! The flags of `lemniscate finetune`, and what cannot be asked for.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::subject::SubjectArguments;
use crate::config::{TrainConfig, check_threads};
use crate::error::{Error, Result};
use crate::eval::finetune::FinetuneSettings;

/// Where the weights of the trunk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// From the checkpoint.
    Pretrained,
    /// Random ones: the control.
    Scratch,
    /// Each in turn.
    Both,
}

/// Flags of `lemniscate finetune`.
#[derive(clap::Args)]
#[command(after_help = "Interrupted, it keeps what is finished in the folder; the same command goes on.\n\n\
Examples:\n  lemniscate finetune runs/a --label-fraction 0.01,0.02,0.1,0.2\n  lemniscate finetune model.pth photos/ --label-fraction 0.1 --start pretrained --out tuned")]
pub struct Arguments {
    #[command(flatten)]
    pub(super) subject: SubjectArguments,
    /// Share of each class's training images whose labels are used, at least one image a class; a list tries each
    #[arg(
        long = "label-fraction",
        value_name = "SHARE",
        value_delimiter = ',',
        default_value = "0.01,0.02,0.1,0.2"
    )]
    pub(super) fractions: Vec<f64>,
    /// Weights to start from: the checkpoint's, random ones as a control, or each
    #[arg(long, value_enum, default_value = "both")]
    pub(super) start: Start,
    /// Passes over the labelled images; the rate falls to a tenth after 3/7 and 6/7 of them
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) epochs: u64,
    /// Learning rate
    #[arg(long, default_value_t = 0.01)]
    pub(super) lr: f64,
    /// Images of a step [default: the run's]
    #[arg(short, long)]
    pub(super) batch_size: Option<usize>,
    /// Weight decay [default: the run's]
    #[arg(long)]
    pub(super) weight_decay: Option<f64>,
    /// Of the chosen images, the first weights of what is new, the order and the random views
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Where lists, results and networks go [default: finetune/ in the run folder]
    #[arg(short, long, value_name = "FOLDER")]
    pub(super) out: Option<PathBuf>,
    /// Threads that compute; 0: all cores
    #[arg(long, default_value_t = 0)]
    pub(super) threads: usize,
    /// Print the accuracy of each class too
    #[arg(long)]
    pub(super) per_class: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Arguments {
    pub(super) fn check(&self) -> Result<()> {
        check_threads(self.threads as i64)?;
        let wrong = |message: String| Err(Error::usage(message));
        if let Some(bad) = self.fractions.iter().find(|share| !(**share > 0.0 && **share <= 1.0)) {
            return wrong(format!("--label-fraction must lie above 0 and not above 1, found {bad}"));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return wrong(format!("--lr must be positive, found {}", self.lr));
        }
        if self.batch_size.is_some_and(|size| size < 2) {
            return wrong("--batch-size must be at least 2: BatchNorm needs more than one image".into());
        }
        if self.weight_decay.is_some_and(|decay| !(decay.is_finite() && decay >= 0.0)) {
            return wrong("--weight-decay must not be negative".into());
        }
        Ok(())
    }

    pub(super) fn starts(&self) -> &'static [Start] {
        match self.start {
            Start::Both => &[Start::Pretrained, Start::Scratch],
            Start::Pretrained => &[Start::Pretrained],
            Start::Scratch => &[Start::Scratch],
        }
    }

    pub(super) fn settings(&self, config: &TrainConfig) -> FinetuneSettings {
        FinetuneSettings {
            epochs: self.epochs,
            batch_size: self.batch_size.unwrap_or(config.batch_size).max(2),
            lr: self.lr,
            milestones: [3.0, 6.0].map(|part| (self.epochs as f64 * part / 7.0).round()).to_vec(),
            momentum: config.momentum,
            weight_decay: self.weight_decay.unwrap_or(config.weight_decay),
            seed: self.seed,
        }
    }
}
