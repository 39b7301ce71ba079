//! Milliseconds of each kind of 3×3 convolution in the networks, forward and backward: ours beside libtorch's, in turn.
//!
//!     cargo bench --bench convolution -- [--batch 128] [--rounds 5]
//!
//! Prints a line of JSON for each, with medians.
#![allow(clippy::print_stdout, reason = "the result of a bench")]

use std::time::Instant;

use clap::Parser;
use lemniscate::model::winograd;
use tch::{Device, Kind, Tensor};

#[derive(Parser)]
struct Args {
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
    let seed = tch::no_grad(|| out.ones_like());
    let start = Instant::now();
    Tensor::f_run_backward(&[(&out * seed).sum(Kind::Float)], &[maps, weights], false, false)
        .expect("a graph");
    [forward, start.elapsed()].map(|elapsed| elapsed.as_secs_f64() * 1e3)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let args = Args::parse();
    let random = |size: [i64; 4]| {
        let last = [size[0], size[2], size[3], size[1]];
        let values = Tensor::randn(last, (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
        values.set_requires_grad(true)
    };
    // Channels and side of the CIFAR family's four stages, then of the ImageNet family's.
    for (channels, side) in
        [(64, 32), (128, 16), (256, 8), (512, 4), (64, 56), (128, 28), (256, 14), (512, 7)]
    {
        let batch = if side > 32 { args.batch / 4 } else { args.batch };
        let (maps, weights) = (random([batch, channels, side, side]), random([channels, channels, 3, 3]));
        let ours = || time(&maps, &weights, winograd::convolution);
        let libtorch = || time(&maps, &weights, |x, w| x.conv2d(w, None::<Tensor>, 1, 1, 1, 1));
        (ours(), libtorch());
        let rounds: Vec<_> = (0..args.rounds).map(|_| (ours(), libtorch())).collect();
        let part = |side: fn(&([f64; 2], [f64; 2])) -> f64| median(rounds.iter().map(side));
        println!(
            "{}",
            serde_json::json!({
                "batch": batch, "channels": channels, "side": side,
                "forward_ms": part(|r| r.0[0]), "libtorch_forward_ms": part(|r| r.1[0]),
                "backward_ms": part(|r| r.0[1]), "libtorch_backward_ms": part(|r| r.1[1]),
                "ratio": part(|r| (r.1[0] + r.1[1]) / (r.0[0] + r.0[1])),
            })
        );
    }
}
