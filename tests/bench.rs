//! `lemniscate bench`: what it prints, what it refuses, and that it leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use common::{TINY, describe, fails, lemniscate, succeeds, write_images};

/// `bench DATA` with tiny settings and then `more`.
fn bench<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", data, "--seconds", "0.5"], TINY, more].concat()
}

#[test]
fn one_object_holds_the_breakdown_and_its_parts_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let output = lemniscate(folder, bench("synthetic:64x16", &["--json"])).output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    // Progress is on standard error, and standard output is one object.
    let said = String::from_utf8_lossy(&output.stderr);
    for phase in ["peak", "warming up", "measuring steps for 0.5 s", "measuring an evaluation pass"] {
        assert!(said.contains(phase), "{said}");
    }
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |path: &str| found.pointer(path).and_then(serde_json::Value::as_f64);
    for path in [
        "/machine/cores",
        "/n_images",
        "/image_size",
        "/batch_size",
        "/forward_flop",
        "/backward_flop",
        "/seconds",
        "/steps",
        "/images",
        "/images_per_s",
        "/step_ms/median",
        "/step_ms/fastest",
        "/step_ms/slowest",
        "/parts_ms/wait",
        "/parts_ms/forward",
        "/parts_ms/objective",
        "/parts_ms/backward",
        "/parts_ms/update",
        "/parts_ms/rest",
        "/loading/images",
        "/loading/decode_ms",
        "/loading/augment_ms",
        "/evaluation/batch_size",
        "/evaluation/seconds",
        "/evaluation/images",
        "/evaluation/images_per_s",
        "/evaluation/share_waiting",
        "/evaluation/images_per_s_in_network",
        "/evaluation/training_forward_images_per_s",
        "/evaluation/ratio",
        "/evaluation/ratio_in_network",
        "/peak_flop_per_s/fp32",
        "/flop_per_s",
        "/share_of_peak",
        "/share_of_peak_in_network",
    ] {
        assert!(number(path).is_some_and(|value| value >= 0.0), "{path} in {found}");
    }
    assert_eq!((number("/machine/threads"), number("/machine/workers")), (Some(1.0), Some(1.0)));
    assert_eq!((number("/n_images"), number("/batch_size")), (Some(64.0), Some(16.0)));
    assert_eq!((&found["machine"]["precision"], &found["objective"]), (&"fp32".into(), &"nce".into()));
    let bound = found["findings"][0]["about"].as_str().unwrap();
    assert!(["loader-bound", "compute-bound"].contains(&bound), "{found}");
    assert!(found["findings"][0]["text"].as_str().unwrap().contains('%'), "{found}");

    let parts = found["parts_ms"].as_object().unwrap();
    let sum: f64 = parts.values().map(|ms| ms.as_f64().unwrap()).sum();
    let step = 1e3 * number("/seconds").unwrap() / number("/steps").unwrap();
    assert!((sum / step - 1.0).abs() < 1e-6, "the parts are {sum} ms of {step} ms: {found}");
    let images = number("/images_per_s").unwrap() * number("/seconds").unwrap();
    assert!((images - number("/images").unwrap()).abs() < 1e-6 * images, "{found}");
    let of_evaluation = |name: &str| number(&format!("/evaluation/{name}")).unwrap();
    let forward =
        1e3 * number("/images").unwrap() / number("/steps").unwrap() / number("/parts_ms/forward").unwrap();
    assert!((of_evaluation("training_forward_images_per_s") / forward - 1.0).abs() < 1e-6, "{found}");
    let ratio = of_evaluation("images_per_s") / forward;
    assert!((of_evaluation("ratio") / ratio - 1.0).abs() < 1e-6 && ratio > 0.0, "{found}");
    assert!(std::fs::read_dir(folder).unwrap().next().is_none(), "something was left behind");
}

#[test]
fn the_table_says_where_the_time_went_and_the_images_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_images(&folder.join("photos/a"), 24);
    let names = || {
        let files = std::fs::read_dir(folder.join("photos/a")).unwrap();
        let mut files: Vec<_> = files
            .map(|file| file.unwrap())
            .map(|file| (file.file_name(), file.metadata().unwrap().modified().unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = names();
    let table = succeeds(folder, bench("photos", &["--nce-k", "0"]));
    let rows = [
        "wait",
        "forward",
        "loss",
        "backward",
        "update",
        "rest",
        "whole step",
        "decode",
        "augment",
        "evaluation",
    ];
    for row in rows {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row} in\n{table}");
    }
    for text in [
        "24 images",
        "full softmax",
        "images/s",
        "loading included",
        "without loading",
        "of the peak in fp32",
        "bound",
    ] {
        assert!(table.contains(text), "{text} in\n{table}");
    }
    assert_eq!(before, names());
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["photos"]);
}

#[test]
fn a_configuration_is_measured_and_data_need_not_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let flags = [&["bench", "--seconds", "0.2", "--json"], TINY, &["--accumulate", "2"]].concat();
    let found: serde_json::Value = serde_json::from_str(&succeeds(folder, flags)).unwrap();
    assert_eq!((&found["data"], &found["accumulate"]), (&"synthetic".into(), &2.into()));
    std::fs::write(
        folder.join("settings.toml"),
        "data = \"synthetic:50x16\"\nimage-size = 16\nwidth = 4\nbatch-size = 10\nn-negatives = 8\n",
    )
    .unwrap();
    let flags = ["bench", "--config", "settings.toml", "-b", "5", "--seconds", "0.2", "--json"];
    let found: serde_json::Value = serde_json::from_str(&succeeds(folder, flags)).unwrap();
    assert_eq!((&found["n_images"], &found["batch_size"]), (&50.into(), &5.into()));
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (arguments, code, named) in [
        (&["bench", "--seconds", "0"][..], 2, "--seconds"),
        (&["bench", "--seconds", "nan"], 2, "--seconds"),
        (&["bench", "--seconds", "1e9"], 2, "--seconds"),
        (&["bench", "--seconds", "soon"], 2, "--seconds"),
        (&["bench", "--secconds", "3"], 2, "--seconds"),
        (&["bench", "--out", "run"], 2, "--out"),
        (&["bench", "nowhere"], 1, "nowhere"),
        (&["bench", "synthetic", "--nce-t", "0"], 2, "--temperature"),
        (&["bench", "synthetic", "--device", "cuda:9999"], 2, "cuda"),
        (&["bench", "--config", "nowhere.toml"], 1, "nowhere.toml"),
    ] {
        let said = fails(folder, code, arguments);
        assert!(said.contains(named) && !said.contains("panicked"), "{arguments:?}: {said}");
        assert!(std::fs::read_dir(folder).unwrap().next().is_none(), "{arguments:?} left something behind");
    }
}

#[test]
fn an_unreadable_image_ends_it_with_its_name_unless_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_images(&folder.join("photos/a"), 20);
    std::fs::write(folder.join("photos/a/broken.png"), b"not a picture").unwrap();
    let said = fails(folder, 1, bench("photos", &["--preset", "cifar"]));
    assert!(said.contains("broken.png"), "{said}");
    let found = succeeds(folder, bench("photos", &["--preset", "cifar", "--quarantine", "--json"]));
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["n_images"], 21);
}
