//! Spherical k-means (Dhillon & Modha 2001): centres are unit vectors, and an image belongs to the centre with the
//! largest cosine. Seeded as k-means++ does it (Arthur & Vassilvitskii 2007), by squared distance of unit vectors,
//! `2 − 2·cos`.
//!
//! The result depends on the vectors and the seed, not on the number of threads: every sum is taken in the order of
//! the images.

use rand::{Rng, RngExt};
use rayon::prelude::*;

use crate::bank::kernels::rows::dot16;
use crate::eval::knn::{self, SearchOptions};
use crate::rng::{Purpose, stream};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Rows that are assigned at once, which bounds what the search keeps.
const ASSIGNED_ROWS: usize = 1 << 16;

/// Rows that seeding looks at: that many, evenly spread over all, or [`SEED_ROWS_PER_CLUSTER`] for each cluster.
const SEED_ROWS: usize = 1 << 16;
const SEED_ROWS_PER_CLUSTER: usize = 64;

/// How to cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KMeans {
    /// C.
    pub clusters: usize,
    /// Times it is done from other seeds; the best result is kept.
    pub restarts: usize,
    /// Rounds after which a restart ends at the latest.
    pub max_iterations: usize,
    /// A restart ends when the mean distance falls by less than this share of itself.
    pub tolerance: f64,
    /// What the random choices depend on.
    pub seed: u64,
}

/// Images in groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Clustering {
    /// Unit centres `[C, D]`.
    pub centers: Vec<f32>,
    /// The cluster of each image, `[N]`.
    pub assignment: Vec<u32>,
    /// Each image's cosine distance `1 − cos` from its centre, `[N]`.
    pub distances: Vec<f32>,
    /// The mean of the distances.
    pub mean_distance: f64,
    /// Rounds of the restart that was kept.
    pub iterations: usize,
    /// Whether it ended because nothing improved, not because of the limit.
    pub converged: bool,
}

impl Clustering {
    /// Number of images in each cluster, `[C]`.
    pub fn sizes(&self, clusters: usize) -> Vec<usize> {
        let mut sizes = vec![0; clusters];
        self.assignment.iter().for_each(|&cluster| sizes[cluster as usize] += 1);
        sizes
    }

    /// The `most` images nearest to each centre, nearest first, of equally near ones the lower index first.
    ///
    /// The first is the cluster's medoid, the member with the least sum of cosine distances to all members: that sum
    /// for `x` is `n − x·Σy`, and the centre is `Σy` at unit length. That is so where the last round changed no cluster,
    /// and otherwise as nearly so as it changed little.
    pub fn nearest_members(&self, clusters: usize, most: usize) -> Vec<Vec<u32>> {
        let mut members = vec![Vec::new(); clusters];
        for (image, &cluster) in self.assignment.iter().enumerate() {
            members[cluster as usize].push(image as u32);
        }
        for images in &mut members {
            images.sort_by(|&a, &b| self.distances[a as usize].total_cmp(&self.distances[b as usize]));
            images.truncate(most);
        }
        members
    }
}

impl KMeans {
    /// `clusters` clusters with the usual settings: 3 restarts, at most 100 rounds, tolerance 1e-4.
    pub fn new(clusters: usize, seed: u64) -> Self {
        KMeans { clusters, restarts: 3, max_iterations: 100, tolerance: 1e-4, seed }
    }

    /// Clusters the unit vectors `rows` `[N, dim]`. `progress` hears of each round: restart, round, mean distance.
    ///
    /// # Panics
    /// If there are fewer rows than clusters, no clusters or restarts, or `rows` is not `[N, dim]`.
    pub fn fit(&self, rows: &[f32], dim: usize, progress: &mut dyn FnMut(usize, usize, f64)) -> Clustering {
        assert!(dim > 0 && rows.len().is_multiple_of(dim), "{} numbers are no rows of {dim}", rows.len());
        let n = rows.len() / dim;
        assert!((1..=n).contains(&self.clusters), "{} clusters of {n} images", self.clusters);
        let restarts = (0..self.restarts).map(|restart| {
            let mut rng = stream(self.seed, Purpose::Clusters, restart as u64, self.clusters as u64);
            let centers = seeds(rows, dim, self.clusters, &mut rng);
            self.lloyd(rows, dim, centers, &mut |round, mean| progress(restart, round, mean))
        });
        // The first of equally good ones.
        restarts
            .reduce(|best, next| if next.mean_distance < best.mean_distance { next } else { best })
            .expect("at least one restart")
    }

