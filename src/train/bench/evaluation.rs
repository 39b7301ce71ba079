//! How fast features are computed without training, beside the forward passes of training steps.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Doing;
use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::data::loader::View;
use crate::error::Result;
use crate::eval::features::{EVALUATION_BATCH, EvaluationPass, Input, rows};
use crate::model::{Encoder, Layer};

/// An evaluation pass over the training images, as the monitor, `eval` and `embed` make one, but for its first batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Images in a batch.
    pub batch_size: usize,
    /// Length of the measurement, from the end of its first batch.
    pub seconds: f64,
    /// Images in it.
    pub images: u64,
    /// Images embedded per second, end to end: waiting for images included.
    pub images_per_s: f64,
    /// Share of the time in which images were waited for.
    pub share_waiting: f64,
    /// The same images per second of the rest of the time: normalising the images, the network, and bringing features to the
    /// host.
    pub images_per_s_in_network: f64,
    /// Images per second of the training steps' forward passes alone, which do the same and wait for nothing; `None` where a
    /// device is not waited for after them, so that nobody knows.
    pub training_forward_images_per_s: Option<f64>,
    /// `images_per_s` as a multiple of that.
    pub ratio: Option<f64>,
    /// `images_per_s_in_network` as a multiple of that.
    pub ratio_in_network: Option<f64>,
}

impl Evaluation {
    /// Embeds the readable images of `train`, again from the first where they end, for `duration` and at least one batch
    /// after the first, which starts threads and takes memory. `training_forward` are the images per second of training
    /// steps' forward passes.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub(super) fn measure(
        config: &TrainConfig,
        train: &Dataset,
        encoder: &Encoder,
        training_forward: Option<f64>,
        duration: Duration,
        doing: &mut dyn FnMut(Doing),
    ) -> Result<Self> {
        let input = Input::new(config.family, config.image_size, config.workers)
            .with_read_timeout(config.read_timeout());
        let view = View::Test { transform: input.transform };
        let start = || {
            let order = train.trainable_indices();
            EvaluationPass::start(encoder, train, order, view, &input, EVALUATION_BATCH, &[Layer::Embedding])
        };
        let mut pass = start()?;
        let mut next = || -> Result<(usize, Duration)> {
            loop {
                if let Some((batch, features)) = pass.next().transpose()? {
                    // A device has finished when its numbers are here.
                    features.iter().for_each(|features| drop(rows(features)));
                    let images = batch.indices.len();
                    pass.recycle(batch);
                    return Ok((images, pass.last_wait()));
                }
                pass = start()?;
            }
        };
        doing(Doing::Evaluation);
        next()?;
        let (mut images, mut waiting) = (0, Duration::ZERO);
        let started = Instant::now();
        while images == 0 || started.elapsed() < duration {
            let (more, waited) = next()?;
            images += more as u64;
            waiting += waited;
        }
        Ok(Self::of(images, started.elapsed(), waiting, training_forward))
    }

    /// That `images` took `wall`, of which `waiting` was spent waiting for them.
    fn of(images: u64, wall: Duration, waiting: Duration, training_forward: Option<f64>) -> Self {
        let (seconds, waiting) = (wall.as_secs_f64(), waiting.as_secs_f64());
        let images_per_s = images as f64 / seconds;
        let images_per_s_in_network = images as f64 / (seconds - waiting);
        Evaluation {
            batch_size: EVALUATION_BATCH,
            seconds,
            images,
            images_per_s,
            share_waiting: waiting / seconds,
            images_per_s_in_network,
            training_forward_images_per_s: training_forward,
            ratio: training_forward.map(|forward| images_per_s / forward),
            ratio_in_network: training_forward.map(|forward| images_per_s_in_network / forward),
        }
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "evaluation  {:.1} images/s in batches of {}, loading included: {} images in {:.1} s, {:.1} % of it waiting for images",
            self.images_per_s,
            self.batch_size,
            self.images,
            self.seconds,
            100.0 * self.share_waiting
        )?;
        let (Some(forward), Some(ratio), Some(in_network)) =
            (self.training_forward_images_per_s, self.ratio, self.ratio_in_network)
        else {
            return Ok(());
        };
        write!(
            f,
            "\n            {ratio:.2} times the forward passes of the steps, {forward:.1} images/s without loading; \
             {in_network:.2} times without waiting"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_counts_end_to_end_and_not_in_the_network() {
        let seconds = Duration::from_secs;
        let found = Evaluation::of(1000, seconds(10), seconds(2), Some(50.0));
        assert_eq!((found.images_per_s, found.images_per_s_in_network), (100.0, 125.0));
        assert_eq!((found.share_waiting, found.ratio, found.ratio_in_network), (0.2, Some(2.0), Some(2.5)));
        let text = found.to_string();
        for part in ["100.0 images/s", "20.0 %", "2.00 times", "50.0 images/s without loading", "2.50 times"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        let alone = Evaluation::of(1000, seconds(10), seconds(2), None);
        assert_eq!((alone.ratio, alone.ratio_in_network), (None, None));
        assert!(!alone.to_string().contains("times"), "{alone}");
    }
}
