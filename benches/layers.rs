//! Milliseconds of each kind of convolution in a network, and of BatchNorm with what follows it, forward and backward:
//! libtorch's, and ours beside it, in turn, for those that ours take.
//!
//!     cargo bench --bench layers -- [cifar|resnet18|resnet50] [--only convolution|norm] [--batch 128] [--rounds 5]
//!
//! Prints a line of JSON for each, with medians.
#![allow(clippy::print_stdout, reason = "the result of a bench")]

use std::collections::HashSet;
use std::time::Instant;

use clap::Parser;
use lemniscate::model::convolution::{convolution, takes};
use lemniscate::model::norm::{self, Norm, Then};
use lemniscate::train::memory::keep_freed;
use tch::{Device, Kind, Tensor};

#[derive(Parser)]
struct Args {
    /// ResNet-18 for 32 px, or one of two for 224 px.
    #[arg(default_value = "cifar", value_parser = ["cifar", "resnet18", "resnet50"])]
    network: String,
    /// One kind of layer.
    #[arg(long, value_parser = ["convolution", "norm"])]
    only: Option<String>,
    /// Images.
    #[arg(long, default_value_t = 128)]
    batch: i64,
    /// Times that each side is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Forward and backward of `layer`, in ms; gradients of those of `leaves` that have one.
fn time(leaves: &[&Tensor], layer: impl Fn() -> Tensor) -> [f64; 2] {
    let start = Instant::now();
    let out = layer();
    let forward = start.elapsed();
    let loss = out.sum(Kind::Float);
    let leaves: Vec<&Tensor> = leaves.iter().copied().filter(|leaf| leaf.requires_grad()).collect();
    let start = Instant::now();
    Tensor::f_run_backward(&[loss], &leaves, false, false).expect("a graph");
    [forward, start.elapsed()].map(|elapsed| elapsed.as_secs_f64() * 1e3)
}

/// Inputs, outputs, side, size and stride of each kind of convolution; a network has some several times.
fn kinds(network: &str) -> Vec<(i64, i64, i64, i64, i64)> {
    let mut kinds = match network {
        "cifar" => vec![(3, 64, 32, 3, 1)],
        _ => vec![(3, 64, 224, 7, 2)],
    };
    let mut input = 64;
    let mut side = if network == "cifar" { 32 } else { 56 };
    for planes in [64, 128, 256, 512] {
        let stride = if planes == 64 { 1 } else { 2 };
        let after = side / stride;
        if network == "resnet50" {
            let output = 4 * planes;
            kinds.push((input, planes, side, 1, 1));
            kinds.push((planes, planes, side, 3, stride));
            kinds.push((planes, output, after, 1, 1));
            kinds.push((input, output, side, 1, stride));
            kinds.push((output, planes, after, 1, 1));
            kinds.push((planes, planes, after, 3, 1));
            input = output;
        } else {
            kinds.push((input, planes, side, 3, stride));
            kinds.push((planes, planes, after, 3, 1));
            if stride == 2 {
                kinds.push((input, planes, side, 1, 2));
            }
            input = planes;
        }
        side = after;
    }
    let mut seen = HashSet::new();
    kinds.retain(|kind| seen.insert(*kind));
    kinds
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures both sides in turn, after once to warm up, and prints `layer` with the medians.
fn compare(
    rounds: usize,
    mut layer: serde_json::Value,
    ours: impl Fn() -> Option<[f64; 2]>,
    libtorch: impl Fn() -> [f64; 2],
) {
    ours();
    libtorch();
    let rounds: Vec<_> = (0..rounds).map(|_| (ours(), libtorch())).collect();
    let of_ours = |measure: fn(&[f64; 2], &[f64; 2]) -> f64| {
        let values: Option<Vec<f64>> =
            rounds.iter().map(|(ours, libtorch)| Some(measure(ours.as_ref()?, libtorch))).collect();
        values.map(|values| median(values.into_iter()))
    };
    layer["forward_ms"] = of_ours(|ours, _| ours[0]).into();
    layer["libtorch_forward_ms"] = median(rounds.iter().map(|round| round.1[0])).into();
    layer["backward_ms"] = of_ours(|ours, _| ours[1]).into();
    layer["libtorch_backward_ms"] = median(rounds.iter().map(|round| round.1[1])).into();
    layer["ratio"] = of_ours(|ours, libtorch| libtorch.iter().sum::<f64>() / ours.iter().sum::<f64>()).into();
    println!("{layer}");
}

/// Channels-last, with a gradient.
fn random(size: [i64; 4]) -> Tensor {
    let last = [size[0], size[2], size[3], size[1]];
    let values = Tensor::randn(last, (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
    values.set_requires_grad(true)
}

fn convolutions(args: &Args) {
    for (inputs, outputs, side, size, stride) in kinds(&args.network) {
        let (maps, weights) =
            (random([args.batch, inputs, side, side]), random([outputs, inputs, size, size]));
        // As in a network, the images themselves have no gradient.
        let maps = if inputs == 3 { maps.detach() } else { maps };
        let leaves = [&maps, &weights];
        let libtorch = || maps.conv2d(&weights, None::<Tensor>, stride, size / 2, 1, 1);
        let ours = || convolution(&maps, &weights, stride);
        let layer = serde_json::json!({
            "layer": "convolution", "network": args.network, "batch": args.batch,
            "side": side, "inputs": inputs, "outputs": outputs, "size": size, "stride": stride,
        });
        let taken = takes(&maps, &weights, stride);
        compare(args.rounds, layer, || taken.then(|| time(&leaves, ours)), || time(&leaves, libtorch));
    }
}

fn norms(args: &Args) {
    let mut maps: Vec<(i64, i64)> = kinds(&args.network)
        .into_iter()
        .map(|(_, outputs, side, _, stride)| (outputs, side / stride))
        .collect();
    let mut seen = HashSet::new();
    maps.retain(|kind| seen.insert(*kind));
    for (channels, side) in maps {
        let size = [args.batch, channels, side, side];
        let (maps, residual) = (random(size), random(size));
        let numbers = |value: f64| Tensor::full([channels], value, (Kind::Float, Device::Cpu));
        let (weight, bias) = (numbers(1.0).set_requires_grad(true), numbers(0.1).set_requires_grad(true));
        let (running_mean, running_var) = (numbers(0.0), numbers(1.0));
        let norm = Norm {
            weight: &weight,
            bias: &bias,
            running_mean: &running_mean,
            running_var: &running_var,
            momentum: 0.1,
            epsilon: 1e-5,
        };
        for (name, then) in [("relu", Then::Relu), ("add, relu", Then::AddRelu(&residual))] {
            let mut leaves = vec![&maps, &weight, &bias];
            leaves.extend(matches!(then, Then::AddRelu(_)).then_some(&residual));
            let libtorch = || {
                let (mean, variance) = (Some(&running_mean), Some(&running_var));
                let mut out =
                    maps.batch_norm(Some(&weight), Some(&bias), mean, variance, true, 0.1, 1e-5, true);
                if let Then::AddRelu(residual) = then {
                    out = out.g_add_(residual);
                }
                out.relu_()
            };
            let layer = serde_json::json!({
                "layer": "norm", "network": args.network, "batch": args.batch,
                "side": side, "channels": channels, "then": name,
            });
            let taken = norm::takes(&maps);
            let ours = || taken.then(|| time(&leaves, || norm::train(&maps, norm, then)));
            compare(args.rounds, layer, ours, || time(&leaves, libtorch));
        }
    }
}

fn main() {
    let args = Args::parse();
    // As training does; otherwise new pages for each map would be measured.
    keep_freed();
    for (layer, measure) in [("convolution", convolutions as fn(&Args)), ("norm", norms)] {
        if args.only.as_deref().is_none_or(|only| only == layer) {
            measure(&args);
        }
    }
}
