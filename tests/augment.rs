//! Transforms with fixed parameters against what torchvision makes of PIL images (tests/fixtures/augment/make.py).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which prints the largest differences")]

use std::collections::BTreeMap;
use std::path::Path;

use image::RgbImage;
use lemniscate::data::augment::{AugmentParameters, ColorOp, Normalization, Scratch, TestTransform};
use lemniscate::data::resize::Crop;
use safetensors::SafeTensors;
use serde::Deserialize;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    op: String,
    input: String,
    output: String,
    factor: Option<f64>,
    crop: Option<[u32; 4]>,
    size: Option<u32>,
    resize_short: Option<u32>,
    steps: Option<Vec<(String, f64)>>,
    flip: Option<bool>,
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/augment").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn image(tensors: &SafeTensors, name: &str) -> RgbImage {
    let tensor = tensors.tensor(name).unwrap();
    let [height, width, 3] = tensor.shape() else { panic!("{name}: {:?}", tensor.shape()) };
    RgbImage::from_raw(*width as u32, *height as u32, tensor.data().to_vec()).unwrap()
}

fn color(op: &str, factor: f64) -> ColorOp {
    match op {
        "brightness" => ColorOp::Brightness(factor),
        "contrast" => ColorOp::Contrast(factor),
        "saturation" => ColorOp::Saturation(factor),
        "hue" => ColorOp::Hue(factor),
        "grayscale" => ColorOp::Grayscale,
        _ => panic!("unknown operation {op}"),
    }
}

fn run(case: &Case, input: &RgbImage, scratch: &mut Scratch) -> Vec<u8> {
    let view = |size: u32| vec![99; (size * size * 3) as usize];
    let parameters = |steps: &[(String, f64)], flip| {
        let [top, left, height, width] = case.crop.unwrap();
        let color = steps.iter().map(|(op, factor)| color(op, *factor)).collect();
        AugmentParameters { crop: Crop { top, left, height, width }, color, flip }
    };
    match case.op.as_str() {
        "resized_crop" => {
            let mut out = view(case.size.unwrap());
            parameters(&[], false).apply(input, case.size.unwrap(), scratch, &mut out);
            out
        }
        "pipeline" => {
            let mut out = view(case.size.unwrap());
            let drawn = parameters(case.steps.as_ref().unwrap(), case.flip.unwrap());
            drawn.apply(input, case.size.unwrap(), scratch, &mut out);
            out
        }
        "test" => {
            let transform =
                TestTransform { size: case.size.unwrap(), resize_short: case.resize_short.unwrap() };
            let mut out = view(transform.size);
            transform.apply(input, scratch, &mut out);
            out
        }
        "flip" => {
            // Views are square: the largest square at the top left of both, mirrored.
            let size = input.width();
            let square = RgbImage::from_fn(size, size, |x, y| *input.get_pixel(x, y.min(input.height() - 1)));
            let drawn = AugmentParameters { crop: Crop::whole(size, size), color: vec![], flip: true };
            let mut out = view(size);
            drawn.apply(&square, size, scratch, &mut out);
            out.truncate(input.as_raw().len());
            out
        }
        op => {
            let mut out = input.as_raw().clone();
            color(op, case.factor.unwrap_or(0.0)).apply(&mut out);
            out
        }
    }
}

#[test]
fn transforms_equal_torchvision_on_pil_images() {
    let pixels = fixture("pixels.safetensors");
    let tensors = SafeTensors::deserialize(&pixels).unwrap();
    let Cases { cases } = serde_json::from_slice(&fixture("cases.json")).unwrap();
    let mut scratch = Scratch::default();
    let mut largest = BTreeMap::<&str, (u8, usize, String)>::new();
    for case in &cases {
        let out = run(case, &image(&tensors, &case.input), &mut scratch);
        let expected = image(&tensors, &case.output);
        assert_eq!(out.len(), expected.as_raw().len(), "{}", case.output);
        let difference = out.iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        let entry = largest.entry(&case.op).or_default();
        entry.1 += 1;
        if difference > entry.0 {
            (entry.0, entry.2) = (difference, case.output.clone());
        }
    }
    for (op, (difference, count, worst)) in &largest {
        println!("{op:12} {count:3} cases, largest difference {difference} levels {worst}");
    }
    assert_eq!(largest.len(), 9, "all operations");
    assert!(largest.values().all(|(difference, ..)| *difference == 0), "{largest:?}");
}

#[test]
fn normalisation_equals_torchvision_bit_for_bit() {
    let pixels = fixture("pixels.safetensors");
    let tensors = SafeTensors::deserialize(&pixels).unwrap();
    for (name, normalization) in [("cifar", Normalization::cifar()), ("imagenet", Normalization::imagenet())]
    {
        let expected = tensors.tensor(&format!("normalize_{name}")).unwrap();
        let expected: Vec<u32> =
            expected.data().as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let levels: Vec<u8> = (0..=255).flat_map(|level| [level; 3]).collect();
        let mut out = vec![0.0; levels.len()];
        normalization.table().normalize_into(&levels, &mut out);
        for (i, value) in out.iter().enumerate() {
            assert_eq!(
                value.to_bits(),
                expected[i % 3 * 256 + i / 3],
                "{name}: level {}, channel {}",
                i / 3,
                i % 3
            );
        }
    }
}
