use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use image::RgbImage;

use super::*;
use crate::data::augment::{Scratch, TestTransform, TrainTransform};

/// Small images whose pixels tell their index; some fail, panic or take their time.
#[derive(Default)]
struct Source {
    n: usize,
    broken: Vec<usize>,
    panics: Option<usize>,
    empty: Option<usize>,
    delay: Duration,
    /// Does not return before `released`.
    hangs: Option<usize>,
    released: AtomicBool,
    loaded: AtomicUsize,
}

impl ImageSource for Source {
    fn len(&self) -> usize {
        self.n
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        self.loaded.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        while Some(index) == self.hangs && !self.released.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Some(index) != self.panics, "as the test asks");
        if self.broken.contains(&index) {
            return Err(Error::Image { image: self.name(index).into_owned(), reason: "broken".into() });
        }
        if Some(index) == self.empty {
            return Ok(RgbImage::new(0, 3));
        }
        let bytes = (index as u32).to_le_bytes();
        let (width, height) = (4 + index as u32 % 3, 4 + index as u32 % 2);
        Ok(RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([bytes[0], bytes[1], ((x * 40 + y * 91) % 256) as u8])
        }))
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        format!("image {index}").into()
    }
}

fn source(n: usize) -> Source {
    Source { n, ..Source::default() }
}

fn plain() -> View {
    View::Test { transform: TestTransform::cifar(4) }
}

fn train(epoch: u64, purpose: Purpose) -> View {
    View::Train { transform: TrainTransform::imagenet(5), seed: 11, epoch, purpose }
}

