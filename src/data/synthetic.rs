//! The generated data set: labelled images of ten patterns, for the demo and the tests, without a download.
//!
//! `synthetic`, `synthetic:N` or `synthetic:NxSIZE`: N training images (2,000 unless given) and N/5 test images of
//! SIZE×SIZE pixels (32 unless given). The class of an image is the motif drawn on it (see [`CLASSES`]). What raw
//! pixels and an untrained encoder see first (colours, brightness, shading, place, scale, curvature) differs from
//! image to image and says nothing about the class; most of it is also what the training augmentation varies, so
//! that instance discrimination has the motif left to learn.
//!
//! An image is a function of (seed, split, index): nothing is stored and any number of threads may draw.

mod motif;
mod pattern;

use std::borrow::Cow;
use std::sync::Arc;

use image::RgbImage;

use super::{DataFormat, Dataset, ImageSource, Splits};
use crate::error::{Error, Result};
use crate::rng::{Purpose, stream};

/// The class names; a label is an index into them.
pub const CLASSES: [&str; 10] =
    ["discs", "rings", "triangles", "stars", "crosses", "bars", "stripes", "diagonals", "checks", "zigzags"];

/// Raised when the drawing changes, so that a run made with other images is not resumed on these.
const DRAWING_VERSION: u64 = 1;

const DEFAULT_COUNT: usize = 2_000;
const DEFAULT_SIZE: u32 = 32;
const COUNTS: std::ops::RangeInclusive<usize> = 10..=10_000_000;
const SIZES: std::ops::RangeInclusive<u32> = 8..=1_024;
/// Training images per test image.
const TRAIN_PER_TEST: usize = 5;

/// Which images of the generated set: a split's number is the counter of its random streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Images to train on.
    Train = 0,
    /// Other images of the same kind.
    Test = 1,
}

/// One split of the generated set: draws an image whenever it is asked for it.
#[derive(Clone, Debug)]
pub struct Synthetic {
    seed: u64,
    split: Split,
    count: usize,
    size: u32,
}

/// The label of image `index` of either split: classes take turns, so every prefix is balanced to within one image.
pub fn label(index: usize) -> u32 {
    (index % CLASSES.len()) as u32
}

/// Opens the set that `spec` describes (`synthetic`, `synthetic:N`, `synthetic:NxSIZE`), drawn from `seed`.
///
/// # Errors
/// If `spec` reads otherwise, N is outside 10..=10,000,000, or SIZE outside 8..=1,024.
pub fn open(spec: &str, seed: u64) -> Result<Splits> {
    let (count, size) = parse(spec)?;
    let split = |split, count| {
        let labels = (0..count).map(label).collect();
        let classes = CLASSES.map(String::from).to_vec();
        Dataset::labelled(
            DataFormat::Synthetic,
            Arc::new(Synthetic { seed, split, count, size }),
            labels,
            classes,
        )
    };
    Ok(Splits {
        train: split(Split::Train, count)?,
        test: Some(split(Split::Test, count / TRAIN_PER_TEST)?),
        format: DataFormat::Synthetic,
        root: spec.into(),
        notes: Vec::new(),
    })
}

fn parse(spec: &str) -> Result<(usize, u32)> {
    let refuse = |reason: String| Error::Usage {
        message: format!("{spec:?} is no generated data set: {reason}"),
        hint: Some(
            "synthetic:2000x32 has 2000 training images of 32×32 pixels; synthetic alone means the same"
                .into(),
        ),
    };
    let numbers = match spec.strip_prefix("synthetic") {
        Some("") => return Ok((DEFAULT_COUNT, DEFAULT_SIZE)),
        Some(rest) => rest.strip_prefix(':'),
        None => None,
    };
    let numbers =
        numbers.ok_or_else(|| refuse("it must read synthetic, synthetic:N or synthetic:NxSIZE".into()))?;
    let (count, size) = match numbers.split_once('x') {
        Some((count, size)) => (count, Some(size)),
        None => (numbers, None),
    };
    let count = bounded(count, &COUNTS)
        .ok_or_else(|| refuse(format!("the number of images must lie in {COUNTS:?}, not {count:?}")))?;
    let size = match size {
        None => DEFAULT_SIZE,
        Some(size) => bounded(size, &SIZES)
            .ok_or_else(|| refuse(format!("the size in pixels must lie in {SIZES:?}, not {size:?}")))?,
    };
    Ok((count, size))
}

/// A plain decimal number within `range`; no sign, as `parse` alone would allow.
fn bounded<T: std::str::FromStr + PartialOrd>(text: &str, range: &std::ops::RangeInclusive<T>) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number))
}

impl ImageSource for Synthetic {
    fn len(&self) -> usize {
        self.count
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        if index >= self.count {
            let reason = format!("there are only {} images", self.count);
            return Err(Error::Image { image: self.name(index).into_owned(), reason });
        }
        let mut rng = stream(self.seed, Purpose::Synthetic, self.split as u64, index as u64);
        Ok(pattern::draw(label(index), self.size, &mut rng))
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        let split = match self.split {
            Split::Train => "train",
            Split::Test => "test",
        };
        format!("{split}/{}#{index}", CLASSES[label(index) as usize]).into()
    }

