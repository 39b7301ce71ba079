//! The files that `cluster` leaves: tables, JSON and a page.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::atomic;
use crate::cli::inputs::bar;
use crate::cli::subject::Subject;
use crate::data::dataset::Dataset;
use crate::error::Result;
use crate::eval::cluster::{Agreement, Clustering, Duplicates, Pair};
use crate::gallery::thumbnails::{Place, Split, Thumbnails};
use crate::gallery::{ClusterRow, ClusterRows, DuplicateRows, clusters_page};
use crate::interop::table::quoted;
use crate::model::Layer;

/// The page's name.
pub const PAGE: &str = "clusters.html";

/// Images of a cluster on the page.
const SHOWN_MEMBERS: usize = 16;

/// Pairs on the page.
const SHOWN_PAIRS: usize = 200;

/// Everything that was found.
pub struct Results<'a> {
    /// Of which checkpoint.
    pub subject: &'a Subject,
    /// The images.
    pub data: &'a Dataset,
    /// Those of them that were looked at; clusters and pairs count these.
    pub indices: &'a [u32],
    /// Where their features were taken.
    pub layer: Layer,
    /// What the random choices depended on.
    pub seed: u64,
    /// The cosine of near-duplicates.
    pub threshold: f32,
    /// Number of clusters, the clusters, how they agree with the labels.
    pub clusterings: Vec<(usize, Clustering, Option<Agreement>)>,
    /// If they were sought.
    pub duplicates: Option<Duplicates>,
}

