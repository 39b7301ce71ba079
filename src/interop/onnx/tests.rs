//! The written model, read back and run node by node on libtorch, against the encoder.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use rand::RngExt;
use tch::{Device, Kind, Tensor, no_grad};

use super::proto::{FLOAT, Graph, Model, Node};
use super::*;
use crate::model::{Arch, Family, Layer, Mode, from_slice_nhwc};
use crate::rng::{Purpose, stream};

/// An encoder of width 8 whose BatchNorms and biases all do something.
fn encoder(arch: Arch, family: Family, head: Head) -> Encoder {
    let config = EncoderConfig { width: 8, embed_dim: 16, head, ..EncoderConfig::new(arch, family) };
    let embed_dim = if head == Head::None { config.pooled_dim() } else { 16 };
    let encoder = Encoder::new(EncoderConfig { embed_dim, ..config }, 1, Device::Cpu);
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
        set(&encoder, &entry.name, &Tensor::from_slice(&values));
    }
    encoder
}

fn set(encoder: &Encoder, name: &str, values: &Tensor) {
    no_grad(|| encoder.parameters().get(name).unwrap().shallow_clone().copy_(values));
}

/// Pixels in 0..1, each image of another brightness.
fn images(batch: usize, height: usize, width: usize) -> Tensor {
    let mut generator = stream(0, Purpose::Test, 0, 0);
    let size = height * width * 3;
    let pixels: Vec<f32> = (0..batch * size)
        .map(|i| generator.random_range(0.0..(1 + i / size) as f32 / batch as f32))
        .collect();
    from_slice_nhwc(&pixels, [batch, height, width])
}

fn decode(encoder: &Encoder, options: &OnnxOptions) -> Model {
    Model::decode(encode(encoder, options).unwrap().as_slice()).unwrap()
}

/// Every value of the graph by name. Fails if a node comes before one that it needs, or a constant is never used.
fn run(graph: &Graph, images: &Tensor) -> BTreeMap<String, Tensor> {
    let mut values = BTreeMap::from([("images".to_owned(), images.shallow_clone())]);
    let mut unused = BTreeSet::new();
    for tensor in &graph.initializer {
        assert_eq!(tensor.data_type, Some(FLOAT));
        let value = Tensor::from_data_size(&tensor.raw_data, &tensor.dims, Kind::Float);
        assert!(values.insert(tensor.name.clone(), value).is_none(), "{} twice", tensor.name);
        unused.insert(&tensor.name);
    }
    for node in &graph.node {
        let inputs: Vec<&Tensor> = node
            .input
            .iter()
            .map(|name| values.get(name).unwrap_or_else(|| panic!("{} needs {name} too early", node.name)))
            .collect();
        let value = evaluate(node, &inputs);
        node.input.iter().for_each(|name| _ = unused.remove(name));
        let [output] = node.output.as_slice() else { panic!("{} has one output", node.name) };
        assert!(values.insert(output.clone(), value).is_none(), "{output} twice");
    }
    assert!(unused.is_empty(), "never used: {unused:?}");
    values
}

fn evaluate(node: &Node, inputs: &[&Tensor]) -> Tensor {
    let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name).unwrap();
    let int = |name: &str| attribute(name).i.unwrap();
    let ints = |name: &str| attribute(name).ints.as_slice();
    let padding = || {
        let &[top, left, bottom, right] = ints("pads") else { panic!("{:?}", ints("pads")) };
        assert_eq!([top, left], [bottom, right]);
        [top, left]
    };
    match (node.op_type.as_str(), inputs) {
        ("Sub", [a, b]) => *a - *b,
        ("Div", [a, b]) => *a / *b,
        ("Add", [a, b]) => *a + *b,
        ("Sqrt", [a]) => a.sqrt(),
        ("Relu", [a]) => a.relu(),
        ("Equal", [a, b]) => a.eq_tensor(b),
        ("Cast", [a]) => {
            assert_eq!(int("to"), i64::from(FLOAT));
            a.to_kind(Kind::Float)
        }
        ("Conv", [a, weight, bias]) => {
            assert_eq!(ints("kernel_shape"), &weight.size()[2..]);
            a.conv2d(weight, Some(*bias), ints("strides"), padding(), [1, 1], 1)
        }
        ("MaxPool", [a]) => a.max_pool2d(ints("kernel_shape"), ints("strides"), padding(), [1, 1], false),
        ("GlobalAveragePool", [a]) => a.mean_dim([2, 3].as_slice(), true, Kind::Float),
        ("Flatten", [a]) => a.flatten(int("axis"), -1),
        ("Gemm", [a, weight, bias]) => {
            assert_eq!(int("transB"), 1);
            a.matmul(&weight.tr()) + *bias
        }
        ("ReduceSumSquare", [a]) => {
            a.square().sum_dim_intlist(ints("axes"), int("keepdims") == 1, Kind::Float)
        }
        (op, inputs) => panic!("{op} with {} inputs", inputs.len()),
    }
}

/// The largest difference, in units of the largest expected value where that is above 1.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let largest = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / largest.max(1.0)
}

