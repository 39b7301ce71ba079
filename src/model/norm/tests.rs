use super::*;
use crate::model::threads::with_count;
use tch::{Device, Kind};

const EPSILON: f64 = 1e-5;

/// Output, gradients of maps, weight, bias and residual, running mean and variance.
fn passes(
    kind: Kind,
    size: [i64; 4],
    mean: f64,
    add: bool,
    relu: bool,
    layer: impl Fn(&Tensor, Norm, Then) -> Tensor,
) -> Vec<Tensor> {
    let wave = |size: &[i64], step: f64| {
        let count = size.iter().product::<i64>();
        let wave = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * step).sin();
        wave.view(size).to_kind(Kind::Float).to_kind(kind)
    };
    let leaf = |tensor: Tensor| tensor.set_requires_grad(true);
    let channels = [size[1]];
    let (maps, residual) = (leaf(wave(&size, 1.3) + mean), leaf(wave(&size, 0.7)));
    let (weight, bias) = (leaf(wave(&channels, 2.1) + 1.2), leaf(wave(&channels, 0.9) * 0.5));
    let running = [wave(&channels, 0.3), wave(&channels, 0.4) + 2.0];
    let norm = Norm {
        weight: &weight,
        bias: &bias,
        running_mean: &running[0],
        running_var: &running[1],
        momentum: 0.1,
        epsilon: EPSILON,
    };
    let then = match (add, relu) {
        (true, _) => Then::AddRelu(&residual),
        (false, true) => Then::Relu,
        (false, false) => Then::Stop,
    };
    let out = layer(&maps, norm, then);
    // Not at right angles to ones and maps: parameters get gradients that are no mere rounding.
    let seed = wave(&size, 0.31) + wave(&size, 1.3) + 0.4;
    let loss = (&out * seed).sum(kind) + residual.sum(kind) * 0.0;
    let leaves = [&maps, &weight, &bias, &residual];
    let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
    let mut all = vec![out.detach()];
    all.extend(gradients);
    all.extend(running);
    all
}

fn by_libtorch(training: bool, maps: &Tensor, norm: Norm, then: Then) -> Tensor {
    let (mean, variance) = (Some(norm.running_mean), Some(norm.running_var));
    let (weight, bias) = (Some(norm.weight), Some(norm.bias));
    let out = maps.batch_norm(weight, bias, mean, variance, training, norm.momentum, norm.epsilon, false);
    match then {
        Then::Stop => out,
        Then::Relu => out.relu(),
        Then::AddRelu(residual) => (out + residual).relu(),
    }
}

#[test]
fn outputs_gradients_and_running_statistics_equal_libtorchs_in_double_precision_on_every_path() {
    // Less than a block, blocks and a rest, rows of one pixel; a mean far from zero; more blocks than parts.
    let cases = [
        ([2, 16, 3, 5], 0.0),
        ([5, 48, 13, 11], 0.3),
        ([2, 32, 1, 5], -1.0),
        ([3, 16, 20, 20], 500.0),
        ([1, 16, 257, 263], 0.2),
    ];
    for (size, mean) in cases {
        for (add, relu) in [(false, false), (false, true), (true, true)] {
            let exact =
                passes(Kind::Double, size, mean, add, relu, |x, norm, then| by_libtorch(true, x, norm, then));
            for isa in Isa::available() {
                let ours = |x: &Tensor, norm: Norm, then: Then| train_with(isa, x, norm, then);
                let found = passes(Kind::Float, size, mean, add, relu, ours);
                for (index, (found, exact)) in found.iter().zip(&exact).enumerate() {
                    assert_eq!(found.size(), exact.size());
                    let largest = |t: Tensor| f64::try_from(t.abs().max()).unwrap();
                    let scale = largest(exact.shallow_clone()).max(1e-3);
                    let error = largest(found.to_kind(Kind::Double) - exact) / scale;
                    // At 500 an input itself is rounded to 3e-5.
                    let bound = if mean.abs() > 100.0 { 2e-4 } else { 3e-6 };
                    assert!(
                        error < bound,
                        "{isa:?} {size:?} {mean} {then:?}: part {index} is off by {error:e}",
                        then = (add, relu)
                    );
                }
            }
        }
    }
}

#[test]
fn evaluation_takes_the_running_statistics_and_leaves_them_alone() {
    for then in ["stop", "relu", "add"] {
        let residual = Tensor::ones([3, 16, 9, 11], (Kind::Float, Device::Cpu)) * 0.2;
        let layer = |x: &Tensor, norm: Norm| {
            let then = match then {
                "stop" => Then::Stop,
                "relu" => Then::Relu,
                _ => Then::AddRelu(&residual),
            };
            let before = [norm.running_mean, norm.running_var].map(crate::model::to_vec_f32);
            let found = evaluate(x, norm, then);
            assert!(!found.requires_grad());
            assert_eq!([norm.running_mean, norm.running_var].map(crate::model::to_vec_f32), before);
            let error = (found - by_libtorch(false, x, norm, then)).abs().max();
            assert!(f64::try_from(error).unwrap() < 1e-5);
        };
        passes(Kind::Float, [3, 16, 9, 11], 0.4, false, false, |x, norm, _| {
            layer(x, norm);
            train(x, norm, Then::Stop)
        });
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let bits = || {
        let parts = passes(Kind::Float, [7, 32, 12, 12], 0.1, true, true, train);
        parts.iter().map(crate::model::to_vec_f32).collect::<Vec<_>>()
    };
    assert_eq!(with_count(1, bits), with_count(3, bits));
}

#[test]
fn what_is_no_number_stays_none() {
    let maps = Tensor::ones([1, 16, 2, 2], (Kind::Float, Device::Cpu));
    let _ = maps.narrow(3, 0, 1).fill_(f64::NAN);
    let ones = || Tensor::ones([16], (Kind::Float, Device::Cpu));
    let (weight, bias, running_mean, running_var) = (ones(), ones(), ones(), ones());
    let norm = Norm {
        weight: &weight,
        bias: &bias,
        running_mean: &running_mean,
        running_var: &running_var,
        momentum: 0.1,
        epsilon: EPSILON,
    };
    let out = crate::model::to_vec_f32(&train(&maps, norm, Then::Relu));
    assert!(out.iter().all(|value| value.is_nan()));
}
