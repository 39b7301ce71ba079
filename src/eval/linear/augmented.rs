//! SGD on random views: every epoch the encoder looks at other crops of the training images, and nothing is kept.

use super::features::{Place, Standardiser};
use super::sgd::{SgdSettings, Trainer};
use super::{Examples, Fitted, Outcome, choose_and_test};
use crate::data::augment::TrainTransform;
use crate::data::dataset::Dataset;
use crate::data::loader::{View, epoch_order};
use crate::error::Result;
use crate::eval::features::{Input, each_batch};
use crate::model::Encoder;
use crate::rng::Purpose;

/// The training images, and how they are looked at.
pub struct Views<'a> {
    /// The encoder, which is only looked through.
    pub encoder: &'a Encoder,
    /// The training images, with labels.
    pub data: &'a Dataset,
    /// The random views.
    pub transform: TrainTransform,
    /// Normalisation and decoding.
    pub input: &'a Input,
    /// Of the order of the images and of their views.
    pub seed: u64,
    /// For each image of `data`, by index: whether it is kept from the heads that choose.
    pub held_out: &'a [bool],
}

/// Trains the classifiers of every rate at every place in one run over the images; the features at a place are
/// standardised by its `standardisers`. Gives for each place those that choose and those that are tested.
///
/// `progress` hears the images done, over all epochs; its error ends the training.
///
/// # Errors
/// An image that cannot be read, and those of `progress`.
///
/// # Panics
/// If the images have no labels.
pub fn fit(
    views: &Views<'_>,
    places: &[Place],
    standardisers: &[Standardiser],
    learning_rates: &[f64],
    settings: &SgdSettings,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<(Vec<Fitted>, Vec<Fitted>)>> {
    let Views { encoder, data, transform, input, seed, held_out } = *views;
    let all_labels = data.labels().expect("a classifier needs labels");
    let classes = data.n_classes();
    let mut trainers: Vec<_> = places
        .iter()
        .map(|place| Trainer::new(place.dim(), classes, learning_rates, settings, encoder.device()))
        .collect();
    let layers: Vec<_> = places.iter().map(|place| place.layer).collect();
    let images = data.trainable_indices();
    let mut done = 0;
    for epoch in 0..settings.epochs {
        trainers.iter_mut().for_each(Trainer::begin_epoch);
        let view = View::Train { transform, seed, epoch, purpose: Purpose::Augmentation };
        let order = epoch_order(&images, seed, epoch);
        each_batch(encoder, data, order, view, input, settings.batch_size, &layers, |batch, features| {
            let labels: Vec<u32> = batch.indices.iter().map(|&i| all_labels[i as usize]).collect();
            let out: Vec<bool> = batch.indices.iter().map(|&i| held_out[i as usize]).collect();
            for (((trainer, place), standardiser), features) in
                trainers.iter_mut().zip(places).zip(standardisers).zip(&features)
            {
                trainer.step(&standardiser.apply_to(&place.rows(features)), &labels, &out, epoch);
            }
            done += batch.indices.len();
            progress(done)
        })?;
    }
    Ok(trainers.into_iter().map(Trainer::finish).collect())
}

/// Chooses and tests what [`fit`] gave for one place, on held-out and test images seen with test-time preprocessing.
pub fn outcome(fitted: &(Vec<Fitted>, Vec<Fitted>), held_out: &Examples<'_>, test: &Examples<'_>) -> Outcome {
    choose_and_test(&fitted.0, &fitted.1, held_out, &held_out.every(), test)
}
