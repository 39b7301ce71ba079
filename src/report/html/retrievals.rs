//! What was found for the followed queries as training went on.

use std::collections::{BTreeMap, HashMap};

use maud::{Markup, html};

use crate::data::dataset::Splits;
use crate::eval::retrieval::{Retrieval, Shown};
use crate::page::thumbnail;
use crate::report::retrievals::Snapshot;

/// Snapshots shown: the first, the last, and some between.
const SHOWN: usize = 5;

/// Side of a thumbnail, in pixels: tiles are this large.
const SIDE: u32 = 64;

/// Where the pictures come from.
pub enum Pictures {
    /// The images of the run.
    Of(Splits),
    /// None, and why: names have to do.
    None(String),
}

/// Draws each image once, and counts those that are not what they were.
struct Album<'a> {
    pictures: &'a Pictures,
    drawn: HashMap<(bool, u32), Option<String>>,
}

/// The section, or nothing without snapshots.
pub(super) fn section(snapshots: &[Snapshot], pictures: &Pictures, classes: &[String]) -> Markup {
    let chosen = choose(snapshots);
    let mut by_query: BTreeMap<(bool, u32), Vec<(u64, &Retrieval)>> = BTreeMap::new();
    for snapshot in chosen {
        for retrieval in &snapshot.queries {
            let key = (retrieval.test, retrieval.query.row);
            by_query.entry(key).or_default().push((snapshot.epoch, retrieval));
        }
    }
    let mut album = Album { pictures, drawn: HashMap::new() };
    let queries: Vec<Markup> = by_query.values().map(|history| query(history, &mut album, classes)).collect();
    let missing = album.drawn.values().filter(|picture| picture.is_none()).count();
    html! {
        @if !queries.is_empty() {
            h2 { "What is found for the same queries" }
            p.soft {
                "The nearest rows of the bank as it was after an epoch, most similar first. A green frame is of the query's class, \
                 a dashed red one of another; the number is the similarity."
            }
            @match pictures {
                Pictures::None(reason) => p.warning { "No pictures: " (reason) ". The names are those of the run." },
                Pictures::Of(_) if missing > 0 => p.warning {
                    (missing) " images are not there any more under their names, or cannot be read."
                },
                Pictures::Of(_) => {},
            }
            @for query in &queries { (query) }
        }
    }
}

/// At most [`SHOWN`] of `snapshots`, closer together at the beginning, where most changes.
fn choose(snapshots: &[Snapshot]) -> Vec<&Snapshot> {
    let n = snapshots.len();
    let place = |j: usize| match n <= SHOWN {
        true => j,
        false => ((n as f64).powf(j as f64 / (SHOWN - 1) as f64).round() as usize).clamp(j + 1, n) - 1,
    };
    (0..n.min(SHOWN)).map(|j| &snapshots[place(j)]).collect()
}

fn query(history: &[(u64, &Retrieval)], album: &mut Album, classes: &[String]) -> Markup {
    let (_, first) = history[0];
    let class = |shown: &Shown| shown.label.and_then(|label| classes.get(label as usize));
    let rows: Vec<Markup> = history
        .iter()
        .map(|(epoch, retrieval)| {
            let same = |shown: &&Shown| shown.label.is_some() && shown.label == retrieval.query.label;
            let labelled = retrieval.query.label.is_some();
            let agree = retrieval.found.iter().filter(same).count();
            let tiles: Vec<Markup> = retrieval
                .found
                .iter()
                .map(|shown| {
                    let frame = match (labelled, same(&shown)) {
                        (false, _) => "",
                        (_, true) => "same",
                        (_, false) => "other",
                    };
                    let similarity = shown.similarity.map(|s| format!("{s:.2}")).unwrap_or_default();
                    tile(shown, album.picture(false, shown), frame, &similarity, class(shown))
                })
                .collect();
            html! {
                p.soft style="margin: 8px 0 2px" {
                    "after epoch " (epoch + 1)
                    @if labelled { ": " (agree) " of " (retrieval.found.len()) " of its class" }
                }
                ul.tiles { @for tile in &tiles { (tile) } }
            }
        })
        .collect();
    let picture = album.picture(first.test, &first.query);
    html! {
        h3 {
            (if first.test { "Test image " } else { "Training image " }) (first.query.row)
            @if let Some(class) = class(&first.query) { ", " (class) }
        }
        ul.tiles { (tile(&first.query, picture, "query", &first.query.name, None)) }
        @for row in &rows { (row) }
    }
}

