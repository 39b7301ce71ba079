//! Images per second that one core decodes and augments; benches/loader.py is torchvision's side.
//!
//! ```text
//! cargo bench --bench loader -- DIR|PACKED [--size 224] [--seconds 5] [--limit 1000] [--whole]
//! ```
//! Takes the images of DIR, or the training images of a packed file, in a fixed random order, each by its training view
//! and normalised, on one thread; prints one JSON object with the milliseconds that each part takes for an image. What is
//! timed are the later epochs of a run, which decode files only as far down as their crops reach; `--whole` times its
//! first one, which decodes them whole.
#![allow(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;
use lemniscate::data::augment::{Normalization, Scratch, TrainTransform};
use lemniscate::data::files::FileList;
use lemniscate::data::loader::{View, epoch_order};
use lemniscate::data::{DataFormat, ImageSource, OpenOptions};
use lemniscate::error::{Error, Result};
use lemniscate::rng::Purpose;

/// The image files below `folder`.
fn files(folder: &Path) -> Result<FileList> {
    let is_image = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        ["jpg", "jpeg", "png", "webp", "bmp"].contains(&extension.to_lowercase().as_str())
    };
    let mut list = FileList::new(folder);
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().filter_map(|entry| entry.ok())
    {
        if let Ok(relative) = entry.path().strip_prefix(folder)
            && is_image(relative)
        {
            list.push(relative.as_os_str().as_bytes())?;
        }
    }
    Ok(list)
}

/// A source whose images are always decoded whole.
struct Whole(Arc<dyn ImageSource>);

impl ImageSource for Whole {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        self.0.load(index)
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        self.0.name(index)
    }
}

fn main() -> Result<()> {
    let usage =
        || Error::usage("usage: loader DIR|PACKED [--size 224] [--seconds 5] [--limit 1000] [--whole]");
    let (mut folder, mut size, mut seconds, mut limit) = (None, 224u32, 5.0f64, 1000usize);
    let mut whole = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<f64>().ok()).ok_or_else(usage);
        match argument.as_str() {
            "--size" => size = number()? as u32,
            "--seconds" => seconds = number()?,
            "--limit" => limit = number()? as usize,
            "--whole" => whole = true,
            // Cargo says this to every bench.
            "--bench" => {}
            _ if folder.is_none() => folder = Some(PathBuf::from(argument)),
            _ => return Err(usage()),
        }
    }
    let path = folder.ok_or_else(usage)?;
    let mut source: Arc<dyn ImageSource> = if path.is_dir() {
        Arc::new(files(&path)?)
    } else {
        let packed = lemniscate::data::open(&path, Some(DataFormat::Packed), &OpenOptions::default())?;
        Arc::clone(packed.train.source())
    };
    if whole {
        source = Arc::new(Whole(source));
    }
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
        source.load_rows(index as usize, &mut |_, height| height)?;
    }
    let start = Instant::now();
    let budget = Duration::from_secs_f64(seconds);
    'passes: for epoch in 0.. {
        let view = View::Train { transform, seed: 1, epoch, purpose: Purpose::Augmentation };
        for &index in &order {
            let cost = view.make(source.as_ref(), index, &mut scratch, &mut pixels)?;
            let augmented = Instant::now();
            table.normalize_into(&pixels, &mut values);
            std::hint::black_box(&values);
            tensor += augmented.elapsed();
            augment += cost.augment;
            decode += cost.decode;
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
