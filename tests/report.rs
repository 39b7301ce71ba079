//! Living with a run: its page, comparisons, event files, log, warnings, completions and manual pages, and what happens to
//! a pipe that nobody reads.
//!
//! `LEMNISCATE_TORCH_PYTHON` names a Python; where it has tensorboard, that reads our event files.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{describe, fails, lemniscate, metrics, succeeds, tiny, write_images};

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

#[test]
fn a_run_has_a_page_that_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:100x16", "run", &[]));
    succeeds(folder, ["eval", "run", "-k", "5"]);
    let said = succeeds(folder, ["report", "run"]);
    assert!(said.contains("wrote run/report.html"), "{said}");
    let page = read(folder.join("run/report.html"));
    for part in [
        "All 2 epochs are trained",
        "aria-label=\"loss over optimiser step\"",
        "learning rate",
        "knn_top1",
        "waiting for images",
        "after epoch 2",
        "data:image/jpeg;base64,",
        "synthetic:100x16",
        "libtorch 2.",
        "recomputed",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for loads in ["src=\"http", "href=\"http", "url(http", "@import"] {
        assert!(!page.contains(loads), "{loads}");
    }
    // Eight queries followed for two epochs, eight neighbours each, drawn from the data.
    assert_eq!(page.matches("<ul class=\"tiles\">").count(), 8 * (1 + 2));
    assert_eq!(page.matches("<img").count(), 8 + 8 * 2 * 8);
    succeeds(folder, ["report", "run", "--no-pictures", "--out", "plain.html"]);
    assert!(!read(folder.join("plain.html")).contains("<img"));
    assert!(fails(folder, 1, ["report", "."]).contains("no run folder"));
}

#[test]
fn where_the_data_is_gone_the_page_has_names_and_quarantine_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let images = write_images(&folder.join("photos"), 20);
    std::fs::write(&images[7], b"not an image").unwrap();
    succeeds(folder, tiny("photos", "run", &["--quarantine"]));
    let retrievals = read(folder.join("run/retrievals.jsonl"));
    assert_eq!(retrievals.lines().count(), 2);
    assert!(retrievals.contains("003.png") && !retrievals.contains("007.png"), "{retrievals}");
    succeeds(folder, ["report", "run", "--out", "there.html"]);
    assert!(read(folder.join("there.html")).contains("<img"));
    std::fs::rename(folder.join("photos"), folder.join("elsewhere")).unwrap();
    succeeds(folder, ["report", "run"]);
    let page = read(folder.join("run/report.html"));
    assert!(page.contains("No pictures:") && page.contains("003.png") && !page.contains("<img"));
}

#[test]
fn runs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:64x16", "a", &[]));
    succeeds(folder, tiny("synthetic:64x16", "b", &["--lr", "0.1", "--max-steps", "6"]));
    let said = succeeds(folder, ["compare", "a", "b"]);
    let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    assert!(line("lr").ends_with("0.03  0.1"), "{said}");
    assert!(line("epochs").contains("2.0 of 2") && line("epochs").contains("1.5 of 2"), "{said}");
    assert!(line("max-steps").ends_with("-     6"), "{said}");
    assert!(!said.contains("temperature") && said.contains("wrote compare.html"), "{said}");
    let page = read(folder.join("compare.html"));
    assert!(page.contains("2 runs compared") && page.contains("aria-label=\"knn_top1 over epoch\""));
    fails(folder, 2, ["compare", "a"]);
}

