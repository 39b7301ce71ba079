//! Images in: finding, decoding, augmenting and loading them. Bytes only; no tensors here.
//!
//! Sample index = bank row, always. Lists are sorted; an unreadable image is an error or a quarantined entry
//! that keeps its row, never a silent skip.

use std::borrow::Cow;

use image::RgbImage;

use crate::error::Result;

pub mod augment;
pub mod cifar;
pub mod decode;
pub mod idx;
pub mod loader;
pub mod resize;
pub mod synthetic;

/// Where the images of a data set come from: files, a packed archive in memory, a generator.
///
/// Implementations are immutable after opening and are shared by all loader threads.
pub trait ImageSource: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decodes image `index` to 8-bit RGB at its natural size.
    ///
    /// # Errors
    /// If the image cannot be read; the error names it.
    fn load(&self, index: usize) -> Result<RgbImage>;

    /// What a person would call image `index`: its path relative to the data set, or `test_batch.bin#17`.
    fn name(&self, index: usize) -> Cow<'_, str>;
}
