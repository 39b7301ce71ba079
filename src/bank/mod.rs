//! The memory bank: one embedding per training image (Wu et al. 2018, §3.1), and the noise that negatives are
//! drawn from (§3.2).
//!
//! Shapes: B batch, N images, D embedding width, K negatives. Matrices are flat slices, row by row.

pub mod device;
pub(crate) mod kernels;
pub mod noise;
mod storage;

pub use device::{Bank, DeviceBank, DrawNumber};
pub use noise::{AliasTable, Negatives, Noise, draw_negatives};
pub use storage::Rows;

use crate::model::Precision;
use crate::rng::{self, Purpose};
use crate::simd::Element;
use rand::Rng;
use std::borrow::Cow;
use storage::Storage;

/// The rows `[N, D]`, one per training image: sample index = row, always.
///
/// They are stored in fp32, or in bf16 and half the memory; whatever is computed with them is f32, and what is stored is
/// rounded to the nearest.
///
/// During training only [`update`](Self::update) writes; [`set_row`](Self::set_row) is for starting a bank from
/// features. Reads never change it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryBank {
    rows: Storage,
    len: usize,
    dim: usize,
}

impl MemoryBank {
    /// A fresh bank as published, in fp32: rows Uniform(±1/√(D/3)), so that a row's expected squared norm is 1. They are
    /// not normalised.
    ///
    /// # Panics
    /// If `n` or `dim` is 0, or `n` does not fit a `u32`.
    pub fn random(n: usize, dim: usize, seed: u64) -> Self {
        Self::random_in(Precision::Fp32, n, dim, seed)
    }

    /// The numbers of [`random`](Self::random), rounded to `precision`.
    ///
    /// # Panics
    /// As [`random`](Self::random).
    pub fn random_in(precision: Precision, n: usize, dim: usize, seed: u64) -> Self {
        let mut bank = Self::zeros(n, dim, precision);
        let bound = 1.0 / (dim as f32 / 3.0).sqrt();
        let mut rng = rng::stream(seed, Purpose::Bank, 0, 0);
        let mut row = vec![0.0; dim];
        for i in 0..n {
            for value in &mut row {
                // 24 bits are all that a number in [0, 1) can hold evenly.
                let unit = (rng.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0);
                *value = (2.0 * unit - 1.0) * bound;
            }
            bank.set_row(i, &row);
        }
        bank
    }

    /// The rows `[n, dim]` as given, in fp32.
    ///
    /// # Panics
    /// If `rows` does not hold `n·dim` numbers, `n` or `dim` is 0, or `n` does not fit a `u32`.
    pub fn from_rows(n: usize, dim: usize, rows: Vec<f32>) -> Self {
        Self::copy_of(n, dim, Rows::Fp32(&rows), Precision::Fp32)
    }

    /// A bank of `rows` `[n, dim]`, for example from a checkpoint, rounded to `precision`.
    ///
    /// # Panics
    /// As [`from_rows`](Self::from_rows).
    pub fn copy_of(n: usize, dim: usize, rows: Rows, precision: Precision) -> Self {
        let mut bank = Self::zeros(n, dim, precision);
        assert_eq!(rows.len(), n * dim, "the bank is [{n}, {dim}]");
        bank.rows.write(0, rows);
        bank
    }

    /// The same bank in `precision`, its numbers rounded where that holds fewer.
    pub fn in_precision(self, precision: Precision) -> Self {
        if precision == self.precision() {
            return self;
        }
        Self::copy_of(self.len, self.dim, self.stored(), precision)
    }

    /// Bytes that the rows of a bank of `n` × `dim` in `precision` take.
    pub fn bytes(n: usize, dim: usize, precision: Precision) -> u64 {
        let element = storage::element_bytes(precision) as u64;
        (n as u64).saturating_mul(dim as u64).saturating_mul(element)
    }

    fn zeros(n: usize, dim: usize, precision: Precision) -> Self {
        assert!(n > 0 && dim > 0, "a bank needs rows and columns, not {n} × {dim}");
        assert!(u32::try_from(n).is_ok(), "{n} rows: row numbers are 32 bits wide");
        let size = n.checked_mul(dim).expect("the bank's size fits a usize");
        MemoryBank { rows: Storage::zeros(size, precision), len: n, dim }
    }

    /// What the rows are stored in.
    pub fn precision(&self) -> Precision {
        self.rows.precision()
    }

    /// All rows as they are stored, `[N, D]`.
    pub fn stored(&self) -> Rows<'_> {
        self.rows.rows()
    }

    /// All rows as f32, `[N, D]`: those of an fp32 bank themselves, a copy of a bf16 bank's, which takes twice its memory.
    pub fn rows(&self) -> Cow<'_, [f32]> {
        self.stored().to_f32()
    }

    /// Row `i` as f32, `[D]`.
    ///
    /// # Panics
    /// If `i ≥ N`.
    pub fn row(&self, i: usize) -> Cow<'_, [f32]> {
        self.stored().part(i * self.dim..(i + 1) * self.dim).to_f32()
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
        assert_eq!(
            features.len(),
            indices.len() * self.dim,
            "features are [B, D] with B = {}",
            indices.len()
        );
        match &mut self.rows {
            Storage::Fp32(rows) => update(rows, self.dim, features, indices, bank_momentum),
            Storage::Bf16(rows) => update(rows, self.dim, features, indices, bank_momentum),
        }
    }

    /// Replaces row `i`; for starting a bank from features, never during training.
    ///
    /// # Panics
    /// If `i ≥ N` or `row` is not `[D]`.
    pub fn set_row(&mut self, i: usize, row: &[f32]) {
        assert!(i < self.len && row.len() == self.dim, "row {i} of {} × {}", self.len, self.dim);
        self.rows.write(i * self.dim, Rows::Fp32(row));
    }
}

