//! `lemniscate finetune` from outside: lists, networks, going on after an interruption.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use common::{assert_same_tensors, fails, succeeds, tiny};
use serde_json::Value;

const DATA: &str = "synthetic:120x16";
const TUNE: &[&str] = &["finetune", "run", "--epochs", "2", "-b", "8", "-j", "1", "--threads", "1"];

fn rows(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn fractions_are_nested_results_kept_and_networks_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny(DATA, "run", &["--epochs", "1", "--monitor", "none"]));
    let first = rows(&succeeds(folder, [TUNE, &["--label-fraction", "0.1,0.5", "--json"]].concat()));
    let order: Vec<_> = first
        .iter()
        .map(|row| (row["label_fraction"].as_f64().unwrap(), row["start"].as_str().unwrap()))
        .collect();
    assert_eq!(order, [(0.1, "pretrained"), (0.1, "scratch"), (0.5, "pretrained"), (0.5, "scratch")]);
    assert_ne!(first[0]["loss"], first[1]["loss"]);

    let list = |name: &str| std::fs::read_to_string(folder.join("run/finetune").join(name)).unwrap();
    let (few, many) = (list("images-0.1.csv"), list("images-0.5.csv"));
    assert!(few.starts_with("row,name,label\n"));
    assert!(few.lines().all(|line| many.contains(line)), "the smaller list is a part of the larger one");
    assert_eq!(few.lines().count() as u64, 1 + first[0]["images"].as_u64().unwrap());
    let classes = |text: &str| {
        text.lines()
            .skip(1)
            .map(|line| line.rsplit(',').next().unwrap().to_owned())
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert_eq!(classes(&few), classes(&many));

    // What is finished is not done again; what is missing is, and other settings are refused.
    std::fs::remove_file(folder.join("run/finetune/scratch-0.5.ckpt")).unwrap();
    let again = rows(&succeeds(folder, [TUNE, &["--label-fraction", "0.1,0.5", "--json"]].concat()));
    assert_eq!(first, again);
    assert!(!folder.join("run/finetune/scratch-0.5.ckpt").exists());
    let said = fails(folder, 2, [TUNE, &["--lr", "0.1"]].concat());
    assert!(said.contains("another encoder, data set or settings"), "{said}");
    let recorded = std::fs::read_to_string(folder.join("run/evaluations.jsonl")).unwrap();
    assert_eq!(recorded.lines().count(), 4);

    // The same elsewhere is the same to the bit, and other commands open it.
    let elsewhere = ["--label-fraction", "0.1", "--start", "pretrained", "--out", "other", "--json"];
    let other = rows(&succeeds(folder, [TUNE, &elsewhere].concat()));
    assert_eq!(other[0], first[0]);
    let network = |folder: &std::path::Path| folder.join("pretrained-0.1.ckpt");
    assert_same_tensors(&network(&folder.join("other")), &network(&folder.join("run/finetune")));
    let said =
        succeeds(folder, ["eval", "other/pretrained-0.1.ckpt", "-k", "5", "--layer", "pooled", "-j", "1"]);
    assert!(said.contains("pooled") && said.contains("10-d"), "{said}");
}

#[test]
#[cfg(unix)]
fn an_interrupted_series_goes_on() {
    use std::time::{Duration, Instant};
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny(DATA, "run", &["--epochs", "1", "--monitor", "none"]));
    let long = ["finetune", "run", "--epochs", "40", "-b", "8", "-j", "1", "--threads", "1"];
    let arguments = [&long[..], &["--label-fraction", "0.05,1", "--start", "scratch"]].concat();
    let child = common::lemniscate(folder, &arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let results = folder.join("run/finetune/results.jsonl");
    let started = Instant::now();
    while !results.exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing was finished");
        std::thread::sleep(Duration::from_millis(5));
    }
    let number = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &number]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("1 of 2 are finished"), "{said}");
    assert_eq!(std::fs::read_to_string(&results).unwrap().lines().count(), 1);
}