impl Results<'_> {
    /// Writes everything into `folder`.
    ///
    /// # Errors
    /// If a file cannot be written, or an image of the page cannot be read.
    pub fn write(&self, folder: &Path, place: Place) -> Result<()> {
        atomic::write_text(&folder.join("clusters.json"), &format!("{:#}\n", self.json()))?;
        for (count, clustering, _) in &self.clusterings {
            let path = folder.join(format!("assignments-{count}.csv"));
            atomic::replace(&path, |file| {
                let mut out = BufWriter::new(file);
                writeln!(out, "path,cluster,distance")?;
                for (image, &cluster) in clustering.assignment.iter().enumerate() {
                    writeln!(
                        out,
                        "{},{cluster},{}",
                        self.csv_name(image as u32),
                        clustering.distances[image]
                    )?;
                }
                out.flush()
            })?;
        }
        if let Some(duplicates) = &self.duplicates {
            atomic::replace(&folder.join("duplicates.csv"), |file| {
                let mut out = BufWriter::new(file);
                writeln!(out, "first,second,similarity")?;
                for Pair { first, second, similarity } in &duplicates.pairs {
                    writeln!(out, "{},{},{similarity}", self.csv_name(*first), self.csv_name(*second))?;
                }
                out.flush()
            })?;
        }
        self.write_page(&folder.join(PAGE), place)
    }

    /// A clustering in numbers.
    pub fn summary(&self, (count, clustering, agreement): &(usize, Clustering, Option<Agreement>)) -> Value {
        json!({
            "clusters": count, "layer": self.layer, "seed": self.seed, "images": self.indices.len(),
            "mean_distance": clustering.mean_distance, "iterations": clustering.iterations,
            "converged": clustering.converged,
            "purity": agreement.map(|it| it.purity), "nmi": agreement.map(|it| it.nmi),
        })
    }

    fn json(&self) -> Value {
        let clusterings: Vec<Value> = self
            .clusterings
            .iter()
            .map(|clustering| {
                let mut value = self.summary(clustering);
                value["members"] = self.clusters_json(clustering.0, &clustering.1);
                value
            })
            .collect();
        let duplicates = self.duplicates.as_ref().map(|found| {
            let groups: Vec<Vec<_>> =
                found.groups.iter().map(|group| group.iter().map(|&image| self.name(image)).collect()).collect();
            json!({
                "threshold": self.threshold, "pairs": found.total, "listed": found.pairs.len(), "groups": groups,
            })
        });
        json!({
            "checkpoint": self.subject.found.path(), "data": self.subject.splits.root,
            "images": self.indices.len(), "method": "spherical k-means, k-means++ seeds",
            "clusterings": clusterings, "duplicates": duplicates,
        })
    }

    /// Size, medoid and most frequent class of each cluster.
    fn clusters_json(&self, count: usize, clustering: &Clustering) -> Value {
        let majorities = self.majorities(count, clustering);
        let clusters =
            clustering.nearest_members(count, 1).into_iter().zip(clustering.sizes(count)).zip(majorities);
        let clusters = clusters.enumerate().map(|(cluster, ((nearest, size), majority))| {
            json!({
                "cluster": cluster, "size": size, "medoid": nearest.first().map(|&image| self.name(image)),
                "class": majority.and_then(|(label, _)| self.data.class_name(label)),
                "share": majority.map(|(_, share)| share),
            })
        });
        clusters.collect()
    }

    /// The most frequent class of each cluster and its share; of equally frequent ones the lower.
    fn majorities(&self, count: usize, clustering: &Clustering) -> Vec<Option<(u32, f64)>> {
        let Some(labels) = self.data.labels() else { return vec![None; count] };
        let n_classes = self.data.n_classes();
        let mut joint = vec![0usize; count * n_classes];
        for (&image, &cluster) in self.indices.iter().zip(&clustering.assignment) {
            joint[cluster as usize * n_classes + labels[image as usize] as usize] += 1;
        }
        let majority = |counts: &[usize]| {
            let best = (0..n_classes).reduce(|a, b| if counts[b] > counts[a] { b } else { a })?;
            let size: usize = counts.iter().sum();
            (size > 0).then(|| (best as u32, counts[best] as f64 / size as f64))
        };
        joint.chunks(n_classes).map(majority).collect()
    }

    fn write_page(&self, page: &Path, place: Place) -> Result<()> {
        let clusterings: Vec<ClusterRows> = self.clusterings.iter().map(|it| self.rows(it)).collect();
        let pairs: Vec<Pair> = self
            .duplicates
            .iter()
            .flat_map(|found| &found.pairs)
            .take(SHOWN_PAIRS)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|pair| Pair { first: self.image(pair.first), second: self.image(pair.second), ..*pair })
            .collect();
        let duplicates = self.duplicates.as_ref().map(|found| DuplicateRows {
            threshold: self.threshold,
            total: (found.total, found.groups.len()),
            pairs: &pairs,
        });
        let members = clusterings.iter().flat_map(|rows| &rows.clusters).flat_map(|row| &row.nearest);
        let paired = pairs.iter().flat_map(|pair| [pair.first, pair.second]);
        let tiles: Vec<(Split, u32)> =
            members.map(|&(image, _)| image).chain(paired).map(|image| (Split::Train, image)).collect();
        let progress = bar(tiles.len(), "making thumbnails");
        let thumbnails = Thumbnails::make(&tiles, [self.data, self.data], place, page, &|done| {
            progress.set_position(done as u64);
        })?;
        progress.finish_and_clear();
        let lead = format!(
            "{}: {} images of {}, {} features, grouped by spherical k-means. Each row shows the images nearest to the \
             centre; the first is the medoid.",
            self.subject.found.path().display(),
            self.indices.len(),
            self.subject.splits.root.display(),
            self.layer
        );
        let text = clusters_page(self.data, &clusterings, duplicates.as_ref(), &thumbnails, &lead);
        atomic::write_text(page, &text)
    }

    fn rows(&self, (count, clustering, agreement): &(usize, Clustering, Option<Agreement>)) -> ClusterRows {
        let majorities = self.majorities(*count, clustering);
        let sizes = clustering.sizes(*count);
        let mut clusters: Vec<ClusterRow> = clustering
            .nearest_members(*count, SHOWN_MEMBERS)
            .into_iter()
            .enumerate()
            .map(|(number, members)| ClusterRow {
                number,
                size: sizes[number],
                majority: majorities[number],
                nearest: members
                    .into_iter()
                    .map(|member| (self.image(member), clustering.distances[member as usize]))
                    .collect(),
            })
            .collect();
        clusters.sort_by_key(|row| std::cmp::Reverse(row.size));
        let mut about = format!("Mean cosine distance from the centre {:.4}", clustering.mean_distance);
        if let Some(Agreement { purity, nmi }) = agreement {
            about += &format!(
                "; purity {:.2} %, NMI {nmi:.4}. A frame says whether an image is of its cluster’s most frequent class",
                100.0 * purity
            );
        }
        ClusterRows { about: about + ".", clusters }
    }

    /// The data set's image at position `image` of those that were looked at.
    fn image(&self, image: u32) -> u32 {
        self.indices[image as usize]
    }

    fn name(&self, image: u32) -> std::borrow::Cow<'_, str> {
        self.data.name(self.image(image) as usize)
    }

    fn csv_name(&self, image: u32) -> String {
        quoted(&self.name(image)).into_owned()
    }
}