    /// Assigns and averages in turns, from `centers` `[C, dim]`.
    fn lloyd(
        &self,
        rows: &[f32],
        dim: usize,
        mut centers: Vec<f32>,
        progress: &mut dyn FnMut(usize, f64),
    ) -> Clustering {
        let mut before = f64::INFINITY;
        let mut iterations = 0;
        loop {
            let (mut assignment, mut distances) = assign(rows, dim, &centers);
            fill_empty(rows, dim, &mut assignment, &mut distances, &mut centers);
            let mean_distance = distances.iter().map(|&d| f64::from(d)).sum::<f64>() / distances.len() as f64;
            iterations += 1;
            progress(iterations, mean_distance);
            let converged = before - mean_distance <= self.tolerance * mean_distance;
            if converged || iterations >= self.max_iterations {
                return Clustering { centers, assignment, distances, mean_distance, iterations, converged };
            }
            average(rows, dim, &assignment, &mut centers);
            before = mean_distance;
        }
    }
}

/// The centre nearest to each row, and the cosine distance from it; of equally near centres the lower one.
fn assign(rows: &[f32], dim: usize, centers: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let (mut assignment, mut distances) = (Vec::new(), Vec::new());
    for rows in rows.chunks(ASSIGNED_ROWS * dim) {
        let found = knn::nearest(rows, centers, dim, 1, SearchOptions::default());
        assignment.extend_from_slice(&found.indices);
        // Rounding can take a cosine past 1.
        distances.extend(found.similarities.iter().map(|similarity| (1.0 - similarity).max(0.0)));
    }
    (assignment, distances)
}

/// Gives each empty cluster the image that is farthest from its centre, of those in clusters of more than one, and moves
/// its centre there.
fn fill_empty(rows: &[f32], dim: usize, assignment: &mut [u32], distances: &mut [f32], centers: &mut [f32]) {
    let clusters = centers.len() / dim;
    let mut sizes = vec![0usize; clusters];
    assignment.iter().for_each(|&cluster| sizes[cluster as usize] += 1);
    for empty in 0..clusters {
        if sizes[empty] > 0 {
            continue;
        }
        let farthest = (0..assignment.len())
            .filter(|&image| sizes[assignment[image] as usize] > 1)
            .reduce(|best, image| if distances[image] > distances[best] { image } else { best });
        let Some(image) = farthest else { return };
        sizes[assignment[image] as usize] -= 1;
        sizes[empty] = 1;
        assignment[image] = empty as u32;
        distances[image] = 0.0;
        centers[empty * dim..][..dim].copy_from_slice(&rows[image * dim..][..dim]);
    }
}

