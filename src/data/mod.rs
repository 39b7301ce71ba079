//! Images in: finding, decoding, augmenting and loading them. Bytes only; no tensors here.
//!
//! Sample index = bank row, always. Lists are sorted; an unreadable image is an error or a quarantined entry
//! that keeps its row, never a silent skip.

use std::borrow::Cow;

use image::{ImageBuffer, Rgb, RgbImage};

use crate::error::Result;

pub mod augment;
pub mod cifar;
pub mod dataset;
pub mod decode;
pub mod detect;
pub mod files;
pub mod folder;
pub mod idx;
pub mod index;
pub mod list;
pub mod loader;
pub mod packed;
pub mod resize;
pub mod scan;
pub mod synthetic;
pub mod walk;
pub mod watch;

pub use dataset::{Dataset, Splits};
pub use detect::{DataFormat, OpenOptions, open};

/// 8-bit RGB pixels, borrowed from where they lie in memory already.
pub type Pixels<'a> = ImageBuffer<Rgb<u8>, Cow<'a, [u8]>>;

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

    /// Image `index` as far down as a view needs it: `rows` learns its width and height and answers how many rows from
    /// the top are needed. Returned are these at least, of the full width, equal to those of [`load`](Self::load).
    ///
    /// # Errors
    /// As [`load`](Self::load); damage in what is not needed may go unnoticed where it was looked for before.
    fn load_rows(&self, index: usize, rows: &mut dyn FnMut(u32, u32) -> u32) -> Result<Pixels<'_>> {
        let image = self.load(index)?;
        rows(image.width(), image.height());
        Ok(owned(image))
    }

    /// What a person would call image `index`: its path relative to the data set, or `test_batch.bin#17`.
    fn name(&self, index: usize) -> Cow<'_, str>;

    /// The bytes of image `index` as a file, where it is one; `None` where there are only pixels.
    ///
    /// # Errors
    /// If they cannot be read; the error names the image.
    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>> {
        let _ = index;
        Ok(None)
    }

    /// A hash of what image `index` holds, equal for duplicates: by default of the size and the decoded pixels;
    /// files hash their bytes.
    ///
    /// # Errors
    /// If the image cannot be read; the error names it.
    fn content_hash(&self, index: usize) -> Result<[u8; 32]> {
        Ok(pixel_hash(&self.load(index)?))
    }

    /// [`load`](Self::load) and [`content_hash`](Self::content_hash) of image `index` at once, read once.
    ///
    /// # Errors
    /// If the image cannot be read; the error names it.
    fn load_hashed(&self, index: usize) -> Result<(RgbImage, [u8; 32])> {
        Ok((self.load(index)?, self.content_hash(index)?))
    }

    /// Feeds `hasher` what tells this source from any other with as many images: by default every name. A source
    /// whose bytes are at hand should feed those; files add their sizes.
    ///
    /// # Errors
    /// If something has to be read for this and cannot be.
    fn identify(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        for index in 0..self.len() {
            let name = self.name(index);
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
        }
        Ok(())
    }
}

/// `image` as [`Pixels`]; nothing is copied.
fn owned(image: RgbImage) -> Pixels<'static> {
    let (width, height) = image.dimensions();
    Pixels::from_raw(width, height, Cow::Owned(image.into_raw())).expect("the pixels were an image before")
}

/// A hash of an image's size and pixels.
pub fn pixel_hash(image: &RgbImage) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&image.width().to_le_bytes());
    hasher.update(&image.height().to_le_bytes());
    hasher.update(image.as_raw());
    hasher.finalize().into()
}
