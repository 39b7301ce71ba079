//! Initial values, from our own generator: the same on every device and in every release of libtorch.

use rand::distr::{Distribution, Uniform};
use rand_distr::Normal;
use tch::{Device, Kind, Tensor};

use super::convert::channels_last;
use super::parameters::{Entry, Parameters, Role};
use super::{Family, config::EncoderConfig};
use crate::rng::{Purpose, stream};

/// Makes named parameters one after the other, in the order in which PyTorch would register them.
pub(super) struct Initialiser {
    entries: Vec<Entry>,
    family: Family,
    seed: u64,
    device: Device,
}

impl Initialiser {
    pub fn new(config: &EncoderConfig, seed: u64, device: Device) -> Self {
        Initialiser { entries: Vec::new(), family: config.family, seed, device }
    }

    /// A `size`×`size` convolution: Normal(0, √(2/(k·k·out))) in the ImageNet family (He et al. 2015, fan-out),
    /// Uniform(±1/√fan_in), PyTorch's default, in the CIFAR family.
    pub fn convolution(&mut self, name: String, input: i64, output: i64, size: i64) -> Tensor {
        let shape = [output, input, size, size];
        let area = (size * size) as f32;
        match self.family {
            Family::ImageNet => {
                let deviation = (2.0 / (area * output as f32)).sqrt();
                let normal = Normal::new(0.0, deviation).expect("a positive finite deviation");
                self.draw(name, &shape, normal)
            }
            Family::Cifar => self.uniform(name, &shape, area * input as f32),
        }
    }

    /// Uniform(±1/√fan_in).
    pub fn uniform(&mut self, name: String, shape: &[i64], fan_in: f32) -> Tensor {
        let bound = 1.0 / fan_in.sqrt();
        self.draw(name, shape, Uniform::new(-bound, bound).expect("a positive finite bound"))
    }

    /// A learnt vector of one value.
    pub fn constant(&mut self, name: String, length: i64, value: f64) -> Tensor {
        let tensor = Tensor::full([length], value, (Kind::Float, self.device));
        self.register(name, tensor.set_requires_grad(true), Role::Weight)
    }

    /// A vector, or a scalar if `length` is `None`, that is carried along.
    pub fn buffer(&mut self, name: String, length: Option<i64>, value: f64, kind: Kind) -> Tensor {
        let tensor = Tensor::full(length.as_slice(), value, (kind, self.device));
        self.register(name, tensor, Role::Buffer)
    }

    pub fn finish(self) -> Parameters {
        Parameters::new(self.entries)
    }

    fn draw(&mut self, name: String, shape: &[i64], distribution: impl Distribution<f32>) -> Tensor {
        let number = self.entries.iter().filter(|entry| entry.role == Role::Weight).count() as u64;
        let length = shape.iter().product::<i64>() as usize;
        let generator = stream(self.seed, Purpose::Parameters, number, 0);
        let values: Vec<f32> = distribution.sample_iter(generator).take(length).collect();
        let tensor = channels_last(&Tensor::from_slice(&values).view(shape)).to_device(self.device);
        self.register(name, tensor.set_requires_grad(true), Role::Weight)
    }

    fn register(&mut self, name: String, tensor: Tensor, role: Role) -> Tensor {
        let handle = tensor.shallow_clone();
        self.entries.push(Entry { name, tensor, role });
        handle
    }
}
