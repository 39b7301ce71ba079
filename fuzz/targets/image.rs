//! An image file's bytes through everything that happens to them: decoded, turned upright, made views of.
#![no_main]

use lemniscate::data::augment::{AugmentParameters, Scratch, TestTransform, TrainTransform};
use lemniscate::data::decode::decode_within;
use lemniscate::rng::{Purpose, stream};
use libfuzzer_sys::fuzz_target;

/// In the place of the program's own bound, so that many images fit into a second. An allocation of a decoder that goes
/// far beyond it ends the run: `fuzz/run.sh` sets libFuzzer's own limit.
const MAX_ALLOC: u64 = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let Ok(image) = decode_within(data, "fuzz", MAX_ALLOC) else { return };
    assert!(image.width() > 0 && image.height() > 0);
    assert!(3 * u64::from(image.width()) * u64::from(image.height()) <= MAX_ALLOC);
    let (mut scratch, mut view) = (Scratch::default(), vec![0; 32 * 32 * 3]);
    for (number, transform) in [TrainTransform::cifar(32), TrainTransform::imagenet(32)].iter().enumerate() {
        let mut random = stream(data.len() as u64, Purpose::Test, number as u64, 0);
        let drawn = AugmentParameters::draw(transform, image.width(), image.height(), &mut random);
        drawn.apply(&image, 32, &mut scratch, &mut view);
    }
    TestTransform::cifar(32).apply(&image, &mut scratch, &mut view);
});
