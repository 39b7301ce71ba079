//! Pages that stand alone: HTML with its style inside, which asks no network for anything.
//!
//! [`Page`] is the shell that every page shares: light and dark by the reader's system, narrow screens, keyboard,
//! print. Its body is written with [`maud`], which escapes what it is given. Pictures are [`thumbnail`]s inside
//! the page or files beside it. Class names that the style sheet knows stand in `style.css`, with what they are for.

mod picture;

pub use picture::{data_uri, thumbnail, thumbnail_jpeg};

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// What all pages look like.
const STYLE: &str = include_str!("style.css");

/// Whence a page may load what: from itself and from files beside it, never from elsewhere.
const POLICY: &str = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; \
     script-src 'unsafe-inline'; connect-src 'self'; form-action 'self'; base-uri 'none'";

/// A whole page.
pub struct Page<'a> {
    /// What it is, in the tab and as its heading.
    pub title: &'a str,
    /// One or two sentences under the heading.
    pub lead: Markup,
    /// Everything else; sections with an `h2` each.
    pub body: Markup,
    /// JavaScript of this page, run when the body is there; without it the page must still be readable.
    pub script: Option<&'static str>,
}

impl Page<'_> {
    /// The document.
    pub fn render(&self) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    meta name="generator" content=(concat!("lemniscate ", env!("CARGO_PKG_VERSION")));
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#main" { "Skip to the content" }
                    header { h1 { (self.title) } div.lead { (self.lead) } }
                    main id="main" { (self.body) }
                    @if let Some(script) = self.script {
                        script { (PreEscaped(script)) }
                    }
                }
            }
        }
        .into_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_stands_alone_and_escapes_what_it_is_given() {
        let title = "<b>runs & \"more\"</b>";
        let page = Page { title, lead: html! { (title) }, body: html! { p { (title) } }, script: None };
        let text = page.render();
        assert!(text.starts_with("<!DOCTYPE html>"));
        assert!(!text.contains("<b>"), "{text:.300}");
        assert_eq!(text.matches("&lt;b&gt;runs &amp; ").count(), 4);
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("@import"));
        assert!(!text.contains("<script"));
        let script = Some("document.title = 'a < b';");
        assert!(Page { script, ..page }.render().contains("a < b"));
    }
}
