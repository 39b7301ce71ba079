//! How the embeddings lie: in how many directions, and how close together. Looked at after each epoch to notice features
//! that collapse and a constant Z that no longer fits. Reads a sample of the bank and changes nothing.

use tch::{Kind, Tensor};

use crate::bank::MemoryBank;

/// Rows looked at; the effective rank cannot exceed their number.
const SAMPLE: usize = 1024;

/// What a sample of rows is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// `exp(−Σ p ln p)`, p the eigenvalues of the covariance divided by their sum (Roy & Vetterli 2007): D for features that
    /// spread evenly over all directions, 1 on a line, 0 where all are equal.
    pub effective_rank: f64,
    /// The most it could be: D, or one less than the rows looked at.
    pub most: usize,
    /// `ln mean exp(u·v/T)` over pairs of distinct rows: what `ln Z − ln N` should be if Z is to normalise the scores.
    pub ln_mean_exp: f64,
}

/// Looks at up to 1,024 rows of `bank` spread evenly over those that are not in `excluded_rows` (ascending). `None` with
/// fewer than two rows, or where a row is not finite.
///
/// # Panics
/// If the temperature is not positive.
pub fn spread(bank: &MemoryBank, excluded_rows: &[u32], temperature: f64) -> Option<Spread> {
    assert!(temperature > 0.0, "temperature {temperature}");
    let included = bank.len() - excluded_rows.len();
    let n = included.min(SAMPLE);
    if n < 2 {
        return None;
    }
    let mut rows = Vec::with_capacity(n * bank.dim());
    for j in 0..n {
        rows.extend_from_slice(&bank.row(nth_included(j * included / n, excluded_rows)));
    }
    let rows = Tensor::from_slice(&rows).view([n as i64, bank.dim() as i64]).to_kind(Kind::Double); // [n, D]
    let scores = rows.matmul(&rows.transpose(0, 1)) / temperature; // [n, n]
    let others = scores.tril(-1)
        + Tensor::full([n as i64; 2], f64::NEG_INFINITY, (Kind::Double, rows.device())).triu(0);
    let pairs = (n * (n - 1) / 2) as f64;
    let ln_mean_exp = others.view([-1]).logsumexp([0i64].as_slice(), false).double_value(&[]) - pairs.ln();
    let centred = &rows - rows.mean_dim([0i64].as_slice(), true, Kind::Double);
    // Either product has the same eigenvalues other than zero; the smaller is cheaper.
    let product = if bank.dim() <= n {
        centred.transpose(0, 1).matmul(&centred)
    } else {
        centred.matmul(&centred.transpose(0, 1))
    };
    let eigenvalues = Vec::<f64>::try_from(product.f_linalg_eigvalsh("L").ok()?).ok()?;
    let effective_rank = effective_rank(&eigenvalues);
    let found = Spread { effective_rank, most: bank.dim().min(n - 1), ln_mean_exp };
    (effective_rank.is_finite() && ln_mean_exp.is_finite()).then_some(found)
}

/// The `position`-th row that is not in `excluded` (ascending).
fn nth_included(position: usize, excluded: &[u32]) -> usize {
    // Of the first j + 1 excluded rows, excluded[j] − j included rows stand before the j-th.
    let (mut low, mut high) = (0, excluded.len());
    while low < high {
        let middle = (low + high) / 2;
        if excluded[middle] as usize - middle <= position { low = middle + 1 } else { high = middle }
    }
    position + low
}

/// `exp` of the entropy of `eigenvalues` as shares of their sum; 0 where the sum is nothing but rounding.
fn effective_rank(eigenvalues: &[f64]) -> f64 {
    let sum: f64 = eigenvalues.iter().map(|x| x.max(0.0)).sum();
    if sum.is_nan() {
        return f64::NAN;
    }
    if sum < 1e-9 {
        return 0.0;
    }
    let shares = eigenvalues.iter().map(|x| x.max(0.0) / sum).filter(|p| *p > 0.0);
    shares.map(|p| -p * p.ln()).sum::<f64>().exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_rank_of_known_spectra() {
        assert!((effective_rank(&[1.0; 7]) - 7.0).abs() < 1e-12);
        assert!((effective_rank(&[0.0, -1e-17, 3.0]) - 1.0).abs() < 1e-12);
        assert!((effective_rank(&[0.5, 0.25, 0.25]) - 2f64.powf(1.5)).abs() < 1e-12);
        assert_eq!(effective_rank(&[]), 0.0);
    }

    #[test]
    fn excluded_rows_are_stepped_over() {
        let excluded = [0, 1, 4, 9];
        let included: Vec<usize> = (0..12).filter(|i| !excluded.contains(&(*i as u32))).collect();
        let found: Vec<usize> = (0..included.len()).map(|j| nth_included(j, &excluded)).collect();
        assert_eq!(found, included);
        assert_eq!(nth_included(5, &[]), 5);
    }

    #[test]
    fn a_fresh_bank_spreads_and_equal_rows_do_not() {
        let (n, dim, temperature) = (3000, 32, 0.2);
        let fresh = spread(&MemoryBank::random(n, dim, 5), &[], temperature).unwrap();
        assert!(fresh.effective_rank > 30.0 && fresh.most == 32, "{fresh:?}");
        // 1/(2·D·T²), as for Z of a fresh bank.
        let expected = 1.0 / (2.0 * dim as f64 * temperature * temperature);
        assert!((fresh.ln_mean_exp - expected).abs() < 0.05, "{fresh:?} {expected}");
        let mut equal = vec![0.0; 50 * 4];
        equal.chunks_exact_mut(4).for_each(|row| row[1] = 1.0);
        let equal = spread(&MemoryBank::from_rows(50, 4, equal), &[3, 4], 0.1).unwrap();
        assert_eq!(equal.effective_rank, 0.0);
        assert!((equal.ln_mean_exp - 10.0).abs() < 1e-6, "{equal:?}");
        // More directions than rows: the small product serves.
        let few = spread(&MemoryBank::random(10, 64, 5), &[2], 1.0).unwrap();
        assert!(few.most == 8 && few.effective_rank > 7.0 && few.effective_rank <= 8.0 + 1e-9, "{few:?}");
        assert!(spread(&MemoryBank::random(2, 4, 1), &[0], 0.1).is_none());
        assert!(spread(&MemoryBank::from_rows(2, 1, vec![f32::NAN, 1.0]), &[], 0.1).is_none());
    }
}
