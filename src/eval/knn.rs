//! Weighted k-nearest-neighbour classification (Wu et al. 2018, §3.4): the k most similar bank rows vote for their
//! label with `exp(s/T)`.
//!
//! Shapes: Q queries, N bank rows, D embedding width, C classes; k neighbours (K is for negatives). One
//! [search](nearest) with the largest k serves a whole grid of k and temperatures.

mod coarse;
mod search;

pub use coarse::CoarseRows;
pub use search::{Neighbors, SearchOptions, nearest};

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
            let scores = vote(neighbors, labels, n_classes, k, temperature);
            GridCell { k, temperature, accuracy: accuracy(&scores, n_classes, truth) }
        })
        .collect()
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
