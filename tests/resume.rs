//! A run that is interrupted, however, ends as one that was not.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{assert_same_tensors, describe, fails, lemniscate, metrics, succeeds, tensors, tiny};

/// Saves after almost every step, so that a kill lands in the middle of epochs and of saves.
const SAVE_OFTEN: &[&str] = &["--save-every", "0.0001"];

fn losses(run: &Path) -> Vec<(u64, f64)> {
    metrics(run, "step").iter().map(|r| (r["step"].as_u64().unwrap(), r["loss"].as_f64().unwrap())).collect()
}

#[test]
fn killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:320x16", "whole", SAVE_OFTEN));
    let steps = losses(&folder.join("whole"));
    assert_eq!(steps.len(), 2 * 20);

    // Kill after waits that grow unevenly, until one attempt lasts to the end.
    let mut arguments: Vec<String> =
        tiny("synthetic:320x16", "killed", SAVE_OFTEN).into_iter().map(String::from).collect();
    let (mut kills, mut mid_epoch) = (0, 0);
    loop {
        let mut child = lemniscate(folder, &arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        let checkpoint = folder.join("killed/last.ckpt");
        let before = std::fs::metadata(&checkpoint).ok().and_then(|m| m.modified().ok());
        let started = Instant::now();
        let finished = loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                break true;
            }
            let saved = std::fs::metadata(&checkpoint).ok().and_then(|m| m.modified().ok()) != before;
            // A moment after the first new checkpoint of this attempt: always progress, never the same place.
            if kills < 5 && saved {
                std::thread::sleep(Duration::from_millis(37 * kills + 11));
                child.kill().unwrap();
                child.wait().unwrap();
                break false;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "the run hangs");
            std::thread::sleep(Duration::from_millis(1));
        };
        if finished {
            break;
        }
        kills += 1;
        let done = losses_so_far(&folder.join("killed"));
        mid_epoch += u32::from(!done.is_multiple_of(20));
        arguments = ["train", "--resume", "killed", "--save-every", "0.0001"].map(String::from).to_vec();
    }
    assert!(kills >= 2, "the run was over before it could be killed twice");
    assert!(mid_epoch >= 1, "no kill landed in the middle of an epoch");
    assert_same_tensors(&folder.join("whole/last.ckpt"), &folder.join("killed/last.ckpt"));
    assert_eq!(steps, losses(&folder.join("killed")), "the loss curve has gaps or repetitions");
}

/// Complete lines of kind "step" in a metrics file whose last line may be torn.
fn losses_so_far(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap_or_default()
        .matches("\"kind\":\"step\"")
        .count()
}

