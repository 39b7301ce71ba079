//! Weighted k-nearest-neighbour classification (Wu et al. 2018, §3.4): the k most similar bank rows vote for their
//! label with `exp(s/T)`.
//!
//! Shapes: Q queries, N bank rows, D embedding width, C classes; k neighbours (K is for negatives). One
//! [search](nearest) with the largest k serves a whole grid of k and temperatures.

mod coarse;
mod device;
mod search;

pub use coarse::CoarseRows;
pub use device::nearest_at;
pub use search::{Neighbors, SearchOptions, nearest};

use std::collections::HashMap;

use rayon::prelude::*;

/// Class scores `[Q, C]`: each of the first `k` neighbours adds `exp((s − 1)/T)` to its label's score.
///
/// The published weight is `exp(s/T)`; the common factor `exp(1/T)` is left out, which changes no order and does not
/// overflow at any temperature. `labels` `[N]` are the bank rows'; a `k` beyond the neighbours found means all.
///
/// # Panics
/// If a neighbour has no label, a label is not `< n_classes`, or the temperature is not positive.
pub fn vote(neighbors: &Neighbors, labels: &[u32], n_classes: usize, k: usize, temperature: f64) -> Vec<f64> {
    assert!(temperature > 0.0 && temperature.is_finite(), "temperature {temperature}");
    let mut scores = vec![0.0; neighbors.queries * n_classes];
    if n_classes == 0 {
        return scores;
    }
    scores.par_chunks_exact_mut(n_classes).enumerate().for_each(|(query, scores)| {
        let (indices, similarities) = neighbors.of(query);
        for (&index, &similarity) in indices.iter().zip(similarities).take(k) {
            scores[labels[index as usize] as usize] += ((f64::from(similarity) - 1.0) / temperature).exp();
        }
    });
    scores
}

/// Shares of queries whose label is among the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// The class with the highest score is right, 0 to 1.
    pub top1: f64,
    /// One of the five highest is right (with five classes or fewer: 1, if anything voted).
    pub top5: f64,
}

/// How often the true label's score ranks first, or among the first five; of equal scores the lower class ranks
/// higher. A class that got no vote is never right. NaN without queries.
///
/// `scores` `[Q, C]` as from [`vote`], `truth` `[Q]`. Labels `≥ n_classes` count as wrong.
/// # Panics
/// If the shapes disagree.
pub fn accuracy(scores: &[f64], n_classes: usize, truth: &[u32]) -> Accuracy {
    assert_eq!(scores.len(), truth.len() * n_classes, "scores are [Q, C] with Q = {}", truth.len());
    let (mut first, mut five) = (0usize, 0usize);
    for (query, &label) in truth.iter().enumerate() {
        let scores = &scores[query * n_classes..][..n_classes];
        let label = label as usize;
        if label >= n_classes || scores[label] <= 0.0 {
            continue;
        }
        let ahead = |class: &usize| {
            scores[*class] > scores[label] || (scores[*class] == scores[label] && *class < label)
        };
        let rank = (0..n_classes).filter(ahead).count();
        first += usize::from(rank == 0);
        five += usize::from(rank < 5);
    }
    let share = |count: usize| count as f64 / truth.len() as f64;
    Accuracy { top1: share(first), top5: share(five) }
}

/// Which class was found for the images of which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    n_classes: usize,
    /// `[C, C]`, true class by found class.
    counts: Vec<u32>,
    /// Images of each class, those that nothing voted for included.
    images: Vec<u32>,
}

impl Confusion {
    /// Counts the classes with the highest scores; of equal scores the lower class is found, as in [`accuracy`].
    ///
    /// `scores` `[Q, C]` as from [`vote`], `truth` `[Q]`; queries whose label is not `< C` are passed over.
    /// # Panics
    /// If the shapes disagree.
    pub fn of(scores: &[f64], n_classes: usize, truth: &[u32]) -> Self {
        assert_eq!(scores.len(), truth.len() * n_classes, "scores are [Q, C] with Q = {}", truth.len());
        let mut counts = vec![0; n_classes * n_classes];
        let mut images = vec![0; n_classes];
        for (query, &label) in truth.iter().enumerate() {
            let (scores, label) = (&scores[query * n_classes..][..n_classes], label as usize);
            if label >= n_classes {
                continue;
            }
            images[label] += 1;
            let best =
                (0..n_classes).reduce(|best, class| if scores[class] > scores[best] { class } else { best });
            if let Some(found) = best.filter(|&class| scores[class] > 0.0) {
                counts[label * n_classes + found] += 1;
            }
        }
        Confusion { n_classes, counts, images }
    }

