//! Milliseconds of each kind of convolution in a network, forward and backward: libtorch's, and ours beside it, in turn, for
//! those that ours take.
//!
//!     cargo bench --bench convolution -- [cifar|resnet18|resnet50] [--batch 128] [--rounds 5]
//!
//! Prints a line of JSON for each, with medians.
#![allow(clippy::print_stdout, reason = "the result of a bench")]

use std::collections::HashSet;
use std::time::Instant;

use clap::Parser;
use lemniscate::model::convolution::{convolution, takes};
use lemniscate::train::memory::keep_freed;
use tch::{Device, Kind, Tensor};

#[derive(Parser)]
struct Args {
    /// ResNet-18 for 32 px, or one of two for 224 px.
    #[arg(default_value = "cifar", value_parser = ["cifar", "resnet18", "resnet50"])]
    network: String,
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

/// Forward and backward, in ms.
fn time(maps: &Tensor, weights: &Tensor, convolution: impl Fn(&Tensor, &Tensor) -> Tensor) -> [f64; 2] {
    let start = Instant::now();
    let out = convolution(maps, weights);
    let forward = start.elapsed();
    let loss = out.sum(Kind::Float);
    let leaves: Vec<&Tensor> = [maps, weights].into_iter().filter(|leaf| leaf.requires_grad()).collect();
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

fn main() {
    let args = Args::parse();
    // As training does; otherwise new pages for each map would be measured.
    keep_freed();
    let random = |size: [i64; 4]| {
        let last = [size[0], size[2], size[3], size[1]];
        let values = Tensor::randn(last, (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
        values.set_requires_grad(true)
    };
    for (inputs, outputs, side, size, stride) in kinds(&args.network) {
        let (maps, weights) =
            (random([args.batch, inputs, side, side]), random([outputs, inputs, size, size]));
        // As in a network, the images themselves have no gradient.
        let maps = if inputs == 3 { maps.detach() } else { maps };
        let libtorch = || time(&maps, &weights, |x, w| x.conv2d(w, None::<Tensor>, stride, size / 2, 1, 1));
        let ours = || {
            takes(&maps, &weights, stride).then(|| time(&maps, &weights, |x, w| convolution(x, w, stride)))
        };
        // Once to warm up.
        ours();
        libtorch();
        let rounds: Vec<_> = (0..args.rounds).map(|_| (ours(), libtorch())).collect();
        let of_libtorch = |part: usize| median(rounds.iter().map(|round| round.1[part]));
        let of_ours = |part: usize| {
            let times: Option<Vec<f64>> = rounds.iter().map(|round| Some(round.0?[part])).collect();
            times.map(|times| median(times.into_iter()))
        };
        let ratios: Option<Vec<f64>> = rounds
            .iter()
            .map(|(ours, libtorch)| Some(libtorch.iter().sum::<f64>() / ours.as_ref()?.iter().sum::<f64>()))
            .collect();
        println!(
            "{}",
            serde_json::json!({
                "network": args.network, "batch": args.batch, "side": side, "inputs": inputs, "outputs": outputs,
                "size": size, "stride": stride,
                "forward_ms": of_ours(0), "libtorch_forward_ms": of_libtorch(0),
                "backward_ms": of_ours(1), "libtorch_backward_ms": of_libtorch(1),
                "ratio": ratios.map(|ratios| median(ratios.into_iter())),
            })
        );
    }
}