/// Moves each centre to the sum of its images, at unit length; one whose images cancel out stays where it is.
fn average(rows: &[f32], dim: usize, assignment: &[u32], centers: &mut [f32]) {
    // Images by cluster, ascending: a counting sort.
    let clusters = centers.len() / dim;
    let mut starts = vec![0usize; clusters + 1];
    assignment.iter().for_each(|&cluster| starts[cluster as usize + 1] += 1);
    (0..clusters).for_each(|cluster| starts[cluster + 1] += starts[cluster]);
    let mut next = starts.clone();
    let mut members = vec![0u32; assignment.len()];
    for (image, &cluster) in assignment.iter().enumerate() {
        members[next[cluster as usize]] = image as u32;
        next[cluster as usize] += 1;
    }
    centers.par_chunks_exact_mut(dim).enumerate().for_each(|(cluster, center)| {
        let mut sum = vec![0.0f64; dim];
        for &image in &members[starts[cluster]..starts[cluster + 1]] {
            let row = &rows[image as usize * dim..][..dim];
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length > 0.0 {
            center.iter_mut().zip(&sum).for_each(|(c, x)| *c = (x / length) as f32);
        }
    });
}

/// First centres: a row at random, then rows drawn with a probability that grows with the squared distance from the
/// centres there are. Of many rows an even selection is looked at.
fn seeds(rows: &[f32], dim: usize, clusters: usize, rng: &mut impl Rng) -> Vec<f32> {
    let all = rows.len() / dim;
    let n = all.min(SEED_ROWS.max(SEED_ROWS_PER_CLUSTER * clusters));
    let row = |j: usize| &rows[j * all / n * dim..][..dim];
    let mut nearest = vec![f32::INFINITY; n];
    let mut centers = Vec::with_capacity(clusters * dim);
    let mut chosen = rng.random_range(0..n);
    loop {
        let center = row(chosen);
        centers.extend_from_slice(center);
        if centers.len() == clusters * dim {
            return centers;
        }
        nearest.par_chunks_mut(256 * LANES).enumerate().for_each(|(chunk, nearest)| {
            for (group, nearest) in nearest.chunks_mut(LANES).enumerate() {
                let first = chunk * 256 * LANES + group * LANES;
                let rows = std::array::from_fn(|r| row(first + r.min(nearest.len() - 1)));
                let cosines = Isa::best().run(Cosines { center, rows: &rows });
                for (nearest, cosine) in nearest.iter_mut().zip(cosines) {
                    *nearest = nearest.min((2.0 - 2.0 * cosine).max(0.0));
                }
            }
        });
        // A row that is a centre is not drawn again, whatever rounding says of its distance.
        nearest[chosen] = 0.0;
        let total: f64 = nearest.iter().map(|&d| f64::from(d)).sum();
        let mut left = rng.random::<f64>() * total;
        // Where all rows are centres already, any will do.
        let last = nearest.iter().rposition(|&d| d > 0.0).unwrap_or(0);
        chosen = nearest
            .iter()
            .position(|&d| {
                left -= f64::from(d);
                d > 0.0 && left < 0.0
            })
            .unwrap_or(last);
    }
}

/// Products of one row with sixteen.
struct Cosines<'a> {
    center: &'a [f32],
    rows: &'a [&'a [f32]; LANES],
}

