//! The first principal components of a set of vectors: the plane in which they spread most.
//!
//! Shapes: n vectors, D their width, c components. Arithmetic is in `f64`, and sums are taken in an order that does
//! not depend on the number of threads: the same vectors give the same plane, sign included.

use rayon::prelude::*;

/// Vectors whose products are added up by one task.
const CHUNK: usize = 512;
/// Directions iterated besides those asked for: what is asked for then converges with the gap to the next ones.
const SPARE: usize = 6;
/// Iterations at most. Directions that spread equally never settle, and any of them will do.
const ITERATIONS: usize = 400;
/// Relative change of the variances at which the iteration ends.
const TOLERANCE: f64 = 1e-12;

/// Directions of greatest spread, and how much of it each has.
#[derive(Clone, Debug)]
pub struct Pca {
    dim: usize,
    /// `[D]`.
    mean: Vec<f64>,
    /// `[c, D]`, orthonormal rows.
    components: Vec<f64>,
    /// The share of the total variance along each component `[c]`, 0 to 1, falling.
    pub explained: Vec<f64>,
}

impl Pca {
    /// The first `n_components` principal components of `rows` `[n, dim]`, or `dim` of them if that is fewer.
    ///
    /// Block power iteration on the covariance matrix (D × D), with the small eigenproblem solved by Jacobi rotations.
    /// Each component points to where its largest number is positive. Rows that are not finite are passed over.
    ///
    /// # Panics
    /// If `dim` is 0 or `rows` is not `[n, dim]`.
    pub fn fit(rows: &[f32], dim: usize, n_components: usize) -> Self {
        assert!(dim > 0 && rows.len().is_multiple_of(dim), "{} numbers are no rows of {dim}", rows.len());
        let (mean, covariance) = moments(rows, dim);
        let total: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
        let n_components = n_components.min(dim);
        let block = (n_components + SPARE).min(dim);
        let mut basis = start(block, dim);
        let mut variances = vec![0.0; block];
        for _ in 0..ITERATIONS {
            let mut next: Vec<f64> =
                basis.chunks_exact(dim).flat_map(|vector| product(&covariance, vector)).collect();
            orthonormalise(&mut next, dim);
            // Within the space that the block spans, the best directions are those of the small matrix.
            let image: Vec<f64> =
                next.chunks_exact(dim).flat_map(|vector| product(&covariance, vector)).collect();
            let mut small = vec![0.0; block * block];
            for i in 0..block {
                for j in 0..block {
                    small[i * block + j] = dot(&next[i * dim..][..dim], &image[j * dim..][..dim]);
                }
            }
            let (values, rotation) = jacobi(small, block);
            basis = combine(&rotation, &next, dim);
            let settled = values
                .iter()
                .zip(&variances)
                .take(n_components)
                .all(|(now, before)| (now - before).abs() <= TOLERANCE * total);
            variances = values;
            if settled {
                break;
            }
        }
        basis.truncate(n_components * dim);
        for component in basis.chunks_exact_mut(dim) {
            let largest = component.iter().fold(0.0f64, |a, &b| if b.abs() > a.abs() { b } else { a });
            if largest < 0.0 {
                component.iter_mut().for_each(|x| *x = -*x);
            }
        }
        let share = |variance: &f64| if total > 0.0 { (variance / total).clamp(0.0, 1.0) } else { 0.0 };
        let explained = variances[..n_components].iter().map(share).collect();
        Pca { dim, mean, components: basis, explained }
    }

    /// Where `row` `[D]` lies along each component, `[c]`, from the mean.
    ///
    /// # Panics
    /// If `row` has another width.
    pub fn project(&self, row: &[f32]) -> Vec<f64> {
        assert_eq!(row.len(), self.dim, "a row of the width that the components have");
        let centred: Vec<f64> = row.iter().zip(&self.mean).map(|(&x, mean)| f64::from(x) - mean).collect();
        self.components.chunks_exact(self.dim).map(|component| dot(component, &centred)).collect()
    }
}

