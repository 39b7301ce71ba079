//! Training teaches something: features of the generated set beat chance and an untrained encoder by a wide margin.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

mod common;

use std::path::Path;

use common::succeeds;

/// Top-1 of weighted kNN against recomputed features, in percent.
fn top1(folder: &Path, run: &str) -> f64 {
    let said = succeeds(folder, ["eval", run, "--json", "-k", "200"]);
    let row: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
    100.0 * row["top1"].as_f64().unwrap()
}

#[test]
fn features_beat_chance_and_an_untrained_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let settings = [
        "train",
        "synthetic:2000x16",
        "--image-size",
        "16",
        "--width",
        "16",
        "--embed-dim",
        "64",
        "--nce-k",
        "0",
        "--bank-init",
        "features",
        "-b",
        "32",
        "--lr",
        "0.1",
        "--schedule",
        "cosine",
        "--epochs",
        "20",
        "--monitor",
        "none",
        "--precision",
        "fp32",
        "--quiet",
    ];
    // One step at a vanishing rate leaves the encoder as it was drawn.
    let untouched = [&settings[..], &["--lr", "1e-30", "--max-steps", "1", "--out", "untrained"]].concat();
    succeeds(folder, untouched);
    succeeds(folder, [&settings[..], &["--out", "trained"]].concat());
    let (untrained, trained) = (top1(folder, "untrained"), top1(folder, "trained"));
    println!("weighted kNN, k = 200: chance 10 %, untrained {untrained:.1} %, trained {trained:.1} %");
    assert!(trained > 40.0, "trained {trained:.1} %, chance 10 %");
    assert!(trained > 1.6 * untrained, "trained {trained:.1} %, untrained {untrained:.1} %");
}
