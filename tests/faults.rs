//! What goes wrong around a run, made to go wrong: the short form of `make soak`.
//!
//! tests/fixtures/faults/shim.c is preloaded where the system itself has to fail. What these tests promise is
//! listed in docs/RELIABILITY.md.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use common::{assert_same_tensors, describe, fails, lemniscate, metrics, succeeds, write_images};

/// A run of 3 steps an epoch on 24 images in `photos`, saved as often as it can be.
const SMALL: &[&str] = &[
    "--arch",
    "resnet18",
    "--width",
    "2",
    "--embed-dim",
    "8",
    "--image-size",
    "16",
    "-b",
    "8",
    "--nce-k",
    "8",
    "-j",
    "1",
    "--threads",
    "1",
    "--precision",
    "fp32",
    "--monitor",
    "none",
    "--save-every",
    "0.00001",
];

fn small<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "photos", "--out", out], SMALL, more].concat()
}

fn photos() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_images(&folder.path().join("photos"), 24);
    folder
}

/// The library that makes system calls fail, built once.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/faults/shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", describe(&built));
        library
    })
}

/// The program with faults in it.
fn faulty(folder: &Path, arguments: &[&str], faults: &[(&str, &str)]) -> Command {
    let mut command = lemniscate(folder, arguments);
    command.env("LD_PRELOAD", shim()).envs(faults.iter().copied());
    command
}

fn steps(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().matches("\"kind\":\"step\"").count()
}

