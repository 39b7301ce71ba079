//! Which queries are shown.

use std::collections::HashMap;

use super::retrievals::Retrievals;
use crate::data::augment::below;
use crate::rng::{Purpose, stream};

/// Of `queries`, positions in `labels`, the first `n` when the classes take turns: the first query of each class, then
/// the second of each. Within a class they keep their order.
///
/// # Panics
/// If there is no such position.
pub fn by_turns(labels: &[u32], queries: impl IntoIterator<Item = usize>, n: usize) -> Vec<usize> {
    let mut seen = HashMap::new();
    let mut turns: Vec<(usize, u32, usize)> = queries
        .into_iter()
        .map(|query| {
            let turn = seen.entry(labels[query]).or_insert(0usize);
            *turn += 1;
            (*turn, labels[query], query)
        })
        .collect();
    turns.sort_unstable();
    turns.into_iter().take(n).map(|(_, _, query)| query).collect()
}

/// The queries of a page, positions among all that were asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Without labels there is no telling which succeeded.
    All(Vec<usize>),
    /// Sampled apart: those whose nearest image under the first describer is of their class, and those whose is not.
    Apart {
        /// Nearest image of the same class.
        successes: Vec<usize>,
        /// Nearest image of another class.
        failures: Vec<usize>,
    },
}

impl Shown {
    /// All of them, successes first.
    pub fn all(&self) -> impl Iterator<Item = usize> + '_ {
        let (first, second): (&[usize], &[usize]) = match self {
            Shown::All(all) => (all, &[]),
            Shown::Apart { successes, failures } => (successes, failures),
        };
        first.iter().chain(second).copied()
    }

    /// Number of queries shown.
    pub fn len(&self) -> usize {
        self.all().count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Chooses `n` queries to show: half of them successes and half failures, as far as there are so many (the others make
/// up for it), each half drawn at random by `seed` with the classes taking turns. Without labels: the first `n`.
pub fn choose(retrievals: &Retrievals<'_>, n: usize, seed: u64) -> Shown {
    let queries = retrievals.indices.len();
    let Some(labels) = retrievals.labels else { return Shown::All((0..queries.min(n)).collect()) };
    let order = shuffled(queries, seed);
    let (successes, failures): (Vec<usize>, Vec<usize>) =
        order.into_iter().partition(|&query| retrievals.success(query) == Some(true));
    let n_failures = failures.len().min((n / 2).max(n.saturating_sub(successes.len())));
    let n_successes = successes.len().min(n - n_failures);
    Shown::Apart {
        successes: by_turns(labels, successes, n_successes),
        failures: by_turns(labels, failures, n_failures),
    }
}

/// 0 to `n` − 1 in an order that depends on `seed` alone.
pub fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut rng = stream(seed, Purpose::Queries, 0, 0);
    for last in (1..n).rev() {
        order.swap(last, below(&mut rng, last as u32 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::detect::{self, OpenOptions};
    use crate::eval::knn::Neighbors;
    use crate::gallery::retrievals::Results;

    #[test]
    fn queries_take_turns_through_the_classes() {
        assert_eq!(by_turns(&[2, 2, 0, 1, 0], 0..5, 4), [2, 3, 0, 4]);
        assert_eq!(by_turns(&[2, 2, 0, 1, 0], [4, 3, 2, 1, 0], 4), [4, 3, 1, 2]);
        assert_eq!(by_turns(&[7], 0..1, 4), [0]);
    }

    #[test]
    fn successes_and_failures_are_chosen_apart() {
        let splits = detect::open("synthetic:64x16".as_ref(), None, &OpenOptions::default()).unwrap();
        let truth: Vec<u32> = splits.train.labels().unwrap()[..20].to_vec();
        // Query q finds itself first if it is even, and otherwise an image of another class.
        let other =
            |q: u32| (0..64).find(|&i| splits.train.label(i as usize) != Some(truth[q as usize])).unwrap();
        let indices: Vec<u32> = (0..20).collect();
        let found = indices.iter().map(|&q| if q % 2 == 0 { q } else { other(q) }).collect();
        let neighbors = Neighbors { queries: 20, k: 1, indices: found, similarities: vec![1.0; 20] };
        let results = vec![Results { name: String::new(), about: String::new(), neighbors }];
        let (asked, train) = (&splits.train, &splits.train);
        let mut retrievals = Retrievals { asked, indices: &indices, labels: Some(&truth), train, results };
        let Shown::Apart { successes, failures } = choose(&retrievals, 6, 1) else {
            panic!("there are labels")
        };
        assert!(successes.len() == 3 && successes.iter().all(|q| q % 2 == 0), "{successes:?}");
        assert!(failures.len() == 3 && failures.iter().all(|q| q % 2 == 1), "{failures:?}");
        assert_ne!(choose(&retrievals, 6, 1), choose(&retrievals, 6, 2));
        let sizes = |n| match choose(&retrievals, n, 1) {
            Shown::Apart { successes, failures } => (successes.len(), failures.len()),
            Shown::All(_) => panic!("there are labels"),
        };
        assert_eq!((sizes(1), sizes(7), sizes(100)), ((1, 0), (4, 3), (10, 10)));
        retrievals.results[0].neighbors.indices = indices.clone();
        let all = choose(&retrievals, 6, 1);
        assert_eq!(all.len(), 6, "successes make up for missing failures");
        retrievals.labels = None;
        assert_eq!(choose(&retrievals, 3, 1), Shown::All(vec![0, 1, 2]));
    }
}
