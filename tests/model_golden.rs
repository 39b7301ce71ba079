//! The encoder and its optimiser against PyTorch; `fixtures/model/make.py` wrote what is compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lemniscate::model::{
    Arch, Encoder, EncoderConfig, Family, Layer, Mode, Role, from_slice_nhwc, to_vec_f32,
};
use lemniscate::optim::Sgd;
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/model").join(name)
}

/// A fixture's tensors by name.
struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    fn open(name: &str) -> Self {
        let bytes = std::fs::read(path(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |view: &safetensors::tensor::TensorView| {
            let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::I64 => Kind::Int64,
                Dtype::U8 => Kind::Uint8,
                other => panic!("{other:?}"),
            };
            Tensor::from_data_size(view.data(), &shape, kind)
        };
        Fixture(file.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect())
    }

    fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("the fixture has no {name}"))
    }

    fn group(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        self.0
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone())))
            .collect()
    }

    fn images(&self) -> Tensor {
        let pixels = self.get("pixels");
        let [batch, height, width, _] = <[i64; 4]>::try_from(pixels.size()).unwrap().map(|n| n as usize);
        let values: Vec<f32> =
            to_vec_f32(pixels).into_iter().map(|level| (level / 255.0 - 0.5) / 0.25).collect();
        from_slice_nhwc(&values, [batch, height, width])
    }
}

/// The largest difference as a share of the largest expected value.
fn difference(ours: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(ours.size(), expected.size());
    let expected = expected.to_kind(Kind::Double);
    let largest = expected.abs().max().double_value(&[]).max(1e-30);
    (ours.detach().to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / largest
}

/// The worst of many differences, with its name.
#[derive(Default)]
struct Worst(f64, String);

impl Worst {
    fn see(&mut self, name: &str, ours: &Tensor, expected: &Tensor) {
        let difference = difference(ours, expected);
        assert!(difference.is_finite(), "{name}");
        if difference >= self.0 {
            *self = Worst(difference, name.to_owned());
        }
    }

    fn expect(&self, what: &str, limit: f64) {
        eprintln!("{what}: largest relative difference {:.1e} ({})", self.0, self.1);
        assert!(self.0 <= limit, "{what}: {:.1e} at {}, limit {limit:.1e}", self.0, self.1);
    }
}

fn config(arch: Arch, family: Family, width: i64) -> EncoderConfig {
    EncoderConfig { arch, family, embed_dim: 8, width }
}

/// Loads the state, and compares one pass in training, its gradients and buffers, and one in evaluation.
fn compare(name: &str, config: EncoderConfig) -> (Fixture, Encoder) {
    let fixture = Fixture::open(name);
    let mut encoder = Encoder::new(config, 0, Device::Cpu);
    encoder.parameters_mut().load(&fixture.group("state.")).unwrap();
    let images = fixture.images();

    let rows = encoder.forward(&images, Mode::Train);
    let mut train = Worst::default();
    train.see("train", &rows, fixture.get("train"));
    train.expect(&format!("{name} forward"), 1e-5);

    let gradients = encoder.backward(&rows, fixture.get("seed"));
    let mut worst = Worst::default();
    let mut compared = 0;
    for (entry, gradient) in encoder.parameters().trainable().zip(gradients.tensors()) {
        worst.see(&entry.name, gradient, fixture.get(&format!("grad.{}", entry.name)));
        compared += 1;
    }
    assert_eq!(compared, fixture.group("grad.").len());
    worst.expect(&format!("{name} gradients"), 2e-5);

    let mut buffers = Worst::default();
    for entry in encoder.parameters().state().filter(|entry| entry.role == Role::Buffer) {
        buffers.see(&entry.name, &entry.tensor, fixture.get(&format!("after.{}", entry.name)));
    }
    buffers.expect(&format!("{name} buffers"), 1e-5);

    let mut eval = Worst::default();
    eval.see("eval", &encoder.forward(&images, Mode::Eval), fixture.get("eval"));
    eval.see("features", &encoder.features(&images, &[Layer::Embedding])[0], fixture.get("eval"));
    eval.expect(&format!("{name} evaluation"), 1e-5);
    (fixture, encoder)
}

#[test]
fn imagenet_resnet18_agrees_with_pytorch() {
    compare("imagenet-resnet18.safetensors", config(Arch::ResNet18, Family::ImageNet, 4));
}

#[test]
fn imagenet_resnet50_agrees_with_pytorch() {
    compare("imagenet-resnet50.safetensors", config(Arch::ResNet50, Family::ImageNet, 2));
}

#[test]
fn cifar_resnet50_agrees_with_pytorch() {
    compare("cifar-resnet50.safetensors", config(Arch::ResNet50, Family::Cifar, 2));
}

#[test]
fn cifar_resnet18_agrees_with_pytorch_and_so_do_three_steps_of_its_training() {
    let (fixture, mut encoder) = compare("cifar-resnet18.safetensors", config(Arch::ResNet18, Family::Cifar, 3));
    encoder.parameters_mut().load(&fixture.group("state.")).unwrap();
    let (images, seed) = (fixture.images(), fixture.get("seed"));
    let mut sgd = Sgd::new(encoder.parameters(), 0.9, 5e-4);
    let losses: Vec<f32> = (0..3)
        .map(|_| {
            let rows = encoder.forward(&images, Mode::Train);
            let gradients = encoder.backward(&rows, seed);
            sgd.step(encoder.parameters_mut(), gradients, 0.03);
            (rows * seed).sum(Kind::Float).double_value(&[]) as f32
        })
        .collect();
    let mut worst = Worst::default();
    worst.see("losses", &Tensor::from_slice(&losses), fixture.get("sgd.losses"));
    for entry in encoder.parameters().trainable() {
        worst.see(&entry.name, &entry.tensor, fixture.get(&format!("sgd.{}", entry.name)));
    }
    worst.expect("three steps of SGD", 5e-5);
}

/// Hashes what `make.py` hashes: one line of name, shape and kind for each entry.
fn fnv1a(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[test]
fn names_order_shapes_and_kinds_of_every_full_network_are_torchvisions() {
    let text = std::fs::read_to_string(path("names.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    for arch in Arch::ALL {
        for family in [Family::ImageNet, Family::Cifar] {
            let encoder = Encoder::new(EncoderConfig::new(arch, family), 0, Device::Cpu);
            let state = encoder.parameters().state();
            let (count, mut lines) = (state.len(), String::new());
            for entry in state {
                let kind = if entry.tensor.kind() == Kind::Int64 { "i64" } else { "f32" };
                lines += &format!("{} {:?} {kind}\n", entry.name, entry.tensor.size());
            }
            let name = format!("{family}-{arch}");
            assert_eq!(expected["networks"][&name]["entries"], count, "{name}");
            assert_eq!(expected["networks"][&name]["fnv1a"], fnv1a(&lines), "{name}:\n{lines}");
        }
    }
}