/// Starts the program and waits until its run has done `n` steps.
fn started(mut command: Command, run: &Path, n: usize) -> Child {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while steps(run) < n {
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not start");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Waits for a program that must fail; what it said.
fn failure(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_image_lost_under_a_running_run_is_named_and_the_run_goes_on_once_it_is_back() {
    let folder = photos();
    let folder = folder.path();
    succeeds(folder, small("whole", &["--max-steps", "12"]));
    let image = folder.join("photos/007.png");
    let whole = fs::read(&image).unwrap();
    for (number, injury) in ["removed", "cut", "replaced by a pipe"].into_iter().enumerate() {
        let out = format!("run{number}");
        let run = folder.join(&out);
        let child = started(lemniscate(folder, small(&out, &["--epochs", "100000"])), &run, 2);
        fs::remove_file(&image).unwrap();
        match injury {
            "cut" => fs::write(&image, &whole[..whole.len() / 2]).unwrap(),
            "replaced by a pipe" => {
                assert!(Command::new("mkfifo").arg(&image).status().unwrap().success())
            }
            _ => {}
        }
        let said = failure(child);
        assert!(said.contains("007.png: "), "{injury}: {said}");
        assert!(said.contains("is saved") && said.contains(&format!("--resume {out}")), "{injury}: {said}");
        let refused = lemniscate(folder, ["train", "--resume", &out]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{injury}: {}", describe(&refused));
        let _ = fs::remove_file(&image);
        fs::write(&image, &whole).unwrap();
        let done = metrics(&run, "step").len();
        assert!(done > 1, "{injury}: only {done} steps");
        succeeds(folder, ["train", "--resume", &out, "--max-steps", &(done + 2).to_string()]);
        assert_eq!(metrics(&run, "step").len(), done + 2, "{injury}");
        if number == 0 {
            // As the run that lost nothing.
            let limit = (done + 2).to_string();
            succeeds(folder, small("same", &["--epochs", "100000", "--max-steps", &limit]));
            assert_same_tensors(&folder.join("same/last.ckpt"), &run.join("last.ckpt"));
        }
    }
}

#[test]
fn an_image_whose_file_system_hangs_is_named_while_scanning_and_while_training() {
    let folder = photos();
    let folder = folder.path();
    let hang = [("FAULT_HANG", "011.png")];
    let begun = Instant::now();
    for arguments in [
        small("run", &["--read-timeout", "0.5"]),
        small("other", &["--read-timeout", "0.5", "--skip-scan", "--preset", "cifar"]),
        vec!["data", "photos", "--read-timeout", "0.5"],
    ] {
        let output = faulty(folder, &arguments, &hang).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
        assert!(said.contains("011.png: ") && said.contains("hang"), "{said}");
        assert!(said.contains("--read-timeout"), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(!folder.join("run").exists(), "a run that could not start left a folder");
    // Training had begun, and goes on where it was.
    succeeds(folder, ["train", "--resume", "other", "--max-steps", "4"]);
}

#[test]
fn a_disk_that_is_full_or_fails_costs_no_checkpoint() {
    let folder = photos();
    let folder = folder.path();
    succeeds(folder, small("whole", &["--max-steps", "6"]));
    for (number, (kind, words)) in [
        ("ENOSPC", "No space left"),
        ("EDQUOT", "uota"),
        ("EIO", "nput/output error"),
        ("EROFS", "Read-only file system"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("run{number}");
        succeeds(folder, small(&out, &["--max-steps", "2"]));
        // A place in the writing of metrics or of a checkpoint, another one for each kind.
        let call = (3 + 61 * number).to_string();
        let faults = [("FAULT_FOLDER", out.as_str()), ("FAULT_KIND", kind), ("FAULT_CALL", &call)];
        let output =
            faulty(folder, &["train", "--resume", &out, "--max-steps", "6"], &faults).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{kind}: {}", describe(&output));
        assert!(said.contains(words) && said.contains(&out), "{kind}: {said}");
        succeeds(folder, ["train", "--resume", &out, "--max-steps", "6"]);
        assert_same_tensors(&folder.join("whole/last.ckpt"), &folder.join(&out).join("last.ckpt"));
        assert_eq!(metrics(&folder.join(&out), "step").len(), 6, "{kind}");
    }
    // A limit on the size of files acts like a full disk; the system would kill the process.
    succeeds(folder, small("limited", &["--max-steps", "2"]));
    let program = env!("CARGO_BIN_EXE_lemniscate");
    let script = format!("ulimit -f 8; exec {program} train --resume limited --max-steps 6");
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("File too large"), "{}", describe(&output));
    succeeds(folder, ["train", "--resume", "limited", "--max-steps", "6"]);
    assert_same_tensors(&folder.join("whole/last.ckpt"), &folder.join("limited/last.ckpt"));
}

#[test]
fn killed_inside_the_write_of_a_checkpoint_it_goes_on_as_if_nothing_had_happened() {
    let folder = photos();
    let folder = folder.path();
    succeeds(folder, small("whole", &["--max-steps", "5"]));
    succeeds(folder, small("start", &["--max-steps", "1"]));
    let start = folder.join("start");
    for call in [1, 4, 40, 150, 300] {
        let run = folder.join(format!("killed{call}"));
        fs::create_dir(&run).unwrap();
        for entry in fs::read_dir(&start).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), run.join(entry.file_name())).unwrap();
        }
        let out = run.file_name().unwrap().to_str().unwrap();
        let call = call.to_string();
        let faults = [("FAULT_FOLDER", out), ("FAULT_KIND", "KILL"), ("FAULT_CALL", &call)];
        let output =
            faulty(folder, &["train", "--resume", out, "--max-steps", "5"], &faults).output().unwrap();
        assert_eq!(output.status.code(), None, "call {call}: {}", describe(&output));
        succeeds(folder, ["train", "--resume", out, "--max-steps", "5"]);
        assert_same_tensors(&folder.join("whole/last.ckpt"), &run.join("last.ckpt"));
        assert_eq!(metrics(&run, "step").len(), 5, "call {call}");
        let left: Vec<_> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    }
}

#[test]
fn a_run_folder_that_vanishes_ends_the_run_and_harms_no_other() {
    let folder = photos();
    let folder = folder.path();
    let run = folder.join("run");
    let child = started(lemniscate(folder, small("run", &["--epochs", "100000"])), &run, 2);
    fs::rename(&run, folder.join("moved")).unwrap();
    let said = failure(child);
    assert!(said.contains("run: ") && said.contains("removed or moved away"), "{said}");
    let done = metrics(&folder.join("moved"), "step").len();
    succeeds(folder, ["train", "--resume", "moved", "--max-steps", &(done + 1).to_string()]);
}

#[test]
fn the_lock_names_its_holder_and_ends_with_it() {
    let folder = photos();
    let folder = folder.path();
    let run = folder.join("run");
    let mut child = started(lemniscate(folder, small("run", &["--epochs", "100000"])), &run, 1);
    let refused = fails(folder, 2, ["train", "--resume", "run"]);
    assert!(refused.contains(&format!("process {}", child.id())), "{refused}");
    child.kill().unwrap();
    child.wait().unwrap();
    let done = steps(&run);
    succeeds(folder, ["train", "--resume", "run", "--max-steps", &(done + 2).to_string()]);
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let folder = photos();
    let folder = folder.path();
    succeeds(folder, small("whole", &["--max-steps", "4"]));
    for (i, entry) in fs::read_dir(folder.join("photos")).unwrap().enumerate() {
        let years = Duration::from_secs(31_557_600 * [1, 180][i % 2]);
        let time = SystemTime::UNIX_EPOCH + years;
        fs::File::open(entry.unwrap().path()).unwrap().set_modified(time).unwrap();
    }
    let jumps = [("FAULT_CLOCK", "1")];
    for arguments in
        [small("run", &["--max-steps", "2"]), vec!["train", "--resume", "run", "--max-steps", "4"]]
    {
        let output = faulty(folder, &arguments, &jumps).output().unwrap();
        assert!(output.status.success(), "{}", describe(&output));
    }
    assert_same_tensors(&folder.join("whole/last.ckpt"), &folder.join("run/last.ckpt"));
    for record in metrics(&folder.join("run"), "step") {
        let time = record["step_ms"].as_f64().unwrap();
        assert!((0.0..60_000.0).contains(&time), "a step of {time} ms");
    }
}

/// Nothing but stamps, names and the trust in a folder's time may look at the wall clock.
#[test]
fn only_stamps_and_two_other_places_look_at_the_wall_clock() {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if fs::read_to_string(&path)
                .unwrap()
                .split("#[cfg(test)]")
                .next()
                .unwrap()
                .contains("SystemTime::now")
            {
                found.push(path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    let stamps = ["src/cli/report.rs", "src/report/log_file.rs", "src/report/tensorboard/mod.rs"];
    found.retain(|path| !stamps.contains(&path.as_str()));
    assert_eq!(found, ["src/checkpoint/run_folder.rs", "src/data/walk.rs"]);
}

#[test]
fn a_run_that_does_not_fit_into_memory_is_refused_before_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Two million rows of 65,536 numbers: half a terabyte.
    let arguments = [
        "train",
        "synthetic:2000000x16",
        "--embed-dim",
        "65536",
        "--width",
        "4",
        "--preset",
        "cifar",
        "--out",
        "run",
    ];
    let said = fails(folder, 2, arguments);
    for part in ["488.3 GiB", "available", "--embed-dim", "--ignore-memory-estimate"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!folder.join("run").exists());
}