/// Mean `[D]` and covariance `[D, D]` of the finite rows.
fn moments(rows: &[f32], dim: usize) -> (Vec<f64>, Vec<f64>) {
    let finite = |row: &&[f32]| row.iter().all(|x| x.is_finite());
    let mut mean = vec![0.0; dim];
    let mut count = 0usize;
    for row in rows.chunks_exact(dim).filter(finite) {
        count += 1;
        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let n = count.max(1) as f64;
    mean.iter_mut().for_each(|sum| *sum /= n);
    let parts: Vec<Vec<f64>> = rows
        .par_chunks(CHUNK * dim)
        .map(|part| {
            let mut products = vec![0.0; dim * dim];
            let mut centred = vec![0.0; dim];
            for row in part.chunks_exact(dim).filter(finite) {
                for ((centred, &x), mean) in centred.iter_mut().zip(row).zip(&mean) {
                    *centred = f64::from(x) - mean;
                }
                for (i, products) in products.chunks_exact_mut(dim).enumerate() {
                    let factor = centred[i];
                    // The other half is the same by symmetry.
                    products[..=i].iter_mut().zip(&centred).for_each(|(p, x)| *p += factor * x);
                }
            }
            products
        })
        .collect();
    let mut covariance = vec![0.0; dim * dim];
    for part in parts {
        covariance.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    for i in 0..dim {
        for j in 0..=i {
            let value = covariance[i * dim + j] / n;
            covariance[i * dim + j] = value;
            covariance[j * dim + i] = value;
        }
    }
    (mean, covariance)
}

/// `block` directions that no data set is likely to be orthogonal to, always the same ones.
fn start(block: usize, dim: usize) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut basis: Vec<f64> = (0..block * dim)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
        })
        .collect();
    orthonormalise(&mut basis, dim);
    basis
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `matrix [D, D] · vector [D]`.
fn product(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(vector.len()).map(|row| dot(row, vector)).collect()
}

/// `rotation [c, c] · vectors [c, D]`.
fn combine(rotation: &[f64], vectors: &[f64], dim: usize) -> Vec<f64> {
    let count = vectors.len() / dim;
    let mut combined = vec![0.0; vectors.len()];
    for (weights, out) in rotation.chunks_exact(count).zip(combined.chunks_exact_mut(dim)) {
        for (weight, vector) in weights.iter().zip(vectors.chunks_exact(dim)) {
            out.iter_mut().zip(vector).for_each(|(out, x)| *out += weight * x);
        }
    }
    combined
}

/// Gram and Schmidt, twice, since once leaves rounding behind. A vector that depends on those before it becomes an
/// axis that does not.
fn orthonormalise(vectors: &mut [f64], dim: usize) {
    for i in 0..vectors.len() / dim {
        let (before, rest) = vectors.split_at_mut(i * dim);
        let vector = &mut rest[..dim];
        let mut length = dot(vector, vector).sqrt();
        for axis in 0..=dim {
            let floor = 1e-10 * length;
            for _ in 0..2 {
                for other in before.chunks_exact(dim) {
                    let along = dot(vector, other);
                    vector.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
                }
            }
            let left = dot(vector, vector).sqrt();
            if left > floor && left > 0.0 {
                vector.iter_mut().for_each(|x| *x /= left);
                break;
            }
            vector.fill(0.0);
            vector[axis % dim] = 1.0;
            length = 1.0;
        }
    }
}

