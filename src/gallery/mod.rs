//! Pictures of what features are worth: pages of queries with their nearest training images, and of clusters.
//!
//! [`choose`] says which queries are shown, [`retrievals`] what was found for them, [`thumbnails`] puts the images into
//! a page or beside it; [`neighbors_page`] and [`clusters_page`] are the pages.

pub mod choose;
mod clusters_page;
mod neighbors_page;
pub mod retrievals;
pub mod thumbnails;

pub use clusters_page::{ClusterRow, ClusterRows, DuplicateRows, clusters_page};
pub use neighbors_page::{neighbors_page, tiles};

use maud::{Markup, html};

/// What makes pages of tiles usable by keyboard; see `gallery.js`.
const SCRIPT: &str = include_str!("gallery.js");

/// One picture with what stands under it.
struct Tile<'a> {
    /// Where the picture is.
    src: &'a str,
    /// What it is, in words; what stands under it is read out as well.
    alt: String,
    /// `Some(true)` where its class agrees with what it was found for, `None` where that cannot be said.
    same: Option<bool>,
    /// A number, or what else comes first.
    note: String,
    /// Its class.
    class: Option<&'a str>,
}

impl Tile<'_> {
    /// An item of a `.tiles` list. A page has tens of thousands of them, hence so few elements.
    fn item(&self) -> Markup {
        let (class, sign) = match self.same {
            Some(true) => ("tile same", "✓ "),
            Some(false) => ("tile other", "✗ "),
            None => ("tile", ""),
        };
        html! {
            li class=(class) {
                img loading="lazy" src=(self.src) alt=(self.alt);
                (sign) (self.note)
                @if let Some(class) = self.class { br; (class) }
            }
        }
    }
}

/// Where the script says which picture has the focus or is pointed at.
fn status_line() -> Markup {
    html! { p.status id="status" role="status" hidden {} }
}

/// `n` with its thousands apart.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let text: Vec<String> = [0, 999, 1000, 1_281_167].into_iter().map(thousands).collect();
        assert_eq!(text, ["0", "999", "1,000", "1,281,167"]);
    }

    #[test]
    fn a_tile_says_in_words_what_its_frame_says() {
        let tile = Tile {
            src: "a.jpg",
            alt: "<x>".into(),
            same: Some(false),
            note: "0.5".into(),
            class: Some("b&b"),
        };
        let text = tile.item().into_string();
        assert!(
            text.contains("tile other") && text.contains("✗ 0.5") && text.contains("&lt;x&gt;"),
            "{text}"
        );
        assert!(text.contains("b&amp;b"), "{text}");
    }
}
