//! Retrieval: for each query its nearest training images under any description of images by vectors, and how many of
//! them share its class.
//!
//! Training images are described a chunk at a time and searched while they are at hand, so memory is bounded by the
//! queries, whatever N and however long the vectors: raw pixels of a million images need no bank.

use super::features::{Input, embed_each, input_tensor, unit_rows};
use super::knn::{self, Neighbors, SearchOptions};
use crate::data::dataset::Dataset;
use crate::data::loader::{Batch, Loader, View};
use crate::error::Result;
use crate::eval::features::EVALUATION_BATCH;
use crate::model::{Encoder, Layer, to_vec_f32};

/// Side of the images that are compared pixel by pixel: the size of CIFAR's, 3,072 numbers each.
pub const PIXEL_SIDE: u32 = 32;

/// Numbers of training vectors that are held at once: 64 MiB.
const CHUNK_NUMBERS: usize = 1 << 24;

/// What turns images into vectors that are compared by cosine.
pub enum Describer<'a> {
    /// An encoder's features at one layer.
    Encoder {
        /// The network.
        encoder: &'a Encoder,
        /// Where its features are taken; a stage's maps are averaged over their places.
        layer: Layer,
        /// How images become its input.
        input: &'a Input,
    },
    /// The pixels themselves: a small centre crop, normalised per channel.
    Pixels {
        /// How images become vectors.
        input: &'a Input,
    },
}

impl Describer<'_> {
    /// Numbers of a vector, D.
    pub fn dim(&self) -> usize {
        match self {
            Describer::Encoder { encoder, layer, .. } => encoder.config().dim_at(*layer) as usize,
            Describer::Pixels { input } => 3 * (input.transform.size as usize).pow(2),
        }
    }

    /// Hands the images `order` of `data` to `each`, in order and in parts: their number in a part, and unit vectors
    /// `[n, D]`.
    ///
    /// # Errors
    /// An image that cannot be read, and those of `each`.
    pub fn describe(
        &self,
        data: &Dataset,
        order: Vec<u32>,
        mut each: impl FnMut(&[u32], &[f32]) -> Result<()>,
    ) -> Result<()> {
        let dim = self.dim();
        match self {
            Describer::Encoder { encoder, layer, input } => {
                let view = View::Test { transform: input.transform };
                embed_each(encoder, data, order, view, input, &[*layer], |batch: &Batch, mut rows| {
                    unit_rows(&mut rows[0], dim);
                    each(&batch.indices, &rows[0])
                })
            }
            Describer::Pixels { input } => {
                let view = View::Test { transform: input.transform };
                let source = std::sync::Arc::clone(data.source());
                let mut loader = Loader::new(source, view, order, EVALUATION_BATCH, input.loader)?;
                while let Some(batch) = loader.next() {
                    let batch = batch?;
                    let mut rows = to_vec_f32(&input_tensor(&batch, &input.normalization));
                    unit_rows(&mut rows, dim);
                    each(&batch.indices, &rows)?;
                    loader.recycle(batch);
                }
                Ok(())
            }
        }
    }

    /// The unit vectors `[n, D]` of the images `order` of `data`. `progress` hears how many are done.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub fn vectors(
        &self,
        data: &Dataset,
        order: Vec<u32>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(order.len() * self.dim());
        let mut done = 0;
        self.describe(data, order, |indices, rows| {
            all.extend_from_slice(rows);
            done += indices.len();
            progress(done);
            Ok(())
        })?;
        Ok(all)
    }

    /// The `k` training images nearest to each of `queries` `[Q, D]` (unit vectors), most similar first, of equally
    /// similar ones the lower index; `own` `[Q]` names the training image that each query is, which it does not find.
    /// Quarantined images are never found.
    ///
    /// # Errors
    /// An image that cannot be read.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn nearest(
        &self,
        queries: &[f32],
        own: Option<&[u32]>,
        train: &Dataset,
        k: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Neighbors> {
        let dim = self.dim();
        // One more, as a query's own image may be among them.
        let wanted = k + usize::from(own.is_some());
        let mut found = Found::new(queries.len() / dim);
        let chunk_rows = (CHUNK_NUMBERS / dim).max(EVALUATION_BATCH);
        let (mut chunk, mut indices, mut done) = (Vec::new(), Vec::new(), 0);
        let order = train.trainable_indices();
        let n = order.len();
        self.describe(train, order, |batch, rows| {
            chunk.extend_from_slice(rows);
            indices.extend_from_slice(batch);
            done += batch.len();
            if indices.len() >= chunk_rows || done == n {
                found.add(
                    &knn::nearest(queries, &chunk, dim, wanted, SearchOptions::default()),
                    &indices,
                    wanted,
                );
                chunk.clear();
                indices.clear();
            }
            progress(done);
            Ok(())
        })?;
        Ok(found.finish(own, k))
    }
}

/// The nearest images so far, of each query.
struct Found(Vec<Vec<(f32, u32)>>);

impl Found {
    fn new(queries: usize) -> Self {
        Found(vec![Vec::new(); queries])
    }

