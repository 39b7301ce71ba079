//! Images per second that one core decodes and augments; benches/loader.py is torchvision's side.
//!
//! ```text
//! cargo bench --bench loader -- DIR|PACKED [--size 224] [--seconds 5] [--limit 1000]
//! ```
//! Takes the images of DIR, or the training images of a packed file, in a fixed random order, each by its training view and normalised, on one thread;
//! prints one JSON object with the milliseconds that each part takes for an image.
#![allow(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;
use lemniscate::data::augment::{Normalization, Scratch, TrainTransform};
use lemniscate::data::decode::decode_file;
use lemniscate::data::loader::{View, epoch_order};
use lemniscate::data::{DataFormat, ImageSource, OpenOptions};
use lemniscate::error::{Error, Result};
use lemniscate::rng::Purpose;

/// The image files below a folder.
struct Files {
    paths: Vec<PathBuf>,
}

impl Files {
    fn find(folder: &Path) -> Self {
        let is_image = |path: &Path| {
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            ["jpg", "jpeg", "png", "webp", "bmp"].contains(&extension.to_lowercase().as_str())
        };
        let files =
            walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().filter_map(|entry| entry.ok());
        Files { paths: files.map(|entry| entry.into_path()).filter(|path| is_image(path)).collect() }
    }
}

impl ImageSource for Files {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        decode_file(&self.paths[index])
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        self.paths[index].to_string_lossy()
    }
}

fn main() -> Result<()> {
    let usage = || Error::usage("usage: loader DIR|PACKED [--size 224] [--seconds 5] [--limit 1000]");
    let (mut folder, mut size, mut seconds, mut limit) = (None, 224u32, 5.0f64, 1000usize);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<f64>().ok()).ok_or_else(usage);
        match argument.as_str() {
            "--size" => size = number()? as u32,
            "--seconds" => seconds = number()?,
            "--limit" => limit = number()? as usize,
            // Cargo says this to every bench.
            "--bench" => {}
            _ if folder.is_none() => folder = Some(PathBuf::from(argument)),
            _ => return Err(usage()),
        }
    }
    let path = folder.ok_or_else(usage)?;
    let source: Arc<dyn ImageSource> = if path.is_dir() {
        Arc::new(Files::find(&path))
    } else {
        let packed = lemniscate::data::open(&path, Some(DataFormat::Packed), &OpenOptions::default())?;
        Arc::clone(packed.train.source())
    };
    let all: Vec<u32> = (0..source.len() as u32).collect();
    let mut order = epoch_order(&all, 1, 0);
    order.truncate(limit);
    if order.is_empty() {
        return Err(Error::usage("no images there"));
    }

    let (transform, normalization) = if size <= 64 {
        (TrainTransform::cifar(size), Normalization::cifar())
    } else {
        (TrainTransform::imagenet(size), Normalization::imagenet())
    };
    let table = normalization.table();
    let mut scratch = Scratch::default();
    let mut pixels = vec![0; size as usize * size as usize * 3];
    let mut values = vec![0.0; pixels.len()];
    let (mut images, mut decode, mut augment, mut tensor) =
        (0u64, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    // The first pass brings the files into memory and is not measured.
    for &index in &order {
        source.load(index as usize)?;
    }
    let start = Instant::now();
    let budget = Duration::from_secs_f64(seconds);
    'passes: for epoch in 0.. {
        let view = View::Train { transform, seed: 1, epoch, purpose: Purpose::Augmentation };
        for &index in &order {
            let begin = Instant::now();
            let image = source.load(index as usize)?;
            let decoded = Instant::now();
            view.apply(index, &image, &mut scratch, &mut pixels);
            let augmented = Instant::now();
            table.normalize_into(&pixels, &mut values);
            std::hint::black_box(&values);
            tensor += augmented.elapsed();
            augment += augmented - decoded;
            decode += decoded - begin;
            images += 1;
            if start.elapsed() >= budget {
                break 'passes;
            }
        }
    }
    let ms = |time: Duration| time.as_secs_f64() * 1e3 / images as f64;
    let report = serde_json::json!({
        "program": "lemniscate",
        "size": size,
        "files": order.len(),
        "images": images,
        "decode_ms": ms(decode),
        "augment_ms": ms(augment),
        "tensor_ms": ms(tensor),
        "images_per_s": images as f64 / start.elapsed().as_secs_f64(),
    });
    println!("{report}");
    Ok(())
}
