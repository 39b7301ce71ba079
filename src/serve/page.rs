//! The page itself. What a script fills in has a place here; the facts are readable without one.

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::response::Html;
use maud::{Markup, PreEscaped, html};

use super::api::MAX_K;
use super::error::Answer;
use super::state::{Set, State};
use crate::page::Page;

const SCRIPT: &str = concat!(include_str!("app.js"), include_str!("map.js"), include_str!("curves.js"));
const STYLE: &str = include_str!("app.css");

/// `GET /`.
pub async fn index(Shared(state): Shared<Arc<State>>) -> Answer<Html<String>> {
    let facts = &state.facts;
    let (searched, dim) = state.searched();
    let classes = state.images(Set::Train)?.n_classes();
    let lead = html! {
        (searched) " images" @if classes > 0 { " in " (classes) " classes" } ", " (dim) " numbers each, by the "
        (facts.bank) " bank of " code { (facts.checkpoint) } ": " (facts.encoder) ", "
        (facts.epoch) " epochs finished. " a href="/api" { "JSON API" }
    };
    let body = html! {
        style { (PreEscaped(STYLE)) }
        noscript { p.warning { "Searching and the map need JavaScript; the curves and the API do not." } }
        (search(state.n_test() > 0))
        (map())
        @if facts.run.is_some() { (curves()) }
    };
    Ok(Html(Page { title: &facts.name, lead, body, script: Some(SCRIPT) }.render()))
}

fn search(has_test: bool) -> Markup {
    html! {
        section aria-labelledby="search-title" {
            h2 id="search-title" { "Search" }
            form.controls id="controls" {
                label.drop id="drop" {
                    span { "Choose an image, or drop one anywhere" }
                    input id="file" type="file" accept="image/*,.tif,.tiff";
                }
                button type="button" data-random="train" { "Random image" }
                @if has_test { button type="button" data-random="test" { "Random test image" } }
                label { "Neighbours " select id="k" {
                    @for k in [10, 20, 50, 100, MAX_K] { option value=(k) selected[k == 20] { (k) } }
                } }
            }
            p id="status" role="status" aria-live="polite" { }
            p.warning id="error" role="alert" hidden { }
            div.found id="found" hidden {
                figure id="query" { img alt=""; figcaption { } }
                ol.tiles id="results" aria-label="Nearest images, most similar first" { }
            }
        }
    }
}

fn map() -> Markup {
    html! {
        section aria-labelledby="map-title" {
            h2 id="map-title" { "Map" }
            p.soft id="map-about" {
                "Each point is an image. Drag to move, wheel to zoom, click to search. With the keyboard: arrow keys go "
                "from point to point, + and - zoom, 0 shows everything, Enter searches."
            }
            div.map {
                canvas id="map" tabindex="0" role="application" aria-label="Map of the bank"
                    aria-describedby="map-about" { "A map of the images, for which a script is needed." }
                div.tip id="tip" hidden { img alt=""; span { } }
            }
            p.hidden id="map-status" role="status" aria-live="polite" { }
            div.controls {
                button type="button" data-zoom="1.5" aria-label="Zoom in" { "+" }
                button type="button" data-zoom="0.6667" aria-label="Zoom out" { "−" }
                button type="button" data-zoom="0" { "Show all" }
                span.soft id="map-note" { }
            }
            ul.legend id="legend" aria-label="Classes; choose one to see it alone" { }
        }
    }
}

fn curves() -> Markup {
    html! {
        section aria-labelledby="curves-title" {
            h2 id="curves-title" { "Training" }
            p.soft id="curves-note" { }
            figure { img id="curves" src="/api/curves.svg" alt="Loss and accuracy over the optimiser steps"; }
            div.scroll { table id="evaluations" hidden {
                caption { "Newest evaluations" }
                thead { tr { th { "Measure" } th { "Bank" } th { "Layer" } th.number { "k" } th.number { "Epoch" } th.number { "Value" } } }
                tbody { }
            } }
        }
    }
}
