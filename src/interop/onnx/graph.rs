//! The encoder as a graph of ONNX operators, with BatchNorm folded into the convolutions.
//!
//! A node has the name of its only output; weights have PyTorch's names. Shapes: B batch, C channels, D embedding.

use super::proto::{
    self, Attribute, Dimension, FLOAT, Graph, INT, INTS, Node, Shape, TensorType, Type, ValueInfo,
};
use crate::data::augment::Normalization;
use crate::error::{Error, Result};
use crate::model::{Encoder, Family, Head, NORM_EPSILON, to_vec_f32};

/// The graph of `encoder`, whose input is normalised in it if `normalization` is given.
pub fn build(encoder: &Encoder, normalization: Option<&Normalization>) -> Result<Graph> {
    let config = encoder.config();
    let mut builder = Builder { encoder, nodes: Vec::new(), constants: Vec::new(), problems: Vec::new() };
    let mut value = "images".to_owned();
    if let Some(normalization) = normalization {
        value = builder.normalize(normalization, &value);
    }
    value = builder.trunk(&value);
    value = builder.node("GlobalAveragePool", "avgpool", &[&value], vec![]);
    value = builder.node("Flatten", "pooled", &[&value], vec![int("axis", 1)]);
    if config.head == Head::Linear {
        value = builder.linear(config.family.head_name(), &value);
    }
    builder.unit_rows(&value);

    let Builder { nodes, constants, problems, .. } = builder;
    if !problems.is_empty() {
        return Err(Error::State { what: "ONNX model", problems });
    }
    let batch = || Dimension::from("batch");
    let images = vec![batch(), 3.into(), "height".into(), "width".into()];
    Ok(Graph {
        node: nodes,
        name: config.arch.to_string(),
        initializer: constants,
        input: vec![value_info("images", images, &super::input_text(normalization))],
        output: vec![
            value_info("embedding", vec![batch(), config.embed_dim.into()], "rows of unit length"),
            value_info("pooled", vec![batch(), config.pooled_dim().into()], "after global average pooling"),
        ],
    })
}

/// Nodes and constants, in order.
struct Builder<'a> {
    encoder: &'a Encoder,
    nodes: Vec<Node>,
    constants: Vec<proto::Tensor>,
    /// Weights that cannot be written, and why.
    problems: Vec<String>,
}

