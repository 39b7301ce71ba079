//! The random decisions of one training view, apart from what they do to pixels.
//!
//! Uniform numbers are made here from the generator's words, not by a library's distributions: an update of a
//! dependency must not change what a seed means.

use rand::Rng;

use super::{ColorOp, ColorOrder, Jitter, TrainTransform};
use crate::data::resize::Crop;

/// Everything that was drawn for one view of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct AugmentParameters {
    /// What is cut out and resized.
    pub crop: Crop,
    /// Colour operations, in the order in which they are applied.
    pub color: Vec<ColorOp>,
    /// Whether left and right are exchanged, last of all.
    pub flip: bool,
}

impl AugmentParameters {
    /// Draws the parameters for an image of this size: crop, then colour in the transform's order, then flip.
    pub fn draw(transform: &TrainTransform, width: u32, height: u32, rng: &mut impl Rng) -> Self {
        let crop = draw_crop(transform.scale, transform.ratio, width, height, rng);
        let mut color = Vec::with_capacity(5);
        let grayscale = |color: &mut Vec<ColorOp>, rng: &mut _| {
            if unit(rng) < transform.grayscale {
                color.push(ColorOp::Grayscale);
            }
        };
        match transform.order {
            ColorOrder::GrayscaleFirst => {
                grayscale(&mut color, rng);
                draw_jitter(&transform.jitter, &mut color, rng);
            }
            ColorOrder::JitterFirst => {
                draw_jitter(&transform.jitter, &mut color, rng);
                grayscale(&mut color, rng);
            }
        }
        let flip = unit(rng) < transform.flip;
        AugmentParameters { crop, color, flip }
    }
}

/// Uniform in [0, 1): the 53 upper bits of a word.
pub(crate) fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform in 0..`n`: the upper half of a word times `n` (the bias, n·2⁻⁶⁴, is beyond any experiment).
pub(crate) fn below(rng: &mut impl Rng, n: u32) -> u32 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u32
}

fn uniform((low, high): (f64, f64), rng: &mut impl Rng) -> f64 {
    low + (high - low) * unit(rng)
}

/// torchvision's `RandomResizedCrop.get_params`: a uniform share of the area, a log-uniform ratio (width to
/// height), a uniform place; after ten that do not fit, the largest central crop within the ratio's bounds.
fn draw_crop(scale: (f64, f64), ratio: (f64, f64), width: u32, height: u32, rng: &mut impl Rng) -> Crop {
    let area = f64::from(width) * f64::from(height);
    let log_ratio = (ratio.0.ln(), ratio.1.ln());
    for _ in 0..10 {
        let target = area * uniform(scale, rng);
        let aspect = uniform(log_ratio, rng).exp();
        let crop_width = (target * aspect).sqrt().round_ties_even();
        let crop_height = (target / aspect).sqrt().round_ties_even();
        let fits = |extent: f64, limit: u32| extent > 0.0 && extent <= f64::from(limit);
        if fits(crop_width, width) && fits(crop_height, height) {
            let (crop_width, crop_height) = (crop_width as u32, crop_height as u32);
            let top = below(rng, height - crop_height + 1);
            let left = below(rng, width - crop_width + 1);
            return Crop { top, left, height: crop_height, width: crop_width };
        }
    }
    let image_ratio = f64::from(width) / f64::from(height);
    // At least one pixel, where torchvision would round a sliver's side to none.
    let side = |exact: f64, limit: u32| (exact.round_ties_even() as u32).clamp(1, limit);
    let (crop_width, crop_height) = if image_ratio < ratio.0 {
        (width, side(f64::from(width) / ratio.0, height))
    } else if image_ratio > ratio.1 {
        (side(f64::from(height) * ratio.1, width), height)
    } else {
        (width, height)
    };
    Crop {
        top: (height - crop_height) / 2,
        left: (width - crop_width) / 2,
        height: crop_height,
        width: crop_width,
    }
}

