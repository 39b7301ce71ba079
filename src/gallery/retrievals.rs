//! What was asked, and what several descriptions of images found.

use crate::data::dataset::Dataset;
use crate::eval::describe::precision;
use crate::eval::knn::Neighbors;

/// The neighbours under one description of images.
pub struct Results {
    /// What a person calls it: "raw pixels", a file's name.
    pub name: String,
    /// Its settings, in a few words.
    pub about: String,
    /// For each query its nearest training images.
    pub neighbors: Neighbors,
}

/// Queries and what was found for them.
pub struct Retrievals<'a> {
    /// Where the queries are from.
    pub asked: &'a Dataset,
    /// The queries, images of `asked`, `[Q]`.
    pub indices: &'a [u32],
    /// Their classes `[Q]`, where they and the training images have any.
    pub labels: Option<&'a [u32]>,
    /// Where the neighbours are from.
    pub train: &'a Dataset,
    /// The descriptions; the first decides what is a success.
    pub results: Vec<Results>,
}

/// The k at which precision is given.
pub const PRECISION_AT: [usize; 4] = [1, 5, 10, 20];

impl Retrievals<'_> {
    /// Whether training image `image` is of the class of `query`; `None` without labels.
    ///
    /// # Panics
    /// If there is no such query or image.
    pub fn same(&self, query: usize, image: u32) -> Option<bool> {
        self.labels.map(|labels| self.train.label(image as usize) == Some(labels[query]))
    }

    /// Whether the nearest image of `query`, under the first description, is of its class; `None` without labels. A query
    /// that found nothing failed.
    ///
    /// # Panics
    /// If there is no such query or no description.
    pub fn success(&self, query: usize) -> Option<bool> {
        match self.results[0].neighbors.of(query).0.first() {
            Some(&nearest) => self.same(query, nearest),
            None => self.labels.map(|_| false),
        }
    }

    /// Each of [`PRECISION_AT`] up to `k`, with the precision of every description; empty without labels.
    pub fn precisions(&self, k: usize) -> (Vec<usize>, Vec<Vec<f64>>) {
        let ks: Vec<usize> = PRECISION_AT.into_iter().filter(|&at| at <= k).collect();
        let (Some(truth), Some(labels)) = (self.labels, self.train.labels()) else {
            return (Vec::new(), Vec::new());
        };
        let of = |results: &Results| precision(&results.neighbors, labels, truth, &ks);
        let all = self.results.iter().map(of).collect();
        (ks, all)
    }
}
