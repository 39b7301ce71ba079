//! The encoder and its optimiser against PyTorch; `fixtures/model/make.py` wrote what is compared with.

// Helpers of tests may fail as tests do, and the largest differences are there to be read (`--nocapture`).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lemniscate::model::{
    Arch, Encoder, EncoderConfig, Family, Gradients, Layer, Mode, Role, from_slice_nhwc, to_vec_f32,
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
            .filter_map(|(name, tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone()))
            })
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

fn largest(tensor: &Tensor) -> f64 {
    tensor.detach().to_kind(Kind::Double).abs().max().double_value(&[])
}

/// The worst of many differences, with its name.
#[derive(Default)]
struct Worst(f64, String);

impl Worst {
    /// Takes the largest difference as a share of the largest expected value.
    fn see(&mut self, name: &str, ours: &Tensor, expected: &Tensor) {
        self.see_with_floor(name, ours, expected, 1e-30);
    }

    /// The same, but values below `floor` count as much as `floor`.
    fn see_with_floor(&mut self, name: &str, ours: &Tensor, expected: &Tensor, floor: f64) {
        assert_eq!(ours.size(), expected.size(), "{name}");
        let expected = expected.to_kind(Kind::Double);
        let difference =
            largest(&(ours.detach().to_kind(Kind::Double) - &expected)) / largest(&expected).max(floor);
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
    EncoderConfig { embed_dim: 8, width, ..EncoderConfig::new(arch, family) }
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
    // Some gradients are zero but for rounding: of a channel that never fires, of a shift that BatchNorm undoes.
    let expected = fixture.group("grad.");
    let floor = 1e-3 * expected.values().map(largest).fold(0.0, f64::max);
    for (entry, gradient) in encoder.parameters().trainable().zip(gradients.tensors()) {
        worst.see_with_floor(&entry.name, gradient, &expected[&entry.name], floor);
        compared += 1;
    }
    assert_eq!(compared, expected.len());
    worst.expect(&format!("{name} gradients"), 1e-4);

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
    let (fixture, mut encoder) =
        compare("cifar-resnet18.safetensors", config(Arch::ResNet18, Family::Cifar, 3));
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

/// Every step of PyTorch's SGD on one tensor with given gradients. The tensor is the head of a small encoder,
/// which has as many numbers; its other parameters get no gradient, but decay.
#[test]
fn sgd_follows_pytorchs_bit_for_bit_or_nearly() {
    let fixture = Fixture::open("sgd.safetensors");
    let mut encoder = Encoder::new(config(Arch::ResNet18, Family::Cifar, 1), 0, Device::Cpu);
    let head = || "linear.weight".to_owned();
    let mut state: BTreeMap<String, Tensor> = encoder
        .parameters()
        .state()
        .map(|entry| (entry.name.clone(), entry.tensor.detach().copy()))
        .collect();
    state.insert(head(), fixture.get("start").view([8, 8]));
    encoder.parameters_mut().load(&state).unwrap();
    let mut sgd = Sgd::new(encoder.parameters(), 0.9, 5e-4);
    let mut worst = Worst::default();
    for step in 0..5 {
        let gradient = fixture.get("gradients").get(step).view([8, 8]);
        let loss = encoder
            .parameters()
            .trainable()
            .map(|entry| match entry.name == head() {
                true => (&entry.tensor * &gradient).sum(Kind::Float),
                false => (&entry.tensor * 0.0).sum(Kind::Float),
            })
            .reduce(|sum, term| sum + term)
            .unwrap();
        let gradients = Gradients::of(&loss, encoder.parameters());
        sgd.step(encoder.parameters_mut(), gradients, if step < 3 { 0.03 } else { 0.003 });
        let (_, momentum) = sgd.buffers().find(|(name, _)| *name == head()).unwrap();
        let flat = |tensor: &Tensor| tensor.detach().view([64]);
        worst.see("momentum", &flat(momentum), &fixture.get("momentum").get(step));
        let parameter = encoder.parameters().get(&head()).unwrap();
        worst.see("parameter", &flat(parameter), &fixture.get("parameters").get(step));
    }
    worst.expect("SGD", 2e-7);
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
