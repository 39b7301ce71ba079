//! The encoder: `f(x) = unit(head(pool(trunk(x))))`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::config::EncoderConfig;
use super::init::Initialiser;
use super::parameters::{Gradients, Parameters};
use super::precision::Precision;
use super::resnet::{Pass, ResNet};

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// BatchNorm uses the batch's statistics and moves the running ones; a graph is kept for the gradient.
    Train,
    /// BatchNorm uses the running statistics; nothing changes and no graph is kept.
    Eval,
}

/// Where features are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Layer {
    /// The unit vector, `[B, D]`.
    Embedding,
    /// After global average pooling, `[B, 512]` or `[B, 2048]` at width 64.
    Pooled,
    /// A stage's output, 1 to 4, `[B, C, H, W]`.
    Stage(u8),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::Embedding => f.write_str("embedding"),
            Layer::Pooled => f.write_str("pooled"),
            Layer::Stage(stage) => write!(f, "stage{stage}"),
        }
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedding" => Ok(Layer::Embedding),
            "pooled" => Ok(Layer::Pooled),
            "stage1" => Ok(Layer::Stage(1)),
            "stage2" => Ok(Layer::Stage(2)),
            "stage3" => Ok(Layer::Stage(3)),
            "stage4" => Ok(Layer::Stage(4)),
            _ => Err(format!("expected embedding, pooled or stage1 to stage4, found '{text}'")),
        }
    }
}

impl From<Layer> for String {
    fn from(layer: Layer) -> String {
        layer.to_string()
    }
}

impl TryFrom<String> for Layer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A ResNet with a unit-length embedding.
///
/// ```
/// use lemniscate::model::{Arch, Encoder, EncoderConfig, Family, Mode, from_slice_nhwc};
///
/// let config = EncoderConfig { width: 4, ..EncoderConfig::new(Arch::ResNet18, Family::Cifar) };
/// let encoder = Encoder::new(config, 0, tch::Device::Cpu);
/// let images = from_slice_nhwc(&[0.5; 2 * 32 * 32 * 3], [2, 32, 32]);
/// let embeddings = encoder.forward(&images, Mode::Eval);
/// assert_eq!(embeddings.size(), [2, 128]);
/// ```
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    precision: Precision,
    device: Device,
    parameters: Parameters,
    network: ResNet,
}

impl Encoder {
    /// A freshly initialised fp32 encoder on `device`. The same `seed` gives the same bits on every device.
    ///
    /// # Panics
    /// If `config` is not [valid](EncoderConfig::validate).
    pub fn new(config: EncoderConfig, seed: u64, device: Device) -> Self {
        if let Err(error) = config.validate() {
            panic!("{error}");
        }
        let mut init = Initialiser::new(&config, seed, device);
        let network = ResNet::new(&config, &mut init);
        Encoder { config, precision: Precision::Fp32, device, parameters: init.finish(), network }
    }

    /// The same encoder, computing in `precision` from now on.
    pub fn with_precision(self, precision: Precision) -> Self {
        Encoder { precision, ..self }
    }