/// torchvision's `ColorJitter.get_params`: an order for the four, then a factor for each that is in use.
fn draw_jitter(jitter: &Jitter, color: &mut Vec<ColorOp>, rng: &mut impl Rng) {
    let mut order = [0, 1, 2, 3];
    for last in (1..order.len()).rev() {
        order.swap(last, below(rng, last as u32 + 1) as usize);
    }
    let mut factor =
        |spread: f64| (spread > 0.0).then(|| uniform(((1.0 - spread).max(0.0), 1.0 + spread), rng));
    let brightness = factor(jitter.brightness).map(ColorOp::Brightness);
    let contrast = factor(jitter.contrast).map(ColorOp::Contrast);
    let saturation = factor(jitter.saturation).map(ColorOp::Saturation);
    let hue = (jitter.hue > 0.0).then(|| ColorOp::Hue(uniform((-jitter.hue, jitter.hue), rng)));
    let ops = [brightness, contrast, saturation, hue];
    color.extend(order.into_iter().filter_map(|op| ops[op]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, stream};

    fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
        let n = values.len() as f64;
        values.sum::<f64>() / n
    }

    #[test]
    fn crops_keep_within_area_and_ratio_and_cover_them_evenly() {
        let transform = TrainTransform::imagenet(224);
        let (width, height) = (500, 500);
        let mut rng = stream(1, Purpose::Test, 0, 0);
        let crops: Vec<Crop> =
            (0..20_000).map(|_| AugmentParameters::draw(&transform, width, height, &mut rng).crop).collect();
        let area = |crop: &Crop| f64::from(crop.width * crop.height) / f64::from(width * height);
        let ratio = |crop: &Crop| f64::from(crop.width) / f64::from(crop.height);
        for crop in &crops {
            assert!(crop.top + crop.height <= height && crop.left + crop.width <= width, "{crop:?}");
            assert!((0.198..=1.0).contains(&area(crop)), "{crop:?}");
            assert!((0.745..=1.342).contains(&ratio(crop)), "{crop:?}");
        }
        // The ratio's distribution is symmetric on a log scale; of large areas only the nearly square ones fit,
        // and rejection leaves a mean share of 0.56 (by the oracle below).
        let log_ratio = mean(crops.iter().map(|crop| ratio(crop).ln()));
        assert!(log_ratio.abs() < 0.005, "{log_ratio}");
        let spread = mean(crops.iter().map(|crop| ratio(crop).ln().powi(2))).sqrt();
        let share = mean(crops.iter().map(area));
        let (expected_share, expected_spread) = expectation();
        assert!((share - expected_share).abs() < 0.005, "{share}, not {expected_share}");
        assert!((spread - expected_spread).abs() < 0.003, "{spread}, not {expected_spread}");
        // Places are uniform: on average in the middle.
        let middle = mean(crops.iter().map(|crop| f64::from(crop.left) + f64::from(crop.width) / 2.0));
        assert!((middle - 250.0).abs() < 1.5, "{middle}");
    }

    /// Mean area share and root mean square log ratio of a square image's crops, by integrating over a grid of
    /// all draws that fit (the chance of ten misses is negligible).
    fn expectation() -> (f64, f64) {
        let (mut n, mut share, mut square) = (0.0, 0.0, 0.0);
        let widest = (4.0f64 / 3.0).ln();
        for i in 0..1000 {
            for j in 0..1000 {
                let area = 0.2 + 0.8 * (f64::from(i) + 0.5) / 1000.0;
                let log_ratio = widest * (2.0 * (f64::from(j) + 0.5) / 1000.0 - 1.0);
                if area * log_ratio.abs().exp() <= 1.0 {
                    n += 1.0;
                    share += area;
                    square += log_ratio * log_ratio;
                }
            }
        }
        (share / n, (square / n).sqrt())
    }

    #[test]
    fn images_that_no_crop_fits_get_the_central_one() {
        let transform = TrainTransform::imagenet(224);
        let mut rng = stream(2, Purpose::Test, 0, 0);
        let mut crop = |width, height| AugmentParameters::draw(&transform, width, height, &mut rng).crop;
        assert_eq!(crop(1000, 30), Crop { top: 0, left: 480, height: 30, width: 40 });
        assert_eq!(crop(30, 1000), Crop { top: 480, left: 0, height: 40, width: 30 });
        assert_eq!(crop(1, 4000), Crop { top: 1999, left: 0, height: 1, width: 1 });
        assert_eq!(crop(1, 1), Crop { top: 0, left: 0, height: 1, width: 1 });
    }

    #[test]
    fn a_full_scale_and_unit_ratio_draw_the_identity_crop() {
        let transform = TrainTransform { scale: (1.0, 1.0), ratio: (1.0, 1.0), ..TrainTransform::cifar(32) };
        let mut rng = stream(3, Purpose::Test, 0, 0);
        for _ in 0..100 {
            let drawn = AugmentParameters::draw(&transform, 32, 32, &mut rng);
            assert_eq!(drawn.crop, Crop::whole(32, 32));
        }
    }

    #[test]
    fn colors_follow_their_probabilities_ranges_and_orders() {
        let mut rng = stream(4, Purpose::Test, 0, 0);
        let n = 24_000;
        for (transform, flips) in [(TrainTransform::imagenet(64), 0.5), (TrainTransform::cifar(32), 0.0)] {
            let mut orders = std::collections::HashMap::<String, u32>::new();
            let (mut grey, mut flipped, mut hue, mut brightness) = (0, 0, 0.0, 0.0);
            for _ in 0..n {
                let AugmentParameters { mut color, flip, .. } =
                    AugmentParameters::draw(&transform, 64, 64, &mut rng);
                let place = color.iter().position(|&op| op == ColorOp::Grayscale);
                if let Some(place) = place {
                    let expected = if transform.order == ColorOrder::GrayscaleFirst { 0 } else { 4 };
                    assert_eq!(place, expected);
                    color.remove(place);
                    grey += 1;
                }
                flipped += u32::from(flip);
                let letters = color.iter().map(|op| match *op {
                    ColorOp::Brightness(factor) => {
                        assert!((0.6..=1.4).contains(&factor));
                        brightness += factor / f64::from(n);
                        'b'
                    }
                    ColorOp::Contrast(factor) => {
                        assert!((0.6..=1.4).contains(&factor));
                        'c'
                    }
                    ColorOp::Saturation(factor) => {
                        assert!((0.6..=1.4).contains(&factor));
                        's'
                    }
                    ColorOp::Hue(factor) => {
                        assert!((-0.4..=0.4).contains(&factor));
                        hue += factor / f64::from(n);
                        'h'
                    }
                    ColorOp::Grayscale => unreachable!("removed above"),
                });
                *orders.entry(letters.collect()).or_default() += 1;
            }
            let share = |count: u32| f64::from(count) / f64::from(n);
            assert!((share(grey) - 0.2).abs() < 0.01, "{grey}");
            assert!((share(flipped) - flips).abs() < 0.015, "{flipped}");
            assert!(hue.abs() < 0.006 && (brightness - 1.0).abs() < 0.006, "{hue} {brightness}");
            assert_eq!(orders.len(), 24);
            assert!(orders.values().all(|&count| (850..1150).contains(&count)), "{orders:?}");
        }
    }

    #[test]
    fn jitter_of_nothing_draws_nothing() {
        let none = Jitter { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };
        let transform = TrainTransform { jitter: none, grayscale: 0.0, ..TrainTransform::cifar(32) };
        let drawn = AugmentParameters::draw(&transform, 32, 32, &mut stream(5, Purpose::Test, 0, 0));
        assert_eq!(drawn.color, []);
    }
}
