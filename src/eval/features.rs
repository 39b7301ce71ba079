//! Embeddings of every image of a data set, in the order of its rows.

use std::sync::Arc;
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use crate::data::augment::{Normalization, NormalizationTable, TestTransform};
use crate::data::dataset::Dataset;
use crate::data::loader::{Batch, Loader, LoaderOptions, View};
use crate::error::Result;
use crate::model::{Encoder, Family, Layer, from_slice_nhwc, to_vec_f32, upload};

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

    /// The same, giving up an image that takes longer than `read_timeout`.
    pub fn with_read_timeout(mut self, read_timeout: Duration) -> Self {
        self.loader.read_timeout = read_timeout;
        self
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
    each_batch(encoder, data, order, view, input, EVALUATION_BATCH, layers, |batch, features| {
        each(batch, features.iter().map(rows).collect())
    })
}

/// As [`embed_each`], with features as [`Encoder::features`] gives them, in batches of `batch_size`.
///
/// # Errors
/// As [`embed_each`].
#[allow(clippy::too_many_arguments, reason = "what is embedded, how, and where to")]
pub fn each_batch(
    encoder: &Encoder,
    data: &Dataset,
    order: Vec<u32>,
    view: View,
    input: &Input,
    batch_size: usize,
    layers: &[Layer],
    mut each: impl FnMut(&Batch, Vec<Tensor>) -> Result<()>,
) -> Result<()> {
    let mut pass = EvaluationPass::start(encoder, data, order, view, input, batch_size, layers)?;
    while let Some(made) = pass.next() {
        let (batch, features) = made?;
        each(&batch, features)?;
        pass.recycle(batch);
    }
    Ok(())
}

/// Features of some images, a batch at a time, while loader threads bring the next ones: what [`each_batch`] goes through,
/// for those who may end before the last.
pub struct EvaluationPass<'a> {
    encoder: &'a Encoder,
    layers: &'a [Layer],
    loader: Loader,
    uploader: Uploader,
}

impl<'a> EvaluationPass<'a> {
    /// Starts loading the images `order` of `data`.
    ///
    /// # Errors
    /// If no thread can be started, or there is no image of such a number.
    pub fn start(
        encoder: &'a Encoder,
        data: &Dataset,
        order: Vec<u32>,
        view: View,
        input: &Input,
        batch_size: usize,
        layers: &'a [Layer],
    ) -> Result<Self> {
        Ok(EvaluationPass {
            encoder,
            layers,
            loader: Loader::new(Arc::clone(data.source()), view, order, batch_size, input.loader)?,
            uploader: Uploader::new(&input.normalization, encoder.device()),
        })
    }

    /// Takes a batch back, so that a later one can use its memory.
    pub fn recycle(&self, batch: Batch) {
        self.loader.recycle(batch);
    }

    /// How long the latest batch was waited for.
    pub fn last_wait(&self) -> Duration {
        self.loader.statistics().last_wait
    }
}

/// Each batch in turn, with its features as [`Encoder::features`] gives them. An error is the loader's: an image that cannot
/// be read, a worker that died.
impl Iterator for EvaluationPass<'_> {
    type Item = Result<(Batch, Vec<Tensor>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let with_features = |batch: Batch| {
            let features = self.encoder.features(&self.uploader.images(&batch), self.layers);
            (batch, features)
        };
        Some(self.loader.next()?.map(with_features))
    }
}

/// A layer's features `[B, C]` on the host. A stage's maps `[B, C, H, W]` are averaged over their places, as the last ones are
/// for the pooled features.
pub fn rows(features: &Tensor) -> Vec<f32> {
    match features.dim() {
        4 => to_vec_f32(&features.mean_dim([2, 3].as_slice(), false, Kind::Float)),
        _ => to_vec_f32(features),
    }
}

