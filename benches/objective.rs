//! Times the objectives with their gradients and the neighbour search, on a bank in fp32 and on one in bf16; one JSON line
//! each, medians of several runs.
//! `benches/objective.py` prints the same lines for PyTorch. `cargo bench --bench objective [-- FILTER]` runs the
//! cases whose name contains FILTER.

use lemniscate::bank::{MemoryBank, Negatives, Noise};
use lemniscate::eval::knn;
use lemniscate::model::Precision;
use lemniscate::objective::{nce, softmax};
use std::time::Instant;

/// Milliseconds of one call: the median of at least 5 runs, more for short ones; and its share of processor time,
/// which tells how far a busy machine has stretched the former.
fn median_ms(mut call: impl FnMut()) -> (f64, f64) {
    call();
    let begin = Instant::now();
    let begin_cpu = cpu_ms();
    let mut times = Vec::new();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < 1.0 && times.len() < 101) {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let cpu = (cpu_ms() - begin_cpu) / times.len() as f64;
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], cpu)
}

/// Processor time of all threads since the start (Linux; elsewhere 0).
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted after the name in parentheses, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
}

#[allow(clippy::print_stdout)]
fn report(case: &str, n: usize, batch: usize, k: usize, (ms, cpu): (f64, f64)) {
    println!(
        "{{\"case\":\"{case}\",\"n\":{n},\"b\":{batch},\"k\":{k},\"ms\":{ms:.2},\"cpu_ms\":{cpu:.1},\"by\":\"lemniscate\"}}"
    );
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    for (n, batch) in [(50_000, 128), (1_280_000, 256)] {
        for precision in [Precision::Fp32, Precision::Bf16] {
            measure(n, batch, precision, &filter);
        }
    }
}

/// All cases of one bank; those of a bank in bf16 say so in their names.
fn measure(n: usize, batch: usize, precision: Precision, filter: &str) {
    let dim = 128;
    let named = |case: &str| match precision {
        Precision::Fp32 => case.to_owned(),
        Precision::Bf16 => format!("{case} bf16"),
    };
    let wanted = |case: &str| named(case).contains(filter);
    if !["nce", "sampled", "full", "knn"].into_iter().any(wanted) {
        return;
    }
    let bank = MemoryBank::random_in(precision, n, dim, 1);
    let features: Vec<f32> = MemoryBank::random(batch, dim, 2)
        .rows()
        .chunks_exact(dim)
        .flat_map(|row| {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter().map(move |x| x / norm)
        })
        .collect();
    let indices: Vec<u32> = (0..batch as u32).map(|b| b * 97).collect();
    let noise = Noise::Uniform { n: n as u32 };
    for k in [4096, 65_536] {
        let drawn = Negatives::Drawn { noise: &noise, seed: 1, step: 1, k };
        if wanted("nce") {
            let ms = median_ms(|| {
                nce::loss(&features, &bank, &indices, &drawn, 0.07, 11.6, &noise);
            });
            report(&named("nce"), n, batch, k, ms);
        }
        if wanted("sampled") {
            let ms = median_ms(|| {
                softmax::sampled(&features, &bank, &indices, &drawn, 0.07);
            });
            report(&named("sampled"), n, batch, k, ms);
        }
    }
    if wanted("full") {
        let ms = median_ms(|| {
            softmax::full(&features, &bank, &indices, 0.07, &[]);
        });
        report(&named("full"), n, batch, 0, ms);
    }
    if wanted("knn") {
        for q in [1, if n == 50_000 { 10_000 } else { batch }] {
            let queries = MemoryBank::random(q, dim, 3);
            let ms = median_ms(|| {
                knn::nearest(&queries.rows(), bank.stored(), dim, 200, knn::SearchOptions::default());
            });
            report(&named("knn"), n, q, 200, ms);
        }
    }
}