/// Kills a run when it has measured its first epoch, and resumes it.
fn killed_and_resumed(folder: &Path, out: &str) {
    let settings = ["--epochs", "3", "--tensorboard", "--save-every", "0.0001", "--log-level", "debug"];
    let mut child =
        lemniscate(folder, tiny("synthetic:160x16", out, &settings)).stdout(Stdio::null()).spawn().unwrap();
    let retrievals = folder.join(out).join("retrievals.jsonl");
    let started = std::time::Instant::now();
    while std::fs::read_to_string(&retrievals).unwrap_or_default().is_empty() {
        assert!(started.elapsed().as_secs() < 120, "the run does not come to its first epoch");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(folder, ["train", "--resume", out]);
}

#[test]
fn a_killed_and_resumed_run_tells_the_same_story() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:160x16", "whole", &["--epochs", "3", "--tensorboard"]));
    killed_and_resumed(folder, "killed");
    assert_eq!(read(folder.join("whole/retrievals.jsonl")), read(folder.join("killed/retrievals.jsonl")));
    let log = read(folder.join("killed/train.log"));
    assert!(log.contains("INFO  resuming killed/last.ckpt in epoch"), "{log}");
    assert!(
        log.contains("DEBUG saved last.ckpt after step") && log.contains("INFO  done: 30 steps"),
        "{log}"
    );
    assert!(log.lines().all(|line| line.starts_with("20") || line.starts_with("    ")), "{log}");
    // The machine has not changed; it stands there once.
    let manifest: serde_json::Value =
        serde_json::from_str(&read(folder.join("killed/manifest.json"))).unwrap();
    assert_eq!(manifest["machines"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&manifest["machines"][0]["from_step"], &manifest["machines"][0]["threads"]),
        (&0.into(), &1.into())
    );
    let files: Vec<_> = std::fs::read_dir(folder.join("killed/tensorboard")).unwrap().collect();
    assert_eq!(files.len(), 2, "a file for each process");
    tensorboard_reads(&folder.join("killed"));
    tensorboard_reads(&folder.join("whole"));
}

/// TensorBoard's own reader finds every step once, in order, with the values of `metrics.jsonl`, and the pictures.
fn tensorboard_reads(run: &Path) {
    let Ok(python) = std::env::var("LEMNISCATE_TORCH_PYTHON") else {
        println!(
            "skipped: LEMNISCATE_TORCH_PYTHON names no Python; TensorBoard has not read the event files"
        );
        return;
    };
    let script =
        "import importlib.util, sys; sys.exit(77 if importlib.util.find_spec('tensorboard') is None else 0)";
    if Command::new(&python).args(["-c", script]).status().unwrap().code() == Some(77) {
        println!("skipped: {python} has no tensorboard");
        return;
    }
    let script = "
import io, json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'images': 0}); events.Reload()
tags = events.Tags()
out = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags['scalars']}
out['images'] = [[e.step, e.width, e.height, e.encoded_image_string[:4] == bytes([137, 80, 78, 71])]
    for tag in tags['images'] for e in events.Images(tag)]
print(json.dumps(out))
";
    let output = Command::new(&python).args(["-c", script]).arg(run.join("tensorboard")).output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected: Vec<_> = metrics(run, "step")
        .into_iter()
        .filter(|record| record["step"] == 1 || record["step"].as_u64().unwrap() % 2 == 0)
        .map(|record| (record["step"].as_u64().unwrap(), record["loss"].as_f64().unwrap() as f32))
        .collect();
    let scalars = |tag: &str| -> Vec<(u64, f32)> {
        let rows = found[tag].as_array().unwrap_or_else(|| panic!("no {tag}: {found}"));
        rows.iter().map(|row| (row[0].as_u64().unwrap(), row[1].as_f64().unwrap() as f32)).collect()
    };
    assert_eq!(scalars("train/loss"), expected);
    for tag in ["train/lr", "train/ln_z", "speed/images_per_s", "speed/data_wait_percent"] {
        assert_eq!(scalars(tag).len(), expected.len(), "{tag}");
    }
    let steps: Vec<u64> = scalars("eval/knn_top1").iter().map(|row| row.0).collect();
    assert_eq!(steps, [10, 20, 30]);
    let images = found["images"].as_array().unwrap();
    assert_eq!(images.iter().map(|row| row[0].as_u64().unwrap()).collect::<Vec<_>>(), [10, 20, 30]);
    assert!(images.iter().all(|row| row[1].as_u64() > Some(400) && row[3] == true), "{images:?}");
}

#[test]
fn a_warning_is_said_once_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let said = succeeds(
        folder,
        tiny("synthetic:64x16", "run", &["--nce-t", "3", "--max-steps", "2", "--nce-k", "64"]),
    );
    assert!(
        said.contains("warning: --temperature 3") && said.contains("warning: 64 negatives from 64"),
        "{said}"
    );
    let again = succeeds(folder, ["train", "--resume", "run", "--max-steps", "3"]);
    assert!(!again.contains("warning"), "{again}");
    let abouts: Vec<_> =
        metrics(&folder.join("run"), "note").iter().map(|note| note["about"].clone()).collect();
    assert_eq!(abouts, ["temperature".into(), "negatives".into(), serde_json::Value::Null]);
    assert!(read(folder.join("run/train.log")).contains("WARN  --temperature 3"));
    succeeds(folder, ["report", "run"]);
    assert!(read(folder.join("run/report.html")).contains("<strong>Warning</strong>: --temperature 3"));
}