fn all(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

fn loader(source: Source, view: View, order: Vec<u32>, batch_size: usize, workers: usize) -> Loader {
    Loader::new(
        Arc::new(source),
        view,
        order,
        batch_size,
        LoaderOptions { workers, prefetch: 2, ..LoaderOptions::default() },
    )
    .unwrap()
}

#[test]
fn every_index_comes_once_in_order_and_with_its_own_pixels() {
    for n in [0, 1, 2, 7, 64, 301] {
        for batch_size in [1, 3, 16, 64, 1000] {
            for workers in [1, 3] {
                let order = epoch_order(&all(n), 5, 1);
                let mut loader = loader(source(n), plain(), order.clone(), batch_size, workers);
                assert_eq!(loader.len(), n.div_ceil(batch_size));
                let mut seen = Vec::new();
                while let Some(batch) = loader.next() {
                    let batch = batch.unwrap();
                    assert!(
                        batch.indices.len() == batch_size || loader.len() == 0,
                        "a short batch is the last"
                    );
                    assert_eq!(batch.pixels.len(), batch.indices.len() * 4 * 4 * 3);
                    for (index, view) in batch.indices.iter().zip(batch.pixels.chunks_exact(48)) {
                        assert_eq!(view[..2], index.to_le_bytes()[..2]);
                    }
                    seen.extend_from_slice(&batch.indices);
                    loader.recycle(batch);
                }
                assert_eq!(seen, order, "{n} images, batches of {batch_size}, {workers} workers");
                assert_eq!(loader.statistics().samples, n as u64);
                assert!(loader.next().is_none());
            }
        }
    }
}

#[test]
fn the_number_of_workers_changes_no_byte() {
    let bytes = |workers, batch_size, view| -> Vec<u8> {
        let order = epoch_order(&all(101), 3, 0);
        loader(source(101), view, order, batch_size, workers)
            .flat_map(|batch| batch.unwrap().pixels)
            .collect()
    };
    let expected = bytes(1, 16, train(4, Purpose::Augmentation));
    for (workers, batch_size) in [(2, 16), (3, 16), (7, 16), (2, 5)] {
        assert_eq!(
            bytes(workers, batch_size, train(4, Purpose::Augmentation)),
            expected,
            "{workers} workers"
        );
    }
    assert_ne!(bytes(2, 16, train(5, Purpose::Augmentation)), expected, "another epoch");
    assert_ne!(bytes(2, 16, train(4, Purpose::SecondView)), expected, "the second view");
}

#[test]
fn a_batch_holds_what_its_view_makes_of_each_image() {
    let view = train(2, Purpose::Augmentation);
    let images = source(40);
    let mut scratch = Scratch::default();
    for batch in loader(source(40), view, epoch_order(&all(40), 9, 2), 7, 2) {
        let batch = batch.unwrap();
        for (&index, pixels) in batch.indices.iter().zip(batch.pixels.chunks_exact(75)) {
            let mut expected = vec![0; 75];
            view.apply(index, &images.load(index as usize).unwrap(), &mut scratch, &mut expected);
            assert_eq!(pixels, expected);
        }
    }
}

#[test]
fn the_rest_of_an_epoch_equals_its_end_and_decodes_nothing_else() {
    let order = epoch_order(&all(50), 7, 3);
    let view = train(3, Purpose::Augmentation);
    let whole: Vec<_> =
        loader(source(50), view, order.clone(), 8, 2).map(|batch| batch.unwrap().pixels).collect();
    let images = Arc::new(source(50));
    let options = LoaderOptions { workers: 2, prefetch: 2, ..LoaderOptions::default() };
    let rest = Loader::new(images.clone(), view, order[3 * 8..].to_vec(), 8, options).unwrap();
    let rest: Vec<_> = rest.map(|batch| batch.unwrap().pixels).collect();
    assert_eq!(rest, whole[3..]);
    assert_eq!(images.loaded.load(Ordering::Relaxed), 50 - 24);
}

#[test]
fn orders_are_permutations_of_the_given_indices_and_differ_by_seed_and_epoch() {
    let indices: Vec<u32> = (0..1000).filter(|index| index % 7 != 3).collect();
    let order = epoch_order(&indices, 1, 0);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, indices);
    assert_eq!(order, epoch_order(&indices, 1, 0));
    assert_ne!(order, epoch_order(&indices, 2, 0));
    assert_ne!(order, epoch_order(&indices, 1, 1));
    // All six orders of three are equally likely.
    let mut counts = std::collections::HashMap::<Vec<u32>, u32>::new();
    for epoch in 0..6000 {
        *counts.entry(epoch_order(&[4, 5, 6], 8, epoch)).or_default() += 1;
    }
    assert!(counts.len() == 6 && counts.values().all(|&count| (880..1120).contains(&count)), "{counts:?}");
}

#[test]
fn a_broken_image_is_an_error_in_its_batch_and_names_the_first() {
    for workers in [1, 2, 5] {
        let images = Source { broken: vec![21, 23, 30], empty: Some(41), ..source(50) };
        let mut loader = loader(images, plain(), all(50), 10, workers);
        for (number, error) in
            [None, None, Some("image 21: broken"), Some("image 30: broken"), Some("no pixels")]
                .into_iter()
                .enumerate()
        {
            let batch = loader.next().unwrap();
            match (batch, error) {
                (Ok(batch), None) => assert_eq!(batch.indices[0], number as u32 * 10),
                (Err(found), Some(expected)) => assert!(found.to_string().contains(expected), "{found}"),
                (batch, _) => panic!("batch {number}: {batch:?}"),
            }
        }
        assert!(loader.next().is_none());
    }
}

