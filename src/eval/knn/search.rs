//! Exact search for the most similar bank rows, in tiles: scores of a block of queries against 128 rows at a time,
//! of which only those above the block's running thresholds are kept. Memory does not grow with N.

use crate::bank::Rows;
use crate::bank::kernels::rows::dot16;
use crate::bank::kernels::tile::{Left, TILE, Transposed, padded, product};
use crate::simd::{Element, Isa, Kernel, LANES, Simd};
use rayon::prelude::*;
use std::ops::Range;

/// Queries handled together.
const BLOCK: usize = 256;
/// Fewer queries than this are faster without transposing tiles.
const FEW: usize = 8;
/// With fewer tasks than this the bank is split as well.
const TASKS: usize = 16;

/// What a search leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct SearchOptions<'a> {
    /// For each query `[Q]` the one row that is no neighbour of it: itself, for leave-one-out.
    pub own_rows: Option<&'a [u32]>,
    /// Rows that are nobody's neighbours (quarantined), sorted, distinct.
    pub excluded_rows: &'a [u32],
}

/// The nearest rows of each query, most similar first; of equally similar rows the lower index comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbors {
    /// Q.
    pub queries: usize,
    /// Neighbours per query: as asked for, or as many as there are, perhaps none.
    pub k: usize,
    /// Bank rows, `[Q, k]`.
    pub indices: Vec<u32>,
    /// Their similarities `q·M[j]`, `[Q, k]`.
    pub similarities: Vec<f32>,
}

impl Neighbors {
    /// Indices and similarities of one query, `[k]` each.
    ///
    /// # Panics
    /// If there is no such query.
    pub fn of(&self, query: usize) -> (&[u32], &[f32]) {
        let range = query * self.k..(query + 1) * self.k;
        (&self.indices[range.clone()], &self.similarities[range])
    }
}

/// The `k` rows of `rows` `[N, dim]` most similar to each of `queries` `[Q, dim]` by inner product. Rows are f32, or
/// [those of a bank](crate::bank::MemoryBank::stored) as they are stored.
///
/// Exact; the result does not depend on threads or tiles. `k` is cut to the number of rows that every query has. A
/// similarity that is NaN or −∞ ranks last.
///
/// # Panics
/// If the shapes disagree, `dim` is 0, N does not fit a `u32`, or the excluded rows are not sorted and `< N`.
pub fn nearest<'a>(
    queries: &[f32],
    rows: impl Into<Rows<'a>>,
    dim: usize,
    k: usize,
    options: SearchOptions,
) -> Neighbors {
    let isa = Isa::best();
    match rows.into() {
        Rows::Fp32(rows) => nearest_on(isa, queries, rows, dim, k, options),
        Rows::Bf16(rows) => nearest_on(isa, queries, rows, dim, k, options),
    }
}

fn nearest_on<E: Element>(
    isa: Isa,
    queries: &[f32],
    rows: &[E],
    dim: usize,
    k: usize,
    options: SearchOptions,
) -> Neighbors {
    assert!(dim > 0, "embeddings have a width");
    assert!(queries.len().is_multiple_of(dim), "{} numbers are no queries of {dim}", queries.len());
    assert!(rows.len().is_multiple_of(dim), "{} numbers are no rows of {dim}", rows.len());
    let n = rows.len() / dim;
    assert!(u32::try_from(n).is_ok(), "{n} rows: row numbers are 32 bits wide");
    let excluded = options.excluded_rows;
    assert!(excluded.is_sorted_by(|a, b| a < b), "excluded rows are sorted and distinct");
    assert!(excluded.last().is_none_or(|&last| (last as usize) < n), "an excluded row is not below {n}");
    if let Some(own) = options.own_rows {
        assert_eq!(own.len(), queries.len() / dim, "one own row for each query");
    }
    let k = k.min((n - excluded.len()).saturating_sub(usize::from(options.own_rows.is_some())));
    let mut found =
        Neighbors { queries: queries.len() / dim, k, indices: Vec::new(), similarities: Vec::new() };
    if k == 0 {
        return found;
    }
    let blocks = (queries.len() / dim).div_ceil(BLOCK);
    let spans = if blocks >= TASKS { 1 } else { TASKS.min(n.div_ceil(TILE)) };
    let span_length = n.div_ceil(TILE).div_ceil(spans) * TILE;
    let spans = n.div_ceil(span_length);
    let per_block: Vec<Vec<Vec<u64>>> = (0..blocks)
        .into_par_iter()
        .map(|block| {
            let first = block * BLOCK;
            let queries = &queries[first * dim..queries.len().min((first + BLOCK) * dim)];
            let own_rows = options.own_rows.map(|own| &own[first..][..queries.len() / dim]);
            let options = SearchOptions { own_rows, ..options };
            let parts: Vec<Vec<Best>> = (0..spans)
                .into_par_iter()
                .map(|span| {
                    let span = span * span_length..n.min((span + 1) * span_length);
                    isa.run(Block { queries, rows, dim, span, k, options })
                })
                .collect();
            merge(parts, k)
        })
        .collect();
    for best in per_block.iter().flatten() {
        found.indices.extend(best.iter().map(|&key| index_of(key)));
        found.similarities.extend(best.iter().map(|&key| similarity_of(key)));
    }
    found
}