#[test]
fn quiet_and_verbose_are_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = |out, more: &[&'static str]| {
        let output = lemniscate(folder, tiny("synthetic:64x16", out, more)).output().unwrap();
        assert!(output.status.success(), "{}", describe(&output));
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
    };
    // A temperature that is worth a warning: --quiet keeps that to the log too.
    assert_eq!(run("quiet", &["--quiet", "--nce-t", "3", "--max-steps", "2"]), ["", ""]);
    assert!(read(folder.join("quiet/train.log")).contains("WARN  --temperature 3"));
    let plain = run("plain", &["--max-steps", "2", "--log-level", "off"]);
    assert!(!plain[0].contains("saved last.ckpt") && read(folder.join("plain/train.log")).is_empty());
    let verbose = run("verbose", &["--verbose", "--max-steps", "2"]);
    assert!(verbose[0].contains("saved last.ckpt after step 2 in"), "{}", verbose[0]);
    fails(folder, 2, tiny("synthetic:64x16", "both", &["--quiet", "--verbose"]));
    fails(folder, 2, tiny("synthetic:64x16", "level", &["--log-level", "loud"]));
}

#[test]
fn nothing_that_is_said_breaks_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:64x16", "run", &[]));
    succeeds(folder, tiny("synthetic:64x16", "other", &["--lr", "0.1", "--max-steps", "2"]));
    let commands: &[&[&str]] = &[
        &["--help"],
        &["train", "--help"],
        &[
            "train",
            "synthetic:64x16",
            "--width",
            "4",
            "--image-size",
            "16",
            "-b",
            "16",
            "--epochs",
            "1",
            "--verbose",
        ],
        &["train", "--resume", "other", "--tensorboard"],
        &["eval", "run", "--bank", "both", "--per-class"],
        &["embed", "run", "--out", "embeddings.npy"],
        &["report", "run"],
        &["compare", "run", "other"],
        &["data", "synthetic:64x16"],
        &["inspect", "run/last.ckpt"],
        &["import", "run/last.ckpt"],
        &["export", "run", "--to", "safetensors", "--out", "run.safetensors"],
        &["completions", "bash"],
        &["man", "--out", "man"],
        &["train", "nowhere"],
    ];
    for command in commands {
        // Both streams, as in `lemniscate ... 2>&1 | head -0`.
        let mut child =
            lemniscate(folder, *command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().unwrap();
        // What fails anyhow fails as it does with a listener; nothing panics (101) and no signal kills.
        let output = lemniscate(folder, *command).output().unwrap();
        let heard = match command {
            // These have done their work already, and refuse to do it over.
            ["embed" | "export", ..] => Some(0),
            _ => output.status.code(),
        };
        assert_eq!(status.code(), heard, "{command:?}: {}", describe(&output));
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let help = succeeds(folder, ["--help"]);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.trim().is_empty())
        // What goes on on a second line is indented further.
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() >= 18 && commands.contains(&"bench"), "{commands:?}");
    succeeds(folder, ["man", "--out", "man"]);
    assert_eq!(std::fs::read_dir(folder.join("man")).unwrap().count(), commands.len() + 1);
    assert!(read(folder.join("man/lemniscate-train.1")).contains("\\-\\-temperature"));
    for command in &commands {
        let page = read(folder.join(format!("man/lemniscate-{command}.1")));
        assert!(page.contains("Examples"), "{command} has no examples");
        assert!(succeeds(folder, [command, "--help"]).contains("Examples"), "{command} has no examples");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeeds(folder, ["completions", shell]);
        for command in &commands {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
        assert!(script.contains("temperature"), "{shell} does not know the flags of train");
    }
    // The shell itself takes the script.
    let script = succeeds(folder, ["completions", "bash"]);
    std::fs::write(folder.join("lemniscate.bash"), script).unwrap();
    if let Ok(status) = Command::new("bash").arg("-n").arg(folder.join("lemniscate.bash")).status() {
        assert!(status.success());
    }
}
