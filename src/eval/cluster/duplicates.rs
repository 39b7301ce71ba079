//! Pairs of images whose vectors are nearly the same: all pairs in tiles, of which only those above a threshold are
//! kept. Nothing of the size N × N exists; of very many pairs the most similar are listed, and all are counted and
//! grouped.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::bank::kernels::tile::{Left, TILE, Transposed, padded, product};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Rows compared with a tile at once.
const BLOCK: usize = 256;

/// Two images and the cosine of their vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The one with the lower index.
    pub first: u32,
    /// The other.
    pub second: u32,
    /// Their cosine.
    pub similarity: f32,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Duplicates {
    /// The most similar pairs, most similar first, then by indices.
    pub pairs: Vec<Pair>,
    /// Pairs above the threshold, listed or not.
    pub total: u64,
    /// Images that are connected by pairs above the threshold, listed or not: groups of two and more, each ascending,
    /// the largest first, then by their first image. Within a group two images need not be similar to each other.
    pub groups: Vec<Vec<u32>>,
}

/// All pairs of distinct `rows` `[N, dim]` (unit vectors) with a cosine of at least `threshold`; at most `most` of them
/// are listed. `progress` hears how many rows are done, from any thread.
///
/// # Panics
/// If `rows` is not `[N, dim]`, N does not fit a `u32`, or the threshold is not finite.
pub fn near_duplicates(
    rows: &[f32],
    dim: usize,
    threshold: f32,
    most: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Duplicates {
    search_on(Isa::best(), rows, dim, threshold, most, progress)
}

fn search_on(
    isa: Isa,
    rows: &[f32],
    dim: usize,
    threshold: f32,
    most: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Duplicates {
    assert!(dim > 0 && rows.len().is_multiple_of(dim), "{} numbers are no rows of {dim}", rows.len());
    let n = rows.len() / dim;
    assert!(u32::try_from(n).is_ok(), "{n} rows: row numbers are 32 bits wide");
    assert!(threshold.is_finite(), "threshold {threshold}");
    let found = Mutex::new(Collected { pairs: Vec::new(), most, total: 0, sets: Sets::new(n) });
    let done = AtomicUsize::new(0);
    (0..n.div_ceil(BLOCK)).into_par_iter().for_each(|block| {
        let first = block * BLOCK;
        isa.run(Block { rows, dim, first, threshold, found: &found });
        let count = BLOCK.min(n - first);
        progress(done.fetch_add(count, Ordering::Relaxed) + count);
    });
    found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).finish()
}

/// One block of rows against all rows from its own first on.
struct Block<'a> {
    rows: &'a [f32],
    dim: usize,
    first: usize,
    threshold: f32,
    found: &'a Mutex<Collected>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (dim, first, n) = (self.dim, self.first, self.rows.len() / self.dim);
        let count = BLOCK.min(n - first);
        let (block, padded_rows) = padded(&self.rows[first * dim..][..count * dim], dim, dim);
        let mut transposed = Transposed::new(dim);
        let mut scores = vec![0.0; padded_rows * TILE];
        let mut pairs = Vec::new();
        // "At least" by a comparison that is strict.
        let below = self.threshold.next_down();
        for start in (first..n).step_by(TILE) {
            let width = TILE.min(n - start);
            transposed.fill(&self.rows[start * dim..][..width * dim]);
            let left = Left { values: &block, stride: dim, rows: padded_rows };
            let (panel, strips) = (transposed.panel(), transposed.strips());
            product::<S, false>(simd, left, panel, dim, strips, &mut scores, TILE);
            for row in 0..count {
                let scores = &scores[row * TILE..][..width.next_multiple_of(LANES)];
                for (chunk, scores) in scores.as_chunks::<LANES>().0.iter().enumerate() {
                    let mut mask = simd.greater(simd.load(scores), simd.splat(below));
                    while mask != 0 {
                        let lane = mask.trailing_zeros() as usize;
                        mask &= mask - 1;
                        let column = chunk * LANES + lane;
                        // Each pair once, none with itself, none with the padding.
                        if column < width && start + column > first + row {
                            let (first, second) = ((first + row) as u32, (start + column) as u32);
                            pairs.push(Pair { first, second, similarity: scores[lane] });
                        }
                    }
                }
            }
            if !pairs.is_empty() {
                let mut found = self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                pairs.drain(..).for_each(|pair| found.add(pair));
            }
        }
    }
}

/// What has been found so far. Nothing of it depends on the order in which pairs arrive.
struct Collected {
    /// The best, and up to as many more.
    pairs: Vec<Pair>,
    most: usize,
    total: u64,
    sets: Sets,
}