#[test]
fn a_panic_is_an_error_and_never_a_short_epoch() {
    for workers in [1, 3] {
        let images = Source { panics: Some(13), ..source(40) };
        let batches: Vec<_> = loader(images, plain(), all(40), 10, workers).collect();
        assert_eq!(batches.len(), 4);
        for (number, batch) in batches.iter().enumerate() {
            match batch {
                Err(Error::Worker { .. }) => assert_eq!(number, 1),
                Ok(batch) => assert_eq!(batch.indices[0], number as u32 * 10),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn dropping_a_loader_midway_stops_its_workers() {
    let images = Arc::new(Source { delay: Duration::from_millis(5), ..source(10_000) });
    let options = LoaderOptions { workers: 3, prefetch: 2, ..LoaderOptions::default() };
    let start = Instant::now();
    let mut loader = Loader::new(images.clone(), plain(), all(10_000), 100, options).unwrap();
    assert!(loader.next().unwrap().is_ok());
    drop(loader);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(Arc::strong_count(&images), 1, "no thread holds the source any longer");
    // And one that never gave a batch, whose workers all wait for room.
    let full = Loader::new(Arc::new(source(500)), plain(), all(500), 10, options).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    drop(full);
}

#[test]
fn workers_stay_within_the_prefetch() {
    let images = Arc::new(source(500));
    let options = LoaderOptions { workers: 2, prefetch: 3, ..LoaderOptions::default() };
    let mut loader = Loader::new(images.clone(), plain(), all(500), 10, options).unwrap();
    let first = loader.next().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let loaded = images.loaded.load(Ordering::Relaxed);
    assert!(loaded <= 40, "{loaded} images decoded with one batch taken");
    // One of the next batches that are begun lives in the recycled memory.
    let address = first.pixels.as_ptr();
    loader.recycle(first);
    let later: Vec<_> = (0..5).map(|_| loader.next().unwrap().unwrap()).collect();
    assert!(later.iter().any(|batch| batch.pixels.as_ptr() == address));
}

#[test]
fn an_image_whose_file_system_hangs_is_an_error_that_names_it() {
    let images = Arc::new(Source { hangs: Some(13), ..source(40) });
    let options = LoaderOptions { workers: 2, prefetch: 3, read_timeout: Duration::from_millis(60) };
    let start = Instant::now();
    let mut loader = Loader::new(images.clone(), plain(), all(40), 10, options).unwrap();
    assert_eq!(loader.next().unwrap().unwrap().indices[0], 0);
    let error = loader.next().unwrap().unwrap_err();
    assert!(matches!(&error, Error::Slow { image, .. } if image == "image 13"), "{error}");
    assert!(loader.next().is_none());
    drop(loader);
    assert!(start.elapsed() < Duration::from_secs(10), "the one that hangs was waited for");
    // It ends some time; what it brings is for nobody.
    images.released.store(true, Ordering::Relaxed);
    while Arc::strong_count(&images) > 1 {
        assert!(start.elapsed() < Duration::from_secs(20), "a thread is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn slow_images_are_waited_for() {
    let images = Source { delay: Duration::from_millis(15), ..source(12) };
    let options = LoaderOptions { workers: 1, prefetch: 1, read_timeout: Duration::from_millis(100) };
    // Each batch takes longer than one image may.
    let mut loader = Loader::new(Arc::new(images), plain(), all(12), 12, options).unwrap();
    assert!(loader.all(|batch| batch.is_ok()));
}

#[test]
fn time_spent_is_accounted_for() {
    let images = Source { delay: Duration::from_millis(4), ..source(10) };
    let mut loader = loader(images, plain(), all(10), 10, 2);
    assert!(loader.next().unwrap().is_ok());
    let LoaderStatistics { samples, decode, augment, wait, last_wait } = loader.statistics();
    assert_eq!(samples, 10);
    assert!(decode >= Duration::from_millis(40) && augment < decode, "{decode:?} {augment:?}");
    assert!(wait == last_wait && wait >= Duration::from_millis(15), "{wait:?}");
}

#[test]
fn impossible_requests_are_refused() {
    let refuse = |order, batch_size| {
        let error = Loader::new(Arc::new(source(4)), plain(), order, batch_size, LoaderOptions::default());
        error.err().map(|error| error.to_string()).unwrap()
    };
    assert!(refuse(vec![0, 4], 2).contains("image 4"));
    assert!(refuse(vec![0], 0).contains("batch size"));
}
