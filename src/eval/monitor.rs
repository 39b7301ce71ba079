//! What is measured after each epoch, against the live bank, which is only borrowed.
//!
//! With labels: weighted kNN or 1-NN of the test images (the training images themselves where there are none,
//! each image's own row left out). Without labels: how often a second augmented view finds its own row first,
//! with alignment and uniformity (Wang & Isola 2020).

use tch::Device;

use super::features::{Input, embed_each, embed_layers, unit_rows};
use super::knn::{self, GridCell, Neighbors, SearchOptions};
use crate::bank::MemoryBank;
use crate::data::augment::TrainTransform;
use crate::data::dataset::{Dataset, Splits};
use crate::data::loader::View;
use crate::error::Result;
use crate::model::{Encoder, Layer};
use crate::rng::Purpose;

/// Measures that need no label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelFree {
    /// Share of second views whose nearest row is their own image's.
    pub own_row_first: f64,
    /// Mean squared distance of a second view from its own row; 0 is perfect.
    pub alignment: f64,
    /// `ln mean exp(−2‖u − v‖²)` over pairs of second views; lower is more uniform, −4 at best.
    pub uniformity: f64,
    /// Images measured.
    pub images: usize,
}

/// The images a test of features asks about, with their embeddings.
pub struct Queries {
    /// Unit embeddings `[Q, D]`.
    pub features: Vec<f32>,
    /// Labels `[Q]`.
    pub labels: Vec<u32>,
    /// For queries that are training images: their own rows, which may not vote.
    pub own_rows: Option<Vec<u32>>,
    /// Images of the split that was asked about, by index, `[Q]`.
    pub indices: Vec<u32>,
}

/// Most training images that stand in as queries where there is no test split.
pub const STAND_IN_QUERIES: usize = 10_000;

/// Second views drawn for the label-free measures.
const SECOND_VIEWS: usize = 2_000;

/// Embeds the test images, or training images where there is no test split. `None` without labels.
///
/// # Errors
/// An image that cannot be read.
pub fn queries(
    encoder: &Encoder,
    splits: &Splits,
    input: &Input,
    progress: &mut dyn FnMut(usize),
) -> Result<Option<Queries>> {
    let all = queries_at(encoder, splits, input, &[Layer::Embedding], progress)?;
    Ok(all.map(|mut layers| layers.swap_remove(0)))
}

/// As [`queries`], with features at each of `layers` in one pass, at unit length: one set of queries for each.
///
/// # Errors
/// An image that cannot be read.
pub fn queries_at(
    encoder: &Encoder,
    splits: &Splits,
    input: &Input,
    layers: &[Layer],
    progress: &mut dyn FnMut(usize),
) -> Result<Option<Vec<Queries>>> {
    let asked = splits.test.as_ref().unwrap_or(&splits.train);
    let Some(labels) = asked.labels().filter(|_| splits.train.labels().is_some()) else { return Ok(None) };
    let (indices, own_rows) = if splits.test.is_some() {
        (asked.trainable_indices(), None)
    } else {
        let indices = spread(&asked.trainable_indices(), STAND_IN_QUERIES);
        (indices.clone(), Some(indices))
    };
    let labels: Vec<u32> = indices.iter().map(|&i| labels[i as usize]).collect();
    let features = embed_layers(encoder, asked, indices.clone(), input, layers, progress)?;
    let of_layer = |(&layer, mut features): (&Layer, Vec<f32>)| {
        if layer != Layer::Embedding {
            unit_rows(&mut features, encoder.config().dim_at(layer) as usize);
        }
        Queries { features, labels: labels.clone(), own_rows: own_rows.clone(), indices: indices.clone() }
    };
    Ok(Some(layers.iter().zip(features).map(of_layer).collect()))
}

/// The `k` rows of `bank` nearest to each query, searched where the encoder is; rows of quarantined images are passed over.
pub fn search(device: Device, queries: &Queries, bank: &MemoryBank, train: &Dataset, k: usize) -> Neighbors {
    let options = SearchOptions { own_rows: queries.own_rows.as_deref(), excluded_rows: train.quarantined() };
    knn::nearest_at(device, &queries.features, bank.stored(), bank.dim(), k, options)
}