impl Kernel for Cosines<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
        dot16(simd, self.center, self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::MemoryBank;
    use crate::eval::features::unit_rows;

    /// `clusters` bunches of `each` unit vectors, image by image in turns.
    fn bunches(clusters: usize, each: usize, dim: usize, spread: f32) -> Vec<f32> {
        let (middle, noise) =
            (MemoryBank::random(clusters, dim, 3), MemoryBank::random(clusters * each, dim, 4));
        let mut rows = Vec::new();
        for image in 0..clusters * each {
            let (middle, noise) = (middle.row(image % clusters), noise.row(image));
            rows.extend(middle.iter().zip(&*noise).map(|(m, x)| m + spread * x));
        }
        unit_rows(&mut rows, dim);
        rows
    }

    /// One round of the textbook: every distance, every mean, in double precision.
    fn naive_round(rows: &[f32], dim: usize, centers: &[f64]) -> (Vec<u32>, Vec<f64>) {
        let clusters = centers.len() / dim;
        let mut sums = vec![0.0; centers.len()];
        let mut assignment = Vec::new();
        for row in rows.chunks(dim) {
            let cosine =
                |c: usize| -> f64 { (0..dim).map(|d| f64::from(row[d]) * centers[c * dim + d]).sum() };
            let best = (0..clusters).reduce(|a, b| if cosine(b) > cosine(a) { b } else { a }).unwrap();
            assignment.push(best as u32);
            (0..dim).for_each(|d| sums[best * dim + d] += f64::from(row[d]));
        }
        for sum in sums.chunks_mut(dim) {
            let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
            sum.iter_mut().for_each(|x| *x /= length);
        }
        (assignment, sums)
    }

    #[test]
    fn rounds_are_those_of_the_textbook() {
        let (clusters, dim) = (7, 24);
        let rows = bunches(clusters, 60, dim, 1.2);
        let start = seeds(&rows, dim, clusters, &mut stream(5, Purpose::Test, 0, 0));
        let mut expected: Vec<f64> = start.iter().map(|&x| f64::from(x)).collect();
        for _ in 0..3 {
            expected = naive_round(&rows, dim, &expected).1;
        }
        let settings = KMeans { max_iterations: 4, tolerance: -1.0, ..KMeans::new(clusters, 0) };
        let found = settings.lloyd(&rows, dim, start, &mut |_, _| {});
        let worst =
            found.centers.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-6, "centres differ by {worst:e}");
        assert_eq!(found.assignment, naive_round(&rows, dim, &expected).0);
        assert_eq!((found.iterations, found.converged), (4, false));
    }

    #[test]
    fn bunches_are_found_whatever_the_threads() {
        let (clusters, dim) = (10, 16);
        let rows = bunches(clusters, 50, dim, 0.2);
        let fit = || KMeans::new(clusters, 1).fit(&rows, dim, &mut |_, _, _| {});
        let found = fit();
        assert!(found.converged);
        for image in 0..rows.len() / dim {
            assert_eq!(found.assignment[image], found.assignment[image % clusters]);
        }
        assert_eq!(found.sizes(clusters), vec![50; clusters]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(found, pool.install(fit));
        // The medoid by its definition.
        for members in found.nearest_members(clusters, 50) {
            let cosine = |a: u32, b: u32| -> f64 {
                (0..dim)
                    .map(|d| f64::from(rows[a as usize * dim + d]) * f64::from(rows[b as usize * dim + d]))
                    .sum()
            };
            let total = |&a: &u32| members.iter().map(|&b| 1.0 - cosine(a, b)).sum::<f64>();
            let least = members.iter().map(total).fold(f64::INFINITY, f64::min);
            assert!(total(&members[0]) - least < 1e-5);
        }
    }

    #[test]
    fn the_mean_distance_falls_and_the_best_restart_is_kept() {
        let rows = bunches(12, 30, 8, 1.0);
        let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); 4];
        let settings = KMeans { restarts: 4, ..KMeans::new(12, 9) };
        let found = settings.fit(&rows, 8, &mut |restart, _, mean| rounds[restart].push(mean));
        for means in &rounds {
            assert!(means.windows(2).all(|pair| pair[1] <= pair[0] + 1e-6), "{means:?}");
        }
        let least = rounds.iter().map(|means| *means.last().unwrap()).fold(f64::INFINITY, f64::min);
        assert!(found.mean_distance <= least + 1e-6);
    }

    #[test]
    fn no_cluster_stays_empty_while_there_are_images_for_it() {
        let rows = bunches(3, 10, 6, 0.3);
        let mut assignment = vec![0; 30];
        let mut distances: Vec<f32> = (0..30).map(|i| i as f32).collect();
        let mut centers = vec![0.0; 4 * 6];
        fill_empty(&rows, 6, &mut assignment, &mut distances, &mut centers);
        assert_eq!(centers[6..12], rows[29 * 6..]);
        assert_eq!((assignment[29], assignment[28], assignment[27], assignment[26]), (1, 2, 3, 0));
        let all = KMeans::new(30, 0).fit(&rows, 6, &mut |_, _, _| {});
        assert!(all.sizes(30).iter().all(|&size| size == 1), "{:?}", all.sizes(30));
        // More clusters than distinct vectors: some stay empty, and it ends.
        let same = [1.0, 0.0].repeat(5);
        let found = KMeans::new(3, 0).fit(&same, 2, &mut |_, _, _| {});
        assert_eq!(found.sizes(3).iter().sum::<usize>(), 5);
        assert!(found.mean_distance < 1e-6);
        assert_eq!(KMeans::new(1, 0).fit(&same, 2, &mut |_, _, _| {}).assignment, [0; 5]);
    }
}
