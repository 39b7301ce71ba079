//! `lemniscate eval` beyond its default: layers, details, records.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use common::{fails, succeeds, tiny, write_images};

#[test]
fn a_grid_of_layers_and_banks_is_printed_recorded_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:120x16", "run", &["--epochs", "1"]));
    let grid =
        ["eval", "run", "-k", "1,10", "--layer", "embedding,pooled,stage1", "--bank", "both", "-j", "1"];
    let json = succeeds(folder, grid.iter().chain(&["--per-class", "--json", "--confusion", "c.svg"]));
    let rows: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    let order: Vec<_> =
        rows.iter().map(|row| (of(row, "layer"), of(row, "bank"), row["k"].as_u64().unwrap())).collect();
    let expected = [
        ("embedding", "live"),
        ("embedding", "recomputed"),
        ("pooled", "recomputed"),
        ("stage1", "recomputed"),
    ];
    let expected: Vec<_> =
        expected.iter().flat_map(|(l, b)| [1, 10].map(|k| ((*l).to_owned(), (*b).to_owned(), k))).collect();
    assert_eq!(order, expected);
    for row in &rows {
        // The generated classes have equally many test images.
        let per_class: Vec<f64> =
            row["per_class"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let mean = per_class.iter().sum::<f64>() / per_class.len() as f64;
        assert!((mean - row["top1"].as_f64().unwrap()).abs() < 0.05, "{row}");
    }
    let svg = std::fs::read_to_string(folder.join("c.svg")).unwrap();
    assert!(svg.contains("live bank, k = 1") || svg.contains("recomputed bank, k = 1"), "{svg:.500}");
    assert!(svg.contains("triangles"));
    let recorded = std::fs::read_to_string(folder.join("run/evaluations.jsonl")).unwrap();
    assert_eq!(recorded.lines().count(), 8);
    let last: serde_json::Value = serde_json::from_str(recorded.lines().last().unwrap()).unwrap();
    assert_eq!((&last["knn"], last["epoch"].as_u64()), (&rows[7], Some(1)));

    // One pass for all layers gives what a pass for one gives.
    let alone = succeeds(folder, ["eval", "run", "-k", "10", "--layer", "pooled", "--json", "-j", "1"]);
    let alone: serde_json::Value = serde_json::from_str(&alone).unwrap();
    assert_eq!(alone["top1"], rows[5]["top1"]);
    let said = fails(folder, 2, ["eval", "run", "--layer", "pooled", "--bank", "live"]);
    assert!(said.contains("live bank holds embeddings"), "{said}");
    assert!(fails(folder, 2, ["eval", "run", "--layer", "stage5"]).contains("stage1 to stage4"));
}

#[test]
fn one_labelled_image_has_no_neighbours_but_no_crash_either() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:40x16", "run", &["--epochs", "1"]));
    write_images(&folder.join("photos"), 1);
    std::fs::write(folder.join("list.csv"), "photos/000.png,only\n").unwrap();
    let said = succeeds(folder, ["eval", "run", "list.csv", "--confusion", "c.svg", "-j", "1"]);
    assert!(said.contains("leave-one-out") && said.contains("0.00"), "{said}");
}
