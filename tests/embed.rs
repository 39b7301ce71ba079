//! `lemniscate embed`: the same numbers in every format, and after being killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{fails, lemniscate, succeeds, write_images};
use lemniscate::model::to_vec_f32;
use tch::Tensor;

const DATA: &str = "synthetic:1500x32";

fn checkpoint() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch/imagenet.pth.tar").display().to_string()
}

fn embed(out: &str, more: &[&str]) -> Vec<String> {
    let checkpoint = checkpoint();
    let arguments = [&["embed", &checkpoint], more, &["--out", out, "-j", "1"]].concat();
    arguments.into_iter().map(str::to_owned).collect()
}

fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header..].as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

#[test]
fn a_killed_embedding_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, embed("whole.npy", &[DATA]));
    let mut child = lemniscate(folder, embed("killed.npy", &[DATA])).spawn().unwrap();
    let part = folder.join("killed.npy.part");
    let started = Instant::now();
    while std::fs::metadata(&part).map_or(0, |metadata| metadata.len()) < 256 * 6 * 4 {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing was kept");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(part.exists() && !folder.join("killed.npy").exists(), "it was killed in the middle");
    // A row that was being written is done again.
    let mut bytes = std::fs::read(&part).unwrap();
    bytes.extend([1, 2, 3]);
    std::fs::write(&part, bytes).unwrap();
    let said = fails(folder, 2, embed("killed.npy", &[DATA, "--layer", "pooled"]));
    assert!(said.contains("another encoder, data set or layer"), "{said}");
    let output = lemniscate(folder, embed("killed.npy", &[DATA])).output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("going on after"));
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert!(bytes("whole.npy") == bytes("killed.npy"));
    assert!(!part.exists() && !folder.join("killed.npy.part.json").exists());
}

#[test]
fn every_format_holds_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["a.npy", "a.safetensors", "a.parquet", "a.csv"] {
        succeeds(folder, embed(name, &["synthetic:40x32"]));
    }
    let numbers = npy(&folder.join("a.npy"));
    assert_eq!(numbers.len(), 40 * 6);
    assert!(numbers.chunks(6).all(|row| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
    let stored = Tensor::read_safetensors(folder.join("a.safetensors")).unwrap();
    assert_eq!((&*stored[0].0, stored[0].1.size()), ("embeddings", vec![40, 6]));
    assert_eq!(to_vec_f32(&stored[0].1), numbers);
    let table = std::fs::read_to_string(folder.join("a.csv")).unwrap();
    let values = table.lines().skip(1).flat_map(|line| line.split(',').skip(3));
    assert_eq!(values.map(|value| value.parse().unwrap()).collect::<Vec<f32>>(), numbers);
    assert!(table.lines().nth(1).unwrap().starts_with("0,train/"));

    let said = succeeds(folder, embed("b.npy", &["synthetic:40x32", "--split", "test", "--layer", "pooled"]));
    assert!(said.contains("8 of 8 images, 16 numbers each (pooled)"), "{said}");
    let said = fails(folder, 2, embed("a.npy", &["synthetic:40x32"]));
    assert!(said.contains("a.npy exists"), "{said}");
    assert!(fails(folder, 2, embed("a.txt", &["synthetic:40x32"])).contains(".parquet"));
}

#[test]
fn an_unreadable_image_keeps_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_images(&folder.join("photos"), 3);
    std::fs::write(folder.join("photos/0-broken.jpg"), "no image").unwrap();
    let said = fails(folder, 1, embed("a.npy", &["photos"]));
    assert!(said.contains("0-broken.jpg"), "{said}");
    succeeds(folder, embed("a.npy", &["photos", "--quarantine", "--force"]));
    let rows = npy(&folder.join("a.npy"));
    let missing: Vec<bool> = rows.chunks(6).map(|row| row.iter().all(|x| x.is_nan())).collect();
    assert_eq!(missing, [true, false, false, false]);
    succeeds(folder, embed("a.csv", &["photos", "--quarantine"]));
    let table = std::fs::read_to_string(folder.join("a.csv")).unwrap();
    let lines: Vec<&str> = table.lines().skip(1).collect();
    assert!(lines.len() == 3 && lines[0].starts_with("1,"), "{table}");
}
