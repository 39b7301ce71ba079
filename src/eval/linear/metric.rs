//! The curvature of logistic regression where all weights are zero: the metric in which L-BFGS starts out.
//!
//! There every class has probability 1/C, and the Hessian for the weights of one class is `⟨x·xᵀ⟩/C + λ·I`, but for a
//! part that gradients, which sum to zero over the classes, never meet (Böhning 1992 bounds the Hessian everywhere by
//! nearly the same). Features of an encoder are correlated, a few directions hold most of their variance, and
//! steepest descent is hopeless among them; in this metric they are all alike.

use tch::{Device, Kind, Tensor};

use super::Examples;

/// The most numbers of a feature, F, for which F² curvatures are worth their time and memory (2,048: 32 MiB a matrix).
const MOST_NUMBERS: usize = 2048;

/// Bytes that metrics of `heads` strengths take for features of `dim` numbers.
pub fn bytes(dim: usize, heads: usize) -> usize {
    if dim <= MOST_NUMBERS { (heads + 2) * (dim + 1) * (dim + 1) * 8 } else { 0 }
}

/// `⟨x·xᵀ⟩` over the images that take part, f64 `[F+1, F+1]`; the last number of every x is 1, for the bias.
pub struct SecondMoments(Tensor);

/// The Hessian at zero, factorised.
pub struct Metric {
    /// Its lower Cholesky factor, f64 `[F+1, F+1]`.
    factor: Tensor,
    classes: i64,
}

impl SecondMoments {
    /// Those of the images that `counts` picks; `None` where features have too many numbers for it to pay.
    pub fn of(examples: &Examples<'_>, counts: &[f32], chunk: usize) -> Option<Self> {
        let (n, dim) = (examples.features.len(), examples.features.dim());
        if dim > MOST_NUMBERS {
            return None;
        }
        let size = dim as i64 + 1;
        let mut sum = Tensor::zeros([size, size], (Kind::Double, Device::Cpu));
        for start in (0..n).step_by(chunk) {
            let range = start..(start + chunk).min(n);
            let counts = Tensor::from_slice(&counts[range.clone()]).to_device(examples.device).unsqueeze(1);
            let ones = counts.ones_like();
            let x = Tensor::cat(&[examples.tensor(range), ones], 1); // [n, F+1]
            let product = (&x * counts).transpose(0, 1).matmul(&x);
            let _ = sum.g_add_(&product.to_device(Device::Cpu).to_kind(Kind::Double));
        }
        let taken: f64 = counts.iter().map(|&count| f64::from(count)).sum();
        Some(SecondMoments(sum / taken))
    }

    /// The metric for C classes and the strength `l2`; `None` if the moments are not finite or have no factor.
    pub fn metric(&self, classes: usize, l2: f64) -> Option<Metric> {
        let size = self.0.size()[0];
        let penalty = Tensor::full([size], l2, (Kind::Double, Device::Cpu));
        // The bias is free; where it can be told from the features hardly at all, a little keeps the factor finite.
        let _ = penalty.get(size - 1).fill_(1e-9);
        let hessian = &self.0 / classes as f64 + penalty.diag(0);
        let (factor, info) = hessian.f_linalg_cholesky_ex(false, false).ok()?;
        let sound = info.int64_value(&[]) == 0 && bool::try_from(factor.isfinite().all()).unwrap_or(false);
        sound.then_some(Metric { factor, classes: classes as i64 })
    }
}

impl Metric {
    /// What the inverse Hessian makes of `gradient`: `[F·C]` for the weights, then `[C]` for the biases.
    pub fn apply(&self, gradient: &[f64]) -> Vec<f64> {
        let gradient = Tensor::from_slice(gradient).view([-1, self.classes]);
        let step = gradient.cholesky_solve(&self.factor, false).contiguous();
        let mut values = vec![0.0; step.numel()];
        let count = values.len();
        step.copy_data(&mut values, count);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::linear::cache::Cache;

    /// Two numbers and three images by hand, one of which does not take part.
    #[test]
    fn it_solves_with_the_hessian_at_zero() {
        let features = Cache::of(vec![1.0, 2.0, 3.0, -1.0, 100.0, 100.0], 2);
        let examples =
            Examples { features: &features, labels: &[0, 1, 0], n_classes: 2, device: Device::Cpu };
        let metric = SecondMoments::of(&examples, &[1.0, 1.0, 0.0], 2).unwrap().metric(2, 0.5).unwrap();
        // ⟨x·xᵀ⟩/2 + λ·I, the bias without λ.
        let hessian = [[2.5 + 0.5, -0.25, 1.0], [-0.25, 1.25 + 0.5, 0.25], [1.0, 0.25, 0.5]];
        let gradient = [1.0, -1.0, 0.5, -0.5, 0.25, -0.25];
        let step = metric.apply(&gradient);
        for class in 0..2 {
            for (row, number) in hessian.iter().zip(0..) {
                let back: f64 = row.iter().zip(0..).map(|(h, j)| h * step[2 * j + class]).sum();
                assert!((back - gradient[2 * number + class]).abs() < 1e-6, "{class} {number}: {back}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_or_too_wide_has_none() {
        let examples = |features| Examples { features, labels: &[0, 1], n_classes: 2, device: Device::Cpu };
        let infinite = Cache::of(vec![1.0, f32::INFINITY], 1);
        let moments = SecondMoments::of(&examples(&infinite), &[1.0, 1.0], 2).unwrap();
        assert!(moments.metric(2, 0.1).is_none());
        let wide = Cache::of(vec![0.0; 2 * (MOST_NUMBERS + 1)], MOST_NUMBERS + 1);
        assert!(SecondMoments::of(&examples(&wide), &[1.0, 1.0], 2).is_none());
        assert_eq!((bytes(MOST_NUMBERS + 1, 5), bytes(9, 1)), (0, 3 * 100 * 8));
    }
}
