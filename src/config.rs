//! Everything that decides a run: its settings, the published presets, and the checks before any work.
//!
//! A [`TrainConfig`] is complete: written to a run's `config.toml` and read back, it repeats the run. Its keys are
//! the long flags of `lemniscate train`. Layers are TOML tables laid over each other, lowest first: preset,
//! `--config` file, flags.

mod check;
mod layers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::data::augment::TrainTransform;
use crate::data::detect::DataFormat;
use crate::data::watch::DEFAULT_READ_TIMEOUT;
use crate::error::{Error, Result};
use crate::model::device::DeviceChoice;
use crate::model::{Arch, EncoderConfig, Family, Head, Precision, PrecisionChoice};
use crate::objective::NormalizerMode;
use crate::optim::Schedule;

pub use check::check_threads;
pub use layers::read_layer;

/// A finished, checked description of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrainConfig {
    /// The images: a folder, a list file, an archive, or `synthetic`.
    pub data: PathBuf,
    /// How `data` is laid out.
    pub data_format: DataFormat,
    /// Test images kept elsewhere than in `data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_data: Option<PathBuf>,
    /// Unreadable images keep their rows but never enter a batch, instead of stopping the run.
    pub quarantine: bool,

    /// Depth of the residual network.
    pub arch: Arch,
    /// Stem, head name and initialisation: of the ImageNet or the CIFAR networks.
    pub family: Family,
    /// D, numbers in an embedding.
    pub embed_dim: usize,
    /// Channels of the first stage; 64 in the paper.
    pub width: usize,
    /// What makes the embedding of the pooled features; runs of before it could be chosen have the linear layer.
    #[serde(default)]
    pub head: Head,
    /// Side of the square training images, pixels.
    pub image_size: u32,

    /// What is minimised.
    pub objective: ObjectiveKind,
    /// K, noise samples for each image of a batch; 0 for the full softmax.
    pub n_negatives: usize,
    /// T, divides every similarity.
    pub temperature: f64,
    /// m, weighs the old row when the bank moves.
    pub bank_momentum: f32,
    /// What the bank holds before the first step.
    pub bank_init: BankInit,
    /// What the bank's rows are stored in. Runs of before it could be chosen have fp32.
    #[serde(default)]
    pub bank_precision: Precision,
    /// Where NCE's normalising constant Z comes from: `first-batch`, `running-average`, `analytic` or a number.
    pub normalizer: NormalizerChoice,
    /// A file of one non-negative weight a training image: the noise distribution. Uniform without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_weights: Option<PathBuf>,
    /// λ of the proximal term (paper, Eq. 9); 0 leaves it out, as published code does.
    pub proximal: f64,

    /// Passes over the training images.
    pub epochs: u64,
    /// The epoch to count from in a fresh run, for its place in the schedule.
    pub start_epoch: u64,
    /// B, images in a batch.
    pub batch_size: usize,
    /// Learning rate at the start, after warm-up.
    pub lr: f64,
    /// SGD's momentum (not the bank's).
    pub momentum: f64,
    /// Added as `weight_decay · p` to the gradient of every parameter.
    pub weight_decay: f64,
    /// How the learning rate falls.
    pub schedule: ScheduleKind,
    /// Epochs at which the step schedule multiplies the learning rate by 0.1.
    pub milestones: Vec<u64>,
    /// Epochs of linear warm-up, from a tenth of the rate to all of it.
    pub warmup_epochs: f64,
    /// Batches whose gradients are averaged into one optimiser step.
    pub accumulate: usize,

    /// Arithmetic of the convolutions.
    pub precision: PrecisionChoice,
    /// Where the network runs.
    pub device: DeviceChoice,
    /// Whether training steps on a GPU are replayed; runs of before there were such have `auto`.
    #[serde(default)]
    pub cuda_graphs: CudaGraphs,
    /// Decoding threads.
    pub workers: usize,
    /// Seconds that one image may take before its file system is taken to hang; runs of before it could be chosen have 300.
    #[serde(default = "default_read_timeout")]
    pub read_timeout: f64,
    /// Threads of the network and the losses; 0 for one a core.
    pub threads: usize,
    /// Seed of every random decision.
    pub seed: u64,

    /// What is measured after each epoch, and chooses `best.ckpt`.
    pub monitor: Monitor,
    /// k of the weighted-kNN monitor.
    pub knn_k: usize,
    /// Steps between two lines of progress.
    pub print_freq: u64,
    /// Minutes between two checkpoints inside an epoch.
    pub save_every: f64,
    /// Ends the run after so many optimiser steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,

    /// Random augmentation of training images; its `size` is `image-size`.
    pub augmentation: TrainTransform,
}

