//! The same search in tensor operations, for rows on a device: products of blocks of queries with tiles of rows, of which
//! only the best k so far are kept.
//!
//! A device's own selection says nothing about which of equal scores it takes. So one score more than k is selected from a
//! tile: where the last two are equal, the choice between them was arbitrary, and the query is searched again by keys that
//! hold similarity and index, no two of which are equal. Without duplicates among the rows that hardly ever happens.

use tch::{Device, Kind, Tensor, no_grad};

use super::search::{Neighbors, SearchOptions, nearest};
use crate::bank::Rows;
use crate::model::{tf32, upload};

/// Numbers in the scores of a block of queries against a tile of rows: 512 MiB as f32.
const SCORES: i64 = 1 << 27;
/// Queries handled together.
const BLOCK: i64 = 4096;

/// [`nearest`] on `device`: there with CUDA, in our memory otherwise. Similarities are in single precision, not TF32.
///
/// # Panics
/// As [`nearest`].
pub fn nearest_at<'a>(
    device: Device,
    queries: &[f32],
    rows: impl Into<Rows<'a>>,
    dim: usize,
    k: usize,
    options: SearchOptions,
) -> Neighbors {
    let rows = rows.into();
    match device {
        Device::Cuda(_) => tf32::without(|| in_tiles(device, queries, rows, dim, k, options, BLOCK, SCORES)),
        _ => nearest(queries, rows, dim, k, options),
    }
}

/// The search in tensor operations, whatever the device, for `block` queries at a time against tiles of at most `scores`
/// scores.
#[allow(clippy::too_many_arguments, reason = "what a search is given, where, and how it is cut")]
fn in_tiles(
    device: Device,
    queries: &[f32],
    rows: Rows,
    dim: usize,
    k: usize,
    options: SearchOptions,
    block: i64,
    scores: i64,
) -> Neighbors {
    let (n_queries, n) = (queries.len() / dim, rows.len() / dim);
    let hidden = options.excluded_rows.len() + usize::from(options.own_rows.is_some());
    let k = k.min(n.saturating_sub(hidden));
    let mut found = Neighbors { queries: n_queries, k, indices: Vec::new(), similarities: Vec::new() };
    if k == 0 || n_queries == 0 {
        // What is wrong with the shapes is said by the search itself.
        return nearest(queries, rows, dim, k, options);
    }
    assert_eq!((queries.len() % dim, rows.len() % dim), (0, 0), "queries and rows are {dim} wide");
    assert!(i32::try_from(n).is_ok(), "{n} rows: row numbers are 31 bits wide");
    assert!(options.excluded_rows.is_sorted_by(|a, b| a < b), "excluded rows are sorted and distinct");
    no_grad(|| {
        let mut excluded = vec![false; n];
        options.excluded_rows.iter().for_each(|&row| excluded[row as usize] = true);
        let search = Search {
            rows: rows.to_tensor(dim).to_device(device).to_kind(Kind::Float),
            excluded: (!options.excluded_rows.is_empty()).then(|| upload(&excluded, &[1, n as i64], device)),
            k: k as i64,
            scores,
        };
        let queries = Tensor::from_slice(queries).view([n_queries as i64, dim as i64]).to_device(device);
        let own: Option<Vec<i64>> =
            options.own_rows.map(|own| own.iter().map(|&row| i64::from(row)).collect());
        let own = own.map(|own| upload(&own, &[n_queries as i64, 1], device));
        for first in (0..n_queries as i64).step_by(block as usize) {
            let count = block.min(n_queries as i64 - first);
            let own = own.as_ref().map(|own| own.narrow(0, first, count));
            search.block(&queries.narrow(0, first, count), own.as_ref(), &mut found);
        }
    });
    found
}

struct Search {
    /// f32 `[N, D]`.
    rows: Tensor,
    /// Whether a row is nobody's neighbour, `[1, N]`.
    excluded: Option<Tensor>,
    k: i64,
    /// Most numbers in a tile's scores.
    scores: i64,
}

