//! Pages about runs: [`run_page`] of one, [`comparison_page`] of several.

mod comparison;
mod retrievals;
mod run;

pub use comparison::comparison_page;
pub use retrievals::Pictures;
pub use run::run_page;

use maud::{Markup, PreEscaped, html};

use super::plot::{Panel, colour, panel_svg};

/// Panels side by side where there is room, each with a legend of its named curves.
fn panels(panels: &[Panel]) -> Markup {
    html! {
        div.panels {
            @for panel in panels {
                figure {
                    figcaption {
                        strong { (panel.title) }
                        @for curve in panel.curves.iter().filter(|curve| !curve.name.is_empty()) {
                            " " span style="white-space: nowrap" {
                                span aria-hidden="true" style=(format!("color: {}", colour(curve.colour))) { "● " }
                                (curve.name)
                            }
                        }
                    }
                    (PreEscaped(panel_svg(panel)))
                }
            }
        }
    }
}

/// A table of names and values.
fn pairs<K: AsRef<str>, V: AsRef<str>>(rows: impl IntoIterator<Item = (K, V)>) -> Markup {
    html! {
        div.scroll {
            table {
                tbody {
                    @for (name, value) in rows {
                        tr { th scope="row" { (name.as_ref()) } td { (value.as_ref()) } }
                    }
                }
            }
        }
    }
}
