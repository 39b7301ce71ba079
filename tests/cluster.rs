//! `lemniscate cluster`: the files it leaves agree with each other, and planted duplicates are found.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use std::collections::BTreeMap;

use common::{fails, succeeds, tiny, write_images};
use serde_json::Value;

#[test]
fn clusters_are_written_as_tables_json_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:120x16", "run", &["--epochs", "1"]));
    let said = succeeds(folder, ["cluster", "run", "--clusters", "auto,5", "--duplicates", "0.9", "-j", "1"]);
    assert!(said.contains("purity") && said.contains("near-duplicates"), "{said}");
    let out = folder.join("run/clusters");
    let json: Value = serde_json::from_slice(&std::fs::read(out.join("clusters.json")).unwrap()).unwrap();
    let clusterings = json["clusterings"].as_array().unwrap();
    let classes = clusterings[0]["clusters"].as_u64().unwrap();
    assert!(classes > 2 && clusterings[1]["clusters"] == 5);

    // Sizes, purity and mean distance again, from the table and the names, which hold the classes.
    for clustering in clusterings {
        let table =
            std::fs::read_to_string(out.join(format!("assignments-{}.csv", clustering["clusters"]))).unwrap();
        let mut sizes = BTreeMap::<u64, u64>::new();
        let mut distance = 0.0;
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            *sizes.entry(fields[1].parse().unwrap()).or_default() += 1;
            distance += fields[2].parse::<f64>().unwrap();
        }
        assert_eq!(sizes.values().sum::<u64>(), 120);
        assert!((distance / 120.0 - clustering["mean_distance"].as_f64().unwrap()).abs() < 1e-6);
        let members = clustering["members"].as_array().unwrap();
        let mut purest = 0.0;
        for member in members {
            let (cluster, size) = (member["cluster"].as_u64().unwrap(), member["size"].as_u64().unwrap());
            assert_eq!(sizes.get(&cluster).copied().unwrap_or(0), size);
            purest += size as f64 * member["share"].as_f64().unwrap_or(0.0);
        }
        assert!((purest / 120.0 - clustering["purity"].as_f64().unwrap()).abs() < 1e-9);
    }
    let page = std::fs::read_to_string(out.join("clusters.html")).unwrap();
    assert!(page.contains("Cluster 0: ") && page.contains("(medoid)") && !page.contains("http://"));
    let recorded = std::fs::read_to_string(folder.join("run/evaluations.jsonl")).unwrap();
    assert_eq!(recorded.matches("\"clusters\":{").count(), 3);

    // The same again is the same again, on any number of threads.
    let first = std::fs::read(out.join("assignments-5.csv")).unwrap();
    let again = ["cluster", "run", "--clusters", "5", "--no-duplicates", "--out", "again", "-j", "2"];
    let mut command = common::lemniscate(folder, again);
    assert!(command.env("RAYON_NUM_THREADS", "1").output().unwrap().status.success());
    assert!(first == std::fs::read(folder.join("again/assignments-5.csv")).unwrap());
    assert!(!folder.join("again/duplicates.csv").exists());
    assert!(fails(folder, 2, ["cluster", "run", "--clusters", "121"]).contains("there are 120 images"));
    assert!(fails(folder, 2, ["cluster", "run", "--clusters", "many"]).contains("'many'"));
    assert!(fails(folder, 2, ["cluster", "run", "--duplicates", "1.5"]).contains("cosine"));
}

#[test]
fn copies_are_found_among_unlabelled_photos() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:40x16", "run", &["--epochs", "1"]));
    let files = write_images(&folder.join("photos"), 8);
    std::fs::copy(&files[2], folder.join("photos/copy, of 002.png")).unwrap();
    std::fs::copy(&files[2], folder.join("photos/more.png")).unwrap();
    std::fs::write(folder.join("photos/broken.png"), "no image").unwrap();
    let ask = ["cluster", "run", "photos", "--out", "groups", "--duplicates", "0.999999", "-j", "1"];
    assert!(fails(folder, 1, ask).contains("broken.png"));
    let said = succeeds(folder, ask.iter().chain(&["--quarantine"]));
    assert!(!said.contains('%'), "no labels, no purity: {said}");
    let table = std::fs::read_to_string(folder.join("groups/duplicates.csv")).unwrap();
    for pair in ["002.png,\"copy, of 002.png\",", "002.png,more.png,", "\"copy, of 002.png\",more.png,"] {
        assert!(table.contains(pair), "{pair} in {table}");
    }
    let json: Value =
        serde_json::from_slice(&std::fs::read(folder.join("groups/clusters.json")).unwrap()).unwrap();
    let group = json["duplicates"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group.to_string().contains("002"));
    let names: Vec<&str> =
        group.unwrap().as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(names.contains(&"copy, of 002.png") && names.contains(&"more.png"), "{names:?}");
    // √(10 / 2), rounded.
    assert_eq!(json["clusterings"][0]["clusters"], 2);
    assert!(!std::fs::read_to_string(folder.join("groups/assignments-2.csv")).unwrap().contains("broken"));
}
