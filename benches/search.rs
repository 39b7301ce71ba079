//! How long one query takes against a bank of a million rows of 128 numbers: in full, and through the rows' copy in
//! 8 bits as `serve` asks it (the result is the same). One JSON line for each, the median of many runs and their
//! processor time, which tells how far a busy machine has stretched the former.
//! `RAYON_NUM_THREADS=2 cargo bench --bench search [-- ROWS...]` is two cores.

use std::time::Instant;

use lemniscate::bank::MemoryBank;
use lemniscate::eval::knn::{CoarseRows, Neighbors, SearchOptions, nearest};

const DIM: usize = 128;
/// Neighbours asked for.
const K: usize = 20;
/// Runs of each size.
const RUNS: usize = 61;

/// Processor time of all threads since the start (Linux; elsewhere 0).
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted after the name in parentheses, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
}

#[allow(clippy::print_stdout)]
fn measure(by: &str, n: usize, search: impl Fn(usize) -> Neighbors) {
    search(RUNS);
    let before = cpu_ms();
    let mut times: Vec<f64> = (0..RUNS)
        .map(|i| {
            let start = Instant::now();
            assert_eq!(search(i).k, K);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let cpu = (cpu_ms() - before) / RUNS as f64;
    times.sort_by(f64::total_cmp);
    let (median, fast) = (times[RUNS / 2], times[RUNS / 10]);
    println!(
        "{{\"by\":\"{by}\",\"n\":{n},\"dim\":{DIM},\"k\":{K},\"median_ms\":{median:.1},\"fast_ms\":{fast:.1},\"cpu_ms\":{cpu:.1}}}"
    );
}

fn main() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    for n in if asked.is_empty() { vec![100_000, 1_000_000] } else { asked } {
        let bank = MemoryBank::random(n, DIM, 1);
        let queries = MemoryBank::random(RUNS + 1, DIM, 2);
        let options = SearchOptions::default();
        let full = |i: usize| nearest(&queries.row(i), bank.stored(), DIM, K, options);
        let coarse = CoarseRows::new(&bank.rows(), DIM).expect("random rows are finite");
        let quick = |i: usize| coarse.nearest(&queries.row(i), &bank.rows(), K, options);
        assert_eq!(full(0), quick(0));
        measure("full", n, full);
        measure("coarse", n, quick);
    }
}
