//! What a network costs to compute, counted from its configuration.

use super::config::{EncoderConfig, Head};

/// Multiply-adds of one image in the convolutions and the linear layer; normalisation, activations, additions and
/// pooling, which cost memory traffic rather than arithmetic, are not counted. One multiply-add is two FLOP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiplyAdds {
    /// Of a forward pass.
    pub forward: u64,
    /// Of a backward pass: for every layer the gradient of its weights, and for every layer but the first that of its
    /// input, each as much as the layer's forward pass.
    pub backward: u64,
}

impl MultiplyAdds {
    /// Those of an encoder of `config` for images of `side`×`side` pixels.
    ///
    /// The configuration must be [valid](EncoderConfig::validate).
    pub fn of(config: &EncoderConfig, side: u32) -> Self {
        let layers: Vec<u64> = config.layers(i64::from(side)).map(|layer| layer.multiply_adds()).collect();
        let head = match config.head {
            Head::Linear => (config.pooled_dim() * config.embed_dim) as u64,
            Head::None => 0,
        };
        let forward = layers.iter().sum::<u64>() + head;
        MultiplyAdds { forward, backward: 2 * forward - layers[0] }
    }

    /// FLOP of a forward and a backward pass of one image.
    pub fn training_flop(&self) -> u64 {
        2 * (self.forward + self.backward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Arch, Encoder, Family, Layer};
    use tch::{Device, Kind, Tensor};

    /// torchvision 0.26 states these for its classifiers of 1,000 classes at 224 px (`ResNet50_Weights.meta["_ops"]`
    /// and so on, in G multiply-adds); He et al. 2016, Table 1, has them as 1.8, 3.6, 3.8, 7.6 and 11.3, with the
    /// bottlenecks' stride on the 1×1 convolution.
    #[test]
    fn published_networks_cost_what_is_published() {
        for (arch, published) in [
            (Arch::ResNet18, "1.814"),
            (Arch::ResNet34, "3.664"),
            (Arch::ResNet50, "4.089"),
            (Arch::ResNet101, "7.801"),
            (Arch::ResNet152, "11.514"),
        ] {
            let config = EncoderConfig { embed_dim: 1000, ..EncoderConfig::new(arch, Family::ImageNet) };
            let count = MultiplyAdds::of(&config, 224).forward;
            assert_eq!(format!("{:.3}", count as f64 / 1e9), published, "{arch}: {count}");
        }
    }

    /// Every kernel of a real encoder times the places where it is applied, which are read off the maps that the
    /// encoder gives.
    #[test]
    fn the_count_is_that_of_the_network_itself() {
        for arch in Arch::ALL {
            for (family, side) in
                [(Family::Cifar, 16), (Family::Cifar, 33), (Family::ImageNet, 64), (Family::ImageNet, 97)]
            {
                for head in [Head::Linear, Head::None] {
                    let shape = EncoderConfig { width: 2, embed_dim: 6, ..EncoderConfig::new(arch, family) };
                    let embed_dim = if head == Head::None { shape.pooled_dim() } else { 6 };
                    let config = EncoderConfig { head, embed_dim, ..shape };
                    let encoder = Encoder::new(config, 0, Device::Cpu);
                    let images = Tensor::zeros([1, 3, side, side], (Kind::Float, Device::Cpu));
                    let places: Vec<i64> = encoder
                        .features(&images, &[1, 2, 3, 4].map(Layer::Stage))
                        .iter()
                        .map(|maps| maps.size()[2] * maps.size()[3])
                        .collect();
                    let stem = if family == Family::Cifar { side } else { (side + 1) / 2 };
                    let mut expected = 0;
                    for entry in encoder.parameters().trainable() {
                        let (name, size) = (&entry.name, entry.tensor.size());
                        let applied = match (name.strip_prefix("layer"), size.len()) {
                            (None, 4) => stem * stem,
                            // The head, applied once.
                            (None, 2) => 1,
                            (Some(rest), 4) => {
                                let stage: usize = rest[..1].parse().unwrap();
                                // A bottleneck's first convolution comes before the stride.
                                let before =
                                    arch.bottleneck() && rest[1..] == *".0.conv1.weight" && stage > 1;
                                places[stage - 1 - usize::from(before)]
                            }
                            // BatchNorm, and the head's bias.
                            _ => 0,
                        };
                        expected += applied as u64 * entry.tensor.numel() as u64;
                    }
                    let count = MultiplyAdds::of(&config, side as u32);
                    assert_eq!(count.forward, expected, "{config:?} at {side} px");
                    let first = (3 * 2 * stem * stem) as u64 * if family == Family::Cifar { 9 } else { 49 };
                    assert_eq!(count.training_flop(), 2 * (3 * expected - first), "{config:?} at {side} px");
                }
            }
        }
    }
}