impl Collected {
    fn add(&mut self, pair: Pair) {
        self.total += 1;
        self.sets.join(pair.first, pair.second);
        self.pairs.push(pair);
        if self.pairs.len() >= self.most.saturating_mul(2).max(1024) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let key = |pair: &Pair| (std::cmp::Reverse(Ordered(pair.similarity)), pair.first, pair.second);
        if self.pairs.len() > self.most {
            if self.most > 0 {
                self.pairs.select_nth_unstable_by_key(self.most - 1, key);
            }
            self.pairs.truncate(self.most);
        }
    }

    fn finish(mut self) -> Duplicates {
        self.cut();
        self.pairs.sort_unstable_by_key(|pair| {
            (std::cmp::Reverse(Ordered(pair.similarity)), pair.first, pair.second)
        });
        Duplicates { pairs: self.pairs, total: self.total, groups: self.sets.groups() }
    }
}

/// A float in its total order.
#[derive(PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Disjoint sets of images; the lowest of a set stands for it.
struct Sets(Vec<u32>);

impl Sets {
    fn new(n: usize) -> Self {
        Sets((0..n as u32).collect())
    }

    fn root(&mut self, mut image: u32) -> u32 {
        while self.0[image as usize] != image {
            // Halves the way for the next time.
            let parent = self.0[image as usize];
            self.0[image as usize] = self.0[parent as usize];
            image = parent;
        }
        image
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }

    fn groups(mut self) -> Vec<Vec<u32>> {
        let mut groups = std::collections::BTreeMap::<u32, Vec<u32>>::new();
        for image in 0..self.0.len() as u32 {
            let root = self.root(image);
            if root != image {
                groups.entry(root).or_insert_with(|| vec![root]).push(image);
            }
        }
        let mut groups: Vec<Vec<u32>> = groups.into_values().collect();
        groups.sort_by_key(|group| (std::cmp::Reverse(group.len()), group[0]));
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::MemoryBank;

    /// Rows of small integers: every product is exact, many are equal.
    fn integers(n: usize, dim: usize) -> Vec<f32> {
        MemoryBank::random(n, dim, 8).rows().iter().map(|x| (x * (dim as f32).sqrt() * 1.4).round()).collect()
    }

    /// All pairs, all sorted; groups by following pairs until nothing changes.
    fn naive(rows: &[f32], dim: usize, threshold: f32, most: usize) -> Duplicates {
        let rows: Vec<&[f32]> = rows.chunks(dim).collect();
        let mut pairs = Vec::new();
        let mut mark: Vec<usize> = (0..rows.len()).collect();
        for i in 0..rows.len() {
            for j in i + 1..rows.len() {
                let similarity: f32 = rows[i].iter().zip(rows[j]).map(|(a, b)| a * b).sum();
                if similarity >= threshold {
                    pairs.push(Pair { first: i as u32, second: j as u32, similarity });
                    let (old, new) = (mark[i].max(mark[j]), mark[i].min(mark[j]));
                    mark.iter_mut().filter(|mark| **mark == old).for_each(|mark| *mark = new);
                }
            }
        }
        let total = pairs.len() as u64;
        pairs.sort_by(|a, b| {
            b.similarity.total_cmp(&a.similarity).then(a.first.cmp(&b.first)).then(a.second.cmp(&b.second))
        });
        pairs.truncate(most);
        let of = |root: usize| (0..mark.len()).filter(|&i| mark[i] == root).map(|i| i as u32).collect();
        let mut groups: Vec<Vec<u32>> = (0..rows.len()).map(of).filter(|g: &Vec<u32>| g.len() > 1).collect();
        groups.sort_by_key(|group| (std::cmp::Reverse(group.len()), group[0]));
        Duplicates { pairs, total, groups }
    }

    #[test]
    fn equals_the_naive_search_on_every_path() {
        for (n, dim, threshold, most) in [
            (1, 3, 0.0, 10),
            (2, 3, -100.0, 10),
            (127, 5, 9.0, 10_000),
            (600, 6, 12.0, 10_000),
            (600, 6, 8.0, 50),
            (300, 4, 0.0, 7),
            (300, 4, 0.0, 0),
        ] {
            let rows = integers(n, dim);
            let expected = naive(&rows, dim, threshold, most);
            for isa in Isa::available() {
                let found = search_on(isa, &rows, dim, threshold, most, &|_| {});
                assert_eq!(found, expected, "{isa:?} N={n} D={dim} threshold {threshold}");
            }
        }
        assert_eq!(near_duplicates(&[], 4, 0.5, 10, &|_| {}).total, 0);
    }

    #[test]
    fn the_result_does_not_depend_on_the_threads() {
        let rows = integers(1500, 8);
        let search = || near_duplicates(&rows, 8, 15.0, 100, &|_| {});
        let all = search();
        assert!(all.total > 1000 && all.pairs.len() == 100, "{}", all.total);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(all, pool.install(search));
    }
}