    /// Number of classes.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// Images of the class `truth` for which `found` was found.
    pub fn count(&self, truth: usize, found: usize) -> u32 {
        self.counts[truth * self.n_classes + found]
    }

    /// Images of the class `truth`.
    pub fn images(&self, truth: usize) -> u32 {
        self.images[truth]
    }

    /// Share of each class's images that was found to be of it; NaN for a class without images.
    pub fn per_class(&self) -> Vec<f64> {
        (0..self.n_classes).map(|c| f64::from(self.count(c, c)) / f64::from(self.images[c])).collect()
    }
}

/// One cell of a [`grid`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GridCell {
    /// Neighbours that voted.
    pub k: usize,
    /// Temperature of their votes.
    pub temperature: f64,
    /// What came of it.
    pub accuracy: Accuracy,
}

/// The accuracy for each k and temperature, k varying slowest, from one search with (at least) the largest k.
///
/// # Panics
/// As [`vote`] and [`accuracy`].
pub fn grid(
    neighbors: &Neighbors,
    labels: &[u32],
    n_classes: usize,
    truth: &[u32],
    ks: &[usize],
    temperatures: &[f64],
) -> Vec<GridCell> {
    let cells = ks.iter().flat_map(|&k| temperatures.iter().map(move |&temperature| (k, temperature)));
    cells
        .map(|(k, temperature)| {
            let accuracy = accuracy_of_votes(neighbors, labels, n_classes, truth, k, temperature);
            GridCell { k, temperature, accuracy }
        })
        .collect()
}

