//! Fine-tuning on few labels: the whole network goes on training as a classifier (Wu et al. 2018, §4.3).
//!
//! The embedding's linear layer gives way to one for C classes on the pooled features; cross-entropy, SGD. The
//! control is the same network, classifier and schedule from random weights.

use std::sync::Arc;

use serde::Serialize;
use tch::Tensor;

use super::features::{EVALUATION_BATCH, Input, input_tensor};
use super::knn::{Confusion, accuracy};
use super::linear::positive;
use crate::data::augment::TrainTransform;
use crate::data::dataset::Dataset;
use crate::data::loader::{Loader, View, epoch_order};
use crate::error::{Error, Result};
use crate::model::{Encoder, Gradients, Mode, to_vec_f32};
use crate::optim::{Schedule, Sgd, lr};
use crate::rng::Purpose;

/// How a network is fine-tuned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FinetuneSettings {
    /// Passes over the labelled images.
    pub epochs: u64,
    /// Images of a step.
    pub batch_size: usize,
    /// Learning rate at the start.
    pub lr: f64,
    /// Epochs after which it falls to a tenth.
    pub milestones: Vec<f64>,
    /// μ of the momentum.
    pub momentum: f64,
    /// Weight decay, on every parameter.
    pub weight_decay: f64,
    /// Of the chosen images, the classifier's first weights, the order of the images and their views.
    pub seed: u64,
}

/// What a classifier reaches on test images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reached {
    /// Share of the images whose class scores highest, 0 to 1.
    pub top1: f64,
    /// Share of the images whose class is among the first five.
    pub top5: f64,
    /// Share of each class's images that was found to be of it.
    pub per_class: Vec<f64>,
}

/// Batches of an epoch on `images` images. A last batch of one image is left out: BatchNorm may find nothing in it to
/// normalise.
pub fn batches(images: usize, batch_size: usize) -> usize {
    images.div_ceil(batch_size) - usize::from(images % batch_size == 1 && images > 1)
}

