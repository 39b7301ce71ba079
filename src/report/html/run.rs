//! One run on one page.

use std::time::SystemTime;

use maud::{Markup, html};
use serde_json::Value;

use super::retrievals::{self, Pictures};
use super::{pairs, panels};
use crate::checkpoint::run_folder::Utc;
use crate::page::Page;
use crate::report::comparison::{flattened, results};
use crate::report::history::{History, PARTS};
use crate::report::metrics::NoteRecord;
use crate::report::panels::of_run;

/// A page with everything that the folder of `run` tells, as of `now`.
pub fn run_page(run: &History, pictures: &Pictures, now: SystemTime) -> String {
    let (findings, remarks): (Vec<_>, Vec<_>) = run.notes.iter().partition(|note| note.about.is_some());
    let classes: Vec<String> = serde_json::from_value(run.manifest["classes"].clone()).unwrap_or_default();
    let body = html! {
        h2 { "Results" }
        (pairs(results(std::slice::from_ref(run)).rows.iter().map(|(name, cells)| (name, &cells[0]))))
        h2 { "Warnings" }
        @if findings.is_empty() { p.soft { "None." } }
        @for finding in &findings { (a_finding(finding)) }
        h2 { "Curves" }
        @if run.steps.is_empty() { p.soft { "No step has been made yet." } } @else { (panels(&of_run(run))) }
        (where_time_goes(run))
        (retrievals::section(&run.retrievals, pictures, &classes))
        (tests(&run.tests))
        h2 { "Configuration" }
        (pairs(flattened(&run.settings)))
        h2 { "Data" }
        (pairs(data(&run.manifest)))
        h2 { "Machine" }
        @if run.machines.is_empty() { p.soft { "Not recorded: the run is older than this record." } }
        @for machine in &run.machines {
            p {
                @if machine.from_step > 0 { "From step " (machine.from_step) " on: " }
                (machine.describe())
                @if !machine.instructions.is_empty() { "; " (machine.instructions.join(", ")) }
            }
        }
        @if !remarks.is_empty() {
            h2 { "Remarks" }
            (pairs(remarks.iter().map(|note| (format!("step {}", note.step), &note.text))))
        }
    };
    Page { title: &run.name, lead: lead(run, now), body, script: None }.render()
}

fn lead(run: &History, now: SystemTime) -> Markup {
    let done = run.steps.last().map_or(0.0, |step| step.epochs);
    let all = run.epochs().map(|epochs| format!(" of {epochs}")).unwrap_or_default();
    let ended = run.epochs().is_some_and(|epochs| done >= epochs as f64);
    html! {
        p {
            @if ended { "All " (run.epochs().unwrap_or(0)) " epochs are trained." }
            @else { "Trained " (format!("{done:.1}")) (all) " epochs so far." }
            @if let Some(written) = run.written {
                " Last written " (Utc::of(written).minute())
                @if !ended { ", " (ago(now, written)) " before this page" }
                "."
            }
        }
        p.soft { (run.path.display()) ", as of " (Utc::of(now).minute()) }
    }
}

/// How long before, in the unit that suits.
fn ago(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    let count = |n: u64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match seconds {
        0..120 => count(seconds, "second"),
        120..7200 => count(seconds / 60, "minute"),
        7200..172_800 => count(seconds / 3600, "hour"),
        _ => count(seconds / 86_400, "day"),
    }
}

fn a_finding(finding: &NoteRecord) -> Markup {
    let place = format!("epoch {}, step {}", finding.epoch + 1, finding.step);
    let is_warning = finding.weight.as_deref() == Some("warning");
    html! {
        p class=[is_warning.then_some("warning")] {
            strong { (if is_warning { "Warning" } else { "Advice" }) } ": " (finding.text) " " span.soft { "(" (place) ")" }
        }
    }
}

fn where_time_goes(run: &History) -> Markup {
    let shares = run.shares();
    html! {
        @if shares.iter().any(|share| *share > 0.0) {
            h2 { "Where the time of the steps went" }
            div.scroll { table {
                tbody { @for ((_, name), share) in PARTS.iter().zip(shares) {
                    tr {
                        th scope="row" { (name) }
                        td.number { (format!("{:.1} %", 100.0 * share)) }
                        td { div aria-hidden="true" style=(format!("height: 0.8em; margin-top: 0.3em; width: {:.0}px; background: var(--accent)", 240.0 * share)) {} }
                    }
                } }
            } }
        }
    }
}

/// `evaluations.jsonl`: what was tested, how, and what came of it.
fn tests(tests: &[Value]) -> Markup {
    html! {
        @if !tests.is_empty() {
            h2 { "Tests" }
            div.scroll { table {
                thead { tr { th scope="col" { "checkpoint" } th.number scope="col" { "after epoch" } th scope="col" { "test" } th scope="col" { "how" } th scope="col" { "result" } } }
                tbody { @for test in tests { @for (name, fields) in parts(test) {
                    tr {
                        td { (text(&test["checkpoint"])) }
                        td.number { (text(&test["epoch"])) }
                        td { (name) }
                        td { (fields.0) }
                        td { (fields.1) }
                    }
                } } }
            } }
        }
    }
}