/// Weighted kNN for every pair of `ks` and `temperatures` from one search; k beyond the rows there are is cut.
///
/// # Panics
/// If `train` has no labels.
pub fn accuracies(
    neighbors: &Neighbors,
    queries: &Queries,
    train: &Dataset,
    ks: &[usize],
    temperatures: &[f64],
) -> Vec<GridCell> {
    let labels = train.labels().expect("kNN accuracy needs the labels of the training images");
    let ks: Vec<usize> = ks.iter().map(|&k| k.min(neighbors.k)).collect();
    knn::grid(neighbors, labels, train.n_classes(), &queries.labels, &ks, temperatures)
}

/// Measures how well second augmented views find their own rows; see [`LabelFree`].
///
/// # Errors
/// An image that cannot be read.
pub fn label_free(
    encoder: &Encoder,
    bank: &MemoryBank,
    train: &Dataset,
    transform: &TrainTransform,
    input: &Input,
    seed: u64,
    epoch: u64,
) -> Result<LabelFree> {
    let indices = spread(&train.trainable_indices(), SECOND_VIEWS);
    let view = View::Train { transform: *transform, seed, epoch, purpose: Purpose::SecondView };
    let mut features = Vec::with_capacity(indices.len() * bank.dim());
    embed_each(encoder, train, indices.clone(), view, input, &[Layer::Embedding], |_, rows| {
        features.extend_from_slice(&rows[0]);
        Ok(())
    })?;
    let options = SearchOptions { own_rows: None, excluded_rows: train.quarantined() };
    let nearest = knn::nearest_at(encoder.device(), &features, bank.stored(), bank.dim(), 1, options);
    let own = nearest.indices.iter().zip(&indices).filter(|(found, own)| found == own).count();
    let dim = bank.dim();
    let alignment = indices
        .iter()
        .zip(features.chunks_exact(dim))
        .map(|(&i, view)| squared_distance(view, &bank.row(i as usize)))
        .sum::<f64>()
        / indices.len() as f64;
    Ok(LabelFree {
        own_row_first: own as f64 / indices.len() as f64,
        alignment,
        uniformity: uniformity(&features, dim),
        images: indices.len(),
    })
}

/// `ln mean exp(−2‖u − v‖²)` over pairs of distinct rows of `features` `[n, dim]` (Wang & Isola 2020, Eq. 5, t = 2).
fn uniformity(features: &[f32], dim: usize) -> f64 {
    let rows: Vec<&[f32]> = features.chunks_exact(dim).collect();
    let mut sum = 0.0;
    for (i, u) in rows.iter().enumerate() {
        for v in &rows[..i] {
            sum += (-2.0 * squared_distance(u, v)).exp();
        }
    }
    let pairs = rows.len() * rows.len().saturating_sub(1) / 2;
    if pairs == 0 { 0.0 } else { (sum / pairs as f64).ln() }
}

fn squared_distance(u: &[f32], v: &[f32]) -> f64 {
    f64::from(u.iter().zip(v).map(|(a, b)| (a - b) * (a - b)).sum::<f32>())
}

/// At most `most` of `indices`, evenly spread, in order.
pub fn spread(indices: &[u32], most: usize) -> Vec<u32> {
    let n = indices.len();
    if n <= most {
        return indices.to_vec();
    }
    (0..most).map(|j| indices[j * n / most]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_even_and_bounded() {
        assert_eq!(spread(&[4, 7, 9], 5), [4, 7, 9]);
        let indices: Vec<u32> = (0..1000).collect();
        let some = spread(&indices, 10);
        assert_eq!(some, [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
    }

    #[test]
    fn uniformity_of_known_points() {
        // Two opposite points: one pair at squared distance 4, so ln exp(-8).
        assert!((uniformity(&[1.0, 0.0, -1.0, 0.0], 2) + 8.0).abs() < 1e-6);
        // Identical points: the worst there is.
        assert!(uniformity(&[1.0, 0.0, 1.0, 0.0, 1.0, 0.0], 2).abs() < 1e-12);
        // One point has no pair.
        assert_eq!(uniformity(&[1.0, 0.0], 2), 0.0);
    }
}
