//! What an encoder is: everything needed to build it again.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::convolution;
use super::encoder::Layer;
use crate::error::{Error, Result};

/// Depth of the ResNet (He et al. 2016, Table 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Arch {
    /// Basic blocks 2, 2, 2, 2.
    ResNet18,
    /// Basic blocks 3, 4, 6, 3.
    ResNet34,
    /// Bottleneck blocks 3, 4, 6, 3.
    ResNet50,
    /// Bottleneck blocks 3, 4, 23, 3.
    ResNet101,
    /// Bottleneck blocks 3, 8, 36, 3.
    ResNet152,
}

impl Arch {
    /// All of them, shallowest first.
    pub const ALL: [Arch; 5] =
        [Arch::ResNet18, Arch::ResNet34, Arch::ResNet50, Arch::ResNet101, Arch::ResNet152];

    /// Blocks in each of the four stages.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Arch::ResNet18 => [2, 2, 2, 2],
            Arch::ResNet34 | Arch::ResNet50 => [3, 4, 6, 3],
            Arch::ResNet101 => [3, 4, 23, 3],
            Arch::ResNet152 => [3, 8, 36, 3],
        }
    }

    /// Whether its blocks are bottlenecks (1×1, 3×3, 1×1) rather than basic (3×3, 3×3).
    pub fn bottleneck(self) -> bool {
        !matches!(self, Arch::ResNet18 | Arch::ResNet34)
    }

    /// Output channels of a block per inner channel: 4 for bottlenecks, 1 for basic blocks.
    pub fn expansion(self) -> i64 {
        if self.bottleneck() { 4 } else { 1 }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::ResNet18 => "resnet18",
            Arch::ResNet34 => "resnet34",
            Arch::ResNet50 => "resnet50",
            Arch::ResNet101 => "resnet101",
            Arch::ResNet152 => "resnet152",
        })
    }
}

/// The two families of the published program; stem, names of head and shortcut, and initialisation differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Family {
    /// 7×7/2 convolution and 3×3/2 max pooling, for images of 224 px. torchvision's names.
    ImageNet,
    /// 3×3/1 convolution, for images of 32 px.
    Cifar,
}

impl Family {
    /// The name of a block's projection: `downsample` or `shortcut`.
    pub fn shortcut_name(self) -> &'static str {
        match self {
            Family::ImageNet => "downsample",
            Family::Cifar => "shortcut",
        }
    }

    /// The name of the last, linear layer: `fc` or `linear`.
    pub fn head_name(self) -> &'static str {
        match self {
            Family::ImageNet => "fc",
            Family::Cifar => "linear",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::ImageNet => "imagenet",
            Family::Cifar => "cifar",
        })
    }
}

/// What lies between the pooled features and the norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Head {
    /// A linear layer to D numbers, as published.
    #[default]
    Linear,
    /// Nothing: the embedding is the pooled features at unit length. For trunks that came without a head.
    None,
}

/// An encoder's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Depth.
    pub arch: Arch,
    /// Stem, names and initialisation.
    pub family: Family,
    /// Embedding width D (128 in the paper).
    #[serde(default = "default_embed_dim")]
    pub embed_dim: i64,
    /// Channels of the first stage, doubled at each following one. 64 in every published network; less makes
    /// small encoders for tests and the demo.
    #[serde(default = "default_width")]
    pub width: i64,
    /// What makes the embedding of the pooled features; without a head, D must be [`Self::pooled_dim`].
    #[serde(default)]
    pub head: Head,
}

fn default_embed_dim() -> i64 {
    128
}

fn default_width() -> i64 {
    64
}

impl EncoderConfig {
    /// `arch` of `family` at the published size: D = 128, width 64.
    pub fn new(arch: Arch, family: Family) -> Self {
        EncoderConfig {
            arch,
            family,
            embed_dim: default_embed_dim(),
            width: default_width(),
            head: Head::Linear,
        }
    }

    /// Channels of the four stages' outputs.
    pub fn stage_dims(&self) -> [i64; 4] {
        [1, 2, 4, 8].map(|factor| factor * self.width * self.arch.expansion())
    }

    /// Channels after global pooling: 512 or 2048 at width 64.
    pub fn pooled_dim(&self) -> i64 {
        self.stage_dims()[3]
    }

    /// Numbers of an image's features at `layer`, channels for a stage.
    pub fn dim_at(&self, layer: Layer) -> i64 {
        match layer {
            Layer::Embedding => self.embed_dim,
            Layer::Pooled => self.pooled_dim(),
            Layer::Stage(stage) => self.stage_dims()[usize::from(stage) - 1],
        }
    }

    /// Numbers learnt: [`Parameters::count`](super::Parameters::count) of an encoder that need not exist.
    ///
    /// The configuration must be [valid](Self::validate).
    pub fn n_weights(&self) -> usize {
        let layers = self.layers(1).map(|layer| layer.n_weights());
        layers.sum::<usize>() + self.n_head_weights()
    }

    /// Those of them in the linear layer.
    pub fn n_head_weights(&self) -> usize {
        match self.head {
            Head::Linear => ((self.pooled_dim() + 1) * self.embed_dim) as usize,
            Head::None => 0,
        }
    }