fn tile(shown: &Shown, picture: Option<&str>, frame: &str, caption: &str, class: Option<&String>) -> Markup {
    let what = class.map_or_else(|| shown.name.clone(), |class| format!("{} ({class})", shown.name));
    html! {
        li class=(format!("tile {frame}")) title=(what) {
            @match picture {
                Some(picture) => img src=(picture) alt=(what);,
                None => span style="white-space: normal; overflow-wrap: anywhere" { (shown.name) },
            }
            span { (caption) }
        }
    }
}

impl Album<'_> {
    fn picture(&mut self, test: bool, shown: &Shown) -> Option<&str> {
        let Pictures::Of(splits) = self.pictures else { return None };
        let draw = || {
            let data = if test { splits.test.as_ref()? } else { &splits.train };
            let image = shown.is_in(data).then(|| data.load(shown.row as usize).ok()).flatten()?;
            Some(thumbnail(&image, SIDE))
        };
        self.drawn.entry((test, shown.row)).or_insert_with(draw).as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::detect::{DataFormat, OpenOptions, open};
    use std::path::Path;

    fn snapshots(n: u64) -> Vec<Snapshot> {
        let shown = |row: u32, label, similarity| Shown {
            row,
            name: format!("train/{row} <&>"),
            label: Some(label),
            similarity,
        };
        let queries = |epoch: u64| {
            let found = vec![shown(epoch as u32, 1, Some(0.5)), shown(40, 2, Some(0.25))];
            vec![Retrieval { test: false, query: shown(3, 1, None), found }]
        };
        (0..n).map(|epoch| Snapshot { epoch, step: epoch, queries: queries(epoch) }).collect()
    }

    #[test]
    fn a_few_snapshots_are_chosen_the_first_and_the_last_among_them() {
        let epochs = |n: u64| choose(&snapshots(n)).iter().map(|s| s.epoch).collect::<Vec<_>>();
        assert_eq!((epochs(0), epochs(3)), (vec![], vec![0, 1, 2]));
        assert_eq!(epochs(6), [0, 1, 2, 3, 5]);
        assert_eq!(epochs(110), [0, 2, 9, 33, 109]);
    }

    #[test]
    fn without_the_data_names_have_to_do() {
        let classes = ["a", "b", "c"].map(String::from);
        let html = section(&snapshots(2), &Pictures::None("it is gone".into()), &classes).into_string();
        for part in [
            "No pictures: it is gone",
            "train/40 &lt;&amp;&gt;",
            "after epoch 2: 1 of 2 of its class",
            "tile other",
            "tile same",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("<img"));
        assert_eq!(section(&[], &Pictures::None(String::new()), &classes).into_string(), "");
    }

    #[test]
    fn images_that_are_not_what_they_were_are_left_out() {
        let splits =
            open(Path::new("synthetic:50x16"), Some(DataFormat::Synthetic), &OpenOptions::default()).unwrap();
        let mut snapshots = snapshots(1);
        snapshots[0].queries[0].found[1].name = splits.train.name(40).into_owned();
        let html = section(&snapshots, &Pictures::Of(splits), &[]).into_string();
        assert_eq!(html.matches("<img src=\"data:image/jpeg;base64,").count(), 1, "{html}");
        assert!(html.contains("2 images are not there any more"), "{html}");
    }
}
