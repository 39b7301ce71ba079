//! The program as a person meets it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]

mod common;

use common::{fails, metrics, succeeds, tiny, write_images};

#[test]
fn the_published_command_line_works() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let published = [
        "train",
        "synthetic:64x16",
        "--arch",
        "resnet18",
        "-j",
        "32",
        "--nce-k",
        "4096",
        "--nce-t",
        "0.07",
        "--lr",
        "0.03",
        "--nce-m",
        "0.5",
        "--low-dim",
        "128",
        "-b",
        "256",
        "--momentum",
        "0.9",
        "--wd",
        "1e-4",
        "-p",
        "10",
        "--iter_size",
        "1",
        "--start-epoch",
        "0",
        "--world-size",
        "1",
        "--dist-url",
        "tcp://x",
        "--dist-backend",
        "gloo",
        "--width",
        "4",
        "--image-size",
        "16",
        "--epochs",
        "1",
        "--out",
        "run",
    ];
    let said = succeeds(folder, published);
    assert!(said.contains("lemniscate eval run"), "{said}");
    let config: toml::Table =
        std::fs::read_to_string(folder.join("run/config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["n-negatives"].as_integer(), Some(4096));
    assert_eq!(config["temperature"].as_float(), Some(0.07));
    assert_eq!(config["batch-size"].as_integer(), Some(256));
    // As `python main.py DATA --resume FILE -e` tested a checkpoint.
    let tested = succeeds(folder, ["train", "synthetic:64x16", "--resume", "run/last.ckpt", "-e"]);
    assert!(tested.contains("live") && tested.contains("recomputed"), "{tested}");
}

#[test]
fn a_config_repeats_a_run_and_flags_override_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:64x16", "first", &["--seed", "3", "--max-steps", "3"]));
    succeeds(folder, ["train", "--config", "first/config.toml", "--out", "second"]);
    common::assert_same_tensors(&folder.join("first/last.ckpt"), &folder.join("second/last.ckpt"));
    succeeds(folder, ["train", "--config", "first/config.toml", "--out", "third", "--max-steps", "4"]);
    assert_eq!(metrics(&folder.join("third"), "step").len(), 4);
    std::fs::write(folder.join("wrong.toml"), "data = \"synthetic\"\ntempreature = 0.1\n").unwrap();
    let said = fails(folder, 2, ["train", "--config", "wrong.toml"]);
    assert!(said.contains("tempreature"), "{said}");
}

#[test]
fn the_run_folder_holds_what_is_promised() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:64x16", "run", &[]));
    let run = folder.join("run");
    for file in ["config.toml", "manifest.json", "metrics.jsonl", "last.ckpt", "best.ckpt", "curves.svg"] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    let steps = metrics(&run, "step");
    assert_eq!(steps.len(), 8);
    for key in ["epoch", "step", "loss", "lr", "images_per_s", "data_ms", "step_ms"] {
        assert!(steps[0][key].is_number(), "{key}: {}", steps[0]);
    }
    // Of each process the first step says how long it took to get there.
    succeeds(folder, ["train", "--resume", "run", "--epochs", "3"]);
    let steps = metrics(&run, "step");
    let started: Vec<_> =
        steps.iter().filter_map(|step| Some((&step["step"], step["startup_s"].as_f64()?))).collect();
    if cfg!(target_os = "linux") {
        assert_eq!(started.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 9]);
        assert!(started.iter().all(|(_, seconds)| (0.0..600.0).contains(seconds)), "{started:?}");
        let log = std::fs::read_to_string(run.join("train.log")).unwrap();
        assert_eq!(log.matches("the first step began").count(), 2, "{log}");
    }
    let evaluations = metrics(&run, "eval");
    for key in ["epoch", "metric", "value", "k", "temperature", "bank", "layer", "seconds"] {
        assert!(!evaluations[0][key].is_null(), "{key}: {}", evaluations[0]);
    }
    let refused = fails(folder, 2, tiny("synthetic:64x16", "run", &[]));
    assert!(refused.contains("--resume run"), "{refused}");
}

#[test]
fn eval_takes_lists_and_is_safe_for_any_k_and_number_of_classes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for class in ["a", "b"] {
        write_images(&folder.join("data/train").join(class), 12);
        write_images(&folder.join("data/val").join(class), 4);
    }
    succeeds(folder, tiny("data", "run", &["--max-steps", "2"]));
    let before = std::fs::read(folder.join("run/last.ckpt")).unwrap();
    let said = succeeds(
        folder,
        ["eval", "run", "data", "-k", "1,20,100000", "-t", "0.07,0.5", "--bank", "both", "--json"],
    );
    let rows: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2 * 3 * 2);
    for row in &rows {
        let (top1, top5) = (row["top1"].as_f64().unwrap(), row["top5"].as_f64().unwrap());
        assert!(0.0 <= top1 && top1 <= top5 && top5 <= 1.0, "{row}");
        assert!(row["k"].as_u64().unwrap() <= 24, "{row}");
        // Two classes: with every row voting, both are among the first five.
        assert!(row["k"] != 24 || top5 == 1.0, "{row}");
    }
    assert_eq!(before, std::fs::read(folder.join("run/last.ckpt")).unwrap(), "a test changed the checkpoint");
    succeeds(folder, ["eval", "run", "--picture", "sheet.png"]);
    assert!(image::open(folder.join("sheet.png")).unwrap().width() > 300);
    // Other images: the live bank says nothing about them.
    write_images(&folder.join("other/train/a"), 9);
    let refused = fails(folder, 1, ["eval", "run", "other", "--bank", "live"]);
    assert!(refused.contains("--bank recomputed"), "{refused}");
}

