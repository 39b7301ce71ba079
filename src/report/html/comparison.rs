//! Several runs on one page.

use maud::{Markup, html};

use super::panels;
use crate::page::Page;
use crate::report::comparison::{Table, differing_settings, results, same_data};
use crate::report::history::History;
use crate::report::panels::of_runs;
use crate::report::plot::colour;

/// A page with the curves of `runs` over each other, the settings that differ, and the numbers.
pub fn comparison_page(runs: &[History]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = format!("{} runs compared", runs.len());
    let lead = html! {
        @for (i, run) in runs.iter().enumerate() {
            div {
                span aria-hidden="true" style=(format!("color: {}", colour(i))) { "● " }
                strong { (run.name) } " " span.soft { (run.path.display()) }
            }
        }
        @if same_data(runs) == Some(false) {
            p.warning { "These runs were not on the same images: their accuracies answer different questions." }
        }
    };
    let body = html! {
        h2 { "Results" }
        (table(&results(runs), &names))
        h2 { "Settings that differ" }
        @let differing = differing_settings(runs);
        @if differing.rows.is_empty() { p.soft { "None: these runs have the same settings." } }
        @else { (table(&differing, &names)) }
        h2 { "Curves" }
        (panels(&of_runs(runs)))
    };
    Page { title: &title, lead, body, script: None }.render()
}

fn table(table: &Table, names: &[&str]) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { td {} @for (i, name) in names.iter().enumerate() {
                    th scope="col" {
                        span aria-hidden="true" style=(format!("color: {}", colour(i))) { "● " } (name)
                    }
                } } }
                tbody {
                    @for (name, cells) in &table.rows {
                        tr { th scope="row" { (name) } @for cell in cells { td { (cell) } } }
                    }
                }
            }
        }
    }
}
