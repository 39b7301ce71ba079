//! The nearest training images of the same few queries, looked up again after each epoch: what training changes, in
//! pictures. Queries are chosen from the data alone, so a run and its continuation ask the same.

use serde::{Deserialize, Serialize};

use super::features::{Input, embed_layers};
use super::knn::{self, SearchOptions};
use crate::bank::MemoryBank;
use crate::data::dataset::{Dataset, Splits};
use crate::error::Result;
use crate::model::{Encoder, Layer};

/// Queries that are followed.
pub const QUERIES: usize = 8;
/// Neighbours kept of each.
pub const NEIGHBORS: usize = 8;
/// Characters kept of a name, from its end: the folder of a class and the file tell most.
const NAME: usize = 120;

/// An image by its place in a split, with what is kept to name it when the data is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Index in its split; for a training image its bank row.
    pub row: u32,
    /// Its name there, shortened from the front if it is very long.
    pub name: String,
    /// Its class, where it has one.
    pub label: Option<u32>,
    /// Similarity to the query; the query itself has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
}

/// A query and the training images found for it, most similar first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Whether the query is a test image; otherwise it is a training image, whose own row is left out.
    pub test: bool,
    /// The image asked about.
    pub query: Shown,
    /// What was found.
    pub found: Vec<Shown>,
}

/// Looks up the followed queries in `bank`; quarantined images neither ask nor are found.
///
/// # Errors
/// An image that cannot be read.
pub fn retrieve(
    encoder: &Encoder,
    bank: &MemoryBank,
    splits: &Splits,
    input: &Input,
) -> Result<Vec<Retrieval>> {
    let test = splits.test.is_some();
    let asked = splits.test.as_ref().unwrap_or(&splits.train);
    let queries = choose(asked, QUERIES);
    let features = embed_layers(encoder, asked, queries.clone(), input, &[Layer::Embedding], &mut |_| {})?;
    let options = SearchOptions {
        own_rows: (!test).then_some(queries.as_slice()),
        excluded_rows: splits.train.quarantined(),
    };
    let neighbors =
        knn::nearest_at(encoder.device(), &features[0], bank.stored(), bank.dim(), NEIGHBORS, options);
    let of_query = |(q, &index): (usize, &u32)| {
        let (rows, similarities) = neighbors.of(q);
        let found = rows.iter().zip(similarities).map(|(&row, &s)| shown(&splits.train, row, Some(s)));
        Retrieval { test, query: shown(asked, index, None), found: found.collect() }
    };
    Ok(queries.iter().enumerate().map(of_query).collect())
}

impl Shown {
    /// Whether `data` has this image at this place, as far as its name tells.
    pub fn is_in(&self, data: &Dataset) -> bool {
        (self.row as usize) < data.len() && self.name == name_in(data, self.row)
    }
}

fn shown(data: &Dataset, row: u32, similarity: Option<f32>) -> Shown {
    Shown { row, name: name_in(data, row), label: data.label(row as usize), similarity }
}

fn name_in(data: &Dataset, row: u32) -> String {
    let name = data.name(row as usize);
    match name.chars().count().checked_sub(NAME) {
        None | Some(0) => name.into_owned(),
        Some(surplus) => format!("…{}", name.chars().skip(surplus + 1).collect::<String>()),
    }
}

/// Up to `n` readable images of `data`: the first of each of `n` classes spread evenly over all, or, where there are
/// fewer classes or none, further ones spread evenly over the data. Ascending, distinct.
fn choose(data: &Dataset, n: usize) -> Vec<u32> {
    let readable = data.trainable_indices();
    let mut chosen = std::collections::BTreeSet::new();
    if let Some(labels) = data.labels() {
        let mut first = std::collections::BTreeMap::new();
        for &i in &readable {
            first.entry(labels[i as usize]).or_insert(i);
        }
        let first: Vec<u32> = first.into_values().collect();
        let classes = first.len();
        chosen.extend((0..n.min(classes)).map(|j| first[j * classes / n.min(classes)]));
    }
    // The middle of each of n equal parts, then whatever is next.
    let parts = (0..n).filter_map(|j| readable.get((2 * j + 1) * readable.len() / (2 * n)));
    for &i in parts.chain(&readable) {
        if chosen.len() >= n {
            break;
        }
        chosen.insert(i);
    }
    chosen.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::detect::{DataFormat, OpenOptions, open};
    use crate::model::{Arch, EncoderConfig, Family, Head};
    use std::path::Path;

    fn synthetic(text: &str) -> Splits {
        open(Path::new(text), Some(DataFormat::Synthetic), &OpenOptions::default()).unwrap()
    }

    #[test]
    fn queries_are_of_many_classes_and_never_quarantined() {
        let train = synthetic("synthetic:200x16").train;
        let labels = train.labels().unwrap();
        let chosen = choose(&train, 8);
        let classes: std::collections::BTreeSet<_> = chosen.iter().map(|&i| labels[i as usize]).collect();
        assert_eq!((chosen.len(), classes.len()), (8, 8));
        assert_eq!(chosen, choose(&train, 8));
        assert!(chosen.is_sorted());
        let without = train.with_quarantine(&chosen).unwrap();
        assert!(choose(&without, 8).iter().all(|i| !chosen.contains(i)));
        // More queries than classes, more than images, and no labels.
        assert_eq!(choose(&train, 30).len(), 30);
        assert_eq!(choose(&train.without_labels(), 4), [25, 75, 125, 175]);
        assert_eq!(choose(&synthetic("synthetic:10x16").train, 30).len(), 10);
    }

    #[test]
    fn a_row_that_holds_the_querys_embedding_is_found_first() {
        let splits = synthetic("synthetic:40x16");
        let quarantined = 7;
        let splits = Splits { train: splits.train.with_quarantine(&[quarantined]).unwrap(), ..splits };
        let config = EncoderConfig {
            arch: Arch::ResNet18,
            family: Family::Cifar,
            embed_dim: 8,
            width: 4,
            head: Head::Linear,
        };
        let encoder = Encoder::new(config, 1, tch::Device::Cpu);
        let input = Input::new(Family::Cifar, 16, 1);
        let mut bank = MemoryBank::random(40, 8, 3);
        let asked = splits.test.as_ref().unwrap();
        let queries = choose(asked, QUERIES);
        let features =
            embed_layers(&encoder, asked, queries.clone(), &input, &[Layer::Embedding], &mut |_| {}).unwrap();
        bank.set_row(31, &features[0][..8]);
        bank.set_row(quarantined as usize, &features[0][..8]);
        let found = retrieve(&encoder, &bank, &splits, &input).unwrap();
        assert_eq!(found.len(), QUERIES);
        let first = &found[0];
        assert!(first.test && first.query.row == queries[0] && first.query.similarity.is_none());
        assert_eq!((first.found.len(), first.found[0].row), (NEIGHBORS, 31));
        assert!((first.found[0].similarity.unwrap() - 1.0).abs() < 1e-5);
        assert_eq!(first.found[0].name, splits.train.name(31));
        assert!(first.found[0].is_in(&splits.train));
        assert!(!Shown { row: 40, ..first.found[0].clone() }.is_in(&splits.train));
        assert!(!Shown { row: 30, ..first.found[0].clone() }.is_in(&splits.train));
        assert!(found.iter().all(|r| r.found.iter().all(|s| s.row != quarantined)));
        // Without a test split an image does not find itself.
        let alone = Splits { test: None, ..splits };
        for one in retrieve(&encoder, &bank, &alone, &input).unwrap() {
            assert!(!one.test && one.found.iter().all(|s| s.row != one.query.row));
        }
    }
}
