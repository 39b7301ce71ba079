//! Some images of every class, drawn once and for all: by seed and class, not by how many are asked for.

use crate::data::augment::below;
use crate::rng::{Purpose, stream};

/// `share` of the images of each class, rounded, but at least one; ascending positions in `labels`.
///
/// The classes are shuffled once for each `seed` and their first images taken, so that a smaller share is a part of
/// every larger one. Labels `≥ n_classes` are passed over.
pub fn label_fraction(labels: &[u32], n_classes: usize, share: f64, seed: u64) -> Vec<u32> {
    draw(labels, n_classes, Purpose::LabelFraction, seed, |n| rounded(n, share).max(1))
}

/// `share` of the images of each class to be kept back, rounded; at least one, and at least one left, where the class
/// has two or more. Ascending positions in `labels`.
pub fn held_out(labels: &[u32], n_classes: usize, share: f64, seed: u64) -> Vec<u32> {
    draw(labels, n_classes, Purpose::HeldOut, seed, |n| rounded(n, share).max(1).min(n - 1))
}

fn rounded(n: usize, share: f64) -> usize {
    ((n as f64 * share).round() as usize).min(n)
}

fn draw(
    labels: &[u32],
    n_classes: usize,
    purpose: Purpose,
    seed: u64,
    wanted: impl Fn(usize) -> usize,
) -> Vec<u32> {
    let mut classes = vec![Vec::new(); n_classes];
    for (position, &label) in (0u32..).zip(labels) {
        if let Some(class) = classes.get_mut(label as usize) {
            class.push(position);
        }
    }
    let mut drawn = Vec::new();
    for (number, class) in (0u64..).zip(&mut classes).filter(|(_, class)| !class.is_empty()) {
        let mut rng = stream(seed, purpose, number, 0);
        for last in (1..class.len()).rev() {
            class.swap(last, below(&mut rng, last as u32 + 1) as usize);
        }
        drawn.extend_from_slice(&class[..wanted(class.len())]);
    }
    drawn.sort_unstable();
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<u32> {
        // 100 of class 0, 10 of class 1, 1 of class 2, none of class 3.
        (0..111).map(|i| u32::from(i >= 100) + u32::from(i == 110)).collect()
    }

    fn per_class(drawn: &[u32]) -> [usize; 4] {
        let mut counts = [0; 4];
        drawn.iter().for_each(|&i| counts[labels()[i as usize] as usize] += 1);
        counts
    }

    #[test]
    fn every_class_has_its_share_and_at_least_one() {
        assert_eq!(per_class(&label_fraction(&labels(), 4, 0.1, 0)), [10, 1, 1, 0]);
        assert_eq!(per_class(&label_fraction(&labels(), 4, 0.01, 0)), [1, 1, 1, 0]);
        assert_eq!(per_class(&label_fraction(&labels(), 4, 1.0, 0)), [100, 10, 1, 0]);
        assert_eq!(per_class(&held_out(&labels(), 4, 0.1, 0)), [10, 1, 0, 0]);
        assert_eq!(per_class(&held_out(&labels(), 4, 0.999, 0)), [99, 9, 0, 0]);
    }

    #[test]
    fn draws_are_ascending_nested_and_depend_on_the_seed() {
        let draw = |share, seed| label_fraction(&labels(), 4, share, seed);
        let (small, large) = (draw(0.05, 7), draw(0.2, 7));
        assert!(small.is_sorted() && small.iter().all(|i| large.contains(i)));
        assert_eq!(small, draw(0.05, 7));
        assert_ne!(large, draw(0.2, 8));
        assert_eq!(label_fraction(&[9, 9, 0], 1, 1.0, 0), [2], "labels of no class are passed over");
    }
}
