//! Running the program as a person would, in a folder that goes away.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Settings small enough for a test: seconds on one core.
pub const TINY: &[&str] = &[
    "--arch",
    "resnet18",
    "--width",
    "4",
    "--embed-dim",
    "16",
    "--image-size",
    "16",
    "-b",
    "16",
    "--nce-k",
    "32",
    "--epochs",
    "2",
    "--knn-k",
    "10",
    "-j",
    "1",
    "--threads",
    "1",
    "--precision",
    "fp32",
    "--print-freq",
    "2",
];

/// `lemniscate` with `arguments`, in `folder`, not started yet.
pub fn lemniscate<S: AsRef<std::ffi::OsStr>>(
    folder: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lemniscate"));
    command.current_dir(folder).args(arguments).env("LEMNISCATE_NO_PROGRESS", "1");
    command
}

/// Runs it and expects success; gives standard output.
pub fn succeeds<S: AsRef<std::ffi::OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = S>) -> String {
    let output = lemniscate(folder, arguments).output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it and expects the exit code; gives standard error.
pub fn fails<S: AsRef<std::ffi::OsStr>>(
    folder: &Path,
    code: i32,
    arguments: impl IntoIterator<Item = S>,
) -> String {
    let output = lemniscate(folder, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
    String::from_utf8(output.stderr).unwrap()
}

/// `train DATA --out OUT` with [`TINY`] settings and then `more`.
pub fn tiny<'a>(data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", data, "--out", out], TINY, more].concat()
}

pub fn describe(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The records of a run's `metrics.jsonl` of one kind.
pub fn metrics(run: &Path, kind: &str) -> Vec<serde_json::Value> {
    std::fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|record| record["kind"] == kind)
        .collect()
}

/// Names and bytes of all tensors of a checkpoint, by a reader that is not ours.
pub fn tensors(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(checkpoint).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> =
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.sort();
    all
}

/// Asserts that two checkpoints hold the same tensors, bit for bit, and enough of them.
pub fn assert_same_tensors(a: &Path, b: &Path) {
    let (left, right) = (tensors(a), tensors(b));
    assert!(left.len() > 100, "only {} tensors in {}", left.len(), a.display());
    assert_eq!(left.len(), right.len());
    for ((name, x), (other, y)) in left.iter().zip(&right) {
        assert_eq!(name, other);
        let differing = x.iter().zip(y).filter(|(p, q)| p != q).count();
        assert!(x.len() == y.len() && differing == 0, "{name}: {differing} of {} bytes differ", x.len());
    }
}

/// Writes `n` small images, each of another colour, as PNG files into `folder`.
pub fn write_images(folder: &Path, n: usize) -> Vec<PathBuf> {
    std::fs::create_dir_all(folder).unwrap();
    (0..n)
        .map(|i| {
            let path = folder.join(format!("{i:03}.png"));
            let shade = |x: u32| (x * 11 + i as u32 * 23) as u8;
            image::RgbImage::from_fn(20, 18, |x, y| image::Rgb([shade(x), shade(y), shade(x + y)]))
                .save(&path)
                .unwrap();
            path
        })
        .collect()
}
