//! How long one query takes against a bank of a million rows of 128 numbers, as `serve` asks it: one JSON line for
//! each size, the median and the fastest tenth of many runs. `cargo bench --bench search [-- ROWS...]`; `RAYON_NUM_THREADS=2` is two cores.
//!
//! A single query reads every row once, so memory sets the pace: `gb_per_s` says how fast it was read.

use std::time::Instant;

use lemniscate::bank::MemoryBank;
use lemniscate::eval::knn::{SearchOptions, nearest};

const DIM: usize = 128;
/// Neighbours asked for.
const K: usize = 20;
/// Runs of each size.
const RUNS: usize = 61;

#[allow(clippy::print_stdout)]
fn main() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![100_000, 1_000_000] } else { asked };
    for n in sizes {
        let bank = MemoryBank::random(n, DIM, 1);
        let queries = MemoryBank::random(RUNS + 1, DIM, 2);
        let search = |i: usize| nearest(queries.row(i), bank.rows(), DIM, K, SearchOptions::default());
        search(RUNS);
        let mut times: Vec<f64> = (0..RUNS)
            .map(|i| {
                let start = Instant::now();
                assert_eq!(search(i).k, K);
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (median, fast) = (times[RUNS / 2], times[RUNS / 10]);
        let bandwidth = (n * DIM * size_of::<f32>()) as f64 / fast / 1e6;
        println!(
            "{{\"n\":{n},\"dim\":{DIM},\"k\":{K},\"median_ms\":{median:.1},\"fast_ms\":{fast:.1},\"gb_per_s\":{bandwidth:.1}}}"
        );
    }
}