/// The features `[n, C]` of the readable images of `data` at each of `layers`, with test-time preprocessing, and the
/// images' indices; one pass for all layers. `progress` hears how many images are done.
///
/// # Errors
/// See [`embed_each`].
pub fn embed_layers(
    encoder: &Encoder,
    data: &Dataset,
    order: Vec<u32>,
    input: &Input,
    layers: &[Layer],
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<f32>>> {
    let width = |&layer: &Layer| encoder.config().dim_at(layer) as usize;
    let mut features: Vec<_> = layers.iter().map(|l| Vec::with_capacity(order.len() * width(l))).collect();
    let mut done = 0;
    let view = View::Test { transform: input.transform };
    embed_each(encoder, data, order, view, input, layers, |batch, rows| {
        features.iter_mut().zip(rows).for_each(|(all, rows)| all.extend(rows));
        done += batch.indices.len();
        progress(done);
        Ok(())
    })?;
    Ok(features)
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
    let mut features = embed_layers(encoder, data, order.clone(), input, &[Layer::Embedding], progress)?;
    Ok((order, features.swap_remove(0)))
}

/// Divides each row of `features` `[n, dim]` by its length, as a comparison by cosine wants it; rows of zeros stay.
pub fn unit_rows(features: &mut [f32], dim: usize) {
    for row in features.chunks_exact_mut(dim) {
        let length = row.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}

/// A batch as the encoder takes it: normalised, `[B, 3, H, W]` with channels-last memory.
pub fn input_tensor(batch: &Batch, normalization: &NormalizationTable) -> Tensor {
    let mut values = vec![0.0; batch.pixels.len()];
    normalization.normalize_into(&batch.pixels, &mut values);
    let side = batch.size as usize;
    from_slice_nhwc(&values, [batch.indices.len(), side, side])
}

/// Makes batches the input of an encoder on a device. With CUDA the levels are uploaded as bytes and normalised there: a
/// quarter of the numbers' size, and the same numbers.
#[derive(Debug)]
pub struct Uploader {
    normalization: Arc<NormalizationTable>,
    /// The table f32 `[768]`, by level and channel, where normalisation is the device's work.
    table: Option<Tensor>,
}

impl Uploader {
    /// For an encoder on `device`.
    pub fn new(normalization: &Arc<NormalizationTable>, device: Device) -> Self {
        match device {
            Device::Cuda(_) => Self::normalizing_on(normalization, device),
            _ => Uploader { normalization: Arc::clone(normalization), table: None },
        }
    }

    /// One that normalises on `device`, whatever that is.
    pub fn normalizing_on(normalization: &Arc<NormalizationTable>, device: Device) -> Self {
        let values: Vec<f32> = (0..=255u8)
            .flat_map(|level| [0, 1, 2].map(|channel| normalization.value(level, channel)))
            .collect();
        let table = Some(Tensor::from_slice(&values).to_device(device));
        Uploader { normalization: Arc::clone(normalization), table }
    }

    /// `batch` as the encoder takes it: f32 `[B, 3, H, W]` with channels-last memory.
    pub fn images(&self, batch: &Batch) -> Tensor {
        match self.levels(batch) {
            Some(levels) => self.images_of_levels(&levels),
            None => input_tensor(batch, &self.normalization),
        }
    }

    /// The levels u8 `[B, H, W, 3]` of `batch` on the device; `None` where the host normalises.
    pub fn levels(&self, batch: &Batch) -> Option<Tensor> {
        let side = i64::from(batch.size);
        let device = self.table.as_ref()?.device();
        Some(upload(&batch.pixels, &[batch.indices.len() as i64, side, side, 3], device))
    }

    /// The same of `levels` `[B, H, W, 3]` of any kind that are on the device already.
    ///
    /// # Panics
    /// If this uploader does not normalise on a device.
    pub fn images_of_levels(&self, levels: &Tensor) -> Tensor {
        normalized(self.table.as_ref().expect("an uploader that normalises on a device"), levels)
    }
}

/// `levels` `[B, H, W, 3]` looked up in `table` `[768]`: f32 `[B, 3, H, W]`, channels-last.
fn normalized(table: &Tensor, levels: &Tensor) -> Tensor {
    let channels = Tensor::arange(3, (Kind::Int, table.device()));
    let places = levels.to_kind(Kind::Int) * 3 + channels;
    table.index_select(0, &places.reshape([-1])).view(&levels.size()[..]).permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_normalises_to_the_same_bits() {
        let pixels = (0..2 * 8 * 8 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let batch = Batch { indices: vec![4, 2], pixels, size: 8 };
        let table = Arc::new(Normalization::imagenet().table());
        let (host, device) =
            (Uploader::new(&table, Device::Cpu), Uploader::normalizing_on(&table, Device::Cpu));
        let (expected, found) = (host.images(&batch), device.images(&batch));
        assert_eq!((found.size(), found.stride()), (expected.size(), expected.stride()));
        let bits = |tensor: &Tensor| to_vec_f32(tensor).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected));
    }
}