/// The tests that a line reports: each object in it, as settings and as what came of them, shares in per cent.
fn parts(test: &Value) -> Vec<(&str, (String, String))> {
    let Some(object) = test.as_object() else { return Vec::new() };
    let inner = object.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_object()?)));
    inner
        .map(|(name, fields)| {
            let (mut how, mut came) = (Vec::new(), Vec::new());
            for (key, value) in fields.iter().filter(|(_, value)| !value.is_array()) {
                match (key.as_str(), value) {
                    ("precision", Value::Object(at)) => came.extend(precisions(at)),
                    (_, Value::Object(_)) => {}
                    ("groups" | "pairs", count) => came.push(format!("{key} {count}")),
                    (key, value) => match value.as_f64() {
                        Some(share) if key.starts_with("top") || key == "purity" => {
                            came.push(format!("{key} {:.2} %", 100.0 * share));
                        }
                        Some(measure) if matches!(key, "nmi" | "mean_distance") => {
                            came.push(format!("{key} {measure:.4}"));
                        }
                        // Many a setting was f32 once: 0.95, not 0.949999988079071.
                        Some(setting) if value.is_f64() => how.push(format!("{key} {}", setting as f32)),
                        _ => how.push(format!("{key} {}", text(value))),
                    },
                }
            }
            (name, (how.join(", "), came.join(", ")))
        })
        .collect()
}

/// Precision by the number of neighbours, least first.
fn precisions(at: &serde_json::Map<String, Value>) -> Vec<String> {
    let mut at: Vec<(usize, f64)> =
        at.iter().filter_map(|(k, share)| Some((k.parse().ok()?, share.as_f64()?))).collect();
    at.sort_by_key(|(k, _)| *k);
    at.iter().map(|(k, share)| format!("P@{k} {:.2} %", 100.0 * share)).collect()
}

/// What the manifest says of the images, without long lists.
fn data(manifest: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    for key in ["root", "format", "fingerprint"] {
        rows.push((key.to_owned(), text(&manifest[key])));
    }
    for split in ["train", "test"] {
        if let Some(images) = manifest[split]["images"].as_u64() {
            let quarantined = manifest[split]["quarantined"].as_array().map_or(0, Vec::len);
            let set_aside =
                if quarantined > 0 { format!(", {quarantined} of them quarantined") } else { String::new() };
            rows.push((format!("{split} images"), format!("{images}{set_aside}")));
        }
    }
    if let Some(classes) = manifest["classes"].as_array().filter(|classes| !classes.is_empty()) {
        let shown: Vec<String> = classes.iter().take(20).map(text).collect();
        let more = if classes.len() > 20 { ", ..." } else { "" };
        rows.push(("classes".into(), format!("{}: {}{more}", classes.len(), shown.join(", "))));
    }
    rows.retain(|(_, value)| !value.is_empty());
    rows
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests_of_pages {
    use super::*;
    use crate::atomic::scratch;
    use crate::report::history::tests::run;
    use crate::report::html::comparison_page;
    use std::time::Duration;

    #[test]
    fn a_page_tells_what_the_folder_tells_and_escapes_it() {
        let (_dir, folder) = scratch();
        let path = run(&folder, "epochs = 3\ndata = \"<img src=x>\"\n");
        let line = r#"{"checkpoint":"last.ckpt","epoch":2,"knn":{"k":200,"bank":"live","top1":0.281,"per_class":[1]}}"#;
        std::fs::write(path.join("evaluations.jsonl"), format!("{line}\n")).unwrap();
        let history = History::read(&path).unwrap();
        let now = history.written.unwrap() + Duration::from_secs(65);
        let html = run_page(&history, &Pictures::None("gone".into()), now);
        for part in [
            "<title>runs &lt;a&gt; &amp; b</title>",
            "Trained 2.2 of 3 epochs so far",
            "65 seconds before this page",
            "<strong>Warning</strong>: waits &lt;often&gt;",
            "&lt;img src=x&gt;",
            "k 200",
            "top1 28.10 %",
            "Some CPU, 2 cores",
            "waiting for images",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(
            !html.contains("<img")
                && !html.contains("often>")
                && !html.contains("http://www.w3.org/1999/xlink")
        );
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        let both = comparison_page(&[history.clone(), history]);
        assert!(both.contains("2 runs compared") && both.contains("these runs have the same settings"));
    }

    #[test]
    fn every_test_has_its_result_apart_from_its_settings() {
        let of = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let [(_, fields)] = &parts(&line)[..] else { panic!("{line}") };
            fields.clone()
        };
        let (how, came) = of(r#"{"retrieval":{"encoder":"a","precision":{"1":0.5,"10":0.1,"5":0.25}}}"#);
        assert_eq!([&how, &came], ["encoder a", "P@1 50.00 %, P@5 25.00 %, P@10 10.00 %"]);
        let (how, came) = of(r#"{"clusters":{"clusters":10,"nmi":0.25,"purity":0.1625,"seed":0}}"#);
        assert_eq!([&how, &came], ["clusters 10, seed 0", "nmi 0.2500, purity 16.25 %"]);
        let (how, came) = of(r#"{"clusters":{"duplicates_from":0.949999988079071,"groups":1,"pairs":7}}"#);
        assert_eq!([&how, &came], ["duplicates_from 0.95", "groups 1, pairs 7"]);
        let (how, came) = of(r#"{"linear":{"chosen":1e-5,"top1":0.5,"candidates":[1]}}"#);
        assert_eq!([&how, &came], ["chosen 0.00001", "top1 50.00 %"]);
    }

    #[test]
    fn times_suit_their_size() {
        let then = SystemTime::UNIX_EPOCH;
        let text = |seconds| ago(then + Duration::from_secs(seconds), then);
        assert_eq!(
            [1, 119, 600, 86_400, 864_000].map(text),
            ["1 second", "119 seconds", "10 minutes", "24 hours", "10 days"]
        );
        assert_eq!(ago(then, then + Duration::from_secs(9)), "0 seconds");
    }
}
