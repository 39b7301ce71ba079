//! Times bank, objectives and neighbour search in tensor operations on a device; one JSON line each, medians of several
//! runs, with the device waited for. `benches/gpu_peer.py` prints the same lines for PyTorch.
//! `cargo bench --bench gpu -- DEVICE N B QUERIES` with DEVICE `cuda` or `cpu`; sizes default to ImageNet's.

use std::time::Instant;

use lemniscate::bank::{DeviceBank, MemoryBank, Noise};
use lemniscate::eval::knn::{SearchOptions, nearest_at};
use lemniscate::model::{DeviceChoice, Precision, upload};
use lemniscate::objective::device::{self, DeviceNoise, DeviceProblem};
use tch::{Cuda, Device, Tensor};

const DIM: usize = 128;
const NEIGHBORS: usize = 200;

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Milliseconds of one call, the median of `runs` after one that is not counted.
fn median_ms(device: Device, runs: usize, mut call: impl FnMut()) -> f64 {
    call();
    wait(device);
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            call();
            wait(device);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn problem<'a>(
    features: &'a Tensor,
    bank: &'a DeviceBank,
    indices: &'a Tensor,
    products: Precision,
) -> DeviceProblem<'a> {
    DeviceProblem { features, bank, indices, temperature: 0.07, products }
}

#[allow(clippy::print_stdout)]
fn report(case: &str, n: usize, batch: usize, k: usize, ms: f64) {
    println!(
        "{{\"case\":\"{case}\",\"n\":{n},\"b\":{batch},\"k\":{k},\"ms\":{ms:.3},\"by\":\"lemniscate\"}}"
    );
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let device = arguments
        .first()
        .map_or("auto", String::as_str)
        .parse::<DeviceChoice>()
        .map_err(std::io::Error::other)?;
    let device = device.resolve()?;
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (n, batch, queries) = (number(1, 1_281_167)?, number(2, 256)?, number(3, 50_000)?);

    let host = MemoryBank::random(n, DIM, 1);
    let mut bank = DeviceBank::new(&host, device);
    let features: Vec<f32> = MemoryBank::random(batch, DIM, 2)
        .rows()
        .chunks_exact(DIM)
        .flat_map(|row| {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter().map(move |x| x / norm)
        })
        .collect();
    let features = upload(&features, &[batch as i64, DIM as i64], device);
    let indices: Vec<i64> = (0..batch).map(|b| (b * 97 % n) as i64).collect();
    let indices = upload(&indices, &[batch as i64], device);
    let noise = Noise::Uniform { n: n as u32 };
    let device_noise = DeviceNoise::new(&noise, device);
    for k in [4096, 65_536] {
        // Drawing the negatives is part of a step.
        let negatives = |step: u64| bank.draw_negatives(&noise, 1, &step.into(), batch, k);
        let problem = problem(&features, &bank, &indices, Precision::Bf16);
        let given = negatives(0);
        let ms = median_ms(device, 21, || drop(device::nce(&problem, &given, 11.6, &device_noise)));
        report("nce", n, batch, k, ms);
        let ms = median_ms(device, 21, || drop(device::nce(&problem, &negatives(1), 11.6, &device_noise)));
        report("nce with drawing", n, batch, k, ms);
        let ms = median_ms(device, 21, || drop(device::sampled_softmax(&problem, &given)));
        report("sampled", n, batch, k, ms);
    }
    for (case, products) in [("full", Precision::Bf16), ("full fp32", Precision::Fp32)] {
        let problem = problem(&features, &bank, &indices, products);
        let ms = median_ms(device, 21, || drop(device::full_softmax(&problem, &[])));
        report(case, n, batch, 0, ms);
    }
    let wanted = features.isfinite().all();
    let ms = median_ms(device, 21, || bank.update(&features, &indices, 0.5, &wanted));
    report("update", n, batch, 0, ms);
    let asked = MemoryBank::random(queries, DIM, 3);
    let ms = median_ms(device, 3, || {
        nearest_at(device, &asked.rows(), host.stored(), DIM, NEIGHBORS, SearchOptions::default());
    });
    report("knn", n, queries, NEIGHBORS, ms);
    Ok(())
}
