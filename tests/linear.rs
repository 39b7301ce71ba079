//! `lemniscate linear` from outside: layers in one pass, both solvers, with and without augmentation.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use std::path::Path;

use common::{fails, succeeds, tiny, write_images};
use serde_json::Value;

/// A run that has seen little, on generated images with test images beside them.
fn run(folder: &Path) {
    succeeds(folder, tiny("synthetic:200x16", "run", &["--epochs", "1", "--monitor", "none"]));
}

fn rows(folder: &Path, more: &[&str]) -> Vec<Value> {
    let arguments = [&["linear", "run", "-j", "1", "--threads", "1", "--json"], more].concat();
    let json = succeeds(folder, arguments);
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn all_layers_are_solved_recorded_and_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder);
    let layers = ["--layer", "embedding,pooled,stage1,stage4", "--l2", "1e-3,1e-1"];
    let first = rows(folder, &layers);
    assert_eq!(first, rows(folder, &layers));
    let numbers: Vec<_> =
        first.iter().map(|row| (row["layer"].as_str().unwrap(), row["numbers"].as_u64().unwrap())).collect();
    // 4 channels on a grid of 16, as large as the maps; 32 channels on one of 2.
    assert_eq!(numbers, [("embedding", 16), ("pooled", 32), ("stage1", 1024), ("stage4", 128)]);
    for row in &first {
        assert_eq!(row["converged"], true, "{row}");
        assert!(row["loss"].as_f64().unwrap() < 2.2, "ten classes have ln 10 = 2.3 to lose: {row}");
        assert!(row["candidates"].as_array().unwrap().iter().all(|c| c["held_out_top1"].is_f64()), "{row}");
        let per_class: Vec<f64> =
            row["per_class"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let mean = per_class.iter().sum::<f64>() / per_class.len() as f64;
        assert!((mean - row["top1"].as_f64().unwrap()).abs() < 0.05, "{row}");
    }
    let recorded = std::fs::read_to_string(folder.join("run/evaluations.jsonl")).unwrap();
    let recorded: Vec<Value> = recorded.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((recorded.len(), &recorded[1]["linear"]), (8, &first[1]));

    // One layer alone, its features on disk, gives what it gave among others.
    let alone = rows(folder, &["--layer", "pooled", "--l2", "1e-3,1e-1", "--cache", "."]);
    assert_eq!(alone[0], first[1]);
    let text =
        succeeds(folder, ["linear", "run", "-j", "1", "--threads", "1", "--l2", "0.01", "--per-class"]);
    assert!(text.contains("given, not chosen") && text.contains("triangles"), "{text}");
    assert!(text.contains("the encoder is unchanged"), "{text}");
}

#[test]
fn sgd_sweeps_rates_with_and_without_augmentation() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder);
    let sgd = ["--solver", "sgd", "--epochs", "20", "--lr", "0.01,0.03", "-b", "32"];
    let cached = rows(folder, &sgd);
    assert_eq!(cached, rows(folder, &sgd));
    assert_eq!(
        (&cached[0]["milestones"], &cached[0]["swept"]),
        (&serde_json::json!([12.0, 16.0]), &"lr".into())
    );
    assert!(cached[0]["loss"].as_f64().unwrap() < 2.2, "{cached:?}");
    let augmented = rows(
        folder,
        &["--augment", "--epochs", "2", "--lr", "0.01,0.03", "-b", "32", "--layer", "pooled,stage2"],
    );
    assert_eq!((augmented.len(), &augmented[1]["augment"]), (2, &Value::Bool(true)));
    for row in &augmented {
        let loss = row["loss"].as_f64().unwrap();
        assert!(loss != cached[0]["loss"] && loss < 3.0, "{row}");
    }
}

/// In the middle of training: a word about it, 130, and the folders as they were.
#[test]
#[cfg(unix)]
fn an_interrupted_test_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder);
    std::fs::create_dir(folder.join("kept")).unwrap();
    let names = |of: &str| {
        let entries = std::fs::read_dir(folder.join(of)).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = names("run");
    for solver in [&["--solver", "sgd"][..], &["--augment"]] {
        let endless =
            ["linear", "run", "-j", "1", "--threads", "1", "--cache", "kept", "--epochs", "1000000"];
        let arguments = [&endless, solver].concat();
        let mut child = common::lemniscate(folder, &arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Said before the first image is looked at; signals are heard from then on.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("held-out")), "the protocol is said");
        std::thread::sleep(std::time::Duration::from_millis(500));
        let number = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &number]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(130), "{solver:?}: {said}");
        assert!(said.contains("interrupted; no result was kept"), "{said}");
        assert_eq!((names("run"), names("kept").len()), (before.clone(), 0));
    }
}

#[test]
fn what_cannot_be_tested_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder);
    let refused = |code, more: &[&str], expected: &str| {
        let said = fails(folder, code, [&["linear", "run", "-j", "1"], more].concat());
        assert!(said.contains(expected), "{said}");
    };
    refused(2, &["--augment", "--solver", "lbfgs"], "--augment changes the features");
    refused(2, &["--lr", "0.1"], "--lr goes with --solver sgd");
    refused(2, &["--l2", "0"], "must be positive");
    refused(2, &["--held-out", "1"], "--held-out must lie between 0 and 1");
    refused(2, &["--memory", "0.0000001"], "--cache FOLDER keeps features on disk");
    write_images(&folder.join("photos"), 3);
    refused(1, &["photos"], "no test images");
    refused(1, &["photos", "--test-data", "photos"], "needs labels");
}