impl Builder<'_> {
    /// `(images − mean) / std`. Not part of the first convolution: its padding is zero after normalisation.
    fn normalize(&mut self, normalization: &Normalization, images: &str) -> String {
        self.constant("normalization.mean", &[1, 3, 1, 1], &normalization.mean);
        self.constant("normalization.std", &[1, 3, 1, 1], &normalization.std);
        let centred = self.node("Sub", "normalization.centred", &[images, "normalization.mean"], vec![]);
        self.node("Div", "normalization.scaled", &[&centred, "normalization.std"], vec![])
    }

    /// The convolutions, as `model::resnet` arranges them: `[B, 3, H, W]` to `[B, C, h, w]`.
    fn trunk(&mut self, images: &str) -> String {
        let config = self.encoder.config();
        let stem_stride = if config.family == Family::ImageNet { 2 } else { 1 };
        let mut maps = self.conv_norm("conv1", "bn1", stem_stride, images);
        maps = self.node("Relu", "relu", &[&maps], vec![]);
        if config.family == Family::ImageNet {
            maps = self.node("MaxPool", "maxpool", &[&maps], window(3, 2));
        }
        for (stage, count) in config.arch.blocks().into_iter().enumerate() {
            for index in 0..count {
                let stride = if index == 0 && stage > 0 { 2 } else { 1 };
                maps = self.block(&format!("layer{}.{index}", stage + 1), stride, &maps);
            }
        }
        maps
    }

    /// A residual block; its 3×3 convolution, the first if there are two, has the stride.
    fn block(&mut self, name: &str, stride: i64, input: &str) -> String {
        let config = self.encoder.config();
        let strides: &[i64] = if config.arch.bottleneck() { &[1, stride, 1] } else { &[stride, 1] };
        let mut maps = input.to_owned();
        for (number, &stride) in (1..).zip(strides) {
            if number > 1 {
                maps = self.node("Relu", &format!("{name}.relu{}", number - 1), &[&maps], vec![]);
            }
            maps =
                self.conv_norm(&format!("{name}.conv{number}"), &format!("{name}.bn{number}"), stride, &maps);
        }
        let projection = format!("{name}.{}", config.family.shortcut_name());
        let mut shortcut = input.to_owned();
        if self.encoder.parameters().get(&format!("{projection}.0.weight")).is_some() {
            shortcut =
                self.conv_norm(&format!("{projection}.0"), &format!("{projection}.1"), stride, &shortcut);
        }
        let sum = self.node("Add", &format!("{name}.add"), &[&maps, &shortcut], vec![]);
        self.node("Relu", &format!("{name}.relu"), &[&sum], vec![])
    }

    /// A convolution and the BatchNorm `norm` behind it as one convolution with a bias. The weights are computed in
    /// double precision and rounded once.
    fn conv_norm(&mut self, convolution: &str, norm: &str, stride: i64, input: &str) -> String {
        let (weight, bias) = (format!("{convolution}.weight"), format!("{convolution}.bias"));
        let (shape, mut kernel) = self.parameter(&weight);
        let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
            .map(|part| self.parameter(&format!("{norm}.{part}")).1);
        // BatchNorm is γ·(x − μ)/√(σ² + ε) + β: a factor for each output channel, and the rest of it.
        let factors = gamma
            .iter()
            .zip(&variance)
            .map(|(&gamma, &variance)| f64::from(gamma) / (f64::from(variance) + NORM_EPSILON).sqrt());
        let mut rest = Vec::with_capacity(beta.len());
        let channels = kernel.chunks_exact_mut(shape[1..].iter().product::<i64>() as usize);
        for (((factor, channel), &beta), &mean) in factors.zip(channels).zip(&beta).zip(&mean) {
            for value in channel {
                *value = (f64::from(*value) * factor) as f32;
            }
            rest.push((f64::from(beta) - f64::from(mean) * factor) as f32);
        }
        self.constant(&weight, &shape, &kernel);
        self.constant(&bias, &shape[..1], &rest);
        self.node("Conv", convolution, &[input, &weight, &bias], window(shape[2], stride))
    }

    /// The linear layer `name`: `[B, C]` to `[B, D]`.
    fn linear(&mut self, name: &str, input: &str) -> String {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        for part in [&weight, &bias] {
            let (shape, values) = self.parameter(part);
            self.constant(part, &shape, &values);
        }
        self.node("Gemm", name, &[input, &weight, &bias], vec![int("transB", 1)])
    }

    /// `v / √(Σ v²)` for each row, as the encoder does it: where the sum is zero it is taken for one.
    fn unit_rows(&mut self, rows: &str) -> String {
        self.constant("norm.zero", &[], &[0.0]);
        let along = vec![ints("axes", &[1]), int("keepdims", 1)];
        let squares = self.node("ReduceSumSquare", "norm.squares", &[rows], along);
        let is_zero = self.node("Equal", "norm.is_zero", &[&squares, "norm.zero"], vec![]);
        let guard = self.node("Cast", "norm.guard", &[&is_zero], vec![int("to", FLOAT.into())]);
        let guarded = self.node("Add", "norm.guarded", &[&squares, &guard], vec![]);
        let length = self.node("Sqrt", "norm.length", &[&guarded], vec![]);
        self.node("Div", "embedding", &[rows, &length], vec![])
    }

    /// Shape and values, row-major, of a parameter that the encoder's configuration says it has.
    fn parameter(&self, name: &str) -> (Vec<i64>, Vec<f32>) {
        let tensor = self.encoder.parameters().get(name);
        let tensor = tensor.unwrap_or_else(|| panic!("an encoder of this configuration has {name}"));
        (tensor.size(), to_vec_f32(tensor))
    }

    fn constant(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        if !values.iter().all(|value| value.is_finite()) {
            self.problems.push(format!("{name}: not finite once BatchNorm is folded in"));
        }
        self.constants.push(proto::Tensor {
            dims: shape.to_vec(),
            data_type: Some(FLOAT),
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        });
    }

    /// Appends a node; gives its output's name, which is `name`.
    fn node(&mut self, op: &str, name: &str, inputs: &[&str], attribute: Vec<Attribute>) -> String {
        self.nodes.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: op.to_owned(),
            attribute,
        });
        name.to_owned()
    }
}

/// The attributes of a square window that is padded by half its size.
fn window(size: i64, stride: i64) -> Vec<Attribute> {
    vec![ints("kernel_shape", &[size; 2]), ints("strides", &[stride; 2]), ints("pads", &[size / 2; 4])]
}

fn int(name: &str, value: i64) -> Attribute {
    Attribute { name: name.to_owned(), i: Some(value), ints: vec![], r#type: Some(INT) }
}

fn ints(name: &str, values: &[i64]) -> Attribute {
    Attribute { name: name.to_owned(), i: None, ints: values.to_vec(), r#type: Some(INTS) }
}

/// An input or output: f32 of that shape.
fn value_info(name: &str, shape: Vec<Dimension>, doc: &str) -> ValueInfo {
    let tensor_type = TensorType { elem_type: Some(FLOAT), shape: Some(Shape { dim: shape }) };
    ValueInfo {
        name: name.to_owned(),
        r#type: Some(Type { tensor_type: Some(tensor_type) }),
        doc_string: doc.to_owned(),
    }
}