/// [`accuracy`] of [`vote`], without the `[Q, C]` scores in between: a million classes cost no more than ten. Only the
/// classes of a query's neighbours have a vote, at most k of them.
fn accuracy_of_votes(
    neighbors: &Neighbors,
    labels: &[u32],
    n_classes: usize,
    truth: &[u32],
    k: usize,
    temperature: f64,
) -> Accuracy {
    assert!(temperature > 0.0 && temperature.is_finite(), "temperature {temperature}");
    assert_eq!(neighbors.queries, truth.len(), "a true label for each query");
    let rank = |query: usize| {
        let (indices, similarities) = neighbors.of(query);
        let mut scores: HashMap<u32, f64> = HashMap::new();
        for (&index, &similarity) in indices.iter().zip(similarities).take(k) {
            let label = labels[index as usize];
            assert!((label as usize) < n_classes, "label {label} of {n_classes} classes");
            *scores.entry(label).or_default() += ((f64::from(similarity) - 1.0) / temperature).exp();
        }
        let label = truth[query];
        let own = *scores.get(&label).filter(|&&own| own > 0.0)?;
        let ahead = |&(&class, &score): &(&u32, &f64)| score > own || (score == own && class < label);
        Some(scores.iter().filter(ahead).count())
    };
    let ranks: Vec<Option<usize>> = (0..truth.len()).into_par_iter().map(rank).collect();
    let share = |below: usize| {
        let count = ranks.iter().filter(|rank| rank.is_some_and(|rank| rank < below)).count();
        count as f64 / truth.len() as f64
    };
    Accuracy { top1: share(1), top5: share(5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbors() -> Neighbors {
        // Two queries, three neighbours each.
        Neighbors {
            queries: 2,
            k: 3,
            indices: vec![0, 1, 2, 3, 2, 1],
            similarities: vec![0.9, 0.8, 0.7, 0.5, 0.5, 0.1],
        }
    }

    #[test]
    fn votes_are_weighted_by_similarity() {
        let labels = [1, 0, 0, 2];
        let scores = vote(&neighbors(), &labels, 3, 3, 0.1);
        let weight = |s: f32| ((f64::from(s) - 1.0) / 0.1).exp();
        let expected =
            [weight(0.8) + weight(0.7), weight(0.9), 0.0, weight(0.1) + weight(0.5), 0.0, weight(0.5)];
        for (found, expected) in scores.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15);
        }
        // With sharp weights the nearest wins, with flat ones the majority.
        let top1 = |t| accuracy(&vote(&neighbors(), &labels, 3, 3, t), 3, &[1, 2]).top1;
        assert_eq!((top1(0.05), top1(5.0)), (0.5, 0.0));
        assert!(vote(&neighbors(), &labels, 3, 3, 0.001).iter().all(|score| score.is_finite()));
        assert_eq!(vote(&neighbors(), &labels, 3, 99, 0.1), scores);
    }

    /// Drawn neighbours with many equal similarities, few and many classes: as by the scores of every class.
    #[test]
    fn the_grid_is_that_of_the_scores_of_all_classes() {
        use crate::rng::{Purpose, stream};
        use rand::RngExt;
        let mut random = stream(3, Purpose::Test, 0, 0);
        for n_classes in [1usize, 2, 7, 300] {
            let labels: Vec<u32> = (0..50).map(|_| random.random_range(0..n_classes as u32)).collect();
            let (queries, k) = (40, 20);
            let indices = (0..queries * k).map(|_| random.random_range(0..50)).collect();
            let similarities = (0..queries * k).map(|_| random.random_range(-2..=2) as f32 / 2.0).collect();
            let neighbors = Neighbors { queries, k, indices, similarities };
            // A label that no class has is never right.
            let truth: Vec<u32> = (0..queries).map(|_| random.random_range(0..=n_classes as u32)).collect();
            for cell in grid(&neighbors, &labels, n_classes, &truth, &[1, 5, 20, 99], &[0.001, 0.1, 5.0]) {
                let scores = vote(&neighbors, &labels, n_classes, cell.k, cell.temperature);
                assert_eq!(cell.accuracy, accuracy(&scores, n_classes, &truth), "{n_classes} {cell:?}");
            }
        }
    }

    /// Scores of every class for every query would take 80 GB.
    #[test]
    fn a_million_classes_cost_no_more_than_a_few() {
        let n = 1_000_000u32;
        let labels: Vec<u32> = (0..n).collect();
        let indices: Vec<u32> = (0..10_000).collect();
        let neighbors = Neighbors { queries: 10_000, k: 1, similarities: vec![0.5; 10_000], indices };
        let truth: Vec<u32> = (0..10_000).map(|query| query / 2 * 2).collect();
        let cells = grid(&neighbors, &labels, n as usize, &truth, &[1], &[0.1]);
        assert_eq!(cells[0].accuracy, Accuracy { top1: 0.5, top5: 0.5 });
    }

    #[test]
    fn equal_scores_go_to_the_lower_class() {
        let scores = [1.0, 1.0, 0.5];
        assert_eq!(accuracy(&scores, 3, &[0]).top1, 1.0);
        assert_eq!(accuracy(&scores, 3, &[1]).top1, 0.0);
    }

    #[test]
    fn any_number_of_classes_is_safe() {
        assert_eq!(accuracy(&[0.5, 0.1], 2, &[1]), Accuracy { top1: 0.0, top5: 1.0 });
        assert_eq!(accuracy(&[0.5], 1, &[0]), Accuracy { top1: 1.0, top5: 1.0 });
        assert_eq!(accuracy(&[0.5, 0.1], 2, &[7]), Accuracy { top1: 0.0, top5: 0.0 });
        assert!(accuracy(&[], 10, &[]).top1.is_nan());
        let seven = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 0.0];
        assert_eq!(accuracy(&seven, 7, &[4]).top5, 1.0);
        assert_eq!(accuracy(&seven, 7, &[5]).top5, 0.0);
        assert_eq!(accuracy(&[0.0, 0.0], 2, &[0]).top1, 0.0, "nothing voted");
    }

    #[test]
    fn a_confusion_counts_what_was_found() {
        let scores = [0.9, 0.1, 0.0, 0.2, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0, 0.1, 0.3];
        let confusion = Confusion::of(&scores, 3, &[0, 1, 2, 2]);
        let rows: Vec<Vec<u32>> = (0..3).map(|t| (0..3).map(|f| confusion.count(t, f)).collect()).collect();
        assert_eq!(rows, [[1, 0, 0], [1, 0, 0], [0, 0, 1]]);
        assert_eq!((confusion.per_class(), confusion.images(2)), (vec![1.0, 0.0, 0.5], 2));
        let top1 = accuracy(&scores, 3, &[0, 1, 2, 2]).top1;
        assert_eq!(top1, 0.5, "the diagonal is the accuracy");
        assert!(Confusion::of(&[], 2, &[]).per_class().iter().all(|share| share.is_nan()));
    }

    #[test]
    fn a_grid_is_its_cells() {
        let labels = [1, 0, 0, 2];
        let cells = grid(&neighbors(), &labels, 3, &[1, 2], &[1, 3], &[0.05, 5.0]);
        let found: Vec<_> = cells.iter().map(|cell| (cell.k, cell.temperature, cell.accuracy.top1)).collect();
        assert_eq!(found, [(1, 0.05, 1.0), (1, 5.0, 1.0), (3, 0.05, 0.5), (3, 5.0, 0.0)]);
    }
}