/// For each query the best `k` of all spans, in order.
fn merge(parts: Vec<Vec<Best>>, k: usize) -> Vec<Vec<u64>> {
    let mut parts = parts.into_iter();
    let mut merged = parts.next().unwrap_or_default();
    for part in parts {
        for (best, other) in merged.iter_mut().zip(part) {
            best.keys.extend(other.keys);
        }
    }
    let sorted = merged.into_iter().map(|mut best| {
        best.keys.sort_unstable_by(|a, b| b.cmp(a));
        best.keys.truncate(k);
        best.keys
    });
    sorted.collect()
}

/// Similarity and index in one number that orders as neighbours do: higher similarity, then lower index.
#[inline(always)]
pub(super) fn key(similarity: f32, index: u32) -> u64 {
    // + 0.0 makes −0 equal to 0. A negative number's bits order backwards.
    let bits = (similarity + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!index)
}

pub(super) fn index_of(key: u64) -> u32 {
    !(key as u32)
}

pub(super) fn similarity_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

/// The best keys of one query so far, and some more: they are cut back to k when there are 4·k, so that a key costs a
/// constant on average.
pub(super) struct Best {
    pub(super) keys: Vec<u64>,
    /// Only similarities above this can be among the best; indices ascend, so equal ones cannot.
    pub(super) threshold: f32,
}

impl Best {
    #[inline(always)]
    pub(super) fn offer(&mut self, similarity: f32, index: u32, k: usize) {
        self.keys.push(key(similarity, index));
        if self.keys.len() >= k.saturating_mul(4).max(64) {
            self.cut(k);
        }
    }

    pub(super) fn cut(&mut self, k: usize) {
        if self.keys.len() > k {
            let (_, last, _) = self.keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            self.threshold = similarity_of(*last);
            self.keys.truncate(k);
        }
    }
}

/// One block of queries against one span of rows.
struct Block<'a, E> {
    queries: &'a [f32],
    rows: &'a [E],
    dim: usize,
    span: Range<usize>,
    k: usize,
    options: SearchOptions<'a>,
}

impl<E: Element> Kernel for Block<'_, E> {
    type Output = Vec<Best>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<Best> {
        let dim = self.dim;
        let n_queries = self.queries.len() / dim;
        let mut best: Vec<Best> =
            (0..n_queries).map(|_| Best { keys: Vec::new(), threshold: f32::NEG_INFINITY }).collect();
        let (queries, padded_rows) = padded(self.queries, dim, dim);
        let mut transposed = Transposed::new(dim);
        let mut scores = vec![0.0; padded_rows * TILE];
        for start in self.span.clone().step_by(TILE) {
            let count = TILE.min(self.span.end - start);
            let tile = &self.rows[start * dim..][..count * dim];
            if n_queries < FEW {
                for (query, scores) in self.queries.chunks_exact(dim).zip(scores.chunks_exact_mut(TILE)) {
                    for (group, scores) in tile.chunks(LANES * dim).zip(scores.chunks_exact_mut(LANES)) {
                        let last = group.len() / dim - 1;
                        let rows: [&[E]; LANES] = std::array::from_fn(|r| &group[r.min(last) * dim..][..dim]);
                        scores.copy_from_slice(&dot16(simd, query, &rows));
                    }
                }
            } else {
                transposed.fill(tile);
                let left = Left { values: &queries, stride: dim, rows: padded_rows };
                let (panel, strips) = (transposed.panel(), transposed.strips());
                product::<S, false>(simd, left, panel, dim, strips, &mut scores, TILE);
            }
            for (query, best) in best.iter_mut().enumerate() {
                self.take(simd, &scores[query * TILE..][..TILE], start, count, query, best);
            }
        }
        for best in &mut best {
            best.cut(self.k);
        }
        best
    }
}

