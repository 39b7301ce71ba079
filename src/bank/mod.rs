//! The memory bank: one embedding per training image (Wu et al. 2018, §3.1), and the noise that negatives are
//! drawn from (§3.2).
//!
//! Shapes: B batch, N images, D embedding width, K negatives. Matrices are flat slices, row by row.

pub mod device;
pub(crate) mod kernels;
pub mod noise;

pub use device::{Bank, DeviceBank, DrawNumber};
pub use noise::{AliasTable, Negatives, Noise, draw_negatives};

use crate::rng::{self, Purpose};
use crate::simd::Aligned;
use rand::Rng;

/// The rows `[N, D]`, one per training image: sample index = row, always.
///
/// During training only [`update`](Self::update) writes; [`set_row`](Self::set_row) and [`fill`](Self::fill) are
/// for starting a bank from features. Reads never change it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryBank {
    rows: Aligned,
    len: usize,
    dim: usize,
}

impl MemoryBank {
    /// A fresh bank as published: rows Uniform(±1/√(D/3)), so that a row's expected squared norm is 1. They are
    /// not normalised.
    ///
    /// # Panics
    /// If `n` or `dim` is 0, or `n` does not fit a `u32`.
    pub fn random(n: usize, dim: usize, seed: u64) -> Self {
        let mut bank = Self::zeros(n, dim);
        let bound = 1.0 / (dim as f32 / 3.0).sqrt();
        let mut rng = rng::stream(seed, Purpose::Bank, 0, 0);
        for value in bank.rows.iter_mut() {
            // 24 bits are all that a number in [0, 1) can hold evenly.
            let unit = (rng.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0);
            *value = (2.0 * unit - 1.0) * bound;
        }
        bank
    }

    /// The rows `[n, dim]` as given, for example from a checkpoint.
    ///
    /// # Panics
    /// If `rows` does not hold `n·dim` numbers, `n` or `dim` is 0, or `n` does not fit a `u32`.
    pub fn from_rows(n: usize, dim: usize, rows: Vec<f32>) -> Self {
        let mut bank = Self::zeros(n, dim);
        bank.fill(&rows);
        bank
    }

    /// Bytes that the rows of a bank of `n` × `dim` take.
    pub fn bytes(n: usize, dim: usize) -> u64 {
        (n as u64).saturating_mul(dim as u64).saturating_mul(size_of::<f32>() as u64)
    }

    fn zeros(n: usize, dim: usize) -> Self {
        assert!(n > 0 && dim > 0, "a bank needs rows and columns, not {n} × {dim}");
        assert!(u32::try_from(n).is_ok(), "{n} rows: row numbers are 32 bits wide");
        let size = n.checked_mul(dim).expect("the bank's size fits a usize");
        MemoryBank { rows: Aligned::zeros(size), len: n, dim }
    }

    /// All rows, `[N, D]`.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Row `i`, `[D]`.
    ///
    /// # Panics
    /// If `i ≥ N`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.dim..][..self.dim]
    }

    /// N, the number of rows.
    #[allow(clippy::len_without_is_empty)] // A bank is never empty.
    pub fn len(&self) -> usize {
        self.len
    }

    /// D, the embedding width.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Moves the rows of `indices` toward `features`: `row ← unit(m·row + (1 − m)·feature)`. All other rows keep
    /// every bit.
    ///
    /// `features` `[B, D]`, unit rows; `indices` `[B]`, distinct, `< N`; `bank_momentum` m weighs the old row (0.5
    /// as published). Call it after the step's gradient has been taken. A row whose mixture has no direction
    /// (a zero or non-finite norm) stays as it was.
    ///
    /// # Panics
    /// If the shapes disagree with the bank's or an index is not `< N`.
    pub fn update(&mut self, features: &[f32], indices: &[u32], bank_momentum: f32) {
        let dim = self.dim;
        assert_eq!(features.len(), indices.len() * dim, "features are [B, D] with B = {}", indices.len());
        let mut mixed = vec![0.0f32; dim];
        for (feature, &index) in features.chunks_exact(dim).zip(indices) {
            let row = &mut self.rows[index as usize * dim..][..dim];
            for ((mixed, &old), &new) in mixed.iter_mut().zip(&*row).zip(feature) {
                *mixed = bank_momentum * old + (1.0 - bank_momentum) * new;
            }
            let norm = mixed.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
            if norm > 0.0 && norm.is_finite() {
                for (value, &mixed) in row.iter_mut().zip(&mixed) {
                    *value = mixed / norm;
                }
            }
        }
    }

    /// Replaces row `i`; for starting a bank from features, never during training.
    ///
    /// # Panics
    /// If `i ≥ N` or `row` is not `[D]`.
    pub fn set_row(&mut self, i: usize, row: &[f32]) {
        self.rows[i * self.dim..][..self.dim].copy_from_slice(row);
    }

    /// Replaces all rows `[N, D]`; for starting a bank, never during training.
    ///
    /// # Panics
    /// If `rows` does not hold N·D numbers.
    pub fn fill(&mut self, rows: &[f32]) {
        assert_eq!(rows.len(), self.rows.len(), "the bank is [{}, {}]", self.len, self.dim);
        self.rows.copy_from_slice(rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_rows_are_uniform_with_expected_squared_norm_one() {
        let (n, dim) = (2000, 128);
        let bank = MemoryBank::random(n, dim, 7);
        let bound = (3.0 / dim as f32).sqrt();
        assert!(bank.rows().iter().all(|x| x.abs() <= bound));
        assert!(
            bank.rows().iter().any(|x| *x > 0.999 * bound) && bank.rows().iter().any(|x| *x < -0.999 * bound)
        );
        let mean_square = bank.rows().iter().map(|x| f64::from(x * x)).sum::<f64>() / n as f64;
        assert!((mean_square - 1.0).abs() < 0.01, "{mean_square}");
        assert!((bank.rows().iter().map(|&x| f64::from(x)).sum::<f64>() / (n * dim) as f64).abs() < 1e-3);
        assert_eq!(bank, MemoryBank::random(n, dim, 7));
        assert_ne!(bank, MemoryBank::random(n, dim, 8));
    }

    #[test]
    fn an_update_moves_its_rows_to_unit_length_and_leaves_every_other_bit() {
        let (n, dim) = (50, 19);
        let mut bank = MemoryBank::random(n, dim, 1);
        let before = bank.clone();
        let features = MemoryBank::random(3, dim, 2);
        let indices = [4, 49, 0];
        bank.update(features.rows(), &indices, 0.25);
        for i in 0..n {
            let Some(b) = indices.iter().position(|&index| index as usize == i) else {
                let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(bank.row(i)), bits(before.row(i)));
                continue;
            };
            let mixed: Vec<f64> = (0..dim)
                .map(|d| 0.25 * f64::from(before.row(i)[d]) + 0.75 * f64::from(features.row(b)[d]))
                .collect();
            let norm = mixed.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (found, mixed) in bank.row(i).iter().zip(&mixed) {
                assert!((f64::from(*found) - mixed / norm).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_mixture_without_direction_changes_nothing() {
        let mut bank = MemoryBank::from_rows(2, 2, vec![1.0, 0.0, 0.0, 1.0]);
        bank.update(&[-1.0, 0.0, f32::NAN, 0.0], &[0, 1], 0.5);
        assert_eq!(bank.rows(), [1.0, 0.0, 0.0, 1.0]);
    }
}
