//! One ResNet, two stems (He et al. 2016; stride on the 3×3 convolution, as in every PyTorch version).
//!
//! Shapes: B batch, C channels, H×W size of a feature map.

use tch::{Kind, Tensor};

use super::config::{EncoderConfig, Family, Head};
use super::convolution;
use super::encoder::Mode;
use super::init::Initialiser;
use super::norm::{self, Norm, Then};
use super::precision::Precision;

/// PyTorch's BatchNorm: weight of the newest batch in the running statistics, and the variance's guard.
const NORM_MOMENTUM: f64 = 0.1;
pub(crate) const NORM_EPSILON: f64 = 1e-5;

/// Input channels from which oneDNN's strided 1×1 convolutions can be trusted. With fewer than one of its blocks (8 with
/// AVX2, 16 with AVX-512) and channels-last maps, the gradient of the weights is written past its workspace: a
/// corrupted heap or wrong numbers (oneDNN issue 6035, found open in libtorch 2.11). Only networks narrower than
/// the published ones have such layers.
const ONEDNN_BLOCK: i64 = 16;

/// Every `step`th row and column of `maps` `[B, C, H, W]`: what a 1×1 convolution of that stride looks at.
fn every(step: i64, maps: &Tensor) -> Tensor {
    maps.slice(2, None, None, step).slice(3, None, None, step)
}

/// How a forward pass is run.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub mode: Mode,
    pub precision: Precision,
}

/// The network: layers in order, holding handles to the encoder's parameters.
#[derive(Debug)]
pub(super) struct ResNet {
    stem: ConvNorm,
    max_pool: bool,
    stages: Vec<Vec<Block>>,
    head: Option<Linear>,
}

impl ResNet {
    pub fn new(config: &EncoderConfig, init: &mut Initialiser) -> Self {
        let (arch, family, width) = (config.arch, config.family, config.width);
        let (size, stride) = match family {
            Family::ImageNet => (7, 2),
            Family::Cifar => (3, 1),
        };
        let stem = ConvNorm::new(init, "conv1", "bn1", Shape { input: 3, output: width, size, stride });
        let mut input = width;
        let mut stages = Vec::new();
        for (stage, count) in arch.blocks().into_iter().enumerate() {
            let planes = width << stage;
            let mut blocks = Vec::new();
            for index in 0..count {
                let stride = if index == 0 && stage > 0 { 2 } else { 1 };
                let name = format!("layer{}.{index}", stage + 1);
                blocks.push(Block::new(init, &name, config, input, planes, stride));
                input = planes * arch.expansion();
            }
            stages.push(blocks);
        }
        let head = (config.head == Head::Linear)
            .then(|| Linear::new(init, family.head_name(), input, config.embed_dim));
        ResNet { stem, max_pool: family == Family::ImageNet, stages, head }
    }

    /// The four stages' outputs in turn, `[B, C, H, W]` in the pass's precision, for `images` `[B, 3, H, W]`;
    /// each is shown to `visit` and then only the next stage keeps it.
    pub fn trunk(&self, images: &Tensor, pass: Pass, mut visit: impl FnMut(usize, &Tensor)) -> Tensor {
        let mut maps = self.stem.forward(&images.to_kind(pass.precision.kind()), pass, Then::Relu);
        if self.max_pool {
            maps = maps.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        }
        for (stage, blocks) in self.stages.iter().enumerate() {
            for block in blocks {
                maps = block.forward(&maps, pass);
            }
            visit(stage, &maps);
        }
        maps
    }

    /// Global average pooling, in fp32: `[B, C, H, W]` to `[B, C]`.
    pub fn pool(&self, maps: &Tensor) -> Tensor {
        maps.mean_dim([2, 3].as_slice(), false, Kind::Float)
    }

    /// What the norm is taken of: the linear layer's `[B, D]`, or the pooled features `[B, C]` themselves.
    pub fn head(&self, pooled: &Tensor) -> Tensor {
        match &self.head {
            Some(head) => pooled.linear(&head.weight, Some(&head.bias)),
            None => pooled.shallow_clone(),
        }
    }
}

/// A residual block: two 3×3 convolutions, or 1×1, 3×3, 1×1; and a projection where the shape changes.
#[derive(Debug)]
struct Block {
    layers: Vec<ConvNorm>,
    projection: Option<ConvNorm>,
}