#[test]
fn two_epochs_are_one_and_one_resumed_for_every_objective() {
    for objective in [
        &["--nce-k", "0"][..],
        &["--objective", "sampled-softmax"],
        &["--normalizer", "running-average", "--proximal", "0.1"],
        &["--accumulate", "3"],
        &["--normalizer", "analytic"],
        &["--bank-precision", "bf16", "--proximal", "0.1"],
        &["--bank-precision", "bf16", "--nce-k", "0", "--bank-init", "features"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        succeeds(folder, tiny("synthetic:100x16", "whole", objective));
        let half = [objective, &["--max-steps", "4"]].concat();
        succeeds(folder, tiny("synthetic:100x16", "parts", &half));
        succeeds(folder, ["train", "--resume", "parts"]);
        assert_same_tensors(&folder.join("whole/last.ckpt"), &folder.join("parts/last.ckpt"));
        assert_eq!(losses(&folder.join("whole")), losses(&folder.join("parts")), "{objective:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut child = lemniscate(folder, tiny("synthetic:640x16", "run", &["--epochs", "50"]))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while losses_so_far(&folder.join("run")) < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let status = child.wait().unwrap();
    let output = std::process::Output {
        status,
        stdout: Vec::new(),
        stderr: std::io::Read::bytes(child.stderr.take().unwrap()).map(Result::unwrap).collect(),
    };
    assert_eq!(status.code(), Some(130), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--resume run"), "{said}");
    let steps = losses_so_far(&folder.join("run"));
    succeeds(folder, ["train", "--resume", "run", "--max-steps", &(steps + 1).to_string()]);
    assert_eq!(losses(&folder.join("run")).len(), steps + 1);
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:100x16", "run", &[]));
    let last = folder.join("run/last.ckpt");
    let whole = std::fs::read(&last).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&last, &damaged).unwrap();
    let refused = fails(folder, 1, ["eval", "run/last.ckpt"]);
    assert!(refused.contains("last.ckpt"), "{refused}");
    succeeds(folder, ["train", "--resume", "run"]);
    assert_eq!(std::fs::read(&last).unwrap().len(), whole.len());
    succeeds(folder, ["eval", "run/last.ckpt"]);

    std::fs::write(&last, &whole[..whole.len() / 3]).unwrap();
    std::fs::write(folder.join("run/previous.ckpt"), b"").unwrap();
    let refused = fails(folder, 1, ["train", "--resume", "run"]);
    assert!(refused.contains("last.ckpt") && refused.contains("previous.ckpt"), "{refused}");
}

#[test]
fn a_run_killed_before_its_first_step_keeps_its_normalizer() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let settings = ["--normalizer", "1234.5", "--max-steps", "2"];
    succeeds(folder, tiny("synthetic:100x16", "whole", &settings));
    // The first checkpoint is written before the first step; the run dies while it makes its data wait.
    let mut child = lemniscate(folder, tiny("synthetic:100x16", "killed", &settings)).spawn().unwrap();
    while !folder.join("killed/last.ckpt").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(folder, ["train", "--resume", "killed", "--max-steps", "2"]);
    assert_same_tensors(&folder.join("whole/last.ckpt"), &folder.join("killed/last.ckpt"));
    let logged = metrics(&folder.join("killed"), "step")[0]["ln_z"].as_f64().unwrap();
    assert!((logged - 1234.5f64.ln()).abs() < 1e-12, "{logged}");
}

#[test]
fn an_older_checkpoint_does_not_overwrite_newer_progress() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:100x16", "run", &["--max-steps", "2"]));
    std::fs::copy(folder.join("run/last.ckpt"), folder.join("run/old.ckpt")).unwrap();
    succeeds(folder, ["train", "--resume", "run", "--max-steps", "4"]);
    let refused = fails(folder, 1, ["train", "--resume", "run/old.ckpt"]);
    assert!(refused.contains("step 4") && refused.contains("--out"), "{refused}");
    // From inside the folder, by its bare name.
    succeeds(&folder.join("run"), ["train", "--resume", "last.ckpt", "--max-steps", "5"]);
    assert_eq!(losses(&folder.join("run")).len(), 5);
}

#[test]
fn a_contradicting_flag_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:100x16", "run", &["--max-steps", "2"]));
    let refused = fails(folder, 1, ["train", "--resume", "run", "--arch", "resnet50"]);
    assert!(
        refused.contains("arch") && refused.contains("resnet18") && refused.contains("resnet50"),
        "{refused}"
    );
    let refused = fails(folder, 1, ["train", "--resume", "run", "--nce-t", "0.5"]);
    assert!(refused.contains("temperature"), "{refused}");
    let refused = fails(folder, 2, ["train", "--resume", "run", "--save-every", "nan"]);
    assert!(refused.contains("--save-every"), "{refused}");
    // The same value is no contradiction, and what changes no result may change.
    let again = ["--arch", "resnet18", "-j", "2", "--cuda-graphs", "off", "--max-steps", "3"];
    succeeds(folder, ["train", "--resume", "run"].iter().chain(&again));
}

#[test]
fn the_banks_precision_may_change_when_a_run_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Numbers of the bank, and those of them that bf16 cannot hold.
    let bank = || {
        let all = tensors(&folder.join("run/last.ckpt"));
        let (_, bytes) = all.into_iter().find(|(name, _)| name == "bank.memory").unwrap();
        let numbers = bytes.as_chunks::<4>().0;
        (numbers.len(), numbers.iter().filter(|number| number[..2] != [0, 0]).count())
    };
    let settings = || std::fs::read_to_string(folder.join("run/config.toml")).unwrap();
    let resume = |precision: &str, steps: &str| {
        let flags = ["train", "--resume", "run", "--bank-precision", precision, "--max-steps", steps];
        succeeds(folder, flags);
        assert!(settings().contains(&format!("bank-precision = \"{precision}\"")), "{}", settings());
    };
    succeeds(folder, tiny("synthetic:100x16", "run", &["--bank-precision", "bf16", "--max-steps", "2"]));
    let (n, beyond_bf16) = bank();
    assert_eq!((n % 100, beyond_bf16), (0, 0));
    resume("fp32", "4");
    // Rows that have not moved since are what they were.
    let beyond_bf16 = bank().1;
    assert!(beyond_bf16 > 0 && beyond_bf16 < n / 2, "{beyond_bf16} of {n}");
    resume("bf16", "6");
    assert_eq!(bank(), (n, 0));
    assert_eq!(losses(&folder.join("run")).len(), 6);
}

#[test]
fn changed_data_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let images = common::write_images(&folder.join("photos"), 20);
    succeeds(folder, tiny("photos", "run", &["--max-steps", "1"]));
    std::fs::rename(&images[3], folder.join("photos/renamed.png")).unwrap();
    let refused = fails(folder, 1, ["train", "--resume", "run", "--max-steps", "2"]);
    assert!(refused.contains("changed"), "{refused}");
    succeeds(folder, ["train", "--resume", "run", "--max-steps", "2", "--accept-changed-data"]);
    std::fs::remove_file(&images[4]).unwrap();
    let refused = fails(folder, 1, ["train", "--resume", "run", "--max-steps", "3", "--accept-changed-data"]);
    assert!(refused.contains("20") && refused.contains("19"), "{refused}");
}