/// What is minimised (paper §3.1–3.2; the sampled softmax is the updated model of 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveKind {
    /// Noise-contrastive estimation against K noise samples.
    Nce,
    /// Cross-entropy over all N rows.
    Softmax,
    /// Cross-entropy over the positive and K noise samples.
    SampledSoftmax,
}

/// What the bank holds before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum BankInit {
    /// Uniform noise, as published.
    Random,
    /// The untrained encoder's features of every image: the first epoch's targets are not noise.
    Features,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// ×0.1 at each milestone, as published.
    Step,
    /// Half a cosine from `lr` to 0 over all epochs, falling with every step.
    Cosine,
    /// No change.
    Constant,
}

/// What is measured after each epoch against the live bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Monitor {
    /// Label of the nearest row, as published.
    Nn,
    /// Weighted vote of the k nearest rows.
    Knn,
    /// Nothing.
    None,
}

/// Whether whole training steps on a CUDA device are recorded and replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CudaGraphs {
    /// Where it can be done.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Settings to start from: as published for the two families, and one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// 32 px, T = 0.1, batch 128, weight decay 5e-4.
    Cifar,
    /// 224 px, T = 0.07, batch 256, weight decay 1e-4.
    Imagenet,
    /// Ours, for CIFAR: full softmax from a bank of features, flips, less hue, batch 512, cosine, 400 epochs.
    CifarStrong,
}

/// `first-batch`, `running-average`, `analytic` or a number: how a person names a [`NormalizerMode`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NormalizerChoice(pub NormalizerMode);

fn default_read_timeout() -> f64 {
    DEFAULT_READ_TIMEOUT.as_secs_f64()
}

/// K as published.
const PUBLISHED_NEGATIVES: i64 = 4096;

/// Weight of the past in the running average of Z.
const RUNNING_DECAY: f64 = 0.99;

impl std::str::FromStr for NormalizerChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "first-batch" => NormalizerMode::FirstBatch,
            "running-average" => NormalizerMode::RunningAverage { decay: RUNNING_DECAY },
            "analytic" => NormalizerMode::Analytic,
            number => match number.parse::<f64>() {
                Ok(z) if z.is_finite() && z > 0.0 => NormalizerMode::Fixed(z),
                _ => {
                    return Err(format!(
                        "expected first-batch, running-average, analytic or a positive number, found `{number}`"
                    ));
                }
            },
        }))
    }
}

impl std::fmt::Display for NormalizerChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            NormalizerMode::FirstBatch => f.write_str("first-batch"),
            NormalizerMode::RunningAverage { .. } => f.write_str("running-average"),
            NormalizerMode::Analytic => f.write_str("analytic"),
            NormalizerMode::Fixed(z) => write!(f, "{z}"),
        }
    }
}

impl TryFrom<String> for NormalizerChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NormalizerChoice> for String {
    fn from(choice: NormalizerChoice) -> String {
        choice.to_string()
    }
}

