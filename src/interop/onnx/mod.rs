//! Encoders as ONNX models, for programs without libtorch.
//!
//! | | name | type and shape |
//! |---|---|---|
//! | input | `images` | f32 `[batch, 3, height, width]`; R, G, B |
//! | output | `embedding` | f32 `[batch, D]`, rows of unit length |
//! | output | `pooled` | f32 `[batch, C]`, the features after global average pooling |
//!
//! Batch and image size are the caller's choice at each call. BatchNorm is part of the convolutions, so a weight named
//! `conv1.weight` is not PyTorch's of that name, and there is a `conv1.bias`.

mod graph;
mod proto;
#[cfg(test)]
mod tests;

use prost::Message;

use self::proto::{Model, OperatorSet, Property};
use crate::data::augment::Normalization;
use crate::error::{Error, Result};
use crate::model::{Encoder, EncoderConfig, Head};

/// Version 8 of the file format and 17 of the operators: what ONNX 1.12 of 2022 and everything since then reads.
const IR_VERSION: i64 = 8;
const OPERATOR_SET: i64 = 17;

/// Protobuf's limit on a message, in bytes.
const LIMIT: usize = i32::MAX as usize;

/// What an ONNX model shall have beside the encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnnxOptions {
    /// Normalises the images inside the model, which then takes pixels in 0..1. Without, it takes what the encoder
    /// takes: images that the caller normalised as in training.
    pub normalization: Option<Normalization>,
    /// Edge of the square images that the encoder is meant for, in pixels. Only noted: the model takes any size.
    pub image_size: Option<usize>,
}

/// The bytes of an `.onnx` file with `encoder` in evaluation, in fp32 whatever its precision.
///
/// The metadata say which encoder it is and what the images must be.
///
/// # Errors
/// If the model is larger than 2 GiB, which protobuf cannot hold; if a weight is not finite; if `options` has a mean
/// that is not finite or a deviation that is not positive.
pub fn encode(encoder: &Encoder, options: &OnnxOptions) -> Result<Vec<u8>> {
    let normalization = options.normalization.as_ref();
    if let Some(Normalization { mean, std }) = normalization
        && !(mean.iter().all(|mean| mean.is_finite()) && std.iter().all(|std| std.is_normal() && *std > 0.0))
    {
        return Err(Error::usage(format!(
            "images cannot be normalised by mean {mean:?} and deviation {std:?}"
        )));
    }
    let config = encoder.config();
    let model = Model {
        ir_version: Some(IR_VERSION),
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: doc(config, normalization),
        graph: Some(graph::build(encoder, normalization)?),
        opset_import: vec![OperatorSet { domain: String::new(), version: Some(OPERATOR_SET) }],
        metadata_props: metadata(config, options),
    };
    check_size(model.encoded_len())?;
    Ok(model.encode_to_vec())
}

fn check_size(bytes: usize) -> Result<()> {
    if bytes > LIMIT {
        return Err(Error::usage(format!(
            "an ONNX file holds at most {LIMIT} bytes, and this encoder needs {bytes}"
        )));
    }
    Ok(())
}

fn doc(config: &EncoderConfig, normalization: Option<&Normalization>) -> String {
    let EncoderConfig { arch, family, embed_dim, .. } = config;
    format!(
        "Image encoder {arch} ({family}), trained by memory-bank instance discrimination (Wu et al., CVPR 2018).\n\
         Input images: {}.\n\
         Output embedding: [batch, {embed_dim}], rows of unit length; compare them by their dot products.\n\
         Output pooled: [batch, {}], the features after global average pooling.",
        input_text(normalization),
        config.pooled_dim(),
    )
}

/// What `images` must be.
fn input_text(normalization: Option<&Normalization>) -> String {
    let shape = "[batch, 3, height, width], f32, channels R, G, B";
    match normalization {
        Some(Normalization { mean, std }) => format!(
            "{shape}, pixels in 0..1 (level / 255), not normalised: the model itself subtracts the mean {mean:?} \
             and divides by the standard deviation {std:?}"
        ),
        None => format!(
            "{shape}, normalised as in training, (level / 255 - mean) / std for each channel: the model does not \
             normalise"
        ),
    }
}

fn metadata(config: &EncoderConfig, options: &OnnxOptions) -> Vec<Property> {
    let normalization = options.normalization.as_ref();
    let head = match config.head {
        Head::Linear => "linear",
        Head::None => "none",
    };
    let mut properties = vec![
        ("architecture", config.arch.to_string()),
        ("family", config.family.to_string()),
        ("width", config.width.to_string()),
        ("head", head.to_owned()),
        ("embed_dim", config.embed_dim.to_string()),
        ("pooled_dim", config.pooled_dim().to_string()),
        ("input", input_text(normalization)),
        ("input_range", if normalization.is_some() { "0..1" } else { "normalised" }.to_owned()),
    ];
    if let Some(Normalization { mean, std }) = normalization {
        // As JSON.
        properties.extend([("mean", format!("{mean:?}")), ("std", format!("{std:?}"))]);
    }
    if let Some(size) = options.image_size {
        properties.push(("image_size", size.to_string()));
    }
    properties.into_iter().map(|(key, value)| Property { key: key.to_owned(), value }).collect()
}
