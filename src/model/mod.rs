//! The encoder: images in, unit vectors out (Wu et al. 2018, §3; He et al. 2016 for the network).
//!
//! One ResNet with two stems ([`Family`]). [`Parameters`] holds what a checkpoint stores, by PyTorch's names
//! and in PyTorch's order; [`Precision`] says in what numbers the convolutions run. Gradients are values that
//! [`Encoder::backward`] returns, never state hidden in a tensor.
//!
//! Shapes: B batch, H×W image size, D embedding width.

mod autograd;
mod channels_last;
pub mod config;
pub mod convert;
pub mod convolution;
pub mod cost;
pub mod cuda;
pub mod device;
pub mod encoder;
mod init;
pub mod norm;
pub mod parameters;
pub mod precision;
mod resnet;
pub mod tf32;
mod threads;
pub mod upload;

pub use config::{Arch, EncoderConfig, Family, Head};
pub use convert::{from_slice_nhwc, to_vec_f32};
pub use device::DeviceChoice;
pub use encoder::{Encoder, Layer, Mode};
pub use parameters::{Entry, Gradients, Parameters, Role};
pub use precision::{Precision, PrecisionChoice};
pub(crate) use resnet::NORM_EPSILON;
pub use upload::upload;
