//! The noise distribution that negatives are drawn from (Wu et al. 2018, §3.2): uniform over all rows, or any
//! weights by the alias method (Walker 1977, Vose 1991), one draw in constant time either way.
//!
//! The negatives of row b at step t come from their own random stream, so neither the number of threads nor the
//! order of work can change them.

use crate::error::{Error, Result};
use crate::rng::{self, Purpose};
use crate::simd::LANES;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// A distribution over the rows `0..n`.
#[derive(Clone, Debug)]
pub enum Noise {
    /// Every row alike.
    Uniform {
        /// Number of rows N.
        n: u32,
    },
    /// Any weights.
    Weighted(AliasTable),
}

impl Noise {
    /// Uniform over the `n` rows that are not `excluded` (quarantined rows), which are never drawn.
    ///
    /// # Errors
    /// If nothing is left to draw.
    pub fn uniform_except(n: u32, excluded: &[u32]) -> Result<Noise> {
        if excluded.is_empty() && n > 0 {
            return Ok(Noise::Uniform { n });
        }
        let mut weights = vec![1.0; n as usize];
        for &row in excluded {
            weights[row as usize] = 0.0;
        }
        Ok(Noise::Weighted(AliasTable::new(&weights)?))
    }

    /// Number of rows N, those of weight 0 included.
    #[allow(clippy::len_without_is_empty)] // A distribution over nothing cannot be made.
    pub fn len(&self) -> usize {
        match self {
            Noise::Uniform { n } => *n as usize,
            Noise::Weighted(table) => table.columns.len(),
        }
    }

    /// The probability of drawing row `i`.
    ///
    /// # Panics
    /// If `i ≥ N`.
    pub fn probability(&self, i: u32) -> f64 {
        match self {
            Noise::Uniform { n } => {
                assert!(i < *n, "row {i} of {n}");
                1.0 / f64::from(*n)
            }
            Noise::Weighted(table) => f64::from(table.probabilities[i as usize]),
        }
    }

    /// Fills `indices` with independent draws, with replacement. How the draws are cut into calls does not matter.
    pub fn draw_into(&self, rng: &mut impl Rng, indices: &mut [u32]) {
        match self {
            Noise::Uniform { n } => indices.iter_mut().for_each(|index| *index = below(*n, rng)),
            Noise::Weighted(table) => indices.iter_mut().for_each(|index| *index = table.draw(rng)),
        }
    }
}

/// A number in `0..n`, each exactly as likely (Lemire 2019): a multiplication, and a rare second try.
#[inline]
fn below(n: u32, rng: &mut impl Rng) -> u32 {
    let mut product = u64::from(rng.next_u32()) * u64::from(n);
    if (product as u32) < n {
        let threshold = n.wrapping_neg() % n;
        while (product as u32) < threshold {
            product = u64::from(rng.next_u32()) * u64::from(n);
        }
    }
    (product >> 32) as u32
}

/// Draws from any weights in constant time: N equally likely columns, each shared by at most two rows.
#[derive(Clone, Debug)]
pub struct AliasTable {
    columns: Vec<Column>,
    probabilities: Vec<f32>,
}

/// The column's own row takes `threshold` of 2³² of it; the rest is `alias`'s.
#[derive(Clone, Copy, Debug)]
struct Column {
    threshold: u32,
    alias: u32,
}

