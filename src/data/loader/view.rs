//! What a batch shows of each image.

use std::ops::Deref;
use std::time::{Duration, Instant};

use image::{ImageBuffer, Rgb, RgbImage};

use crate::data::ImageSource;
use crate::data::augment::{AugmentParameters, Scratch, TestTransform, TrainTransform};
use crate::error::{Error, Result};
use crate::rng::{Purpose, stream};

/// How an image becomes a `[size, size, 3]` view.
#[derive(Clone, Copy, Debug)]
pub enum View {
    /// A random view, a function of (seed, purpose, epoch, index) and nothing else.
    Train {
        /// What may happen to the image.
        transform: TrainTransform,
        /// The run's seed.
        seed: u64,
        /// The epoch, counted from 0.
        epoch: u64,
        /// [`Purpose::Augmentation`], or [`Purpose::SecondView`] for one that is independent of it.
        purpose: Purpose,
    },
    /// The view for tests; nothing random.
    Test {
        /// What happens to the image.
        transform: TestTransform,
    },
}

/// What making a view took.
#[derive(Clone, Copy, Debug)]
pub struct ViewCost {
    /// Reading and decoding.
    pub decode: Duration,
    /// Making the view of the pixels.
    pub augment: Duration,
}

impl View {
    /// Side of the view, in pixels.
    pub fn size(&self) -> u32 {
        match self {
            View::Train { transform, .. } => transform.size,
            View::Test { transform } => transform.size,
        }
    }

    /// Bytes of one view.
    pub fn bytes(&self) -> usize {
        (self.size() as usize).pow(2) * 3
    }

    /// Loads image `index` of `source`, as much of it as the view shows, and writes the view to `out` `[size, size, 3]`.
    ///
    /// # Errors
    /// If the image cannot be read, or has no pixels; the error names it.
    /// # Panics
    /// If `out` is not [`bytes`](View::bytes) long.
    pub fn make(
        &self,
        source: &dyn ImageSource,
        index: u32,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<ViewCost> {
        let start = Instant::now();
        let mut drawn = None;
        let image = source.load_rows(index as usize, &mut |width, height| {
            drawn = self.draw(index, width, height);
            drawn.as_ref().map_or(0, Drawn::rows)
        })?;
        let decoded = Instant::now();
        let Some(drawn) = drawn else {
            let image = source.name(index as usize).into_owned();
            return Err(Error::Image { image, reason: "it has no pixels".into() });
        };
        drawn.apply(&image, scratch, out);
        Ok(ViewCost { decode: decoded - start, augment: decoded.elapsed() })
    }

    /// Writes the view of `image`, which is number `index` of its data set, to `out` `[size, size, 3]`.
    ///
    /// # Panics
    /// If the image has no pixels or `out` is not [`bytes`](View::bytes) long.
    pub fn apply(&self, index: u32, image: &RgbImage, scratch: &mut Scratch, out: &mut [u8]) {
        let drawn = self.draw(index, image.width(), image.height()).expect("an image with pixels");
        drawn.apply(image, scratch, out);
    }

    /// Decides on the view of image `index`, of this size; `None` if it has no pixels.
    fn draw(&self, index: u32, width: u32, height: u32) -> Option<Drawn> {
        if width == 0 || height == 0 {
            return None;
        }
        Some(match self {
            View::Train { transform, seed, epoch, purpose } => {
                let mut rng = stream(*seed, *purpose, *epoch, u64::from(index));
                let parameters = AugmentParameters::draw(transform, width, height, &mut rng);
                Drawn::Train { parameters, size: transform.size }
            }
            View::Test { transform } => Drawn::Test { transform: *transform, height },
        })
    }
}

/// A view of one image, with nothing left to chance.
enum Drawn {
    Train { parameters: AugmentParameters, size: u32 },
    Test { transform: TestTransform, height: u32 },
}

impl Drawn {
    /// Rows of the image that it shows something of, counted from the top.
    fn rows(&self) -> u32 {
        match self {
            Drawn::Train { parameters, .. } => parameters.crop.top + parameters.crop.height,
            Drawn::Test { height, .. } => *height,
        }
    }

    fn apply(
        &self,
        image: &ImageBuffer<Rgb<u8>, impl Deref<Target = [u8]>>,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        match self {
            Drawn::Train { parameters, size } => parameters.apply(image, *size, scratch, out),
            Drawn::Test { transform, .. } => transform.apply(image, scratch, out),
        }
    }
}
