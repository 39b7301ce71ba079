//! Exported models on onnxruntime, beside the encoder. Needs a Python that has onnx, onnxruntime and numpy, named by
//! `LEMNISCATE_ONNX_PYTHON`; without it this says that it skips. The unit tests beside the exporter always run.

// Helpers of tests may fail as tests do, and the differences are there to be read (`--nocapture`).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use lemniscate::data::augment::Normalization;
use lemniscate::interop::npy;
use lemniscate::interop::onnx::{OnnxOptions, encode};
use lemniscate::model::{Arch, Encoder, EncoderConfig, Family, Head, Layer, from_slice_nhwc, to_vec_f32};
use lemniscate::rng::{Purpose, stream};
use rand::RngExt;
use tch::{Device, Tensor, no_grad};

/// An encoder whose BatchNorms and biases all do something.
fn encoder(config: EncoderConfig) -> Encoder {
    let encoder = Encoder::new(config, 1, Device::Cpu);
    let mut generator = stream(0, Purpose::Test, 1, 0);
    // Such that images matter beside biases however deep the network is: the CIFAR family starts with smaller kernels.
    let gain = if config.family == Family::Cifar { 1.0..3.0 } else { 0.4..1.2 };
    for entry in encoder.parameters().state().filter(|entry| entry.tensor.dim() == 1) {
        let range = match entry.name.as_str() {
            // Around BatchNorm's epsilon, which would not show beside larger ones.
            "bn1.running_var" => 1e-6..1e-4,
            "bn1.weight" => 1e-3..1e-2,
            name if name.ends_with("running_var") => 0.5..2.0,
            name if name.ends_with("weight") => gain.clone(),
            _ => -0.2..0.2,
        };
        let values: Vec<f32> =
            (0..entry.tensor.numel()).map(|_| generator.random_range(range.clone())).collect();
        no_grad(|| entry.tensor.shallow_clone().copy_(&Tensor::from_slice(&values)));
    }
    encoder
}

/// Pixels in 0..1, each image of another brightness.
fn pixels(batch: usize, height: usize, width: usize) -> Tensor {
    let mut generator = stream(0, Purpose::Test, 2, 0);
    let size = height * width * 3;
    let pixels: Vec<f32> = (0..batch * size)
        .map(|i| generator.random_range(0.0..(1 + i / size) as f32 / batch as f32))
        .collect();
    from_slice_nhwc(&pixels, [batch, height, width])
}

fn save(path: &Path, tensor: &Tensor) {
    let shape: Vec<usize> = tensor.size().into_iter().map(|size| size as usize).collect();
    npy::write(&mut File::create(path).unwrap(), &shape, &to_vec_f32(tensor)).unwrap();
}

/// The interpreter to test with, if there is one.
fn python() -> Option<OsString> {
    let python = std::env::var_os("LEMNISCATE_ONNX_PYTHON").filter(|python| !python.is_empty());
    if python.is_none() {
        eprintln!("skipped: LEMNISCATE_ONNX_PYTHON names no Python that has onnx, onnxruntime and numpy");
    }
    python
}

/// Exports `encoder` and compares on batches of those `[batch, height, width]`.
fn check(
    python: &OsStr,
    name: &str,
    encoder: &Encoder,
    normalization: Option<Normalization>,
    sizes: &[[usize; 3]],
) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    let options = OnnxOptions { normalization, image_size: Some(sizes[0][1]) };
    fs::write(&model, encode(encoder, &options).unwrap()).unwrap();
    let folders: Vec<PathBuf> = (0..sizes.len()).map(|case| folder.path().join(case.to_string())).collect();
    for (folder, &[batch, height, width]) in folders.iter().zip(sizes) {
        fs::create_dir(folder).unwrap();
        let pixels = pixels(batch, height, width);
        let normalized = match normalization {
            Some(Normalization { mean, std }) => {
                let channels = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
                (&pixels - channels(mean)) / channels(std)
            }
            None => pixels.shallow_clone(),
        };
        save(&folder.join("images.npy"), &pixels);
        let features = encoder.features(&normalized, &[Layer::Embedding, Layer::Pooled]);
        save(&folder.join("embedding.npy"), &features[0]);
        save(&folder.join("pooled.npy"), &features[1]);
    }
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx_check.py"))
        .arg(&model)
        .args(&folders)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    eprintln!("{name}\n{}", text(&output.stdout));
    assert!(output.status.success(), "{name}:\n{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn published_networks_agree_on_onnxruntime() {
    let Some(python) = python() else { return };
    let large: &[_] = &[[1, 224, 224], [3, 224, 224], [2, 160, 192]];
    let small: &[_] = &[[1, 32, 32], [3, 32, 32], [2, 40, 24]];
    for arch in [Arch::ResNet18, Arch::ResNet50] {
        for (family, sizes) in [(Family::ImageNet, large), (Family::Cifar, small)] {
            let encoder = encoder(EncoderConfig::new(arch, family));
            check(&python, &format!("{arch}, {family}"), &encoder, None, sizes);
        }
    }
}

#[test]
fn variants_agree_on_onnxruntime() {
    let Some(python) = python() else { return };
    let sizes = &[[1, 32, 32], [3, 32, 32]];
    let normalization = Some(Normalization::cifar());
    let config = EncoderConfig::new(Arch::ResNet18, Family::Cifar);
    check(&python, "normalisation inside", &encoder(config), normalization, sizes);

    let headless = EncoderConfig { embed_dim: config.pooled_dim(), head: Head::None, ..config };
    check(&python, "no head", &encoder(headless), None, sizes);

    let zero = encoder(config);
    for name in ["linear.weight", "linear.bias"] {
        no_grad(|| _ = zero.parameters().get(name).unwrap().shallow_clone().zero_());
    }
    check(&python, "zero vectors", &zero, normalization, sizes);
}