impl TrainConfig {
    /// The settings of `preset` for images at `data`; the published ones are ALGORITHM's (training).
    pub fn preset(preset: Preset, data: &Path, data_format: DataFormat) -> Self {
        let (family, temperature, weight_decay, batch_size, augmentation) = match preset {
            Preset::Cifar => (Family::Cifar, 0.1, 5e-4, 128, TrainTransform::cifar(32)),
            Preset::Imagenet => (Family::ImageNet, 0.07, 1e-4, 256, TrainTransform::imagenet(224)),
            Preset::CifarStrong => {
                return Self {
                    // With 50,000 rows all of them cost no more than some thousand that are drawn.
                    objective: ObjectiveKind::Softmax,
                    n_negatives: 0,
                    bank_init: BankInit::Features,
                    epochs: 400,
                    batch_size: 512,
                    // In proportion to the batch.
                    lr: 0.12,
                    schedule: ScheduleKind::Cosine,
                    warmup_epochs: 10.0,
                    augmentation: TrainTransform::cifar_strong(32),
                    ..Self::preset(Preset::Cifar, data, data_format)
                };
            }
        };
        Self {
            data: data.to_owned(),
            data_format,
            test_data: None,
            quarantine: false,
            arch: Arch::ResNet18,
            family,
            embed_dim: 128,
            width: 64,
            head: Head::Linear,
            image_size: augmentation.size,
            objective: ObjectiveKind::Nce,
            n_negatives: PUBLISHED_NEGATIVES as usize,
            temperature,
            bank_momentum: 0.5,
            bank_precision: Precision::Fp32,
            bank_init: BankInit::Random,
            normalizer: NormalizerChoice(NormalizerMode::FirstBatch),
            noise_weights: None,
            proximal: 0.0,
            epochs: 200,
            start_epoch: 0,
            batch_size,
            lr: 0.03,
            momentum: 0.9,
            weight_decay,
            schedule: ScheduleKind::Step,
            milestones: vec![120, 160],
            warmup_epochs: 0.0,
            accumulate: 1,
            precision: PrecisionChoice::Auto,
            device: DeviceChoice::Auto,
            cuda_graphs: CudaGraphs::Auto,
            workers: crate::data::loader::default_workers(),
            read_timeout: default_read_timeout(),
            threads: 0,
            seed: 0,
            monitor: Monitor::Knn,
            knn_k: 200,
            print_freq: 10,
            save_every: 10.0,
            max_steps: None,
            augmentation,
        }
    }

    /// The encoder this run trains.
    pub fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            arch: self.arch,
            family: self.family,
            embed_dim: self.embed_dim as i64,
            width: self.width as i64,
            head: self.head,
        }
    }

    /// How long one image may take.
    pub fn read_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.read_timeout).unwrap_or(DEFAULT_READ_TIMEOUT)
    }

    /// The learning-rate schedule.
    pub fn lr_schedule(&self) -> Schedule {
        match self.schedule {
            ScheduleKind::Step => Schedule::Step {
                milestones: self.milestones.iter().map(|&epoch| epoch as f64).collect(),
                gamma: 0.1,
            },
            ScheduleKind::Cosine => Schedule::Cosine,
            ScheduleKind::Constant => Schedule::Constant,
        }
    }

    /// The settings as the text of a `config.toml`.
    ///
    /// # Errors
    /// If a path is not UTF-8, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::usage(format!("the settings cannot be written as TOML: {e}")))
    }
}