fn assert_agrees(encoder: &Encoder, options: &OnnxOptions, images: &Tensor) {
    let model = decode(encoder, options);
    let values = run(model.graph.as_ref().unwrap(), images);
    let input = match &options.normalization {
        Some(Normalization { mean, std }) => {
            let channels = |values: &[f32]| Tensor::from_slice(values).view([1, 3, 1, 1]);
            (images - channels(mean)) / channels(std)
        }
        None => images.shallow_clone(),
    };
    let expected = [
        ("embedding", encoder.forward(&input, Mode::Eval)),
        ("pooled", encoder.features(&input, &[Layer::Pooled]).remove(0)),
    ];
    if images.size()[0] > 1 {
        let rows = &expected[0].1;
        let difference = difference(&rows.get(0), &rows.get(1));
        assert!(difference > 1e-3, "another image, another embedding: {difference:e}");
    }
    for (name, expected) in expected {
        let difference = difference(&values[name], &expected);
        assert!(difference < 1e-5, "{:?} {name}: {difference:e}", encoder.config());
    }
}

#[test]
fn the_graph_computes_what_the_encoder_computes() {
    for arch in [Arch::ResNet18, Arch::ResNet50] {
        for family in [Family::Cifar, Family::ImageNet] {
            for head in [Head::Linear, Head::None] {
                let encoder = encoder(arch, family, head);
                for (batch, height, width) in [(1, 40, 40), (3, 32, 48)] {
                    assert_agrees(&encoder, &OnnxOptions::default(), &images(batch, height, width));
                }
            }
        }
    }
}

#[test]
fn with_normalization_inside_the_model_takes_pixels() {
    let encoder = encoder(Arch::ResNet18, Family::Cifar, Head::Linear);
    let normalization = Normalization { mean: [0.1, 0.5, 0.9], std: [0.2, 0.3, 2.0] };
    let options = OnnxOptions { normalization: Some(normalization), image_size: Some(32) };
    assert_agrees(&encoder, &options, &images(3, 32, 32));
}

#[test]
fn a_zero_vector_stays_zero() {
    let encoder = encoder(Arch::ResNet18, Family::ImageNet, Head::Linear);
    for name in ["fc.weight", "fc.bias"] {
        set(&encoder, name, &Tensor::zeros([1], (Kind::Float, Device::Cpu)));
    }
    let model = decode(&encoder, &OnnxOptions::default());
    let embedding = &run(model.graph.as_ref().unwrap(), &images(2, 32, 32))["embedding"];
    assert_eq!(crate::model::to_vec_f32(embedding), [0.0; 32]);
}

#[test]
fn the_model_says_what_it_is_and_wants() {
    let encoder = encoder(Arch::ResNet50, Family::ImageNet, Head::Linear);
    let normalization = Some(Normalization::imagenet());
    let model = decode(&encoder, &OnnxOptions { normalization, image_size: Some(224) });
    assert_eq!((model.ir_version, model.opset_import[0].version), (Some(8), Some(17)));
    assert_eq!(
        (model.producer_name.as_str(), model.producer_version.as_str()),
        ("lemniscate", env!("CARGO_PKG_VERSION"))
    );
    let property = |model: &Model, key: &str| {
        let property = model.metadata_props.iter().find(|property| property.key == key);
        property.map(|property| property.value.clone())
    };
    for (key, value) in [
        ("architecture", "resnet50"),
        ("family", "imagenet"),
        ("width", "8"),
        ("head", "linear"),
        ("embed_dim", "16"),
        ("pooled_dim", "256"),
        ("input_range", "0..1"),
        ("mean", "[0.485, 0.456, 0.406]"),
        ("std", "[0.229, 0.224, 0.225]"),
        ("image_size", "224"),
    ] {
        assert_eq!(property(&model, key).as_deref(), Some(value), "{key}");
    }
    assert!(model.doc_string.contains("pixels in 0..1"), "{}", model.doc_string);

    let plain = decode(&encoder, &OnnxOptions::default());
    assert!(plain.doc_string.contains("the model does not normalise"), "{}", plain.doc_string);
    assert_eq!(property(&plain, "input_range").as_deref(), Some("normalised"));
    for key in ["mean", "std", "image_size"] {
        assert_eq!(property(&plain, key), None);
    }

    let graph = model.graph.unwrap();
    let names: Vec<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    assert_eq!((graph.input[0].name.as_str(), names.as_slice()), ("images", &["embedding", "pooled"][..]));
    for name in ["conv1.weight", "conv1.bias", "layer2.0.downsample.0.weight", "fc.bias"] {
        assert!(graph.initializer.iter().any(|tensor| tensor.name == name), "{name}");
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let encoder = encoder(Arch::ResNet18, Family::Cifar, Head::Linear);
    for (mean, std) in [([f32::NAN, 0.0, 0.0], [1.0; 3]), ([0.0; 3], [1.0, 0.0, 1.0])] {
        let options =
            OnnxOptions { normalization: Some(Normalization { mean, std }), ..OnnxOptions::default() };
        assert!(matches!(encode(&encoder, &options), Err(Error::Usage { .. })));
    }
    // A negative variance is finite, its root is not.
    set(&encoder, "layer3.1.bn2.running_var", &Tensor::from(-1.0_f32));
    let Err(Error::State { problems, .. }) = encode(&encoder, &OnnxOptions::default()) else {
        panic!("accepted")
    };
    assert_eq!(problems.len(), 2);
    assert!(problems[0].starts_with("layer3.1.conv2.weight: not finite"), "{problems:?}");

    assert!(check_size(LIMIT).is_ok());
    assert!(check_size(LIMIT + 1).unwrap_err().to_string().contains("at most 2147483647 bytes"));
}
