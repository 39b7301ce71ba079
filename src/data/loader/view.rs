//! What a batch shows of each image.

use image::RgbImage;

use crate::data::augment::{AugmentParameters, Scratch, TestTransform, TrainTransform};
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

    /// Writes the view of `image`, which is number `index` of its data set, to `out` `[size, size, 3]`.
    ///
    /// # Panics
    /// If the image has no pixels or `out` is not [`bytes`](View::bytes) long.
    pub fn apply(&self, index: u32, image: &RgbImage, scratch: &mut Scratch, out: &mut [u8]) {
        match self {
            View::Train { transform, seed, epoch, purpose } => {
                let mut rng = stream(*seed, *purpose, *epoch, u64::from(index));
                let drawn = AugmentParameters::draw(transform, image.width(), image.height(), &mut rng);
                drawn.apply(image, transform.size, scratch, out);
            }
            View::Test { transform } => transform.apply(image, scratch, out),
        }
    }
}