impl<E> Block<'_, E> {
    /// Offers the tile's scores that pass the query's threshold.
    #[inline(always)]
    fn take<S: Simd>(
        &self,
        simd: S,
        scores: &[f32],
        start: usize,
        count: usize,
        query: usize,
        best: &mut Best,
    ) {
        let own = self.options.own_rows.map(|own| own[query]);
        for (chunk, scores) in
            scores[..count.next_multiple_of(LANES)].as_chunks::<LANES>().0.iter().enumerate()
        {
            // NaN and −∞ become the smallest number, which ranks last but is still a neighbour.
            let clean = simd.max(simd.load(scores), simd.splat(f32::MIN));
            let mut mask = simd.greater(clean, simd.splat(best.threshold));
            if mask == 0 {
                continue;
            }
            let mut values = [0.0; LANES];
            simd.store(clean, &mut values);
            while mask != 0 {
                let lane = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let row = chunk * LANES + lane;
                let index = (start + row) as u32;
                let skipped = row >= count
                    || own == Some(index)
                    || self.options.excluded_rows.binary_search(&index).is_ok();
                if !skipped && values[lane] > best.threshold {
                    best.offer(values[lane], index, self.k);
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bank::MemoryBank;
    use half::bf16;

    /// Scores everything, sorts everything. Small integers make every order of additions exact.
    fn naive(queries: &[f32], rows: &[f32], dim: usize, k: usize, options: SearchOptions) -> Neighbors {
        let n = rows.len() / dim;
        let k = k.min(n - options.excluded_rows.len() - usize::from(options.own_rows.is_some()));
        let mut found = Neighbors { queries: queries.len() / dim, k, indices: vec![], similarities: vec![] };
        for (q, query) in queries.chunks_exact(dim).enumerate() {
            let mut all: Vec<(f32, u32)> = (0..n as u32)
                .filter(|j| !options.excluded_rows.contains(j))
                .filter(|j| options.own_rows.is_none_or(|own| own[q] != *j))
                .map(|j| {
                    let s: f32 = query.iter().zip(&rows[j as usize * dim..]).map(|(a, b)| a * b).sum();
                    (if s.is_nan() { f32::MIN } else { s }, j)
                })
                .collect();
            all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
            found.indices.extend(all[..k].iter().map(|(_, j)| j));
            found.similarities.extend(all[..k].iter().map(|(s, _)| s));
        }
        found
    }

    /// Rows of small integers: many equal similarities, all exact.
    pub(in crate::eval::knn) fn integers(n: usize, dim: usize, seed: u64) -> Vec<f32> {
        MemoryBank::random(n, dim, seed)
            .rows()
            .iter()
            .map(|x| (x * (dim as f32).sqrt() * 1.4).round())
            .collect()
    }

    #[test]
    fn equals_the_naive_search_with_all_its_ties_on_every_path() {
        for (q, n, dim, k) in [
            (1, 1, 3, 1),
            (3, 50, 4, 5),
            (9, 300, 16, 200),
            (20, 1000, 33, 7),
            (300, 700, 8, 30),
            (5, 40, 6, 1000),
            (4500, 130, 2, 3),
        ] {
            let (queries, rows) = (integers(q, dim, 1), integers(n, dim, 2));
            let own: Vec<u32> = (0..q as u32).map(|i| i * 7 % n as u32).collect();
            let excluded: Vec<u32> = (0..n as u32).filter(|i| i % 11 == 3).collect();
            for options in [
                SearchOptions::default(),
                SearchOptions { own_rows: Some(&own), ..SearchOptions::default() },
                SearchOptions { own_rows: Some(&own), excluded_rows: &excluded },
            ] {
                let expected = naive(&queries, &rows, dim, k, options);
                let in_bf16: Vec<bf16> = rows.iter().map(|&x| bf16::from_f32(x)).collect();
                for isa in Isa::available() {
                    let found = nearest_on(isa, &queries, &rows, dim, k, options);
                    assert_eq!(found, expected, "{isa:?} Q={q} N={n} D={dim} k={k}");
                    let found = nearest_on(isa, &queries, &in_bf16, dim, k, options);
                    assert_eq!(found, expected, "{isa:?} Q={q} N={n} D={dim} k={k}, bf16");
                }
            }
        }
    }

    #[test]
    fn broken_rows_rank_last() {
        let (queries, mut rows) = (integers(10, 16, 1), integers(30, 16, 2));
        rows[16 * 4] = f32::NAN;
        rows[16 * 20..16 * 21].fill(f32::NAN);
        for isa in Isa::available() {
            for q in [1, 10] {
                let found = nearest_on(isa, &queries[..q * 16], &rows, 16, 30, SearchOptions::default());
                for query in 0..q {
                    assert_eq!(found.of(query).0[28..], [4, 20], "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_to_find_is_no_neighbours() {
        let found = nearest(&[1.0, 2.0], &[][..], 2, 5, SearchOptions::default());
        assert_eq!((found.queries, found.k), (1, 0));
        let own = SearchOptions { own_rows: Some(&[0]), ..SearchOptions::default() };
        assert_eq!(nearest(&[1.0, 2.0], &[1.0, 1.0][..], 2, 5, own).k, 0);
        assert_eq!(nearest(&[], &[1.0, 1.0][..], 2, 5, SearchOptions::default()).queries, 0);
    }

    #[test]
    fn the_result_does_not_depend_on_the_threads() {
        let (queries, rows) = (MemoryBank::random(40, 24, 1), MemoryBank::random(3000, 24, 2));
        let search = || nearest(&queries.rows(), rows.stored(), 24, 20, SearchOptions::default());
        let all = search();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(all, pool.install(search));
    }

    #[test]
    fn keys_order_as_neighbours_do() {
        let ordered =
            [(1.5, 0), (1.0, 2), (1.0, 3), (0.0, 1), (-0.0, 4), (-0.5, 9), (-2.0, 0), (f32::MIN, 1)];
        for pair in ordered.windows(2) {
            assert!(key(pair[0].0, pair[0].1) > key(pair[1].0, pair[1].1), "{pair:?}");
        }
        for (similarity, index) in ordered {
            assert_eq!(
                (similarity_of(key(similarity, index)), index_of(key(similarity, index))),
                (similarity, index)
            );
        }
    }
}