/// [`MemoryBank::update`] of `rows` `[N, dim]`.
fn update<E: Element>(rows: &mut [E], dim: usize, features: &[f32], indices: &[u32], bank_momentum: f32) {
    let mut mixed = vec![0.0f32; dim];
    for (feature, &index) in features.chunks_exact(dim).zip(indices) {
        let row = &mut rows[index as usize * dim..][..dim];
        for ((mixed, &old), &new) in mixed.iter_mut().zip(&*row).zip(feature) {
            *mixed = bank_momentum * old.to_f32() + (1.0 - bank_momentum) * new;
        }
        let norm = mixed.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
        if norm > 0.0 && norm.is_finite() {
            for (value, &mixed) in row.iter_mut().zip(&mixed) {
                *value = E::from_f32(mixed / norm);
            }
        }
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

    /// Updates three rows of `MemoryBank::random_in(precision, ..)`, and compares them with double precision to `rounding`.
    fn check_update(precision: Precision, rounding: impl Fn(f64) -> f64) {
        let (n, dim) = (50, 19);
        let mut bank = MemoryBank::random_in(precision, n, dim, 1);
        let before = bank.clone();
        let features = MemoryBank::random(3, dim, 2);
        let indices = [4, 49, 0];
        bank.update(&features.rows(), &indices, 0.25);
        for i in 0..n {
            let (now, was) = (bank.row(i), before.row(i));
            let Some(b) = indices.iter().position(|&index| index as usize == i) else {
                let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&now), bits(&was));
                continue;
            };
            let mixed: Vec<f64> =
                (0..dim).map(|d| 0.25 * f64::from(was[d]) + 0.75 * f64::from(features.row(b)[d])).collect();
            let norm = mixed.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (found, mixed) in now.iter().zip(&mixed) {
                let (found, exact) = (f64::from(*found), mixed / norm);
                assert!((found - exact).abs() <= rounding(exact), "{precision}: {found} {exact}");
            }
        }
    }

    #[test]
    fn an_update_moves_its_rows_to_unit_length_and_leaves_every_other_bit() {
        check_update(Precision::Fp32, |_| 1e-6);
        // Half of what lies between a number and the next one that has eight significant bits.
        check_update(Precision::Bf16, |exact| 1e-6 + 2f64.powi(exact.abs().log2().floor() as i32 - 8));
    }

    #[test]
    fn what_is_stored_in_bf16_is_rounded_to_the_nearest_of_two_to_the_even_one() {
        // Rows of length 1 along one axis, and beside it half a step above 1/4 and three halves.
        let step = 2f32.powi(-9);
        let numbers = [0.25 + 0.5 * step, 0.25 + 1.5 * step, 0.25 + 0.75 * step, -0.25 - 0.5 * step];
        let rounded = [0.25, 0.25 + 2.0 * step, 0.25 + step, -0.25];
        let bank = MemoryBank::from_rows(1, 4, numbers.to_vec()).in_precision(Precision::Bf16);
        assert_eq!(*bank.rows(), rounded);
        let mut bank = MemoryBank::random_in(Precision::Bf16, 3, 4, 1);
        bank.set_row(1, &numbers);
        assert_eq!((bank.precision(), &*bank.row(1)), (Precision::Bf16, &rounded[..]));
        // An update rounds once, from f32: never a row that it could not have been set to.
        bank.update(&[3.0, 4.0, 0.0, 0.0], &[1], 0.0);
        assert_eq!(*bank.row(1), [0.6, 0.8, 0.0, 0.0].map(|x: f32| half::bf16::from_f32(x).to_f32()));
    }

    #[test]
    fn precisions_are_changed_without_loss_where_there_need_be_none() {
        let fp32 = MemoryBank::random(40, 7, 3);
        let bf16 = fp32.clone().in_precision(Precision::Bf16);
        assert_eq!(bf16, MemoryBank::random_in(Precision::Bf16, 40, 7, 3));
        assert_eq!(fp32.clone().in_precision(Precision::Fp32), fp32);
        let back = bf16.clone().in_precision(Precision::Fp32);
        assert!(back.rows() == bf16.rows() && back.rows() != fp32.rows());
        assert_eq!(back.in_precision(Precision::Bf16), bf16);
        assert!(matches!(bf16.rows(), Cow::Owned(_)) && matches!(fp32.rows(), Cow::Borrowed(_)));
        assert_eq!(bf16.rows()[14..21], *bf16.row(2));
        let mut broken = bf16.clone();
        broken.set_row(2, &[f32::NAN; 7]);
        assert!(broken.row(2).iter().all(|x| x.is_nan()) && broken.row(1) == bf16.row(1));
        assert_eq!(MemoryBank::bytes(40, 7, Precision::Bf16) * 2, MemoryBank::bytes(40, 7, Precision::Fp32));
    }

    #[test]
    fn a_mixture_without_direction_changes_nothing() {
        for precision in [Precision::Fp32, Precision::Bf16] {
            let rows = vec![1.0, 0.0, 0.0, 1.0];
            let mut bank = MemoryBank::from_rows(2, 2, rows.clone()).in_precision(precision);
            bank.update(&[-1.0, 0.0, f32::NAN, 0.0], &[0, 1], 0.5);
            assert_eq!(*bank.rows(), rows);
        }
    }
}
