//! Whether a run fits into memory, asked before it starts: a machine that swaps is worse than a clear refusal.
//!
//! The estimate counts what is certain (bank, weights, buffers) exactly, and the network's maps by a rule that was held
//! against measured peaks of both families; docs/RELIABILITY.md says how near it came.

mod available;
mod kept;

pub use available::{Available, available};
pub use kept::keep_freed;

use tch::Device;

use crate::bank::MemoryBank;
use crate::config::{BankInit, Monitor, TrainConfig};
use crate::data::loader::LoaderOptions;
use crate::error::{Error, Result};
use crate::eval::features::EVALUATION_BATCH;
use crate::model::Precision;

/// Bytes of host memory that a run will take beyond what the process has by now (data that is kept in memory, libtorch
/// itself).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The bank's rows, N·D.
    pub bank: u64,
    /// Weights and SGD's momentum.
    pub weights: u64,
    /// Gradients, and the maps that wait for the backward pass, for a batch.
    pub step: u64,
    /// Maps of an evaluation's batch, where the features are measured.
    pub evaluation: u64,
    /// What a checkpoint copies while it is written.
    pub checkpoint: u64,
    /// Batches ahead of their use, and images being decoded.
    pub loader: u64,
}

/// Maps of one layer that are kept for the backward pass: the convolution's output, and BatchNorm's.
const KEPT_MAPS: u64 = 2;
/// Maps of the largest layer that exist beside those for a moment in a backward pass, and in a forward pass without one.
const PASSING_MAPS: u64 = 3;
/// An image that is being decoded, with its file and the buffers of its view: a photograph of ten megapixels.
const DECODING: u64 = 40 << 20;
/// libtorch's and the allocator's own, of which neither gives an account: thread pools, code, caches of kernels.
const OVERHEAD: u64 = 150 << 20;

impl Estimate {
    /// What a run of `config` on `n` images takes on `device`.
    pub fn new(config: &TrainConfig, n: usize, device: Device) -> Self {
        let float = size_of::<f32>() as u64;
        let shape = config.encoder();
        let on_host = device == Device::Cpu;
        let weights = shape.n_weights() as u64 * float;
        let value = match config.precision.resolve(device) {
            Precision::Fp32 => 4,
            Precision::Bf16 => 2,
        };
        let (mut all, mut largest, mut kernels, mut signs) = (0, 0, 0, 0);
        for layer in shape.layers(i64::from(config.image_size)) {
            // bf16 is libtorch's.
            if value == 4 {
                kernels = kernels.max(layer.working_bytes() as u64);
                signs += (layer.n_maps() as u64).div_ceil(8);
            }
            all += layer.n_maps() as u64;
            largest = largest.max(layer.n_maps() as u64);
        }
        let view = u64::from(config.image_size).pow(2) * 3;
        // As bytes, as floats, and as the tensor in the network's precision.
        let input = view * (1 + 2 * float + value);
        let batch = config.batch_size as u64;
        let evaluates = config.monitor != Monitor::None || config.bank_init == BankInit::Features;
        let evaluation = EVALUATION_BATCH.min(n) as u64 * (PASSING_MAPS * largest * value + input);
        let bank = MemoryBank::bytes(n, config.embed_dim, config.bank_precision);
        // A checkpoint holds fp32 rows: a bank's own, or a copy.
        let copied_rows = match config.bank_precision {
            Precision::Fp32 => 0,
            Precision::Bf16 => MemoryBank::bytes(n, config.embed_dim, Precision::Fp32),
        };
        let options = LoaderOptions::default();
        let ahead = (2 * options.prefetch as u64 + 1) * batch.max(EVALUATION_BATCH.min(n) as u64) * view;
        let if_host = |bytes| if on_host { bytes } else { 0 };
        Estimate {
            bank,
            weights: if_host(2 * weights),
            step: if_host(
                weights
                    + kernels
                    + batch * ((KEPT_MAPS * all + PASSING_MAPS * largest) * value + signs + input),
            ),
            evaluation: if evaluates { if_host(evaluation) } else { 0 },
            checkpoint: 2 * weights + copied_rows,
            loader: ahead + config.workers as u64 * DECODING.min(200 * view),
        }
    }

    /// What a command takes that only evaluates the network of `config` on `n` images, whose features count as the bank does.
    pub fn of_evaluation(config: &TrainConfig, n: usize, device: Device) -> Self {
        // That a run measured nothing does not keep others from it.
        let config = TrainConfig { monitor: Monitor::Knn, ..config.clone() };
        Estimate { step: 0, checkpoint: 0, ..Self::new(&config, n, device) }
    }

    /// The most that is taken at any one moment. Steps, evaluations and checkpoints follow one another.
    pub fn peak(&self) -> u64 {
        let in_turn = self.step.max(self.evaluation).max(self.checkpoint);
        self.bank + self.weights + in_turn + self.loader + OVERHEAD
    }

    /// Whether `available` is twice what is needed, so that freed memory may be [kept](keep_freed).
    pub fn leaves_as_much(&self, available: &Available) -> bool {
        2 * self.peak() <= available.bytes
    }