    /// Every convolution, in order, with the size of its maps for images of `side` pixels.
    pub(crate) fn layers(&self, side: i64) -> impl Iterator<Item = ConvShape> + use<> {
        let half = |side: i64| (side + 1) / 2;
        let (stem, mut side) = match self.family {
            Family::ImageNet => {
                let shape = ConvShape { input: 3, output: self.width, size: 7, side: half(side) };
                (shape, half(half(side)))
            }
            Family::Cifar => (ConvShape { input: 3, output: self.width, size: 3, side }, side),
        };
        let mut all = vec![stem];
        let mut input = self.width;
        for (stage, blocks) in self.arch.blocks().into_iter().enumerate() {
            let planes = self.width << stage;
            let output = planes * self.arch.expansion();
            for block in 0..blocks {
                let before = side;
                if block == 0 && stage > 0 {
                    side = half(side);
                }
                let conv = |input, output, size, side| ConvShape { input, output, size, side };
                if self.arch.bottleneck() {
                    all.push(conv(input, planes, 1, before));
                    all.push(conv(planes, planes, 3, side));
                    all.push(conv(planes, output, 1, side));
                } else {
                    all.push(conv(input, planes, 3, side));
                    all.push(conv(planes, planes, 3, side));
                }
                if block == 0 && (stage > 0 || input != output) {
                    all.push(conv(input, output, 1, side));
                }
                input = output;
            }
        }
        all.into_iter()
    }

    /// Refuses sizes that no encoder has, so that a file cannot make us allocate without bound.
    ///
    /// # Errors
    /// If a width is outside 1..=65536 (embedding) or 1..=1024 (first stage), or the embedding's is not that of the
    /// pooled features although nothing lies between.
    pub fn validate(&self) -> Result<()> {
        if !(1..=65_536).contains(&self.embed_dim) {
            return Err(Error::usage(format!(
                "the embedding width must lie in 1..=65536, not {}",
                self.embed_dim
            )));
        }
        if !(1..=1024).contains(&self.width) {
            return Err(Error::usage(format!(
                "the encoder's width must lie in 1..=1024, not {}",
                self.width
            )));
        }
        if self.head == Head::None && self.embed_dim != self.pooled_dim() {
            return Err(Error::usage(format!(
                "without a head the embedding is the {} pooled features, not {} numbers",
                self.pooled_dim(),
                self.embed_dim
            )));
        }
        Ok(())
    }
}

/// A convolution without bias, its BatchNorm, and the square maps that they give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConvShape {
    /// Channels in.
    input: i64,
    /// Channels out.
    pub(crate) output: i64,
    /// Side of the kernel.
    size: i64,
    /// Side of the maps.
    pub(crate) side: i64,
}

impl ConvShape {
    fn n_weights(&self) -> usize {
        (self.input * self.output * self.size * self.size + 2 * self.output) as usize
    }

    /// Multiply-adds of the convolution of one image; positions on the padded border count like others.
    pub(crate) fn multiply_adds(&self) -> u64 {
        (self.input * self.size * self.size) as u64 * self.n_maps() as u64
    }

    /// Bytes of working memory that our own convolutions take for it.
    pub(crate) fn working_bytes(&self) -> usize {
        convolution::working_bytes(self.size, self.input as usize, self.output as usize)
    }

    /// Numbers in the maps of one image.
    pub(crate) fn n_maps(&self) -> usize {
        (self.output * self.side * self.side) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn names_agree_in_serde_clap_and_display() {
        for arch in Arch::ALL {
            let json = serde_json::to_value(arch).unwrap();
            assert_eq!(json, arch.to_string());
            assert_eq!(arch.to_possible_value().unwrap().get_name(), arch.to_string());
        }
        for family in [Family::ImageNet, Family::Cifar] {
            assert_eq!(serde_json::to_value(family).unwrap(), family.to_string());
            assert_eq!(family.to_possible_value().unwrap().get_name(), family.to_string());
        }
    }

    #[test]
    fn a_configuration_survives_toml_and_has_the_published_defaults() {
        let config: EncoderConfig = toml::from_str("arch = 'resnet50'\nfamily = 'imagenet'").unwrap();
        assert_eq!(config, EncoderConfig::new(Arch::ResNet50, Family::ImageNet));
        assert_eq!(config.pooled_dim(), 2048);
        assert_eq!(toml::from_str::<EncoderConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn weights_are_counted_without_an_encoder() {
        for arch in Arch::ALL {
            for family in [Family::ImageNet, Family::Cifar] {
                let linear = EncoderConfig { width: 2, embed_dim: 5, ..EncoderConfig::new(arch, family) };
                let bare = EncoderConfig { head: Head::None, embed_dim: linear.pooled_dim(), ..linear };
                for config in [linear, bare] {
                    let encoder = crate::model::Encoder::new(config, 0, tch::Device::Cpu);
                    assert_eq!(config.n_weights(), encoder.parameters().count(), "{config:?}");
                }
            }
        }
    }

    #[test]
    fn maps_have_the_sizes_of_the_network() {
        let sides = |family, side| {
            let layers = EncoderConfig::new(Arch::ResNet18, family).layers(side);
            layers.map(|layer| (layer.output, layer.side)).collect::<Vec<_>>()
        };
        let imagenet = sides(Family::ImageNet, 224);
        assert_eq!((imagenet[0], imagenet[1], imagenet[19]), ((64, 112), (64, 56), (512, 7)));
        let cifar = sides(Family::Cifar, 33);
        // A stride of 2 rounds up.
        assert_eq!((cifar[0], cifar[5], cifar[19]), ((64, 33), (128, 17), (512, 5)));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let good = EncoderConfig::new(Arch::ResNet18, Family::Cifar);
        assert!(good.validate().is_ok());
        for (embed_dim, width) in [(0, 64), (-1, 64), (i64::MAX, 64), (128, 0), (128, i64::MAX)] {
            assert!(EncoderConfig { embed_dim, width, ..good }.validate().is_err());
        }
        let headless = EncoderConfig { head: Head::None, ..good };
        assert!(headless.validate().is_err());
        assert!(EncoderConfig { embed_dim: 512, ..headless }.validate().is_ok());
    }
}
