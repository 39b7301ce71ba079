//! The rows that queries are compared with.

use super::{Arguments, Source};
use crate::bank::MemoryBank;
use crate::cli::inputs::with_bar;
use crate::cli::subject::Subject;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::eval::features::{Input, embed_layers, unit_rows};
use crate::model::{Encoder, Layer};

/// What queries are compared with, not yet computed.
pub struct Banks<'a> {
    encoder: &'a Encoder,
    train: &'a Dataset,
    layers: &'a [Layer],
    live: Option<MemoryBank>,
    recompute: bool,
}

impl<'a> Banks<'a> {
    /// Loads the live bank if it is wanted, and refuses what cannot be.
    ///
    /// # Errors
    /// If the live bank has no such layer, or belongs to other images.
    pub fn new(request: &'a Arguments, subject: &'a Subject) -> Result<Self> {
        let Subject { splits, encoder, .. } = subject;
        let (live, recompute) = match request.source {
            Source::Live => (true, false),
            Source::Recomputed => (false, true),
            Source::Both => (true, true),
        };
        if !recompute && request.layers.iter().any(|layer| *layer != Layer::Embedding) {
            return Err(Error::usage(
                "the live bank holds embeddings; other layers go with --bank recomputed",
            ));
        }
        let live =
            (live && request.layers.contains(&Layer::Embedding)).then(|| subject.live_bank()).transpose()?;
        Ok(Banks { encoder, train: &splits.train, layers: &request.layers, live, recompute })
    }

    /// Every layer with every bank there is of it, in one pass over the training images.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub fn compute(self, input: &Input) -> Result<Vec<(Layer, Source, MemoryBank)>> {
        let Banks { encoder, train, layers, mut live, recompute } = self;
        let order = train.trainable_indices();
        let features = match recompute {
            true => with_bar(order.len(), "embedding training images", |progress| {
                embed_layers(encoder, train, order.clone(), input, layers, progress)
            })?,
            false => Vec::new(),
        };
        let mut features = features.into_iter();
        let mut banks = Vec::new();
        for &layer in layers {
            if layer == Layer::Embedding
                && let Some(bank) = live.take()
            {
                banks.push((layer, Source::Live, bank));
            }
            let Some(mut features) = features.next() else { continue };
            let dim = encoder.config().dim_at(layer) as usize;
            if layer != Layer::Embedding {
                unit_rows(&mut features, dim);
            }
            // Rows of quarantined images stay zero; the search passes over them.
            let mut rows = vec![0.0; train.len() * dim];
            for (&index, feature) in order.iter().zip(features.chunks_exact(dim)) {
                rows[index as usize * dim..][..dim].copy_from_slice(feature);
            }
            banks.push((layer, Source::Recomputed, MemoryBank::from_rows(train.len(), dim, rows)));
        }
        Ok(banks)
    }
}