    /// Refuses a run that does not fit into `available`.
    ///
    /// # Errors
    /// [`Error::Usage`] with the parts of the estimate, what there is, and what to lower.
    pub fn check(&self, available: &Available) -> Result<()> {
        if self.peak() <= available.bytes {
            return Ok(());
        }
        let parts = [
            ("bank", self.bank, ""),
            ("a training step", self.step, "--batch-size or --image-size"),
            ("an evaluation", self.evaluation, "--image-size, or leave it out by --monitor none"),
            ("weights and momentum", self.weights, "--arch or --width"),
            ("loading", self.loader, "--workers or --batch-size"),
        ];
        let listed: Vec<_> =
            parts.iter().map(|(name, bytes, _)| format!("{name} {}", readable(*bytes))).collect();
        // Of step and evaluation only the larger one counts.
        let passing = self.step.max(self.evaluation);
        let largest = parts
            .iter()
            .filter(|(name, bytes, _)| {
                !["a training step", "an evaluation"].contains(name) || *bytes == passing
            })
            .max_by_key(|(_, bytes, _)| *bytes);
        let lower = match largest {
            Some((_, _, lower)) if !lower.is_empty() => format!("lower {lower}"),
            // The bank has a row for every image.
            _ => "lower --embed-dim, or train on fewer images".to_owned(),
        };
        Err(Error::Usage {
            message: format!(
                "this run needs about {} of memory, and {} are available ({}): {}",
                readable(self.peak()),
                readable(available.bytes),
                available.limit,
                listed.join(", ")
            ),
            hint: Some(format!("{lower}; --ignore-memory-estimate starts all the same")),
        })
    }
}

/// `1.3 GiB`, `850 MiB`.
pub fn readable(bytes: u64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    let mib = bytes as f64 / MIB;
    if mib < 1000.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Preset;
    use crate::data::DataFormat;

    fn estimate(preset: Preset, n: usize) -> Estimate {
        let config = TrainConfig::preset(preset, Path::new("photos"), DataFormat::Flat);
        Estimate::new(&config, n, Device::Cpu)
    }

    #[test]
    fn the_bank_and_the_weights_are_counted_exactly() {
        let found = estimate(Preset::Imagenet, 1_281_167);
        assert_eq!(found.bank, 1_281_167 * 128 * 4);
        // 11.24 million parameters: torchvision's 11,689,512 with a head for 1000 classes instead of 128.
        assert_eq!(found.weights, 2 * 4 * (11_689_512 - 513 * 1000 + 513 * 128));
    }

    #[test]
    fn a_bank_in_bf16_takes_half_and_its_checkpoints_copy_it() {
        let config = TrainConfig::preset(Preset::Imagenet, Path::new("photos"), DataFormat::Flat);
        let fp32 = Estimate::new(&config, 1_281_167, Device::Cpu);
        let config = TrainConfig { bank_precision: Precision::Bf16, ..config };
        let bf16 = Estimate::new(&config, 1_281_167, Device::Cpu);
        assert_eq!(2 * bf16.bank, fp32.bank);
        assert_eq!(bf16.checkpoint, fp32.checkpoint + fp32.bank);
        assert_eq!(Estimate { bank: fp32.bank, checkpoint: fp32.checkpoint, ..bf16 }, fp32);
    }

    #[test]
    fn a_larger_run_takes_more() {
        let (small, large) = (estimate(Preset::Cifar, 50_000), estimate(Preset::Imagenet, 50_000));
        assert!(large.step > 4 * small.step && large.evaluation > small.evaluation);
        assert_eq!(large.bank, small.bank);
        assert!(estimate(Preset::Cifar, 100_000).peak() > small.peak());
    }

    #[test]
    fn an_evaluation_is_counted_without_steps_whatever_the_run_measured() {
        let run = estimate(Preset::Imagenet, 50_000);
        let config = TrainConfig::preset(Preset::Imagenet, Path::new("photos"), DataFormat::Flat);
        for monitor in [config.monitor, Monitor::None] {
            let config = TrainConfig { monitor, ..config.clone() };
            let found = Estimate::of_evaluation(&config, 50_000, Device::Cpu);
            assert_eq!((found.evaluation, found.step), (run.evaluation, 0));
            assert!(found.peak() > found.evaluation && found.peak() < run.peak());
        }
    }

    #[test]
    fn a_run_that_does_not_fit_is_refused_with_the_numbers() {
        let found = estimate(Preset::Imagenet, 50_000);
        let limit = |bytes| Available { bytes, limit: "the limit of a test".into() };
        assert!(found.check(&limit(found.peak())).is_ok());
        let error = found.check(&limit(1 << 30)).unwrap_err();
        let text = error.to_string();
        for part in [&readable(found.peak()), "1.0 GiB", "the limit of a test", "a training step"] {
            assert!(text.contains(part), "{text}");
        }
        let hint = error.hint().unwrap();
        assert!(hint.contains("--batch-size") && hint.contains("--ignore-memory-estimate"), "{hint}");
        let bank = estimate(Preset::Cifar, 400_000_000).check(&limit(1 << 30)).unwrap_err();
        assert!(bank.hint().unwrap().contains("--embed-dim"), "{bank}");
    }
}
