//! `lemniscate neighbors`: a page, precisions and a record, against naive counts of the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use common::{fails, succeeds, tiny, write_images};
use serde_json::Value;

const THEIRS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/torch/moco.pth");

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What stands between `before` and the next `after`, each time it does.
fn all_between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).map(|rest| rest.split(after).next().unwrap()).collect()
}

#[test]
fn a_page_shows_several_encoders_and_records_their_precision() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:120x16", "run", &["--epochs", "1"]));
    let against = format!("raw-pixels,{THEIRS}@pooled,run");
    let command = ["neighbors", "run", "--queries", "8", "--against", &against, "-j", "1"];
    let said = succeeds(folder, command);
    assert!(said.contains("P@20") && said.contains("raw pixels") && said.contains("moco.pth"), "{said}");
    let page = std::fs::read_to_string(folder.join("run/neighbors.html")).unwrap();
    // It stands alone.
    assert!(!page.contains("http://") && !page.contains("https://"));
    assert!(!page.contains("<img loading=\"lazy\" src=\"./") && !folder.join("run/neighbors_files").exists());
    let queries = page.matches("<article class=\"retrieval\"").count();
    assert_eq!(queries, 8);
    assert_eq!(
        page.matches("<li class=\"tile same\">").count() + page.matches("<li class=\"tile other\">").count(),
        8 * 4 * 20
    );
    assert_eq!(page.matches("class=\"tile query\"").count(), 8);
    let (same, other) = (page.matches(", same class").count(), page.matches(", another class").count());
    assert_eq!((same + other, page.matches("✓ ").count()), (8 * 4 * 20, same));
    // The same checkpoint finds the same images, as often as it is asked.
    let rows = all_between(&page, "<article class=\"retrieval\"", "</article>");
    for row in &rows {
        let encoders = all_between(row, "<section>", "</section>");
        let images = |section: &str| section.split_once("</h4>").unwrap().1.to_owned();
        assert_eq!(images(encoders[0]), images(encoders[3]));
        let first = encoders[0].contains(r#"<ol class="tiles"><li class="tile same">"#);
        assert_eq!(
            first,
            row.contains("data-outcome=\"success\""),
            "a success is one whose nearest image agrees"
        );
    }
    assert_eq!(page.matches("data-outcome=\"success\"").count(), 4);

    let recorded = lines(&std::fs::read_to_string(folder.join("run/evaluations.jsonl")).unwrap());
    assert_eq!(recorded.len(), 4);
    let last = &recorded[3];
    assert_eq!(
        (&last["retrieval"]["precision"], &last["epoch"]),
        (&recorded[0]["retrieval"]["precision"], &Value::from(1))
    );
    // Precision at 1 is the accuracy of the nearest neighbour, which eval has its own way to count.
    let json = lines(&succeeds(folder, ["eval", "run", "-k", "1", "--json", "-j", "1"]));
    let first = &recorded[0]["retrieval"];
    assert_eq!(first["precision"]["1"], json[0]["top1"]);
    assert_eq!(first["queries"], recorded[0]["test_images"]);
    let live = lines(&succeeds(folder, ["neighbors", "run", "--bank", "live", "--json", "-j", "1"]));
    let json = lines(&succeeds(folder, ["eval", "run", "-k", "1", "--bank", "live", "--json", "-j", "1"]));
    assert_eq!(live[0]["precision"]["1"], json[0]["top1"]);
}

#[test]
fn files_are_asked_with_and_large_pages_keep_their_images_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:40x16", "run", &["--epochs", "1"]));
    write_images(&folder.join("photos"), 3);
    let files = ["photos/000.png", "photos/002.png"];
    let ask = [
        "neighbors",
        "run",
        "--thumbnails",
        "beside",
        "-k",
        "5",
        "--out",
        "a page.html",
        "-j",
        "1",
        "--queries",
    ];
    let said = succeeds(folder, ask.iter().chain(&files));
    assert!(said.contains("no labels") && said.contains("2 queries, 12 tiles"), "{said}");
    let page = std::fs::read_to_string(folder.join("a page.html")).unwrap();
    assert!(page.contains("photos/002.png") && !page.contains("tile same") && !page.contains("data-outcome"));
    for src in all_between(&page, " src=\"", "\"") {
        let file = folder.join(src.strip_prefix("./").unwrap().replace("%20", " "));
        assert!(image::open(&file).is_ok(), "{}", file.display());
    }
    assert!(!folder.join("run/evaluations.jsonl").exists(), "nothing was measured");

    // A folder of photos alone: nothing is labelled, each image is asked with and does not find itself.
    let alone = ["neighbors", "run", "photos", "--queries", "2", "--out", "alone.html", "-j", "1"];
    let said = succeeds(folder, alone);
    assert!(said.contains("2 queries, 6 tiles"), "{said}");
    let page = std::fs::read_to_string(folder.join("alone.html")).unwrap();
    for row in all_between(&page, "<article class=\"retrieval\"", "</article>") {
        let query = all_between(row, "alt=\"query, ", "\"")[0];
        assert_eq!(
            row.matches(query).count(),
            2,
            "the query's name is its heading and its text, and no neighbour's"
        );
    }

    std::fs::write(folder.join("photos/x.png"), "no image").unwrap();
    let said = fails(folder, 1, ask.iter().chain(&["photos/x.png"]));
    assert!(said.contains("photos/x.png"), "{said}");
    assert!(
        fails(folder, 2, ["neighbors", "run", "--queries", "3", "photos"])
            .contains("one number or image files")
    );
    assert!(
        fails(folder, 2, ["neighbors", "run", "--bank", "live", "--layer", "pooled"]).contains("recomputed")
    );
    let said = fails(folder, 1, ["neighbors", "run", "photos", "--bank", "live"]);
    assert!(said.contains("not the images"), "{said}");
    assert!(fails(folder, 1, ["neighbors", "run", "--against", "none.pth"]).contains("none.pth"));
}