    fn identify(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        for number in [DRAWING_VERSION, self.seed, self.split as u64, self.count as u64, u64::from(self.size)]
        {
            hasher.update(&number.to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(spec: &str, seed: u64) -> Dataset {
        open(spec, seed).unwrap().train
    }

    #[test]
    fn an_image_depends_on_seed_split_and_index_alone() {
        let splits = open("synthetic:100x16", 1).unwrap();
        let (first, test) = (splits.train, splits.test.unwrap());
        let image = |data: &Dataset, index| data.load(index).unwrap();
        // A larger set begins with the smaller one, and the order of drawing does not matter.
        let larger = train("synthetic:200x16", 1);
        for index in (0..20).rev() {
            assert_eq!(image(&first, index), image(&larger, index), "image {index}");
            assert_ne!(image(&first, index), image(&test, index), "image {index}");
            assert_ne!(image(&first, index), image(&train("synthetic:100x16", 2), index), "image {index}");
            assert_ne!(image(&first, index), image(&first, index + 10), "image {index}");
        }
    }

    /// Every platform and every later version must draw these bytes, or the figures in the documentation and the
    /// thresholds of the learning test are about other images. If they change on purpose, raise `DRAWING_VERSION`.
    #[test]
    fn the_drawing_is_the_same_everywhere() {
        let mut hasher = blake3::Hasher::new();
        for index in 0..40 {
            hasher.update(train("synthetic:100", 0).load(index).unwrap().as_raw());
        }
        assert_eq!(hasher.finalize().to_hex()[..16], *"ebc579d095f2dde2");
    }

    #[test]
    fn sizes_counts_and_classes_are_as_asked_for() {
        for (spec, count, size) in [
            ("synthetic", 2000, 32),
            ("synthetic:10", 10, 32),
            ("synthetic:57x8", 57, 8),
            ("synthetic:10x225", 10, 225),
        ] {
            let splits = open(spec, 0).unwrap();
            let test = splits.test.unwrap();
            assert_eq!((splits.train.len(), test.len()), (count, count / 5), "{spec}");
            for data in [&splits.train, &test] {
                let last = data.load(data.len() - 1).unwrap();
                assert_eq!(last.dimensions(), (size, size), "{spec}");
                assert!(data.load(data.len()).is_err());
                let mut per_class = [0; 10];
                data.labels().unwrap().iter().for_each(|&label| per_class[label as usize] += 1);
                assert!(per_class.iter().max().unwrap() - per_class.iter().min().unwrap() <= 1, "{spec}");
            }
        }
        assert_eq!(train("synthetic:100", 0).name(17), "train/diagonals#17");
    }

    #[test]
    fn nonsense_is_refused_as_usage() {
        for spec in [
            "",
            "synth",
            "synthetic:",
            "synthetic:x",
            "synthetic:x16",
            "synthetic:100x",
            "synthetic:100x16x3",
            "synthetic:9",
            "synthetic:0",
            "synthetic:-5",
            "synthetic:+100",
            "synthetic: 100",
            "synthetic:1e3",
            "synthetic:10000001",
            "synthetic:99999999999999999999999",
            "synthetic:100x7",
            "synthetic:100x1025",
            "synthetic:100x4294967328",
            "synthetic2000",
            "Synthetic",
            "/tmp/synthetic",
        ] {
            match open(spec, 0) {
                Err(error @ Error::Usage { .. }) => assert!(error.to_string().contains(&format!("{spec:?}"))),
                other => panic!("{spec:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_fingerprint_tells_seeds_sizes_and_splits_apart() {
        let mut prints: Vec<String> = Vec::new();
        for (spec, seed) in
            [("synthetic:50x16", 0), ("synthetic:50x16", 1), ("synthetic:50x17", 0), ("synthetic:51x16", 0)]
        {
            prints.push(train(spec, seed).fingerprint().unwrap());
        }
        // As many test images as training images above.
        prints.push(open("synthetic:250x16", 0).unwrap().test.unwrap().fingerprint().unwrap());
        assert_eq!(prints[0], train("synthetic:50x16", 0).fingerprint().unwrap());
        prints.sort();
        prints.dedup();
        assert_eq!(prints.len(), 5);
    }

    /// Accuracy of the majority among the 20 training images with the most similar pixels (cosine about mid-grey).
    fn raw_pixel_accuracy(spec: &str) -> f64 {
        let splits = open(spec, 0).unwrap();
        let vectors = |data: &Dataset| -> Vec<Vec<f32>> {
            (0..data.len())
                .map(|index| {
                    let image = data.load(index).unwrap();
                    let raw: Vec<f32> = image.as_raw().iter().map(|&byte| f32::from(byte) - 115.0).collect();
                    let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
                    raw.iter().map(|x| x / norm).collect()
                })
                .collect()
        };
        let (bank, queries) = (vectors(&splits.train), vectors(&splits.test.unwrap()));
        let mut correct = 0;
        for (index, query) in queries.iter().enumerate() {
            let mut ranked: Vec<(f32, u32)> = bank
                .iter()
                .enumerate()
                .map(|(row, vector)| (query.iter().zip(vector).map(|(a, b)| a * b).sum(), label(row)))
                .collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut votes = [0; 10];
            ranked[..20].iter().for_each(|&(_, label)| votes[label as usize] += 1);
            let winner = (0..10).max_by_key(|&class| votes[class]).unwrap();
            correct += usize::from(winner as u32 == label(index));
        }
        correct as f64 / queries.len() as f64
    }

    #[test]
    fn raw_pixels_do_poorly() {
        let accuracy = raw_pixel_accuracy("synthetic:1000x16");
        assert!((0.05..0.35).contains(&accuracy), "raw pixels reach {accuracy}");
    }
}