impl AliasTable {
    /// The table of `weights` `[N]`, which need not add up to 1; built in O(N).
    ///
    /// # Errors
    /// If there are no weights or 2³² or more, one is negative or not finite, or all are 0.
    pub fn new(weights: &[f64]) -> Result<Self> {
        let n =
            u32::try_from(weights.len()).map_err(|_| Error::usage("too many noise weights for 32 bits"))?;
        if let Some(i) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
            let message = format!("noise weight {i} is {}; weights are finite and not negative", weights[i]);
            return Err(Error::usage(message));
        }
        let total: f64 = weights.iter().sum();
        if !(total > 0.0 && total.is_finite()) {
            return Err(Error::usage(format!(
                "{n} noise weights add up to {total}; their sum must be positive"
            )));
        }
        // In units of one column; below 1 a row leaves room, above it needs room elsewhere.
        let mut share: Vec<f64> = weights.iter().map(|w| w / total * f64::from(n)).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) = (0..n).partition(|&i| share[i as usize] < 1.0);
        let mut columns: Vec<Column> = (0..n).map(|i| Column { threshold: u32::MAX, alias: i }).collect();
        while let (Some(&donor), Some(row)) = (large.last(), small.pop()) {
            let filled = share[row as usize];
            columns[row as usize] = Column { threshold: (filled * 2f64.powi(32)) as u32, alias: donor };
            share[donor as usize] -= 1.0 - filled;
            if share[donor as usize] < 1.0 {
                small.extend(large.pop());
            }
        }
        // Rounding may leave rows that are full but for an error, and keep their column; a row of weight 0 among
        // them would be drawn.
        let heaviest =
            (0..n).max_by(|&a, &b| weights[a as usize].total_cmp(&weights[b as usize])).unwrap_or(0);
        for row in small.into_iter().filter(|&row| weights[row as usize] == 0.0) {
            columns[row as usize] = Column { threshold: 0, alias: heaviest };
        }
        Ok(AliasTable { columns, probabilities: weights.iter().map(|w| (w / total) as f32).collect() })
    }

    #[inline]
    fn draw(&self, rng: &mut impl Rng) -> u32 {
        let row = below(self.columns.len() as u32, rng);
        let column = self.columns[row as usize];
        if rng.next_u32() < column.threshold { row } else { column.alias }
    }
}

/// The negatives of a batch: K row numbers for each of its B rows. A negative may equal the positive, as published.
#[derive(Clone, Copy, Debug)]
pub enum Negatives<'a> {
    /// As listed, `[B, K]`.
    Given(&'a [u32]),
    /// Drawn while they are used, so that nothing of size B·K is stored.
    Drawn {
        /// Where from.
        noise: &'a Noise,
        /// The run's seed.
        seed: u64,
        /// The optimiser step, counted from the start of the run.
        step: u64,
        /// K, per batch row.
        k: usize,
    },
}

impl<'a> Negatives<'a> {
    /// K for a batch of `batch` rows.
    ///
    /// # Panics
    /// If a given list is no multiple of `batch`.
    pub fn per_row(&self, batch: usize) -> usize {
        match self {
            Negatives::Given(indices) => {
                assert!(indices.len().is_multiple_of(batch), "{} negatives for {batch} rows", indices.len());
                indices.len() / batch
            }
            Negatives::Drawn { k, .. } => *k,
        }
    }

    /// The negatives of batch row `row` of `batch`, sixteen at a time.
    pub(crate) fn of_row(&self, row: usize, batch: usize) -> RowNegatives<'a> {
        let k = self.per_row(batch);
        match *self {
            Negatives::Given(indices) => RowNegatives::Given(&indices[row * k..][..k]),
            Negatives::Drawn { noise, seed, step, k } => RowNegatives::Drawn {
                noise,
                rng: rng::stream(seed, Purpose::Noise, step, row as u64),
                left: k,
            },
        }
    }
}

/// The negatives of one batch row that have not been used yet.
#[allow(clippy::large_enum_variant)] // One at a time, on the stack.
pub(crate) enum RowNegatives<'a> {
    Given(&'a [u32]),
    Drawn { noise: &'a Noise, rng: ChaCha8Rng, left: usize },
}

impl RowNegatives<'_> {
    /// The next ones, and how many: 16, fewer at the end, then 0.
    #[inline]
    pub(crate) fn next(&mut self, block: &mut [u32; LANES]) -> usize {
        match self {
            RowNegatives::Given(indices) => {
                let (now, later) = indices.split_at(indices.len().min(LANES));
                block[..now.len()].copy_from_slice(now);
                *indices = later;
                now.len()
            }
            RowNegatives::Drawn { noise, rng, left } => {
                let count = LANES.min(*left);
                noise.draw_into(rng, &mut block[..count]);
                *left -= count;
                count
            }
        }
    }
}

