//! Linear classifiers side by side on the same features: one matrix product serves all of them.
//!
//! Shapes: n images, F numbers of a feature, H heads, C classes.

use tch::{Device, Kind, Tensor, no_grad};

/// H linear classifiers: `logits = x·weight + bias`, the C columns of a head next to each other.
#[derive(Debug)]
pub struct Heads {
    /// `[F, H·C]`.
    pub weight: Tensor,
    /// `[H·C]`.
    pub bias: Tensor,
    classes: i64,
}

/// What a pass over some images gives.
pub struct Pass {
    /// Weighted sums of the cross-entropies, f64 `[H]`.
    pub losses: Tensor,
    /// The gradient of their sum with respect to the weights, f32 `[F, H·C]`.
    pub weight: Tensor,
    /// The same with respect to the biases, f32 `[H·C]`.
    pub bias: Tensor,
}

impl Heads {
    /// `heads` classifiers of zeros for `dim` numbers and `classes` classes. Zero is a fair start: the problem is convex.
    pub fn zeros(dim: usize, heads: usize, classes: usize, device: Device) -> Self {
        let columns = (heads * classes) as i64;
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device));
        Heads { weight: zeros(&[dim as i64, columns]), bias: zeros(&[columns]), classes: classes as i64 }
    }

    /// The classifiers whose parameters are `parameters`, each `[F·C]` weights row by row and then `[C]` biases.
    ///
    /// # Panics
    /// If one of them has another length.
    pub fn of(parameters: &[&[f64]], dim: usize, classes: usize, device: Device) -> Self {
        let heads = Heads::zeros(dim, parameters.len(), classes, device);
        let (dim, classes) = (dim as i64, classes as i64);
        for (head, parameters) in (0..).zip(parameters) {
            assert_eq!(parameters.len() as i64, (dim + 1) * classes, "weights and biases of one head");
            let all = Tensor::from_slice(parameters).to_kind(Kind::Float).view([dim + 1, classes]);
            heads.weight.narrow(1, head * classes, classes).copy_(&all.narrow(0, 0, dim));
            heads.bias.narrow(0, head * classes, classes).copy_(&all.get(dim));
        }
        heads
    }

    /// How many there are, H.
    pub fn count(&self) -> i64 {
        self.bias.numel() as i64 / self.classes
    }

    /// Classifier `head` alone.
    pub fn one(&self, head: usize) -> Heads {
        let start = head as i64 * self.classes;
        Heads {
            weight: self.weight.narrow(1, start, self.classes).contiguous(),
            bias: self.bias.narrow(0, start, self.classes).contiguous(),
            classes: self.classes,
        }
    }

    /// Logits f32 `[n, H·C]` of features `x` `[n, F]`.
    pub fn logits(&self, x: &Tensor) -> Tensor {
        no_grad(|| self.bias.addmm(x, &self.weight))
    }

    /// Cross-entropies of `x` `[n, F]` with `labels` i64 `[n]`, and their gradient. Image i counts `weights[i, h]` times
    /// for head h; `weights` is f32 `[n, H]` or `[n, 1]`.
    pub fn pass(&self, x: &Tensor, labels: &Tensor, weights: &Tensor) -> Pass {
        no_grad(|| {
            let (n, heads, classes) = (x.size()[0], self.count(), self.classes);
            let log_p = self.logits(x).view([n, heads, classes]).log_softmax(2, Kind::Float);
            let truth = labels.view([n, 1, 1]).expand([n, heads, 1], false);
            let picked = log_p.gather(2, &truth, false).squeeze_dim(2); // [n, H]
            let losses = -(picked * weights).sum_dim_intlist([0].as_slice(), false, Kind::Double);
            // ∂/∂logits of −ln p[y] is p − onehot(y).
            let minus_one = Tensor::full([n, heads, 1], -1.0, (Kind::Float, x.device()));
            let error = log_p.exp().scatter_add(2, &truth, &minus_one) * weights.unsqueeze(2);
            let error = error.view([n, heads * classes]);
            Pass {
                losses,
                weight: x.tr().matmul(&error),
                bias: error.sum_dim_intlist([0].as_slice(), false, Kind::Float),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::to_vec_f32;

    /// Values, losses and gradients against loops in f64.
    #[test]
    fn a_pass_agrees_with_its_definition() {
        let (n, dim, heads, classes) = (7, 4, 3, 5);
        let wave =
            |count: usize, pace: f64| -> Vec<f64> { (0..count).map(|i| (i as f64 * pace).sin()).collect() };
        let parameters: Vec<Vec<f64>> =
            (0..heads).map(|h| wave((dim + 1) * classes, 0.7 + h as f64)).collect();
        let x = wave(n * dim, 1.3);
        let labels: Vec<i64> = (0..n as i64).map(|i| i * 3 % 5).collect();
        let weights: Vec<f64> = (0..n * heads).map(|i| f64::from(i as u32 % 3)).collect();
        let slices: Vec<&[f64]> = parameters.iter().map(Vec::as_slice).collect();
        let ours = Heads::of(&slices, dim, classes, Device::Cpu);
        let float = |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float);
        let pass = ours.pass(
            &float(&x).view([n as i64, dim as i64]),
            &Tensor::from_slice(&labels),
            &float(&weights).view([n as i64, heads as i64]),
        );
        for (h, parameters) in parameters.iter().enumerate() {
            let (mut loss, mut gradient) = (0.0, vec![0.0; parameters.len()]);
            for i in 0..n {
                let logits: Vec<f64> = (0..classes)
                    .map(|c| {
                        parameters[dim * classes + c]
                            + (0..dim).map(|f| x[i * dim + f] * parameters[f * classes + c]).sum::<f64>()
                    })
                    .collect();
                let total: f64 = logits.iter().map(|l| l.exp()).sum();
                let weight = weights[i * heads + h];
                let truth = labels[i] as usize;
                loss -= weight * (logits[truth].exp() / total).ln();
                for c in 0..classes {
                    let error = weight * (logits[c].exp() / total - f64::from(u8::from(c == truth)));
                    (0..dim).for_each(|f| gradient[f * classes + c] += x[i * dim + f] * error);
                    gradient[dim * classes + c] += error;
                }
            }
            assert!((pass.losses.double_value(&[h as i64]) - loss).abs() < 1e-4);
            let columns = |t: &Tensor| to_vec_f32(&t.narrow(-1, (h * classes) as i64, classes as i64));
            let found = [columns(&pass.weight), columns(&pass.bias)].concat();
            for (found, expected) in found.iter().zip(&gradient) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
        let alone = ours.one(1);
        assert_eq!(alone.count(), 1);
        assert_eq!(to_vec_f32(&alone.weight).len(), dim * classes);
    }
}
