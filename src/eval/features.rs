//! Embeddings of every image of a data set, in the order of its rows.

use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::data::augment::{Normalization, NormalizationTable, TestTransform};
use crate::data::dataset::Dataset;
use crate::data::loader::{Batch, Loader, LoaderOptions, View};
use crate::error::Result;
use crate::model::{Encoder, Family, Layer, from_slice_nhwc, to_vec_f32};

/// How images become the encoder's input: what is fixed by the encoder, not drawn at random.
#[derive(Clone, Debug)]
pub struct Input {
    /// Test-time preprocessing.
    pub transform: TestTransform,
    /// Per-channel mean and deviation, as the encoder was trained.
    pub normalization: Arc<NormalizationTable>,
    /// Loader threads and prefetch.
    pub loader: LoaderOptions,
}

impl Input {
    /// The preprocessing of `family` at `image_size` pixels, decoded by `workers` threads.
    pub fn new(family: Family, image_size: u32, workers: usize) -> Self {
        let transform = match family {
            Family::Cifar => TestTransform::cifar(image_size),
            Family::ImageNet => TestTransform::imagenet(image_size),
        };
        Self {
            transform,
            normalization: Arc::new(normalization(family).table()),
            loader: LoaderOptions { workers, ..LoaderOptions::default() },
        }
    }
}

/// The constants by which pixels become the input of an encoder of `family`.
pub fn normalization(family: Family) -> Normalization {
    match family {
        Family::Cifar => Normalization::cifar(),
        Family::ImageNet => Normalization::imagenet(),
    }
}

/// Images in a batch when nothing has to be kept for a backward pass.
pub const EVALUATION_BATCH: usize = 256;

/// Runs the images `order` of `data` through the encoder in evaluation mode and hands each batch to `each`, in order,
/// with its features at each of `layers`: `[B, C]`, C as [`EncoderConfig::dim_at`](crate::model::EncoderConfig::dim_at) says. The encoder does not change.
///
/// # Errors
/// The loader's: an image that cannot be read, a worker that died; and those of `each`.
pub fn embed_each(
    encoder: &Encoder,
    data: &Dataset,
    order: Vec<u32>,
    view: View,
    input: &Input,
    layers: &[Layer],
    mut each: impl FnMut(&Batch, Vec<Vec<f32>>) -> Result<()>,
) -> Result<()> {
    let mut loader = Loader::new(Arc::clone(data.source()), view, order, EVALUATION_BATCH, input.loader)?;
    while let Some(batch) = loader.next() {
        let batch = batch?;
        let features = encoder.features(&input_tensor(&batch, &input.normalization), layers);
        // A stage's maps are averaged over their places, as the last ones are for the pooled features.
        let rows = |features: &Tensor| match features.dim() {
            4 => to_vec_f32(&features.mean_dim([2, 3].as_slice(), false, Kind::Float)),
            _ => to_vec_f32(features),
        };
        each(&batch, features.iter().map(rows).collect())?;
        loader.recycle(batch);
    }
    Ok(())
}

/// The unit embeddings `[n, D]` of the readable images of `data` with test-time preprocessing, and their indices.
/// `progress` hears how many images are done.
///
/// # Errors
/// See [`embed_each`].
pub fn embed_all(
    encoder: &Encoder,
    data: &Dataset,
    input: &Input,
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<u32>, Vec<f32>)> {
    let order = data.trainable_indices();
    let mut features = Vec::with_capacity(order.len() * encoder.config().embed_dim as usize);
    let mut done = 0;
    let view = View::Test { transform: input.transform };
    embed_each(encoder, data, order.clone(), view, input, &[Layer::Embedding], |batch, rows| {
        features.extend_from_slice(&rows[0]);
        done += batch.indices.len();
        progress(done);
        Ok(())
    })?;
    Ok((order, features))
}

/// A batch as the encoder takes it: normalised, `[B, 3, H, W]` with channels-last memory.
pub fn input_tensor(batch: &Batch, normalization: &NormalizationTable) -> Tensor {
    let mut values = vec![0.0; batch.pixels.len()];
    normalization.normalize_into(&batch.pixels, &mut values);
    let side = batch.size as usize;
    from_slice_nhwc(&values, [batch.indices.len(), side, side])
}
