//! The flags of `lemniscate linear`, and what cannot be asked for.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::subject::SubjectArguments;
use crate::config::check_threads;
use crate::error::{Error, Result};
use crate::eval::linear::sgd::SgdSettings;
use crate::model::Layer;

/// How the classifier is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// The optimum of logistic regression with L2, on cached features.
    Lbfgs,
    /// SGD with momentum and falling rate, as most papers do it.
    Sgd,
}

/// Strengths of L2 that are tried: from hardly any to much, for standardised features.
const L2: [f64; 5] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
/// Learning rates that are tried, for standardised features.
const RATES: [f64; 5] = [0.001, 0.003, 0.01, 0.03, 0.1];
/// Flags of `lemniscate linear`.
#[derive(clap::Args)]
#[command(
    after_help = "What is swept (--l2 or --lr) is chosen on a part of the training images; then all of them are used. The test images choose nothing.\n\n\
Examples:\n  lemniscate linear runs/a\n  lemniscate linear runs/a --layer stage1,stage2,stage3,stage4,pooled\n  lemniscate linear runs/a --solver sgd --augment --epochs 100 --json"
)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) subject: SubjectArguments,
    /// Where features are taken: embedding, pooled, stage1 to stage4 (pooled to about 9,000 numbers); a list tries each
    #[arg(long = "layer", value_name = "LAYER", value_delimiter = ',', default_value = "pooled")]
    pub(super) layers: Vec<Layer>,
    /// How the classifier is found [default: lbfgs, or sgd with --augment]
    #[arg(long, value_enum)]
    pub(super) solver: Option<Solver>,
    /// Train on random views, as the encoder was (SGD only; the encoder runs in every epoch)
    #[arg(long)]
    pub(super) augment: bool,
    /// Strengths of L2 (lambda/2 · |W|², beside the mean loss) for lbfgs; of a list the best is chosen [default: 1e-5,1e-4,1e-3,1e-2,1e-1]
    #[arg(long, value_name = "LAMBDA", value_delimiter = ',')]
    pub(super) l2: Vec<f64>,
    /// Most iterations of lbfgs
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) iterations: usize,
    /// Learning rates for sgd; of a list the best is chosen [default: 0.001,0.003,0.01,0.03,0.1]
    #[arg(long, value_name = "LR", value_delimiter = ',')]
    pub(super) lr: Vec<f64>,
    /// Epochs of sgd; the rate falls to a tenth after 60 % and 80 % of them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) epochs: u64,
    /// Images of a step of sgd
    #[arg(short, long, default_value_t = 256)]
    pub(super) batch_size: usize,
    /// Weight decay of sgd
    #[arg(long, default_value_t = 0.0)]
    pub(super) weight_decay: f64,
    /// Share of each class's training images that the sweep is judged by
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub(super) held_out: f64,
    /// Of the images held out, of the order of sgd and of its random views
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Use features as they are, not with mean 0 and variance 1 in each number
    #[arg(long)]
    pub(super) raw: bool,
    /// Most memory for features, in GB [default: half of what is free]
    #[arg(long, value_name = "GB")]
    pub(super) memory: Option<f64>,
    /// Keep features in this folder while they are needed, not in memory
    #[arg(long, value_name = "FOLDER")]
    pub(super) cache: Option<PathBuf>,
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
    /// How the classifier is found, with its default.
    pub(super) fn solver(&self) -> Solver {
        self.solver.unwrap_or(if self.augment { Solver::Sgd } else { Solver::Lbfgs })
    }

    /// What is swept.
    pub(super) fn candidates(&self) -> Vec<f64> {
        let (given, usual) = match self.solver() {
            Solver::Lbfgs => (&self.l2, &L2),
            Solver::Sgd => (&self.lr, &RATES),
        };
        if given.is_empty() { usual.to_vec() } else { given.clone() }
    }

    /// What SGD does, but for its rates.
    pub(super) fn sgd(&self) -> SgdSettings {
        let Arguments { batch_size, weight_decay, .. } = *self;
        SgdSettings { batch_size, weight_decay, ..SgdSettings::new(self.epochs) }
    }

    /// Refuses what contradicts itself.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::usage(message));
        check_threads(self.threads as i64)?;
        match self.solver() {
            Solver::Lbfgs if self.augment => {
                return wrong(
                    "--augment changes the features in every epoch; it goes with --solver sgd".into(),
                );
            }
            Solver::Lbfgs if !self.lr.is_empty() => {
                return wrong("lbfgs has no learning rate; --lr goes with --solver sgd".into());
            }
            Solver::Sgd if !self.l2.is_empty() => {
                return wrong("--l2 goes with --solver lbfgs; sgd has --weight-decay".into());
            }
            _ => {}
        }
        if let Some(bad) = self.candidates().iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            return wrong(format!("--l2 and --lr must be positive, found {bad}"));
        }
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return wrong(format!("--held-out must lie between 0 and 1, found {}", self.held_out));
        }
        if self.batch_size == 0 || self.iterations == 0 {
            return wrong("--batch-size and --iterations must be at least 1".into());
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return wrong(format!("--weight-decay must not be negative, found {}", self.weight_decay));
        }
        if self.memory.is_some_and(|gb| !(gb.is_finite() && gb > 0.0)) {
            return wrong("--memory must be positive".into());
        }
        Ok(())
    }
}
