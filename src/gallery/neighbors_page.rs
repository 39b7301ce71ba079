//! The page of queries and their nearest training images.

use maud::{Markup, html};

use super::choose::Shown;
use super::retrievals::{Results, Retrievals};
use super::thumbnails::{Split, Thumbnails};
use super::{SCRIPT, Tile, status_line, thousands};
use crate::page::Page;

/// How many neighbours of the shown queries a page has, and of which images: what [`Thumbnails::make`] wants to know.
pub fn tiles(retrievals: &Retrievals<'_>, shown: &Shown) -> Vec<(Split, u32)> {
    let mut tiles = Vec::new();
    for query in shown.all() {
        tiles.push((Split::Query, retrievals.indices[query]));
        for results in &retrievals.results {
            tiles.extend(results.neighbors.of(query).0.iter().map(|&image| (Split::Train, image)));
        }
    }
    tiles
}

/// A page: a table of precisions where there are labels, and a row for each query shown, by description. `lead` says
/// what was asked of what; `k` neighbours were asked for.
pub fn neighbors_page(
    retrievals: &Retrievals<'_>,
    shown: &Shown,
    thumbnails: &Thumbnails,
    k: usize,
    lead: &str,
) -> String {
    let view = View { retrievals, thumbnails };
    let body = html! {
        section { (view.precision_table(k)) }
        (view.filter(shown))
        div id="rows" {
            @match shown {
                Shown::All(all) => (view.section("Queries", "", None, all, 0)),
                Shown::Apart { successes, failures } => {
                    (view.section("Successes", "the nearest image is of the query’s class", Some("success"), successes, 0))
                    (view.section("Failures", "the nearest image is of another class", Some("failure"), failures, successes.len()))
                },
            }
        }
        (status_line())
    };
    let lead = html! {
        p { (lead) }
        p.hint hidden {
            "Keys: up and down go from query to query, left and right along a row’s pictures, Home and End to the first \
             and last query; the line at the foot names the picture."
        }
    };
    Page { title: "Nearest training images", lead, body, script: Some(SCRIPT) }.render()
}

struct View<'a> {
    retrievals: &'a Retrievals<'a>,
    thumbnails: &'a Thumbnails,
}

impl View<'_> {
    fn precision_table(&self, k: usize) -> Markup {
        let (ks, precisions) = self.retrievals.precisions(k);
        html! {
            h2 { "What was compared" }
            div.scroll {
                table {
                    @if !ks.is_empty() {
                        caption {
                            "Precision at k: of the k nearest training images the share of the query’s class, in per cent, "
                            "averaged over " (thousands(self.retrievals.indices.len())) " queries"
                        }
                    }
                    thead { tr {
                        th scope="col" { "images as" }
                        @for at in &ks { th.number scope="col" { "at " (at) } }
                        th scope="col" { "settings" }
                    } }
                    tbody {
                        @for (i, results) in self.retrievals.results.iter().enumerate() {
                            tr {
                                th scope="row" { (results.name) }
                                @for value in precisions.get(i).into_iter().flatten() {
                                    td.number { (format!("{:.2}", 100.0 * value)) }
                                }
                                td { (results.about) }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Hidden until the script, without which it does nothing, shows it.
    fn filter(&self, shown: &Shown) -> Markup {
        let Some(labels) = self.retrievals.labels else { return html! {} };
        let mut classes: Vec<u32> = shown.all().map(|query| labels[query]).collect();
        classes.sort_unstable();
        classes.dedup();
        html! {
            form.filter id="filter" hidden {
                fieldset {
                    legend { "Queries" }
                    @for (value, text) in [("", "all"), ("success", "successes"), ("failure", "failures")] {
                        label { input type="radio" name="outcome" value=(value) checked[value.is_empty()]; " " (text) }
                    }
                }
                label { "Class "
                    select name="class" {
                        option value="" { "all" }
                        @for class in classes { option value=(class) { (self.class(class)) } }
                    }
                }
                output name="count" {}
            }
        }
    }

    fn class(&self, label: u32) -> &str {
        self.retrievals.train.class_name(label).unwrap_or("?")
    }

    fn section(
        &self,
        title: &str,
        about: &str,
        outcome: Option<&str>,
        queries: &[usize],
        before: usize,
    ) -> Markup {
        let all = match outcome {
            None => None,
            Some(outcome) => {
                let wanted = Some(outcome == "success");
                let count = |&query: &usize| self.retrievals.success(query) == wanted;
                Some((0..self.retrievals.indices.len()).filter(count).count())
            }
        };
        html! {
            section.outcome {
                h2 { (title) }
                @match all {
                    Some(all) => p.soft { (thousands(queries.len())) " of " (thousands(all)) ": " (about) "." },
                    None => p.soft { (thousands(queries.len())) " queries." },
                }
                @for (i, &query) in queries.iter().enumerate() { (self.row(query, before + i + 1, outcome)) }
            }
        }
    }

    fn row(&self, query: usize, number: usize, outcome: Option<&str>) -> Markup {
        let retrievals = self.retrievals;
        let index = retrievals.indices[query];
        let name = retrievals.asked.name(index as usize);
        let label = retrievals.labels.map(|labels| labels[query]);
        let class = label.map(|label| self.class(label));
        let id = format!("q{number}");
        html! {
            article.retrieval tabindex=(if number == 1 { "0" } else { "-1" }) aria-labelledby=(id)
                data-outcome=[outcome] data-class=[label] {
                h3 id=(id) {
                    (number) ". " (class.unwrap_or(&name))
                    @if let Some(outcome) = outcome { " " span.outcome { (outcome) } }
                }
                figure.tile.query {
                    img loading="lazy" src=(self.thumbnails.src(Split::Query, index)) alt=(words(["query", &name]));
                    figcaption { "query" @if let Some(class) = class { br; (class) } }
                }
                div.describers {
                    @for results in &retrievals.results { (self.results(query, results)) }
                }
            }
        }
    }

    fn results(&self, query: usize, results: &Results) -> Markup {
        let retrievals = self.retrievals;
        let (images, similarities) = results.neighbors.of(query);
        let same = images.iter().filter(|&&image| retrievals.same(query, image) == Some(true)).count();
        html! {
            section {
                h4 {
                    (results.name)
                    @if retrievals.labels.is_some() { ": " (same) " of " (images.len()) " of its class" }
                }
                ol.tiles {
                    @for (rank, (&image, similarity)) in images.iter().zip(similarities).enumerate() {
                        (self.neighbor(rank, query, image, *similarity))
                    }
                }
            }
        }
    }

    fn neighbor(&self, rank: usize, query: usize, image: u32, similarity: f32) -> Markup {
        let train = self.retrievals.train;
        let same = self.retrievals.same(query, image);
        let class = train.label(image as usize).map(|label| self.class(label));
        let agrees = match same {
            Some(true) => "same class",
            Some(false) => "another class",
            None => "",
        };
        let name = train.name(image as usize);
        let alt = words([&(rank + 1).to_string(), &name, agrees]);
        let src = self.thumbnails.src(Split::Train, image);
        Tile { src, alt, same, note: format!("{similarity:.3}"), class }.item()
    }
}

/// What there is of `parts`, with commas.
fn words<const N: usize>(parts: [&str; N]) -> String {
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}