    /// The embeddings of `images` f32 `[B, 3, H, W]`: f32 `[B, D]`, unit rows. Channels-last images (see
    /// [`from_slice_nhwc`](super::from_slice_nhwc)) are fastest. They may lie on any device.
    ///
    /// A vector of zeros has no direction: it stays zero, and its gradient is that of the identity.
    ///
    /// # Panics
    /// If `images` has another shape or kind, or in training if there is only one value per channel for
    /// BatchNorm to normalise: one image that shrinks to one pixel.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Tensor {
        let embed = || unit_rows(&self.logits(images, mode));
        match mode {
            Mode::Train => embed(),
            Mode::Eval => no_grad(embed),
        }
    }

    /// What the embedding is the direction of: the head's output without the norm, f32 `[B, D]`. For an encoder whose
    /// head is a classifier these are its logits, with D classes.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn logits(&self, images: &Tensor, mode: Mode) -> Tensor {
        let logits = || {
            let maps = self.network.trunk(&self.upload(images), self.pass(mode), |_, _| ());
            self.network.head(&self.network.pool(&maps))
        };
        match mode {
            Mode::Train => logits(),
            Mode::Eval => no_grad(logits),
        }
    }

    /// Features of `images` f32 `[B, 3, H, W]` at `layers`, in that order, in [`Mode::Eval`]: f32, shapes as
    /// [`Layer`] says. Nothing behind the last layer asked for is computed twice.
    ///
    /// # Panics
    /// If `images` has another shape or kind, or a stage is not one of 1 to 4.
    pub fn features(&self, images: &Tensor, layers: &[Layer]) -> Vec<Tensor> {
        no_grad(|| {
            let mut stages = Vec::new();
            let maps = self.network.trunk(&self.upload(images), self.pass(Mode::Eval), |stage, maps| {
                let wanted = layers.contains(&Layer::Stage(stage as u8 + 1));
                stages.push(wanted.then(|| maps.to_kind(Kind::Float)));
            });
            let pooled = self.network.pool(&maps);
            let feature = |layer: &Layer| match *layer {
                Layer::Embedding => unit_rows(&self.network.head(&pooled)),
                Layer::Pooled => pooled.shallow_clone(),
                Layer::Stage(stage) => {
                    let index = usize::from(stage).wrapping_sub(1);
                    let maps = stages.get(index).and_then(Option::as_ref);
                    maps.unwrap_or_else(|| panic!("stages are numbered 1 to 4, not {stage}")).shallow_clone()
                }
            };
            layers.iter().map(feature).collect()
        })
    }

    /// The gradients of every parameter, given `gradient` `[B, D]`, the loss's gradient with respect to
    /// `embeddings`, which must come from [`forward`](Self::forward) in [`Mode::Train`] (or be its
    /// [`logits`](Self::logits), with their gradient). Uses up their graph.
    ///
    /// # Panics
    /// If the shapes differ or `embeddings` carries no graph.
    pub fn backward(&self, embeddings: &Tensor, gradient: &Tensor) -> Gradients {
        assert_eq!(embeddings.size(), gradient.size(), "the gradient has the embeddings' shape");
        let seed = gradient.to_device(self.device);
        Gradients::of(&(embeddings * seed).sum(Kind::Float), &self.parameters)
    }

    /// What it is.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// In what numbers it computes.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What it knows.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What it knows, to be changed in place.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn pass(&self, mode: Mode) -> Pass {
        Pass { mode, precision: self.precision }
    }

    fn upload(&self, images: &Tensor) -> Tensor {
        assert!(
            images.dim() == 4 && images.size()[1] == 3 && images.kind() == Kind::Float,
            "images f32 [B, 3, H, W] expected, found {:?} {:?}",
            images.kind(),
            images.size()
        );
        images.to_device(self.device)
    }
}

