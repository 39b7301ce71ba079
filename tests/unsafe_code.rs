//! docs/RELIABILITY.md lists every piece of unsafe code, with the reason why it is sound.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Blocks and functions marked `unsafe` in each file under src/, tests within the files included.
fn in_the_source(root: &Path) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let count = code
                    .flat_map(|line| {
                        ["unsafe {", "unsafe fn", "unsafe impl"].map(|word| line.matches(word).count())
                    })
                    .sum();
                if count > 0 {
                    found.insert(path.strip_prefix(root).unwrap().display().to_string(), count);
                }
            }
        }
    }
    found
}

/// Rows of the table: `| `src/FILE` | COUNT | ...`.
fn in_the_table(root: &Path) -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root.join("docs/RELIABILITY.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `src/"));
    rows.filter_map(|row| {
        let (file, rest) = row.split_once("` | ")?;
        Some((format!("src/{file}"), rest.split_once(" |")?.0.parse().ok()?))
    })
    .collect()
}

#[test]
fn every_piece_of_unsafe_code_is_listed_and_none_that_is_gone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, table) = (in_the_source(root), in_the_table(root));
    assert!(!source.is_empty());
    assert_eq!(source, table, "left: in the source; right: in docs/RELIABILITY.md");
}