impl Search {
    /// Adds the neighbours of `queries` `[Q, D]`, whose own rows are `own` `[Q, 1]`, to `found`.
    fn block(&self, queries: &Tensor, own: Option<&Tensor>, found: &mut Neighbors) {
        let (mut keys, arbitrary) = self.best(queries, own, false);
        let again = arbitrary.nonzero().squeeze_dim(1);
        if again.numel() > 0 {
            let own = own.map(|own| own.index_select(0, &again));
            let (exact, _) = self.best(&queries.index_select(0, &again), own.as_ref(), true);
            let _ = keys.index_copy_(0, &again, &exact);
        }
        let keys = Vec::<i64>::try_from(keys.reshape([-1]).to_device(Device::Cpu));
        for key in keys.expect("keys are whole numbers") {
            found.indices.push(index_of(key));
            found.similarities.push(similarity_of(key));
        }
    }

    /// The best k keys of each query i64 `[Q, k]`, in order, and whether a choice between equal scores was arbitrary,
    /// `[Q]`; with `exact` none is.
    fn best(&self, queries: &Tensor, own: Option<&Tensor>, exact: bool) -> (Tensor, Tensor) {
        let (n_queries, n) = (queries.size()[0], self.rows.size()[0]);
        // Keys are twice as large as scores, and pass through more steps.
        let scores = if exact { self.scores / 8 } else { self.scores };
        let tile = (scores / n_queries).max(1);
        let device = queries.device();
        let mut best = Tensor::zeros([n_queries, 0], (Kind::Int64, device));
        let mut arbitrary = Tensor::zeros([n_queries], (Kind::Bool, device));
        for start in (0..n).step_by(tile as usize) {
            let count = tile.min(n - start);
            let scores = self.scores(queries, own, start, count);
            let keys = if exact {
                let places = Tensor::arange(count, (Kind::Int64, device)) + start;
                keys(&scores, &places.unsqueeze(0))
            } else {
                // One more than is kept tells whether the last one had an equal.
                let (values, places) = scores.topk((self.k + 1).min(count), 1, true, true);
                let kept = self.k.min(count);
                if kept < count {
                    let (last, next) = (values.select(1, kept - 1), values.select(1, kept));
                    let doubtful = last.eq_tensor(&next).logical_and(&last.gt(f64::NEG_INFINITY));
                    arbitrary = arbitrary.logical_or(&doubtful);
                }
                keys(&values.narrow(1, 0, kept), &(places.narrow(1, 0, kept) + start))
            };
            best = Tensor::cat(&[best, keys], 1);
            best = best.topk(self.k.min(best.size()[1]), 1, true, true).0;
        }
        (best, arbitrary)
    }

    /// Scores of the rows from `start` on, f32 `[Q, count]`: NaN and −∞ become the smallest number, which ranks last but is
    /// still a neighbour; −∞ is what stands for rows that are none.
    fn scores(&self, queries: &Tensor, own: Option<&Tensor>, start: i64, count: i64) -> Tensor {
        let mut scores = queries.mm(&self.rows.narrow(0, start, count).tr());
        let least = f64::from(f32::MIN);
        let _ = scores.nan_to_num_(least, f64::INFINITY, least);
        if let Some(excluded) = &self.excluded {
            let _ = scores.masked_fill_(&excluded.narrow(1, start, count), f64::NEG_INFINITY);
        }
        if let Some(own) = own {
            // An own row in another tile is put onto this one's first row, with that row's own score.
            let place = own - start;
            let inside = place.ge(0).logical_and(&place.lt(count));
            let place = place.where_self(&inside, &place.zeros_like());
            let score = scores.gather(1, &place, false).masked_fill(&inside, f64::NEG_INFINITY);
            let _ = scores.scatter_(1, &place, &score);
        }
        scores
    }
}

/// Similarities f32 and row numbers i64 as numbers that order as neighbours do: higher similarity, then lower index.
fn keys(similarities: &Tensor, indices: &Tensor) -> Tensor {
    // + 0 makes −0 equal to 0. A negative number's bits order backwards.
    let bits = (similarities + 0.0).contiguous().view_dtype(Kind::Int);
    let ordered = bits.bitwise_xor(i64::from(i32::MAX)).where_self(&bits.lt(0), &bits).to_kind(Kind::Int64);
    ordered * (1i64 << 32) + (-indices + i64::from(u32::MAX))
}