/// `v / sqrt(Σ v²)` for each row, without epsilon as published. Where the sum is zero it is taken for one.
fn unit_rows(rows: &Tensor) -> Tensor {
    let squares = rows.square().sum_dim_intlist([-1].as_slice(), true, Kind::Float);
    let guard = squares.eq(0.0).to_kind(Kind::Float);
    rows / (squares + guard).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::model::{Arch, Family, Role, from_slice_nhwc, to_vec_f32};
    use crate::rng::{Purpose, stream};
    use rand::RngExt;
    use std::collections::BTreeMap;

    fn small(arch: Arch, family: Family) -> EncoderConfig {
        EncoderConfig { width: 8, embed_dim: 16, ..EncoderConfig::new(arch, family) }
    }

    fn images(batch: usize, size: usize) -> Tensor {
        let mut generator = stream(0, Purpose::Test, 0, 0);
        let pixels: Vec<f32> =
            (0..batch * size * size * 3).map(|_| generator.random_range(-1.0..1.0)).collect();
        from_slice_nhwc(&pixels, [batch, size, size])
    }

    fn state(encoder: &Encoder) -> BTreeMap<String, Vec<f32>> {
        encoder.parameters().state().map(|e| (e.name.clone(), to_vec_f32(&e.tensor))).collect()
    }

    #[test]
    fn rows_are_unit_for_every_network_and_precision() {
        for arch in [Arch::ResNet18, Arch::ResNet50] {
            for family in [Family::Cifar, Family::ImageNet] {
                for precision in [Precision::Fp32, Precision::Bf16] {
                    let encoder = Encoder::new(small(arch, family), 1, Device::Cpu).with_precision(precision);
                    for mode in [Mode::Train, Mode::Eval] {
                        let rows = encoder.forward(&images(3, 40), mode);
                        assert_eq!(rows.size(), [3, 16]);
                        let norms = to_vec_f32(&rows.square().sum_dim_intlist([1].as_slice(), false, None));
                        assert!(norms.iter().all(|norm| (norm - 1.0).abs() < 1e-5), "{norms:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn evaluation_changes_nothing_and_training_moves_every_buffer() {
        let encoder = Encoder::new(small(Arch::ResNet18, Family::Cifar), 1, Device::Cpu);
        let before = state(&encoder);
        assert!(!encoder.forward(&images(2, 32), Mode::Eval).requires_grad());
        encoder.features(&images(2, 32), &[Layer::Embedding, Layer::Stage(2)]);
        assert_eq!(state(&encoder), before);
        assert!(encoder.forward(&images(2, 32), Mode::Train).requires_grad());
        let after = state(&encoder);
        for entry in encoder.parameters().state() {
            assert_eq!(
                entry.role == Role::Buffer,
                before[&entry.name] != after[&entry.name],
                "{}",
                entry.name
            );
        }
        assert_eq!(after["layer4.1.bn2.num_batches_tracked"], [1.0]);
    }

    #[test]
    fn a_seed_means_one_encoder_and_another_seed_another() {
        let build = |seed| state(&Encoder::new(small(Arch::ResNet50, Family::ImageNet), seed, Device::Cpu));
        assert_eq!(build(7), build(7));
        assert_ne!(build(7)["layer2.0.downsample.0.weight"], build(8)["layer2.0.downsample.0.weight"]);
    }

    #[test]
    fn initial_values_have_the_documented_distribution() {
        let wide = |family| EncoderConfig { width: 32, ..EncoderConfig::new(Arch::ResNet18, family) };
        let moments = |encoder: &Encoder, name: &str| {
            let values = to_vec_f32(encoder.parameters().get(name).unwrap());
            let square = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
            let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            (square.sqrt(), f64::from(largest))
        };
        let name = "layer4.0.conv2.weight";
        let imagenet = Encoder::new(wide(Family::ImageNet), 3, Device::Cpu);
        let expected = (2.0 / (9.0 * 256.0_f64)).sqrt();
        let (deviation, largest) = moments(&imagenet, name);
        assert!((deviation / expected - 1.0).abs() < 0.01 && largest > 3.5 * expected);

        let cifar = Encoder::new(wide(Family::Cifar), 3, Device::Cpu);
        let bound = 1.0 / (9.0 * 256.0_f64).sqrt();
        let (deviation, largest) = moments(&cifar, name);
        assert!((deviation / (bound / 3_f64.sqrt()) - 1.0).abs() < 0.01);
        assert!(largest <= bound && largest > 0.999 * bound);
        for (encoder, head) in [(&imagenet, "fc"), (&cifar, "linear")] {
            let bound = 1.0 / 256.0_f64.sqrt();
            for part in ["weight", "bias"] {
                let (_, largest) = moments(encoder, &format!("{head}.{part}"));
                assert!(largest <= bound && largest > 0.9 * bound);
            }
            assert_eq!(moments(encoder, "bn1.weight"), (1.0, 1.0));
            assert_eq!(moments(encoder, "bn1.bias"), (0.0, 0.0));
        }
    }

    #[test]
    fn bf16_points_where_fp32_points() {
        let config = EncoderConfig { width: 16, ..small(Arch::ResNet18, Family::Cifar) };
        let build = || Encoder::new(config, 5, Device::Cpu);
        let (fp32, bf16) = (build(), build().with_precision(Precision::Bf16));
        let input = images(16, 32);
        for mode in [Mode::Train, Mode::Eval] {
            let (a, b) = (fp32.forward(&input, mode), bf16.forward(&input, mode));
            assert_eq!(b.kind(), Kind::Float);
            let cosines = to_vec_f32(&(&a * &b).sum_dim_intlist([1].as_slice(), false, None));
            assert!(cosines.iter().all(|&cosine| cosine > 0.99), "{cosines:?}");
            if mode == Mode::Train {
                let seed = Tensor::ones_like(&a) * (&a - 0.3).detach();
                let (a, b) = (fp32.backward(&a, &seed), bf16.backward(&b, &seed));
                for ((a, b), entry) in a.tensors().iter().zip(b.tensors()).zip(fp32.parameters().trainable())
                {
                    assert_eq!(b.kind(), Kind::Float);
                    let cosine = Tensor::cosine_similarity(&a.flatten(0, -1), &b.flatten(0, -1), 0, 1e-30);
                    assert!(cosine.double_value(&[]) > 0.8, "{}: {cosine:?}", entry.name);
                }
            }
        }
    }

    #[test]
    fn features_have_the_documented_shapes_and_agree_with_forward() {
        let config = small(Arch::ResNet50, Family::Cifar);
        let encoder = Encoder::new(config, 2, Device::Cpu);
        let input = images(2, 32);
        let layers = [1, 2, 3, 4].map(Layer::Stage);
        for ((features, channels), size) in
            encoder.features(&input, &layers).iter().zip(config.stage_dims()).zip([32, 16, 8, 4])
        {
            assert_eq!(features.size(), [2, channels, size, size]);
        }
        let features = encoder.features(&input, &[Layer::Pooled, Layer::Embedding]);
        assert_eq!(features[0].size(), [2, config.pooled_dim()]);
        assert_eq!(to_vec_f32(&features[1]), to_vec_f32(&encoder.forward(&input, Mode::Eval)));
        for layer in layers.into_iter().chain([Layer::Pooled, Layer::Embedding]) {
            assert_eq!(layer.to_string().parse(), Ok(layer));
        }
        assert!("stage5".parse::<Layer>().is_err());
    }

    #[test]
    fn a_zero_vector_stays_zero_with_a_finite_gradient() {
        let rows = Tensor::from_slice(&[0.0_f32, 0.0, 3.0, 4.0]).view([2, 2]).set_requires_grad(true);
        let unit = unit_rows(&rows);
        assert_eq!(to_vec_f32(&unit), [0.0, 0.0, 0.6, 0.8]);
        let gradient = Tensor::run_backward(&[unit.sum(Kind::Float)], &[&rows], false, false);
        assert_eq!(to_vec_f32(&gradient[0].get(0)), [1.0, 1.0]);
    }

    #[test]
    fn a_state_loads_whole_or_not_at_all() {
        let config = small(Arch::ResNet18, Family::Cifar);
        let source = Encoder::new(config, 1, Device::Cpu);
        let mut target = Encoder::new(config, 2, Device::Cpu);
        let untouched = state(&target);
        let good = || -> BTreeMap<String, Tensor> {
            source.parameters().state().map(|e| (e.name.clone(), e.tensor.detach().contiguous())).collect()
        };
        let mut missing = good();
        missing.remove("bn1.bias");
        let mut unexpected = good();
        unexpected.insert("fc.weight".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        let mut shape = good();
        shape.insert("bn1.bias".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        let mut kind = good();
        kind.insert("bn1.bias".into(), good()["bn1.bias"].to_kind(Kind::Half));
        for (state, culprit) in [
            (missing, "bn1.bias: missing"),
            (unexpected, "fc.weight: unexpected"),
            (shape, "bn1.bias: expected f32 [8], found f32 [1]"),
            (kind, "bn1.bias: expected f32 [8], found f16 [8]"),
        ] {
            let Err(Error::State { problems, .. }) = target.parameters_mut().load(&state) else {
                panic!("accepted: {culprit}");
            };
            assert_eq!(problems, [culprit]);
        }
        assert_eq!(state(&target), untouched);
        target.parameters_mut().load(&good()).unwrap();
        assert_eq!(state(&target), state(&source));
        // The network computes with what was loaded, and a second training step follows from it.
        let input = images(2, 32);
        assert_eq!(
            to_vec_f32(&target.forward(&input, Mode::Train)),
            to_vec_f32(&source.forward(&input, Mode::Train))
        );
    }

    #[test]
    #[should_panic(expected = "images f32 [B, 3, H, W] expected")]
    fn images_without_three_channels_are_refused() {
        let encoder = Encoder::new(small(Arch::ResNet18, Family::Cifar), 1, Device::Cpu);
        let _ = encoder.forward(&Tensor::zeros([2, 1, 32, 32], (Kind::Float, Device::Cpu)), Mode::Eval);
    }

    #[test]
    #[should_panic(expected = "more than one value per channel")]
    fn one_value_per_channel_cannot_be_normalised() {
        let encoder = Encoder::new(small(Arch::ResNet18, Family::ImageNet), 1, Device::Cpu);
        let _ = encoder.forward(&images(1, 32), Mode::Train);
    }
}