/// A setting's name as a person types it.
pub fn name_of(value: impl Serialize) -> String {
    match toml::Value::try_from(value) {
        Ok(toml::Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(layer: &str) -> Result<TrainConfig> {
        let layer = layer.parse().unwrap();
        TrainConfig::resolve(Preset::Cifar, Path::new("photos"), DataFormat::Flat, &[("test", layer)])
    }

    #[test]
    fn presets_hold_the_published_settings() {
        let cifar = resolve("").unwrap();
        assert_eq!((cifar.temperature, cifar.weight_decay, cifar.batch_size), (0.1, 5e-4, 128));
        let imagenet =
            TrainConfig::resolve(Preset::Imagenet, Path::new("photos"), DataFormat::Folder, &[]).unwrap();
        assert_eq!((imagenet.temperature, imagenet.weight_decay, imagenet.batch_size), (0.07, 1e-4, 256));
        for config in [cifar, imagenet] {
            assert_eq!(
                (config.lr, config.epochs, config.n_negatives, config.embed_dim),
                (0.03, 200, 4096, 128)
            );
            assert_eq!(config.milestones, [120, 160]);
        }
    }

    #[test]
    fn the_strong_preset_is_the_method_with_other_settings() {
        let resolve = |text: &str| {
            let layer = text.parse().unwrap();
            let preset = Preset::CifarStrong;
            TrainConfig::resolve(preset, Path::new("photos"), DataFormat::Flat, &[("test", layer)]).unwrap()
        };
        let strong = resolve("");
        assert_eq!((strong.objective, strong.n_negatives), (ObjectiveKind::Softmax, 0));
        assert_eq!((strong.family, strong.image_size, strong.embed_dim), (Family::Cifar, 32, 128));
        assert!(strong.augmentation.flip > 0.0);
        // What it replaces can be replaced again.
        assert_eq!(resolve("objective = \"nce\"").n_negatives, 4096);
        assert_eq!(resolve("epochs = 30").lr_schedule(), Schedule::Cosine);
    }

    #[test]
    fn a_written_config_reads_back_the_same() {
        let config =
            resolve("seed = 7\nnormalizer = \"2876934\"\nmax-steps = 12\n[augmentation]\nflip = 0.5")
                .unwrap();
        assert_eq!(config.augmentation.flip, 0.5);
        let again = resolve(&config.to_toml().unwrap()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn a_config_of_before_there_were_graphs_has_auto() {
        assert_eq!(resolve("cuda-graphs = \"off\"").unwrap().cuda_graphs, CudaGraphs::Off);
        let written = resolve("").unwrap().to_toml().unwrap();
        let older = written.replace("cuda-graphs = \"auto\"\n", "");
        assert_ne!(older, written);
        assert_eq!(toml::from_str::<TrainConfig>(&older).unwrap(), resolve("").unwrap());
    }

    #[test]
    fn no_negatives_means_the_full_softmax() {
        assert_eq!(resolve("n-negatives = 0").unwrap().objective, ObjectiveKind::Softmax);
        assert_eq!(resolve("objective = \"softmax\"").unwrap().n_negatives, 0);
        assert!(resolve("objective = \"softmax\"\nn-negatives = 9").is_err());
        assert!(resolve("objective = \"nce\"\nn-negatives = 0").is_err());
        // A later layer wins over an earlier one, whichever of the two it names.
        let layered = |first: &str, second: &str| {
            let layers = [("--config", first.parse().unwrap()), ("flags", second.parse().unwrap())];
            TrainConfig::resolve(Preset::Cifar, Path::new("photos"), DataFormat::Flat, &layers).unwrap()
        };
        let config = layered("objective = \"nce\"\nn-negatives = 64", "n-negatives = 0");
        assert_eq!(config.objective, ObjectiveKind::Softmax);
        let config = layered("n-negatives = 0", "objective = \"sampled-softmax\"");
        assert_eq!((config.objective, config.n_negatives), (ObjectiveKind::SampledSoftmax, 4096));
        let config = layered("objective = \"softmax\"", "n-negatives = 9");
        assert_eq!((config.objective, config.n_negatives), (ObjectiveKind::Nce, 9));
    }

    #[test]
    fn the_image_size_reaches_the_augmentation() {
        assert_eq!(resolve("image-size = 64").unwrap().augmentation.size, 64);
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        for (layer, named) in [
            ("temperature = 0.0", "--temperature"),
            ("lr = nan", "--lr"),
            ("bank-momentum = 1.5", "--bank-momentum"),
            ("batch-size = 0", "--batch-size"),
            ("start-epoch = 200", "--start-epoch"),
            ("milestones = [160, 120]", "--milestones"),
            ("n-negatives = 0\nnormalizer = \"analytic\"", "--normalizer"),
            ("normalizer = \"-3\"", "normalizer"),
            ("tempreature = 0.1", "tempreature"),
            ("epochs = \"many\"", "epochs"),
        ] {
            let error = resolve(layer).expect_err(layer);
            assert!(matches!(error, Error::Usage { .. }), "{error}");
            assert!(error.to_string().contains(named), "{layer}: {error}");
        }
    }
}