fn index_of(key: i64) -> u32 {
    !(key as u32)
}

fn similarity_of(key: i64) -> f32 {
    let ordered = (key >> 32) as i32;
    f32::from_bits(if ordered < 0 { ordered ^ i32::MAX } else { ordered } as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::MemoryBank;
    use crate::eval::knn::search::tests::integers;
    use crate::model::Precision;

    #[test]
    fn equals_the_hosts_search_with_all_its_ties() {
        for (q, n, dim, k) in [
            (1, 1, 3, 1),
            (3, 50, 4, 5),
            (9, 300, 16, 200),
            (20, 1000, 33, 7),
            (5, 40, 6, 1000),
            (40, 130, 2, 3),
        ] {
            let (queries, mut rows) = (integers(q, dim, 1), integers(n, dim, 2));
            if n > 40 {
                rows[4 * dim] = f32::NAN;
            }
            let own: Vec<u32> = (0..q as u32).map(|i| i * 7 % n as u32).collect();
            let excluded: Vec<u32> = (0..n as u32).filter(|i| i % 11 == 3).collect();
            for options in [
                SearchOptions::default(),
                SearchOptions { own_rows: Some(&own), ..SearchOptions::default() },
                SearchOptions { own_rows: Some(&own), excluded_rows: &excluded },
            ] {
                let expected = nearest(&queries, &rows, dim, k, options);
                let in_bf16 = MemoryBank::from_rows(n, dim, rows.clone()).in_precision(Precision::Bf16);
                for (rows, block, scores) in [
                    (Rows::Fp32(&rows), BLOCK, SCORES),
                    (in_bf16.stored(), BLOCK, SCORES),
                    (Rows::Fp32(&rows), 7, 7 * 50),
                    (Rows::Fp32(&rows), 2, 2 * 9),
                    (Rows::Fp32(&rows), 4, 4),
                ] {
                    let found = in_tiles(Device::Cpu, &queries, rows, dim, k, options, block, scores);
                    assert_eq!(found, expected, "Q={q} N={n} D={dim} k={k} block={block} scores={scores}");
                }
            }
        }
    }

    #[test]
    fn equals_the_hosts_search_on_features_but_for_rounding() {
        let (queries, rows) = (MemoryBank::random(60, 24, 1), MemoryBank::random(3000, 24, 2));
        let options = SearchOptions::default();
        let expected = nearest(&queries.rows(), rows.stored(), 24, 20, options);
        let found = in_tiles(Device::Cpu, &queries.rows(), rows.stored(), 24, 20, options, BLOCK, SCORES);
        for (a, b) in found.similarities.iter().zip(&expected.similarities) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        let same = found.indices.iter().zip(&expected.indices).filter(|(a, b)| a == b).count();
        assert!(same * 100 >= 99 * expected.indices.len(), "{same} of {}", expected.indices.len());
        // Without CUDA it is the host's own search.
        assert_eq!(nearest_at(Device::Cpu, &queries.rows(), rows.stored(), 24, 20, options), expected);
        assert_eq!(nearest_at(Device::Cpu, &[], rows.stored(), 24, 20, options).queries, 0);
    }

    #[test]
    fn keys_go_there_and_back() {
        let similarities = [1.5f32, 1.0, 0.0, -0.5, f32::MIN, f32::NEG_INFINITY];
        let indices = [3i64, 0, i64::from(i32::MAX), 7, 1, 2];
        let keys = keys(&Tensor::from_slice(&similarities), &Tensor::from_slice(&indices));
        let keys = Vec::<i64>::try_from(keys).unwrap();
        assert!(keys.is_sorted_by(|a, b| a > b));
        for ((key, similarity), index) in keys.into_iter().zip(similarities).zip(indices) {
            assert_eq!((similarity_of(key), i64::from(index_of(key))), (similarity, index));
        }
    }
}
