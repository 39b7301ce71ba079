//! The page of clusters and near-duplicates.

use maud::{Markup, html};

use super::thumbnails::{Split, Thumbnails};
use super::{SCRIPT, Tile, status_line, thousands};
use crate::data::dataset::Dataset;
use crate::eval::cluster::Pair;
use crate::page::Page;

/// A clustering as a page shows it.
pub struct ClusterRows {
    /// What it is, in a few words: agreement with the labels, mean distance.
    pub about: String,
    /// The clusters, the largest first.
    pub clusters: Vec<ClusterRow>,
}

/// One cluster.
pub struct ClusterRow {
    /// Its number.
    pub number: usize,
    /// Images in it.
    pub size: usize,
    /// Its most frequent class, with the share of its images that have it; `None` without labels.
    pub majority: Option<(u32, f64)>,
    /// The images nearest to its centre, with their cosine distance from it, nearest first: image, distance.
    pub nearest: Vec<(u32, f32)>,
}

/// The pairs that a page shows.
pub struct DuplicateRows<'a> {
    /// The cosine from which on two images count as nearly the same.
    pub threshold: f32,
    /// Pairs there are, and groups that they connect.
    pub total: (u64, usize),
    /// The most similar of them, by images of the data set.
    pub pairs: &'a [Pair],
}

/// A page: a section for each clustering with a row of tiles for each cluster, then the pairs.
pub fn clusters_page(
    data: &Dataset,
    clusterings: &[ClusterRows],
    duplicates: Option<&DuplicateRows<'_>>,
    thumbnails: &Thumbnails,
    lead: &str,
) -> String {
    let view = View { data, thumbnails };
    let body = html! {
        @for rows in clusterings {
            section {
                h2 { (thousands(rows.clusters.len())) " clusters" }
                p.soft { (rows.about) }
                @for row in &rows.clusters { (view.cluster(row)) }
            }
        }
        @if let Some(duplicates) = duplicates { (view.duplicates(duplicates)) }
        (status_line())
    };
    let lead = html! {
        p { (lead) }
        p.hint hidden {
            "Keys: up and down go from row to row, left and right along a row’s pictures, Home and End to the first and \
             last row; the line at the foot names the picture."
        }
    };
    Page { title: "Clusters and near-duplicates", lead, body, script: Some(SCRIPT) }.render()
}

struct View<'a> {
    data: &'a Dataset,
    thumbnails: &'a Thumbnails,
}

impl View<'_> {
    fn class(&self, image: u32) -> Option<&str> {
        self.data.label(image as usize).and_then(|label| self.data.class_name(label))
    }

    fn cluster(&self, row: &ClusterRow) -> Markup {
        html! {
            article.retrieval tabindex="-1" {
                h3 {
                    "Cluster " (row.number) ": " (thousands(row.size)) " images"
                    @if let Some((label, share)) = row.majority {
                        ", " (format!("{:.0}", 100.0 * share)) " % " (self.data.class_name(label).unwrap_or("?"))
                    }
                }
                ol.tiles {
                    @for (place, &(image, distance)) in row.nearest.iter().enumerate() {
                        (self.member(row, place, image, distance))
                    }
                }
            }
        }
    }

    fn member(&self, row: &ClusterRow, place: usize, image: u32, distance: f32) -> Markup {
        let class = self.class(image);
        let name = self.data.name(image as usize);
        let alt = if place == 0 { format!("{name} (medoid)") } else { name.into_owned() };
        let same = row.majority.map(|(label, _)| self.data.label(image as usize) == Some(label));
        let src = self.thumbnails.src(Split::Train, image);
        Tile { src, alt, same, note: format!("{distance:.3}"), class }.item()
    }

    fn duplicates(&self, duplicates: &DuplicateRows<'_>) -> Markup {
        let (pairs, groups) = duplicates.total;
        html! {
            section {
                h2 { "Near-duplicates" }
                p.soft {
                    (thousands(pairs as usize)) " pairs with a similarity of at least " (duplicates.threshold)
                    ", in " (thousands(groups)) " groups; "
                    @if duplicates.pairs.len() as u64 == pairs { "all of them here." }
                    @else { "the " (thousands(duplicates.pairs.len())) " most similar here." }
                }
                ol.pairs { @for pair in duplicates.pairs { (self.pair(pair)) } }
            }
        }
    }

    fn pair(&self, pair: &Pair) -> Markup {
        let differ = self.data.label(pair.first as usize) != self.data.label(pair.second as usize);
        html! {
            li.retrieval tabindex="-1" {
                p { "similarity " (format!("{:.4}", pair.similarity)) @if differ { ", " strong { "labels differ" } } }
                ul.tiles {
                    @for image in [pair.first, pair.second] {
                        @let name = self.data.name(image as usize);
                        @let class = self.class(image);
                        (Tile {
                            src: self.thumbnails.src(Split::Train, image),
                            alt: name.to_string(),
                            same: None,
                            note: name.rsplit('/').next().unwrap_or_default().to_owned(),
                            class,
                        }.item())
                    }
                }
            }
        }
    }
}