#[test]
fn unlabelled_images_are_trained_on_and_measured_without_labels() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_images(&folder.join("photos/2019/may"), 15);
    write_images(&folder.join("photos/2020"), 15);
    let output = common::lemniscate(folder, tiny("photos", "run", &[])).output().unwrap();
    assert!(output.status.success(), "{}", common::describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no labels"), "{}", common::describe(&output));
    let names: Vec<_> = metrics(&folder.join("run"), "eval").iter().map(|r| r["metric"].clone()).collect();
    for metric in ["view_top1", "alignment", "uniformity"] {
        assert!(names.iter().any(|name| name == metric), "{names:?}");
    }
    assert!(succeeds(folder, ["eval", "run"]).contains("own row first"));
}

#[test]
fn unreadable_images_stop_a_run_unless_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let images = write_images(&folder.join("photos"), 20);
    std::fs::write(&images[7], b"not an image").unwrap();
    let whole = std::fs::read(&images[9]).unwrap();
    std::fs::write(&images[9], &whole[..whole.len() / 2]).unwrap();
    let refused = fails(folder, 1, tiny("photos", "run", &[]));
    assert!(
        refused.contains("007.png") && refused.contains("009.png") && refused.contains("--quarantine"),
        "{refused}"
    );
    assert!(!folder.join("run").exists(), "a refused run left a folder");

    succeeds(folder, tiny("photos", "run", &["--quarantine", "--max-steps", "2"]));
    let manifest = std::fs::read_to_string(folder.join("run/manifest.json")).unwrap();
    assert!(manifest.contains("007.png") && manifest.contains("009.png"), "{manifest}");
    // Their rows stay: 20 rows, as many as files.
    let bank = common::tensors(&folder.join("run/last.ckpt"))
        .into_iter()
        .find(|(name, _)| name == "bank.memory")
        .unwrap();
    assert_eq!(bank.1.len(), 20 * 16 * 4);
    // An unreadable test image is not asked about, in the resumed run neither.
    write_images(&folder.join("labelled/train/a"), 18);
    let tests = write_images(&folder.join("labelled/val/a"), 4);
    std::fs::write(&tests[2], b"not an image").unwrap();
    succeeds(folder, tiny("labelled", "tested", &["--quarantine", "--max-steps", "1"]));
    succeeds(folder, ["train", "--resume", "tested"]);
    succeeds(folder, ["eval", "tested"]);
    succeeds(folder, ["train", "--resume", "run", "--max-steps", "3"]);

    let said = succeeds(folder, ["data", "photos"]);
    assert!(said.contains("007.png") && said.contains("009.png"), "{said}");
}

#[test]
fn impossible_requests_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (arguments, named) in [
        (&["train", "synthetic", "--tempreature", "0.1"][..], "--temperature"),
        (&["train", "nowhere"], "nowhere"),
        (&["train"], "no data"),
        (&["train", "synthetic", "--nce-t", "0"], "--temperature"),
        (&["train", "synthetic", "--objective", "softmax", "--nce-k", "5"], "--n-negatives"),
        (&["train", "synthetic", "--world-size", "4"], "--world-size"),
        (&["train", "synthetic", "--device", "cuda:9999"], "cuda"),
        (&["train", "synthetic", "--width", "5000"], "width"),
        (&["train", "synthetic", "--threads", "5000000000"], "--threads"),
        (&["train", "synthetic", "--save-every", "1e30"], "--save-every"),
        (&["train", "synthetic:33x8", "--image-size", "8", "-b", "32"], "--batch-size"),
        (&["train", "synthetic", "-e"], "--resume"),
        (&["train", "--resume", "nowhere"], "nowhere"),
        (&["eval", "nowhere"], "nowhere"),
    ] {
        let output = common::lemniscate(folder, arguments).output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {}", common::describe(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert!(std::fs::read_dir(folder).unwrap().next().is_none(), "{arguments:?} left something behind");
    }
}

#[test]
fn a_loss_that_is_not_finite_names_the_images_and_keeps_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let said = fails(folder, 1, tiny("synthetic:100x16", "run", &["--lr", "1e30", "--save-every", "0.0001"]));
    assert!(said.contains("finite") || said.contains("the loss is"), "{said}");
    // What was saved before is whole and finite.
    succeeds(folder, ["eval", "run"]);
}