/// Eigenvalues of a symmetric `[n, n]` matrix, falling, and its eigenvectors in rows, by cyclic Jacobi rotations.
fn jacobi(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..60 {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        let scale: f64 = (0..n).map(|i| a[i * n + i].powi(2)).sum();
        if off <= 1e-30 * scale {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let apq = a[p * n + q];
                if apq == 0.0 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                let rotate = |x: &mut f64, y: &mut f64| (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                for k in 0..n {
                    let (mut x, mut y) = (a[k * n + p], a[k * n + q]);
                    rotate(&mut x, &mut y);
                    (a[k * n + p], a[k * n + q]) = (x, y);
                }
                for matrix in [&mut a, &mut vectors] {
                    let (upper, lower) = matrix.split_at_mut(q * n);
                    upper[p * n..][..n].iter_mut().zip(&mut lower[..n]).for_each(|(x, y)| rotate(x, y));
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]).then(i.cmp(&j)));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    (values, order.iter().flat_map(|&i| vectors[i * n..][..n].to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::MemoryBank;

    /// Random rows that spread differently along each axis, and then the axes mixed.
    fn spread(n: usize, dim: usize) -> Vec<f32> {
        let noise = MemoryBank::random(n, dim, 3);
        let mixing = MemoryBank::random(dim, dim, 4);
        let mut rows = Vec::new();
        for row in noise.rows().chunks_exact(dim) {
            let scaled: Vec<f32> = row.iter().enumerate().map(|(i, x)| x * 0.8f32.powi(i as i32)).collect();
            rows.extend(
                mixing
                    .rows()
                    .chunks_exact(dim)
                    .map(|axis| 0.25 + axis.iter().zip(&scaled).map(|(a, b)| a * b).sum::<f32>()),
            );
        }
        rows
    }

    /// The covariance by its definition, and all its eigenvalues by Jacobi rotations of the whole matrix.
    fn oracle(rows: &[f32], dim: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let n = (rows.len() / dim) as f64;
        let at = |r: usize, i: usize| f64::from(rows[r * dim + i]);
        let mean: Vec<f64> = (0..dim).map(|i| (0..n as usize).map(|r| at(r, i)).sum::<f64>() / n).collect();
        let mut covariance = vec![0.0; dim * dim];
        for i in 0..dim {
            for j in 0..dim {
                let sum: f64 = (0..n as usize).map(|r| (at(r, i) - mean[i]) * (at(r, j) - mean[j])).sum();
                covariance[i * dim + j] = sum / n;
            }
        }
        let (values, vectors) = jacobi(covariance.clone(), dim);
        (covariance, values, vectors)
    }

    #[test]
    fn components_are_the_eigenvectors_of_the_covariance() {
        for (n, dim) in [(1500, 24), (40, 3), (5, 40)] {
            let rows = spread(n, dim);
            let (covariance, values, vectors) = oracle(&rows, dim);
            let total: f64 = values.iter().sum();
            let pca = Pca::fit(&rows, dim, 2);
            for c in 0..2 {
                let component = &pca.components[c * dim..][..dim];
                let image = product(&covariance, component);
                let residual: f64 =
                    image.iter().zip(component).map(|(a, b)| (a - values[c] * b).powi(2)).sum::<f64>().sqrt();
                assert!(residual < 1e-6 * total, "C·v is λ·v to {residual:e} of {total} (n={n}, D={dim})");
                assert!((dot(component, &vectors[c * dim..][..dim]).abs() - 1.0).abs() < 1e-8);
                assert!((pca.explained[c] - values[c] / total).abs() < 1e-9);
            }
            assert!(dot(&pca.components[..dim], &pca.components[dim..]).abs() < 1e-12);
        }
    }

    #[test]
    fn projections_are_centred_and_have_the_variances() {
        let (n, dim) = (1500, 24);
        let rows = spread(n, dim);
        let (_, values, _) = oracle(&rows, dim);
        let pca = Pca::fit(&rows, dim, 2);
        let places: Vec<Vec<f64>> = rows.chunks_exact(dim).map(|row| pca.project(row)).collect();
        for c in 0..2 {
            let mean = places.iter().map(|p| p[c]).sum::<f64>() / n as f64;
            let variance = places.iter().map(|p| p[c] * p[c]).sum::<f64>() / n as f64;
            assert!(mean.abs() < 1e-9 && (variance / values[c] - 1.0).abs() < 1e-6, "{mean:e} {variance}");
        }
    }

    #[test]
    fn the_same_plane_whatever_the_threads_and_no_harm_from_odd_data() {
        let rows = spread(1500, 24);
        let fit = || Pca::fit(&rows, 24, 2).components;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(fit(), pool.install(fit));
        let mut broken = rows.clone();
        broken.extend([f32::NAN; 24]);
        assert_eq!(Pca::fit(&broken, 24, 2).components, fit());
        for (rows, dim) in [(vec![], 3), (vec![1.0; 12], 3), (vec![1.0, 2.0, 4.0], 1)] {
            let pca = Pca::fit(&rows, dim, 2);
            assert_eq!(pca.explained.len(), dim.min(2));
            let place = pca.project(&vec![1.0; dim]);
            assert!(place.iter().chain(&pca.explained).all(|x| x.is_finite()), "{place:?}");
        }
    }
}
