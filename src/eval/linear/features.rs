//! The numbers that a linear classifier sees: features at a place in the network, standardised.

use std::path::Path;

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::cache::Cache;
use crate::data::dataset::Dataset;
use crate::data::loader::View;
use crate::error::Result;
use crate::eval::features::{EVALUATION_BATCH, Input, each_batch};
use crate::model::{Encoder, Layer, to_vec_f32};

/// Most numbers that a stage's maps are pooled to. With it, the stages of every published ResNet come to 8,192 or 9,216,
/// the "about 9,000" of Zhang et al. (2016) and of the paper's §4.2.
const MOST_NUMBERS: i64 = 10_000;

/// A place in an encoder, and the numbers an image has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which features.
    pub layer: Layer,
    /// Channels C, or all numbers of a layer without places.
    pub channels: i64,
    /// Side g of the grid that a stage's maps are averaged to; 1 for a layer without places.
    pub grid: i64,
}

impl Place {
    /// The places of `layers` in `encoder` for square images of `image_size` pixels: for a stage the largest grid with
    /// C·g² ≤ 10,000, no larger than the maps.
    pub fn of(encoder: &Encoder, image_size: u32, layers: &[Layer]) -> Vec<Place> {
        let side = i64::from(image_size);
        let image = Tensor::zeros([1, 3, side, side], (Kind::Float, encoder.device()));
        let places = layers.iter().zip(encoder.features(&image, layers)).map(|(&layer, features)| {
            let size = features.size();
            let grid = match size[..] {
                [_, channels, height, width] => grid(channels).min(height).min(width),
                _ => 1,
            };
            Place { layer, channels: size[1], grid }
        });
        places.collect()
    }

    /// Numbers of an image, F.
    pub fn dim(&self) -> usize {
        (self.channels * self.grid * self.grid) as usize
    }

    /// Features as [`Encoder::features`] gives them, as f32 `[B, F]` on their device.
    pub fn rows(&self, features: &Tensor) -> Tensor {
        match features.dim() {
            4 => features.adaptive_avg_pool2d([self.grid, self.grid]).flatten(1, -1),
            _ => features.shallow_clone(),
        }
    }
}

/// The largest g, at least 1, with C·g² ≤ [`MOST_NUMBERS`].
fn grid(channels: i64) -> i64 {
    (1..).take_while(|g| channels * g * g <= MOST_NUMBERS).last().unwrap_or(1)
}

