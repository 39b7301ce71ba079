//! Where a pass over the data takes its batches from: loader threads, or images that are on the device already.

use std::rc::Rc;
use std::sync::Arc;

use tch::Tensor;

use super::images::ResidentImages;
use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::data::loader::{Batch, Loader, LoaderStatistics, View};
use crate::error::{Error, Result};
use crate::eval::features::{Input, Uploader};
use crate::rng::Purpose;

/// The batches of the rest of an epoch, in order.
pub(super) struct Feed {
    source: Source,
    uploader: Uploader,
    /// The next batch, where it was got ready ahead.
    ready: Option<Result<Views>>,
    /// Batches not asked for yet.
    left: usize,
}

enum Source {
    Loader(Loader),
    Resident {
        images: Rc<ResidentImages>,
        order: Vec<u32>,
        batch_size: usize,
        seed: u64,
        epoch: u64,
        taken: usize,
    },
}

/// A batch before it is the encoder's input.
pub(super) enum Views {
    /// Made by the loader, to be normalised by the host.
    Host(Batch),
    /// Levels `[B, size, size, 3]` of the images with these indices, on the device: u8 from the loader, f32 made there.
    Device(Vec<u32>, Tensor),
}

impl Feed {
    /// The images `order` of `train` in `epoch`, in batches of the run's size, as `uploader` makes them an encoder's input;
    /// one that normalises on the device of `resident`, where that is given.
    ///
    /// # Errors
    /// If no loader can be started.
    pub fn new(
        config: &TrainConfig,
        train: &Dataset,
        resident: Option<&Rc<ResidentImages>>,
        input: &Input,
        order: &[u32],
        epoch: u64,
        uploader: Uploader,
    ) -> Result<Self> {
        let (seed, batch_size, order) = (config.seed, config.batch_size, order.to_vec());
        let left = order.len().div_ceil(batch_size);
        if let Some(images) = resident {
            let images = Rc::clone(images);
            let source = Source::Resident { images, order, batch_size, seed, epoch, taken: 0 };
            return Ok(Feed { source, uploader, ready: None, left });
        }
        let view =
            View::Train { transform: config.augmentation, seed, epoch, purpose: Purpose::Augmentation };
        let loader = Loader::new(Arc::clone(train.source()), view, order, batch_size, input.loader)?;
        Ok(Feed { source: Source::Loader(loader), uploader, ready: None, left })
    }

    /// The next batch.
    ///
    /// # Errors
    /// An image that cannot be read, a worker that died, or no batch left.
    pub fn next(&mut self) -> Result<Views> {
        self.left = self.left.saturating_sub(1);
        match self.ready.take() {
            Some(views) => views,
            None => self.make(),
        }
    }

    /// Gets the next batch ready, if there is one: a device has work meanwhile, and its views, or their upload, queue behind
    /// that.
    pub fn prepare(&mut self) {
        if self.ready.is_none() && self.left > 0 {
            self.ready = Some(self.make());
        }
    }

    fn make(&mut self) -> Result<Views> {
        match &mut self.source {
            Source::Loader(loader) => {
                let batch = loader.next().unwrap_or(Err(Error::Worker { worker: "loader" }))?;
                let Some(levels) = self.uploader.levels(&batch) else { return Ok(Views::Host(batch)) };
                let indices = batch.indices.clone();
                loader.recycle(batch);
                Ok(Views::Device(indices, levels))
            }
            Source::Resident { images, order, batch_size, seed, epoch, taken } => {
                let Some(indices) = order.chunks(*batch_size).nth(*taken) else {
                    return Err(Error::Worker { worker: "loader" });
                };
                *taken += 1;
                let levels = images.views(indices, *seed, *epoch, Purpose::Augmentation);
                Ok(Views::Device(indices.to_vec(), levels))
            }
        }
    }

    /// What loading has cost so far; images on the device cost nothing.
    pub fn statistics(&self) -> LoaderStatistics {
        match &self.source {
            Source::Loader(loader) => loader.statistics(),
            Source::Resident { .. } => LoaderStatistics::default(),
        }
    }

    /// `views` as the encoder takes them: f32 `[B, 3, H, W]`.
    pub fn images(&self, views: &Views) -> Tensor {
        match views {
            Views::Host(batch) => self.uploader.images(batch),
            Views::Device(_, levels) => self.uploader.images_of_levels(levels),
        }
    }

    /// Takes a batch back, so that a later one can use its memory.
    pub fn recycle(&self, views: Views) {
        if let (Source::Loader(loader), Views::Host(batch)) = (&self.source, views) {
            loader.recycle(batch);
        }
    }
}

impl Views {
    /// Number of each image in its data set: its bank row.
    pub fn indices(&self) -> &[u32] {
        match self {
            Views::Host(batch) => &batch.indices,
            Views::Device(indices, _) => indices,
        }
    }

    /// Levels `[B, size, size, 3]`, u8 or f32, where they are on the device.
    pub fn levels(&self) -> Option<&Tensor> {
        match self {
            Views::Host(_) => None,
            Views::Device(_, levels) => Some(levels),
        }
    }
}
