//! What cannot work is refused before any work is done, by the flag's name.

use super::{NormalizerChoice, ObjectiveKind, TrainConfig, name_of};
use crate::error::{Error, Result};
use crate::model::Family;
use crate::objective::NormalizerMode;

/// Minutes.
const A_YEAR: f64 = 366.0 * 24.0 * 60.0;

/// More threads than any machine has cores are a slip of the keyboard.
const MOST_THREADS: i64 = 4096;

/// Refuses a number of threads that no thread pool can have.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_threads(threads: i64) -> Result<()> {
    if (0..=MOST_THREADS).contains(&threads) {
        return Ok(());
    }
    Err(Error::usage(format!("--threads must lie in 0..={MOST_THREADS}, found {threads}")))
}

impl TrainConfig {
    /// Refuses what cannot work before any work is done.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag, its bounds and its value.
    pub fn validate(&self) -> Result<()> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let refuse = |broken: bool, message: String| if broken { Err(Error::usage(message)) } else { Ok(()) };
        refuse(
            !positive(self.temperature),
            format!("--temperature must be positive, found {}", self.temperature),
        )?;
        refuse(!positive(self.lr), format!("--lr must be positive, found {}", self.lr))?;
        refuse(
            !(0.0..=1.0).contains(&self.bank_momentum),
            format!("--bank-momentum must lie in 0..=1, found {}", self.bank_momentum),
        )?;
        refuse(
            !(0.0..1.0).contains(&self.momentum),
            format!("--momentum must lie in 0..1, found {}", self.momentum),
        )?;
        refuse(
            !(self.weight_decay.is_finite() && self.weight_decay >= 0.0),
            format!("--weight-decay must be 0 or more, found {}", self.weight_decay),
        )?;
        refuse(
            !(self.proximal.is_finite() && self.proximal >= 0.0),
            format!("--proximal must be 0 or more, found {}", self.proximal),
        )?;
        refuse(
            !(positive(self.save_every) && self.save_every <= A_YEAR),
            format!("--save-every must be positive and at most a year, found {}", self.save_every),
        )?;
        refuse(
            !(positive(self.read_timeout) && self.read_timeout <= 60.0 * A_YEAR),
            format!("--read-timeout must be positive and at most a year, found {}", self.read_timeout),
        )?;
        check_threads(self.threads as i64)?;
        refuse(
            self.workers > MOST_THREADS as usize,
            format!("--workers must lie in 1..={MOST_THREADS}, found {}", self.workers),
        )?;
        for (flag, value) in [
            ("--embed-dim", self.embed_dim),
            ("--width", self.width),
            ("--batch-size", self.batch_size),
            ("--accumulate", self.accumulate),
            ("--workers", self.workers),
            ("--knn-k", self.knn_k),
            ("--epochs", self.epochs as usize),
            ("--print-freq", self.print_freq as usize),
        ] {
            refuse(value == 0, format!("{flag} must be at least 1"))?;
        }
        refuse(
            !(8..=2048).contains(&self.image_size),
            format!("--image-size must lie in 8..=2048 pixels, found {}", self.image_size),
        )?;
        refuse(
            self.start_epoch >= self.epochs,
            format!("--start-epoch {} leaves nothing of --epochs {}", self.start_epoch, self.epochs),
        )?;
        refuse(
            !(0.0..=self.epochs as f64).contains(&self.warmup_epochs),
            format!("--warmup-epochs must lie in 0..={}, found {}", self.epochs, self.warmup_epochs),
        )?;
        refuse(!self.milestones.is_sorted(), format!("--milestones must rise, found {:?}", self.milestones))?;
        refuse(
            (self.objective == ObjectiveKind::Softmax) != (self.n_negatives == 0),
            format!(
                "--objective {} and --n-negatives {} contradict each other: the full softmax compares with every image",
                name_of(self.objective),
                self.n_negatives
            ),
        )?;
        self.encoder().validate()?;
        self.augmentation.validate()?;
        refuse(
            self.objective != ObjectiveKind::Nce
                && self.normalizer != NormalizerChoice(NormalizerMode::FirstBatch),
            format!("--normalizer is NCE's; --objective {} has no Z", name_of(self.objective)),
        )?;
        refuse(
            self.objective == ObjectiveKind::Softmax && self.noise_weights.is_some(),
            "--noise-weights is for objectives that draw negatives; the full softmax draws none".into(),
        )?;
        refuse(self.max_steps == Some(0), "--max-steps 0 would train nothing".into())
    }

    /// Refuses a last batch that BatchNorm cannot normalise in training: one image whose last maps are one pixel.
    ///
    /// # Errors
    /// [`Error::Usage`]; `images` is the number that enter batches.
    pub fn check_last_batch(&self, images: usize) -> Result<()> {
        let shrinks_to_one_pixel = match self.family {
            Family::ImageNet => self.image_size <= 32,
            Family::Cifar => self.image_size <= 8,
        };
        let alone = self.batch_size == 1 || images % self.batch_size == 1;
        if !(shrinks_to_one_pixel && alone) {
            return Ok(());
        }
        Err(Error::Usage {
            message: format!(
                "the last of {images} images would be a batch of its own at --batch-size {}, and at --image-size {} \
                 BatchNorm then has one value per channel, which it cannot normalise",
                self.batch_size, self.image_size
            ),
            hint: Some("change --batch-size by one, or use larger images".into()),
        })
    }
}