impl Block {
    fn new(
        init: &mut Initialiser,
        name: &str,
        config: &EncoderConfig,
        input: i64,
        planes: i64,
        stride: i64,
    ) -> Self {
        let output = planes * config.arch.expansion();
        // Input, output, size, stride of each convolution.
        let shapes = if config.arch.bottleneck() {
            vec![(input, planes, 1, 1), (planes, planes, 3, stride), (planes, output, 1, 1)]
        } else {
            vec![(input, planes, 3, stride), (planes, planes, 3, 1)]
        };
        let layers = (1..)
            .zip(shapes)
            .map(|(number, (input, output, size, stride))| {
                let shape = Shape { input, output, size, stride };
                ConvNorm::new(init, &format!("{name}.conv{number}"), &format!("{name}.bn{number}"), shape)
            })
            .collect();
        let projection = (stride != 1 || input != output).then(|| {
            let name = format!("{name}.{}", config.family.shortcut_name());
            let shape = Shape { input, output, size: 1, stride };
            ConvNorm::new(init, &format!("{name}.0"), &format!("{name}.1"), shape)
        });
        Block { layers, projection }
    }

    fn forward(&self, input: &Tensor, pass: Pass) -> Tensor {
        let (last, inner) = self.layers.split_last().expect("a block has layers");
        let mut maps = input.shallow_clone();
        for layer in inner {
            maps = layer.forward(&maps, pass, Then::Relu);
        }
        match &self.projection {
            Some(projection) => {
                last.forward(&maps, pass, Then::AddRelu(&projection.forward(input, pass, Then::Stop)))
            }
            None => last.forward(&maps, pass, Then::AddRelu(input)),
        }
    }
}

/// Channels, kernel size and stride of a convolution. Padding keeps the size: `size / 2`.
#[derive(Clone, Copy)]
struct Shape {
    input: i64,
    output: i64,
    size: i64,
    stride: i64,
}

/// A convolution without bias and its BatchNorm.
#[derive(Debug)]
struct ConvNorm {
    kernel: Tensor,
    stride: i64,
    padding: i64,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
}

impl ConvNorm {
    fn new(init: &mut Initialiser, convolution: &str, norm: &str, shape: Shape) -> Self {
        let Shape { input, output, size, stride } = shape;
        ConvNorm {
            kernel: init.convolution(format!("{convolution}.weight"), input, output, size),
            stride,
            padding: size / 2,
            weight: init.constant(format!("{norm}.weight"), output, 1.0),
            bias: init.constant(format!("{norm}.bias"), output, 0.0),
            running_mean: init.buffer(format!("{norm}.running_mean"), Some(output), 0.0, Kind::Float),
            running_var: init.buffer(format!("{norm}.running_var"), Some(output), 1.0, Kind::Float),
            num_batches_tracked: init.buffer(format!("{norm}.num_batches_tracked"), None, 0.0, Kind::Int64),
        }
    }

    fn forward(&self, input: &Tensor, pass: Pass, then: Then) -> Tensor {
        // The cast is part of the graph: gradients arrive at the fp32 master. It keeps channels-last memory.
        let kernel = self.kernel.to_kind(pass.precision.kind());
        let narrow = kernel.size()[1] < ONEDNN_BLOCK && self.padding == 0 && self.stride > 1;
        let (input, stride) = match narrow {
            true => (&every(self.stride, input), 1),
            false => (input, self.stride),
        };
        let maps = if convolution::takes(input, &kernel, stride) {
            convolution::convolution(input, &kernel, stride)
        } else {
            input.conv2d(&kernel, None::<Tensor>, [stride, stride], [self.padding, self.padding], [1, 1], 1)
        };
        let training = pass.mode == Mode::Train;
        if training {
            let channels = self.weight.numel();
            assert!(
                maps.numel() > channels,
                "BatchNorm needs more than one value per channel, found maps of {:?}",
                maps.size()
            );
            let _ = self.num_batches_tracked.shallow_clone().g_add_scalar_(1);
        }
        if norm::takes(&maps) {
            let norm = Norm {
                weight: &self.weight,
                bias: &self.bias,
                running_mean: &self.running_mean,
                running_var: &self.running_var,
                momentum: NORM_MOMENTUM,
                epsilon: NORM_EPSILON,
            };
            let normalise = if training { norm::train } else { norm::evaluate };
            return normalise(&maps, norm, then);
        }
        // Statistics and parameters are fp32 also where the maps are bf16. In training libtorch moves the
        // running statistics in place, with the unbiased variance.
        let mut maps = maps.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            training,
            NORM_MOMENTUM,
            NORM_EPSILON,
            true,
        );
        // In place: BatchNorm's gradient needs its input, not its output.
        match then {
            Then::Stop => maps,
            Then::Relu => maps.relu_(),
            Then::AddRelu(residual) => maps.g_add_(residual).relu_(),
        }
    }
}

/// The linear layer to the embedding.
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(init: &mut Initialiser, name: &str, input: i64, output: i64) -> Self {
        Linear {
            weight: init.uniform(format!("{name}.weight"), &[output, input], input as f32),
            bias: init.uniform(format!("{name}.bias"), &[output], input as f32),
        }
    }
}