/// Trains `encoder`, whose head is a classifier, on the images `chosen` of `data` seen through `transform`. Gives the
/// mean loss of the last epoch. The same arguments give the same bits, for a number of threads.
///
/// `progress` hears the batches done; its error ends the training.
///
/// # Errors
/// An image that cannot be read, a loss that is not finite, those of `progress`.
///
/// # Panics
/// If the images have no labels, or labels that the head has no output for.
pub fn train(
    encoder: &mut Encoder,
    data: &Dataset,
    chosen: &[u32],
    transform: TrainTransform,
    input: &Input,
    settings: &FinetuneSettings,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<f64> {
    let labels = data.labels().expect("a classifier needs labels");
    let mut sgd = Sgd::new(encoder.parameters(), settings.momentum, settings.weight_decay);
    let schedule = Schedule::Step { milestones: settings.milestones.clone(), gamma: 0.1 };
    let (mut done, mut mean) = (0, f64::NAN);
    for epoch in 0..settings.epochs {
        let mut order = epoch_order(chosen, settings.seed, epoch);
        order.truncate(batches(order.len(), settings.batch_size) * settings.batch_size);
        let rate = lr(settings.lr, &schedule, 0.0, settings.epochs as f64, epoch as f64);
        let view = View::Train { transform, seed: settings.seed, epoch, purpose: Purpose::Augmentation };
        let (mut sum, images) = (0.0, order.len());
        let loader = Loader::new(Arc::clone(data.source()), view, order, settings.batch_size, input.loader)?;
        for batch in loader {
            let batch = batch?;
            let truth: Vec<i64> = batch.indices.iter().map(|&i| i64::from(labels[i as usize])).collect();
            let truth = Tensor::from_slice(&truth).to_device(encoder.device());
            let logits = encoder.logits(&input_tensor(&batch, &input.normalization), Mode::Train);
            let loss = logits.cross_entropy_for_logits(&truth);
            let value = loss.double_value(&[]);
            if !value.is_finite() {
                let images = batch.indices.iter().map(|&i| data.name(i as usize).into_owned()).collect();
                return Err(Error::NonFiniteLoss { loss: value, epoch, step: done as u64, images });
            }
            let gradients = Gradients::of(&loss, encoder.parameters());
            sgd.step(encoder.parameters_mut(), gradients, rate);
            sum += value * batch.indices.len() as f64;
            done += 1;
            progress(done)?;
        }
        mean = sum / images as f64;
    }
    Ok(mean)
}

/// What `encoder`, whose head is a classifier, makes of the labelled images of `data` with test-time preprocessing.
/// `progress` hears the images done; its error ends the test.
///
/// # Errors
/// An image that cannot be read, and those of `progress`.
///
/// # Panics
/// If the images have no labels.
pub fn test(
    encoder: &Encoder,
    data: &Dataset,
    input: &Input,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Reached> {
    let labels = data.labels().expect("a test needs labels");
    let classes = encoder.config().embed_dim as usize;
    let order = data.trainable_indices();
    let truth: Vec<u32> = order.iter().map(|&i| labels[i as usize]).collect();
    let view = View::Test { transform: input.transform };
    let loader = Loader::new(Arc::clone(data.source()), view, order, EVALUATION_BATCH, input.loader)?;
    let mut scores = Vec::with_capacity(truth.len() * classes);
    for batch in loader {
        let logits = encoder.logits(&input_tensor(&batch?, &input.normalization), Mode::Eval);
        scores.extend(positive(&to_vec_f32(&logits), classes));
        progress(scores.len() / classes)?;
    }
    let reached = accuracy(&scores, classes, &truth);
    let per_class = Confusion::of(&scores, classes, &truth).per_class();
    Ok(Reached { top1: reached.top1, top5: reached.top5, per_class })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataFormat;
    use crate::data::ImageSource;
    use crate::model::{Arch, EncoderConfig, Family};
    use image::{Rgb, RgbImage};
    use std::borrow::Cow;
    use tch::Device;

    /// Bright and dark squares in turn.
    struct Shades(usize);

    impl ImageSource for Shades {
        fn len(&self) -> usize {
            self.0
        }

        fn load(&self, index: usize) -> Result<RgbImage> {
            let shade = if index.is_multiple_of(2) { 40 } else { 210 } + (index % 5) as u8;
            Ok(RgbImage::from_pixel(16, 16, Rgb([shade; 3])))
        }

        fn name(&self, index: usize) -> Cow<'_, str> {
            index.to_string().into()
        }
    }

    fn shades(n: usize) -> Dataset {
        let labels = (0..n as u32).map(|i| i % 2).collect();
        let classes = vec!["dark".to_owned(), "bright".to_owned()];
        Dataset::labelled(DataFormat::Flat, Arc::new(Shades(n)), labels, classes).unwrap()
    }

    #[test]
    fn what_is_easy_is_learnt_and_the_same_bits_come_again() {
        let config =
            EncoderConfig { width: 4, embed_dim: 2, ..EncoderConfig::new(Arch::ResNet18, Family::Cifar) };
        let settings = FinetuneSettings {
            epochs: 5,
            batch_size: 8,
            lr: 0.05,
            milestones: vec![4.0],
            momentum: 0.9,
            weight_decay: 1e-4,
            seed: 3,
        };
        let (data, tested) = (shades(17), shades(20));
        let input = Input::new(Family::Cifar, 16, 1);
        let mut colours = TrainTransform::cifar(16);
        colours.jitter.brightness = 0.1;
        let run = || {
            let mut encoder = Encoder::new(config, 1, Device::Cpu);
            let mut heard = 0;
            let mut progress = |done| {
                heard = done;
                Ok(())
            };
            let chosen: Vec<u32> = (0..17).collect();
            let loss =
                train(&mut encoder, &data, &chosen, colours, &input, &settings, &mut progress).unwrap();
            assert_eq!(heard, 5 * 2, "the seventeenth image makes no batch of its own");
            let reached = test(&encoder, &tested, &input, &mut |_| Ok(())).unwrap();
            (loss, reached, encoder.parameters().hash())
        };
        let (loss, reached, hash) = run();
        assert!(loss < 0.6, "two classes have ln 2 = 0.69 to lose: {loss}");
        let mean = reached.per_class.iter().sum::<f64>() / 2.0;
        assert!(reached.top5 == 1.0 && (reached.top1 - mean).abs() < 1e-12, "{reached:?}");
        assert_eq!(run(), (loss, reached, hash));
    }

    #[test]
    fn a_batch_of_one_is_left_out() {
        assert_eq!([1, 2, 4, 5, 6, 8, 9].map(|n| batches(n, 4)), [1, 1, 1, 1, 2, 2, 2]);
    }
}