    /// Takes in neighbours among later images, whose numbers are `indices`, and keeps the best `k` of each query.
    fn add(&mut self, neighbors: &Neighbors, indices: &[u32], k: usize) {
        for (query, best) in self.0.iter_mut().enumerate() {
            let (rows, similarities) = neighbors.of(query);
            best.extend(similarities.iter().copied().zip(rows.iter().map(|&row| indices[row as usize])));
            // Stable: of equally similar ones those that were there before stay before, and theirs are the lower indices.
            best.sort_by(|a, b| b.0.total_cmp(&a.0));
            best.truncate(k);
        }
    }

    /// The best `k` of each query, itself left out.
    fn finish(mut self, own: Option<&[u32]>, k: usize) -> Neighbors {
        if let Some(own) = own {
            assert_eq!(own.len(), self.0.len(), "one own image for each query");
            for (best, own) in self.0.iter_mut().zip(own) {
                best.retain(|(_, index)| index != own);
            }
        }
        let k = self.0.iter().map(Vec::len).min().unwrap_or(0).min(k);
        let mut all = Neighbors { queries: self.0.len(), k, indices: Vec::new(), similarities: Vec::new() };
        for best in &self.0 {
            all.indices.extend(best[..k].iter().map(|(_, index)| index));
            all.similarities.extend(best[..k].iter().map(|(similarity, _)| similarity));
        }
        all
    }
}

/// Precision at each of `ks`: of a query's first k neighbours the share that has its label, averaged over queries.
/// Where there are fewer than k neighbours, of those there are; NaN without queries or neighbours.
///
/// # Panics
/// If there is not a label for each query, or a neighbour has none.
pub fn precision(neighbors: &Neighbors, labels: &[u32], truth: &[u32], ks: &[usize]) -> Vec<f64> {
    assert_eq!(truth.len(), neighbors.queries, "a label for each query");
    let share = |k: usize| {
        let k = k.min(neighbors.k);
        let hits: usize = (0..neighbors.queries)
            .map(|query| {
                let found = &neighbors.of(query).0[..k];
                found.iter().filter(|&&index| labels[index as usize] == truth[query]).count()
            })
            .sum();
        hits as f64 / (k * neighbors.queries) as f64
    };
    ks.iter().map(|&k| share(k)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::MemoryBank;
    use crate::data::detect::{self, OpenOptions};

    #[test]
    fn chunks_give_what_one_search_gives() {
        // Few distinct values: many equal similarities.
        let draw = |n, seed| -> Vec<f32> {
            MemoryBank::random(n, 4, seed).rows().iter().map(|x| (x * 2.0).round()).collect()
        };
        let (queries, rows) = (draw(9, 1), draw(70, 2));
        let own: Vec<u32> = (0..9).map(|q| q * 7).collect();
        for k in [1, 5, 69, 100] {
            for own in [None, Some(&own[..])] {
                let options = SearchOptions { own_rows: own, ..SearchOptions::default() };
                let expected = knn::nearest(&queries, &rows, 4, k, options);
                let wanted = k + usize::from(own.is_some());
                let mut found = Found::new(9);
                for (chunk, rows) in rows.chunks(23 * 4).enumerate() {
                    let indices: Vec<u32> =
                        (0..rows.len() as u32 / 4).map(|i| i + 23 * chunk as u32).collect();
                    let part = knn::nearest(&queries, rows, 4, wanted, SearchOptions::default());
                    found.add(&part, &indices, wanted);
                }
                assert_eq!(found.finish(own, k), expected, "k = {k}");
            }
        }
    }

    #[test]
    fn precision_counts_those_of_the_same_class() {
        let neighbors = Neighbors {
            queries: 2,
            k: 3,
            indices: vec![0, 1, 2, 3, 2, 1],
            similarities: vec![0.9, 0.8, 0.7, 0.5, 0.5, 0.1],
        };
        let labels = [1, 0, 0, 2];
        assert_eq!(precision(&neighbors, &labels, &[0, 2], &[1, 2, 3, 20]), [0.5, 0.5, 0.5, 0.5]);
        assert_eq!(precision(&neighbors, &labels, &[1, 0], &[1, 2, 3]), [0.5, 0.5, 0.5]);
        assert_eq!(precision(&neighbors, &labels, &[0, 0], &[1, 3]), [0.0, 4.0 / 6.0]);
        let none = Neighbors { queries: 0, k: 0, indices: vec![], similarities: vec![] };
        assert!(precision(&none, &labels, &[], &[1])[0].is_nan());
    }

    #[test]
    fn pixels_find_the_image_itself_and_leave_it_out_when_asked() {
        let splits = detect::open("synthetic:40x16".as_ref(), None, &OpenOptions::default()).unwrap();
        let input = Input::new(crate::model::Family::Cifar, 8, 1);
        let pixels = Describer::Pixels { input: &input };
        assert_eq!(pixels.dim(), 192);
        let order: Vec<u32> = vec![3, 20, 39];
        let vectors = pixels.vectors(&splits.train, order.clone(), &mut |_| {}).unwrap();
        let with = pixels.nearest(&vectors, None, &splits.train, 5, &mut |_| {}).unwrap();
        let without = pixels.nearest(&vectors, Some(&order), &splits.train, 5, &mut |_| {}).unwrap();
        for (query, own) in order.iter().enumerate() {
            assert_eq!(with.of(query).0[0], *own);
            assert!((with.of(query).1[0] - 1.0).abs() < 1e-5);
            assert_eq!(with.of(query).0[1..], without.of(query).0[..4]);
        }
    }
}
