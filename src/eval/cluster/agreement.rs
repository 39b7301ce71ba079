//! How well clusters agree with labels that they did not know.

use serde::Serialize;

/// Measures of agreement, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Share of images whose label is the most frequent one of their cluster. It grows with the number of clusters, to
    /// 1 where each image is a cluster of its own.
    pub purity: f64,
    /// Mutual information of cluster and label over the mean of their entropies, as scikit-learn's
    /// `normalized_mutual_info_score` has it by default; 1 where both are the same grouping.
    pub nmi: f64,
}

/// Compares clusters `[N]` with labels `[N]`. NaN without images.
///
/// # Panics
/// If the lengths differ.
pub fn agreement(clusters: &[u32], labels: &[u32]) -> Agreement {
    assert_eq!(clusters.len(), labels.len(), "a cluster and a label for each image");
    let n = labels.len() as f64;
    let n_labels = labels.iter().max().map_or(0, |&most| most as usize + 1);
    let n_clusters = clusters.iter().max().map_or(0, |&most| most as usize + 1);
    let mut joint = vec![0u64; n_clusters * n_labels];
    for (&cluster, &label) in clusters.iter().zip(labels) {
        joint[cluster as usize * n_labels + label as usize] += 1;
    }
    let mut of_cluster = vec![0; n_clusters];
    let mut of_label = vec![0; n_labels];
    let mut purest = 0;
    for (cluster, row) in joint.chunks(n_labels.max(1)).enumerate() {
        of_cluster[cluster] = row.iter().sum();
        of_label.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
        purest += row.iter().max().copied().unwrap_or(0);
    }
    let entropy = |counts: &[u64]| -> f64 {
        counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / n).map(|p| -p * p.ln()).sum()
    };
    let (of_clusters, of_labels) = (entropy(&of_cluster), entropy(&of_label));
    let information = of_clusters + of_labels - entropy(&joint);
    let nmi = match (labels.is_empty(), of_clusters + of_labels) {
        (true, _) => f64::NAN,
        // One cluster and one label are the same grouping.
        (false, 0.0) => 1.0,
        (false, both) => (2.0 * information / both).clamp(0.0, 1.0),
    };
    Agreement { purity: purest as f64 / n, nmi }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: Agreement, purity: f64, nmi: f64) {
        assert!((found.purity - purity).abs() < 1e-12 && (found.nmi - nmi).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn known_cases() {
        close(agreement(&[1, 1, 0, 0], &[5, 5, 2, 2]), 1.0, 1.0);
        close(agreement(&[0, 0, 0, 0], &[0, 1, 0, 1]), 0.5, 0.0);
        close(agreement(&[0, 1, 0, 1], &[0, 0, 1, 1]), 0.5, 0.0);
        close(agreement(&[3, 3], &[7, 7]), 1.0, 1.0);
        // Clusters split each label in two: all of the label's entropy is found, over half as much again.
        close(agreement(&[0, 1, 2, 3], &[0, 0, 1, 1]), 1.0, 2.0 / 3.0);
        assert!(agreement(&[], &[]).nmi.is_nan());
    }
}
