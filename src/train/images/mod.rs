//! A data set of small images that stays on the device as bytes, and training views made of it there.
//!
//! The random decisions are those of [`AugmentParameters`], from the same streams; what they do to pixels is done in tensor
//! operations with the same roundings, so that a view has the same levels as the loader's, every one of them.

mod decisions;
mod views;

use std::rc::Rc;

use rayon::prelude::*;
use tch::{Device, Tensor};

use crate::data::augment::{AugmentParameters, TrainTransform};
use crate::data::dataset::Dataset;
use crate::error::Result;
use crate::rng::{Purpose, stream};
use decisions::Decisions;
use views::ViewMaker;

/// Bytes of images that may stay on a device.
pub const MOST_BYTES: u64 = 4 << 30;
/// Longest side of such images, in pixels: the tables of weights grow with its square.
const MOST_SIDE: u32 = 256;
/// Images decoded between two looks at whether they are all of one size.
const PIECE: usize = 1024;

/// All images of a data set, u8 `[N, H, W, 3]` on a device, and how views are made of them.
#[derive(Debug)]
pub struct ResidentImages {
    pixels: Tensor,
    transform: TrainTransform,
    maker: ViewMaker,
}

impl ResidentImages {
    /// The images of a run on `device`: a GPU's, if they fit; `None` where a loader brings them.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub fn of_run(data: &Dataset, transform: &TrainTransform, device: Device) -> Result<Option<Rc<Self>>> {
        match device {
            Device::Cuda(_) => Ok(Self::new(data, transform, device, MOST_BYTES)?.map(Rc::new)),
            _ => Ok(None),
        }
    }

    /// The images of `data` on `device`, if they are small, of one size, and take at most `most_bytes`. Rows of quarantined
    /// images are black, and never asked for.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub fn new(
        data: &Dataset,
        transform: &TrainTransform,
        device: Device,
        most_bytes: u64,
    ) -> Result<Option<Self>> {
        let readable = data.trainable_indices();
        let Some(&first) = readable.first() else { return Ok(None) };
        let (width, height) = data.load(first as usize)?.dimensions();
        let bytes_each = u64::from(width) * u64::from(height) * 3;
        let fits = bytes_each > 0 && width.max(height) <= MOST_SIDE;
        if !fits || bytes_each.saturating_mul(data.len() as u64) > most_bytes {
            return Ok(None);
        }
        let bytes_each = bytes_each as usize;
        let mut pixels = vec![0; bytes_each * data.len()];
        for indices in readable.chunks(PIECE) {
            let images: Vec<_> = indices.par_iter().map(|&index| data.load(index as usize)).collect();
            for (&index, image) in indices.iter().zip(images) {
                let image = image?;
                if image.dimensions() != (width, height) {
                    return Ok(None);
                }
                pixels[index as usize * bytes_each..][..bytes_each].copy_from_slice(image.as_raw());
            }
        }
        let shape = [data.len() as i64, i64::from(height), i64::from(width), 3];
        Ok(Some(ResidentImages {
            pixels: Tensor::from_slice(&pixels).view(shape).to_device(device),
            transform: *transform,
            maker: ViewMaker::new(width, height, transform.size, device),
        }))
    }

    /// Training views of the images `indices` in `epoch`: levels f32 `[B, size, size, 3]` on the device. The same as
    /// [`View::Train`](crate::data::loader::View::Train) makes.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn views(&self, indices: &[u32], seed: u64, epoch: u64, purpose: Purpose) -> Tensor {
        let (width, height) = (self.pixels.size()[2] as u32, self.pixels.size()[1] as u32);
        // Tensors may not be shared by threads, nor what holds them.
        let transform = self.transform;
        let drawn: Vec<AugmentParameters> = indices
            .par_iter()
            .map(|&index| {
                let mut rng = stream(seed, purpose, epoch, u64::from(index));
                AugmentParameters::draw(&transform, width, height, &mut rng)
            })
            .collect();
        self.maker.make(&self.pixels, &Decisions::new(indices, &drawn, self.transform.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::{ColorOrder, Scratch};
    use crate::data::loader::View;
    use crate::data::{DataFormat, ImageSource};
    use crate::model::to_vec_f32;
    use image::RgbImage;
    use std::borrow::Cow;
    use std::sync::Arc;

    /// Images of one size, the last of another if so wanted.
    struct Pictures {
        size: (u32, u32),
        odd: bool,
    }

    impl ImageSource for Pictures {
        fn len(&self) -> usize {
            40
        }

        fn load(&self, index: usize) -> Result<RgbImage> {
            let (width, height) = if self.odd && index == 39 { (9, 9) } else { self.size };
            let mut words = stream(index as u64, Purpose::Test, 0, 0);
            Ok(RgbImage::from_fn(width, height, |x, y| {
                let noise = rand::Rng::next_u32(&mut words).to_le_bytes();
                // Noise, flat colours and greys: all of them meet the branches of the hue.
                match (index % 3, (x / 4 + y / 4) % 2) {
                    (0, _) => image::Rgb([noise[0], noise[1], noise[2]]),
                    (1, 0) => image::Rgb([255, (x * 7) as u8, 0]),
                    (1, _) => image::Rgb([(y * 5) as u8; 3]),
                    (_, _) => image::Rgb([noise[0] / 2 + 100, (x * 6) as u8, (y * 6) as u8]),
                }
            }))
        }

        fn name(&self, _index: usize) -> Cow<'_, str> {
            "picture".into()
        }
    }

    fn data(width: u32, height: u32, odd: bool) -> Dataset {
        Dataset::unlabelled(DataFormat::Flat, Arc::new(Pictures { size: (width, height), odd })).unwrap()
    }

    #[test]
    fn views_have_every_level_of_the_loaders() {
        let cifar = TrainTransform::cifar(32);
        let few_colors = TrainTransform { grayscale: 1.0, ..cifar };
        let plain =
            TrainTransform { jitter: crate::data::augment::Jitter { hue: 0.0, ..cifar.jitter }, ..cifar };
        let tall = TrainTransform { ratio: (0.1, 10.0), ..TrainTransform::imagenet(12) };
        assert_ne!(cifar.order, ColorOrder::GrayscaleFirst);
        for (width, height, transform) in [
            (32, 32, cifar),
            (32, 32, few_colors),
            (24, 40, plain),
            // Shrunk by more than a half along either axis: both orders of the passes.
            (30, 64, tall),
            (64, 30, tall),
        ] {
            let data = data(width, height, false);
            let images = ResidentImages::new(&data, &transform, Device::Cpu, MOST_BYTES).unwrap().unwrap();
            let indices: Vec<u32> = (0..40).rev().collect();
            let mut scratch = Scratch::default();
            for epoch in 0..6 {
                let found = to_vec_f32(&images.views(&indices, 3, epoch, Purpose::Augmentation));
                let view = View::Train { transform, seed: 3, epoch, purpose: Purpose::Augmentation };
                let mut expected = vec![0; view.bytes()];
                for (&index, found) in indices.iter().zip(found.chunks_exact(view.bytes())) {
                    view.apply(index, &data.load(index as usize).unwrap(), &mut scratch, &mut expected);
                    let differ = found.iter().zip(&expected).filter(|&(&a, &b)| a != f32::from(b)).count();
                    assert_eq!(differ, 0, "levels of image {index} in epoch {epoch}, {width}×{height}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_stays_where_it_is() {
        let transform = TrainTransform::cifar(32);
        let resident =
            |data: &Dataset, most| ResidentImages::new(data, &transform, Device::Cpu, most).unwrap();
        assert!(resident(&data(8, 8, false), 40 * 8 * 8 * 3).is_some());
        assert!(resident(&data(8, 8, false), 40 * 8 * 8 * 3 - 1).is_none());
        assert!(resident(&data(8, 8, true), MOST_BYTES).is_none(), "not all of one size");
        assert!(resident(&data(300, 2, false), MOST_BYTES).is_none(), "too long a side");
        let quarantined = data(8, 8, true).with_quarantine(&[39]).unwrap();
        assert!(resident(&quarantined, MOST_BYTES).is_some(), "one of another size is never asked for");
    }
}
