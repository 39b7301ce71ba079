//! A map of the bank: its rows in the plane where they spread most.

use serde_json::{Value, json};

use crate::bank::MemoryBank;
use crate::data::dataset::Dataset;
use crate::eval::pca::Pca;

/// Rows that the plane is fitted to, at most.
const FITTED: usize = 20_000;
/// Points on the map, at most: what a browser draws without stutter, and an eye can tell apart.
const POINTS: usize = 4_000;

/// Columns `index`, `x`, `y` and `label` of an even sample of `rows` (bank rows, ascending) of `train`; x and y fit
/// −1 to 1 with one scale for both, `explained` is the share of the variance along each. Always the same.
///
/// # Panics
/// If `rows` is empty or has a row that the bank has not.
pub fn json(bank: &MemoryBank, rows: &[u32], train: &Dataset) -> Value {
    let sampled: Vec<f32> =
        spaced(rows, FITTED).flat_map(|row| bank.row(row as usize).into_owned()).collect();
    let pca = Pca::fit(&sampled, bank.dim(), 2);
    let index: Vec<u32> = spaced(rows, POINTS).collect();
    let places: Vec<[f64; 2]> = index
        .iter()
        .map(|&row| {
            let place = pca.project(&bank.row(row as usize));
            // A bank of one number a row has no second axis.
            [0, 1].map(|axis| place.get(axis).copied().filter(|x| x.is_finite()).unwrap_or(0.0))
        })
        .collect();
    let extent = places.iter().flatten().fold(f64::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let column = |axis: usize| -> Vec<f64> {
        places.iter().map(|place| (place[axis] / extent * 1e4).round() / 1e4).collect()
    };
    let label: Option<Vec<Option<u32>>> =
        train.labels().map(|_| index.iter().map(|&row| train.label(row as usize)).collect());
    json!({
        "points": index.len(), "of": rows.len(), "explained": pca.explained,
        "x": column(0), "y": column(1), "label": label, "index": index, "classes": train.classes(),
    })
}

/// At most `count` of `rows`, evenly spaced, in order.
fn spaced(rows: &[u32], count: usize) -> impl Iterator<Item = u32> {
    let count = count.min(rows.len());
    (0..count).map(move |i| rows[i * rows.len() / count])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::detect::{OpenOptions, open};

    #[test]
    fn a_map_is_an_even_sample_within_bounds_and_always_the_same() {
        let train = open("synthetic:9000x8".as_ref(), None, &OpenOptions::default()).unwrap().train;
        let train = train.with_quarantine(&[0, 1]).unwrap();
        let bank = MemoryBank::random(train.len(), 6, 1);
        let rows = train.trainable_indices();
        let map = json(&bank, &rows, &train);
        let index: Vec<u64> = map["index"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
        assert_eq!((index.len(), index[0]), (POINTS, 2));
        assert!(index.is_sorted_by(|a, b| a < b) && index.iter().all(|i| *i < 9000));
        for axis in ["x", "y"] {
            let places = map[axis].as_array().unwrap();
            assert!(places.len() == POINTS && places.iter().all(|x| x.as_f64().unwrap().abs() <= 1.0));
        }
        assert_eq!(map["label"][5], train.label(index[5] as usize).unwrap());
        assert_eq!(map, json(&bank, &rows, &train));
        let flat = json(&MemoryBank::random(train.len(), 1, 1), &rows[..3], &train);
        assert_eq!((flat["points"].as_u64(), flat["y"][2].as_f64()), (Some(3), Some(0.0)));
    }
}