/// The negatives `[batch, k]` of a step, stored: exactly those of [`Negatives::Drawn`].
pub fn draw_negatives(noise: &Noise, seed: u64, step: u64, batch: usize, k: usize) -> Vec<u32> {
    let mut indices = vec![0; batch * k];
    if k > 0 {
        indices.par_chunks_exact_mut(k).enumerate().for_each(|(row, indices)| {
            noise.draw_into(&mut rng::stream(seed, Purpose::Noise, step, row as u64), indices);
        });
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(noise: &Noise, draws: usize) -> Vec<f64> {
        let mut indices = vec![0; draws];
        noise.draw_into(&mut rng::stream(5, Purpose::Test, 0, 0), &mut indices);
        let mut counts = vec![0.0; noise.len()];
        indices.iter().for_each(|&i| counts[i as usize] += 1.0);
        counts
    }

    /// Pearson's statistic, in standard deviations from its mean.
    fn surprise(noise: &Noise, draws: usize) -> f64 {
        let counts = histogram(noise, draws);
        let mut cells = -1.0;
        let mut statistic = 0.0;
        for (i, count) in counts.iter().enumerate() {
            let expected = noise.probability(i as u32) * draws as f64;
            if expected == 0.0 {
                assert_eq!(*count, 0.0, "row {i} has weight 0");
                continue;
            }
            cells += 1.0;
            statistic += (count - expected).powi(2) / expected;
        }
        (statistic - cells) / (2.0 * f64::max(cells, 1.0)).sqrt()
    }

    #[test]
    fn draws_follow_the_distribution() {
        for n in [1, 2, 7, 1000] {
            assert!(surprise(&Noise::Uniform { n }, 200_000).abs() < 4.5, "uniform over {n}");
        }
        let tables: [&[f64]; 6] = [
            &[1.0],
            &[0.0, 3.0],
            &[1.0, 2.0, 3.0, 4.0],
            &[0.0, 0.0, 1e-3, 5.0, 0.0],
            &[0.1; 30],
            &[1e300, 1e300 / 3.0],
        ];
        for weights in tables {
            let noise = Noise::Weighted(AliasTable::new(weights).unwrap());
            assert!(surprise(&noise, 200_000).abs() < 4.5, "{weights:?}");
        }
        let zipf: Vec<f64> = (0..5000).map(|i| if i % 7 == 0 { 0.0 } else { 1.0 / f64::from(i) }).collect();
        assert!(surprise(&Noise::Weighted(AliasTable::new(&zipf).unwrap()), 2_000_000).abs() < 4.5);
    }

    #[test]
    fn excluded_rows_are_never_drawn() {
        let noise = Noise::uniform_except(10, &[0, 3, 9]).unwrap();
        assert!(surprise(&noise, 100_000).abs() < 4.5);
        assert_eq!((noise.probability(3), noise.len()), (0.0, 10));
        assert!((noise.probability(1) - 1.0 / 7.0).abs() < 1e-7);
        assert!(matches!(Noise::uniform_except(10, &[]).unwrap(), Noise::Uniform { n: 10 }));
        assert!(Noise::uniform_except(2, &[0, 1]).is_err());
    }

    #[test]
    fn impossible_weights_are_refused() {
        for weights in
            [&[][..], &[0.0, 0.0], &[1.0, -1.0], &[f64::NAN], &[f64::INFINITY, 1.0], &[1e308, 1e308]]
        {
            assert!(AliasTable::new(weights).is_err(), "{weights:?}");
        }
    }

    #[test]
    fn stored_and_streamed_negatives_are_the_same_whatever_the_threads() {
        let uniform = Noise::Uniform { n: 977 };
        let weighted = Noise::uniform_except(977, &[5, 6]).unwrap();
        for noise in [&uniform, &weighted] {
            let (batch, k) = (5, 37);
            let stored = draw_negatives(noise, 1, 9, batch, k);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(stored, pool.install(|| draw_negatives(noise, 1, 9, batch, k)));
            assert_ne!(stored, draw_negatives(noise, 1, 10, batch, k));
            for row in 0..batch {
                for negatives in [Negatives::Drawn { noise, seed: 1, step: 9, k }, Negatives::Given(&stored)]
                {
                    let mut source = negatives.of_row(row, batch);
                    let (mut all, mut block) = (Vec::new(), [0; LANES]);
                    loop {
                        match source.next(&mut block) {
                            0 => break,
                            count => all.extend_from_slice(&block[..count]),
                        }
                    }
                    assert_eq!(all, stored[row * k..][..k]);
                }
            }
        }
    }
}