/// Features of the images `order` of `data` at each of `places`, test-time preprocessing, one pass; kept in memory or
/// in files in `folder`. `progress` hears how many images are done; its error ends the pass.
///
/// # Errors
/// An image that cannot be read, a file without room, and those of `progress`.
pub fn collect(
    encoder: &Encoder,
    data: &Dataset,
    order: &[u32],
    input: &Input,
    places: &[Place],
    folder: Option<&Path>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Cache>> {
    let mut caches =
        places.iter().map(|p| Cache::new(order.len(), p.dim(), folder)).collect::<Result<Vec<_>>>()?;
    each_row(encoder, data, order, input, places, progress, |at, rows| caches[at].push(rows))?;
    Ok(caches)
}

/// The moments of the features of the images `order` at each of `places`; nothing is kept. `progress` as for [`collect`].
///
/// # Errors
/// An image that cannot be read, and those of `progress`.
pub fn moments(
    encoder: &Encoder,
    data: &Dataset,
    order: &[u32],
    input: &Input,
    places: &[Place],
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Moments>> {
    let mut moments: Vec<_> = places.iter().map(|place| Moments::new(place.dim())).collect();
    each_row(encoder, data, order, input, places, progress, |at, rows| moments[at].add(rows))?;
    Ok(moments)
}

/// Hands `each` the number of a place and the rows `[B, F]` there, batch by batch.
fn each_row(
    encoder: &Encoder,
    data: &Dataset,
    order: &[u32],
    input: &Input,
    places: &[Place],
    progress: &mut dyn FnMut(usize) -> Result<()>,
    mut each: impl FnMut(usize, &[f32]),
) -> Result<()> {
    let layers: Vec<_> = places.iter().map(|place| place.layer).collect();
    let view = View::Test { transform: input.transform };
    let mut done = 0;
    each_batch(encoder, data, order.to_vec(), view, input, EVALUATION_BATCH, &layers, |batch, features| {
        for (at, (place, features)) in places.iter().zip(&features).enumerate() {
            each(at, &to_vec_f32(&place.rows(features)));
        }
        done += batch.indices.len();
        progress(done)
    })
}

/// Sums of rows, in f64, from which means and deviations come.
#[derive(Clone, Debug)]
pub struct Moments {
    rows: f64,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    /// Of no row yet, `dim` numbers each.
    pub fn new(dim: usize) -> Self {
        Moments { rows: 0.0, sums: vec![0.0; dim], squares: vec![0.0; dim] }
    }

    /// Numbers of a row, F.
    pub fn dim(&self) -> usize {
        self.sums.len()
    }

    /// Adds rows `[n, F]`, in order.
    pub fn add(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.sums.len()) {
            self.rows += 1.0;
            for ((sum, square), &x) in self.sums.iter_mut().zip(&mut self.squares).zip(row) {
                let x = f64::from(x);
                *sum += x;
                *square += x * x;
            }
        }
    }

    /// What makes the rows added so far have mean 0 and variance 1 in each number, as scikit-learn's `StandardScaler`
    /// does: a number that does not vary is only moved.
    pub fn standardiser(&self) -> Standardiser {
        let mean: Vec<f64> = self.sums.iter().map(|sum| sum / self.rows).collect();
        let scale = mean.iter().zip(&self.squares).map(|(mean, square)| {
            let variance = square / self.rows - mean * mean;
            // What rounding leaves of a constant's variance is no variance.
            if variance > 1e-12 * (mean * mean) + f64::MIN_POSITIVE { variance.sqrt().recip() } else { 1.0 }
        });
        Standardiser {
            scale: scale.map(|x| x as f32).collect(),
            mean: mean.into_iter().map(|x| x as f32).collect(),
        }
    }
}

/// `(x − mean)·scale` for each of F numbers.
#[derive(Clone, Debug)]
pub struct Standardiser {
    mean: Vec<f32>,
    scale: Vec<f32>,
}

impl Standardiser {
    /// Leaves `dim` numbers as they are.
    pub fn identity(dim: usize) -> Self {
        Standardiser { mean: vec![0.0; dim], scale: vec![1.0; dim] }
    }

    /// Standardises rows `[n, F]` in place.
    pub fn apply(&self, rows: &mut [f32]) {
        rows.par_chunks_exact_mut(self.mean.len()).for_each(|row| {
            for ((x, mean), scale) in row.iter_mut().zip(&self.mean).zip(&self.scale) {
                *x = (*x - mean) * scale;
            }
        });
    }

    /// Standardises rows `[n, F]` on their device.
    pub fn apply_to(&self, rows: &Tensor) -> Tensor {
        let upload = |values: &[f32]| Tensor::from_slice(values).to_device(rows.device());
        (rows - upload(&self.mean)) * upload(&self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Arch, EncoderConfig, Family};
    use tch::Device;

    #[test]
    fn the_published_networks_come_to_about_nine_thousand() {
        let numbers = |channels: i64| channels * grid(channels).pow(2);
        assert_eq!([64, 128, 256, 512].map(numbers), [9216, 8192, 9216, 8192]);
        assert_eq!([1024, 2048].map(numbers), [9216, 8192]);
        assert_eq!(grid(20_000), 1);
    }

    #[test]
    fn places_know_what_comes_of_them() {
        let config = EncoderConfig { width: 16, ..EncoderConfig::new(Arch::ResNet18, Family::Cifar) };
        let encoder = Encoder::new(config, 0, Device::Cpu);
        let layers = [Layer::Stage(1), Layer::Stage(4), Layer::Pooled, Layer::Embedding];
        let places = Place::of(&encoder, 32, &layers);
        assert_eq!(places.iter().map(|p| p.grid).collect::<Vec<_>>(), [25, 4, 1, 1]);
        let images = Tensor::ones([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        let features = encoder.features(&images, &layers);
        for (place, features) in places.iter().zip(&features) {
            assert_eq!(place.rows(features).size(), [2, place.dim() as i64]);
        }
        // Averaged to one place, a stage's maps are the pooled features.
        let all = Place { grid: 1, ..places[1] };
        assert!(all.rows(&features[1]).allclose(&features[2], 1e-5, 1e-6, false));
    }

    #[test]
    fn standardised_numbers_have_mean_zero_and_variance_one() {
        let mut rows: Vec<f32> =
            (0..60).map(|i| if i % 3 == 2 { 0.1 } else { (i * i % 17) as f32 }).collect();
        let mut moments = Moments::new(3);
        moments.add(&rows);
        let standardiser = moments.standardiser();
        let on_device = to_vec_f32(&standardiser.apply_to(&Tensor::from_slice(&rows).view([20, 3])));
        standardiser.apply(&mut rows);
        assert_eq!(rows, on_device);
        for d in 0..3 {
            let column = || rows.iter().skip(d).step_by(3).map(|&x| f64::from(x));
            let variance = column().map(|x| x * x).sum::<f64>() / 20.0;
            assert!(column().sum::<f64>().abs() < 1e-5);
            assert!((variance - if d == 2 { 0.0 } else { 1.0 }).abs() < 1e-5, "{variance}");
        }
    }
}
