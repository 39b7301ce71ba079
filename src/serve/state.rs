//! What all requests share: images, bank, encoder, and the bounds on what may happen at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::embedder::Embedder;
use super::error::{Answer, ApiError};
use super::map;
use super::metrics::LiveMetrics;
use super::thumbnails::Thumbnails;
use crate::bank::MemoryBank;
use crate::data::dataset::{Dataset, Splits};
use crate::error::Result;
use crate::eval::features::Input;
use crate::eval::knn::{CoarseRows, Neighbors, SearchOptions, nearest};
use crate::model::Encoder;

/// Bytes that an uploaded image may have.
pub const MAX_UPLOAD: usize = 32 << 20;
/// Bytes of thumbnails that are kept.
const THUMBNAIL_BYTES: usize = 64 << 20;
/// Uploads that are held at a time, each of at most [`MAX_UPLOAD`] bytes.
const UPLOADS: usize = 4;
/// Images that are decoded at a time, each within the limits of [`crate::data::decode`].
const DECODERS: usize = 2;
/// Searches at a time; one uses all cores.
const SEARCHES: usize = 1;
/// From this many rows on, searches go through a copy of them in 8 bits a number: below, they are quick without.
const COARSE_FROM: usize = 100_000;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(20);

/// One of the two splits of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Set {
    /// The images that have bank rows.
    Train,
    /// The others.
    Test,
}

/// What is served, as the program that starts the server says it.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// A short name: the run's or the file's.
    pub name: String,
    /// The network in a few words.
    pub encoder: String,
    /// The checkpoint's file name.
    pub checkpoint: String,
    /// Epochs that it had finished.
    pub epoch: u64,
    /// Optimiser steps that it had done.
    pub step: u64,
    /// Whether the bank's rows are as training left them (`live`) or computed anew (`recomputed`).
    pub bank: &'static str,
    /// The run folder, if there is one; not told to clients.
    #[serde(skip)]
    pub run: Option<PathBuf>,
}

/// What all requests share.
pub struct State {
    /// What is served.
    pub facts: Facts,
    /// Thumbnails asked for lately.
    pub thumbnails: Thumbnails,
    /// The run's curves.
    pub metrics: Arc<LiveMetrics>,
    splits: Splits,
    bank: Arc<MemoryBank>,
    coarse: Option<Arc<CoarseRows>>,
    embedder: Embedder,
    /// Rows that can be found, ascending.
    found_rows: Arc<[u32]>,
    map: OnceCell<Arc<str>>,
    uploads: Arc<Semaphore>,
    decoding: Arc<Semaphore>,
    searching: Arc<Semaphore>,
}

/// A query, as a vector.
pub struct Query {
    /// `[D]`.
    pub embedding: Vec<f32>,
    /// The bank row that is the query itself, and no neighbour of it.
    pub own_row: Option<u32>,
}

impl State {
    /// Puts together what is served; starts the encoder's thread. `bank` has a row for each training image.
    ///
    /// # Errors
    /// If the thread cannot be started.
    ///
    /// # Panics
    /// If the bank has not one row for each training image, or another width than the encoder's embedding.
    pub fn new(
        facts: Facts,
        splits: Splits,
        bank: MemoryBank,
        encoder: Encoder,
        input: Input,
    ) -> Result<Self> {
        assert_eq!(bank.len(), splits.train.len(), "one bank row for each training image");
        assert_eq!(
            bank.dim(),
            encoder.config().embed_dim as usize,
            "the bank holds this encoder's embeddings"
        );
        let coarse = (bank.len() >= COARSE_FROM).then(|| CoarseRows::new(&bank.rows(), bank.dim())).flatten();
        Ok(State {
            coarse: coarse.map(Arc::new),
            thumbnails: Thumbnails::new(THUMBNAIL_BYTES),
            metrics: Arc::new(LiveMetrics::new(facts.name.clone(), facts.run.clone())),
            found_rows: splits.train.trainable_indices().into(),
            embedder: Embedder::start(encoder, input)?,
            bank: Arc::new(bank),
            facts,
            splits,
            map: OnceCell::new(),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            decoding: Arc::new(Semaphore::new(DECODERS)),
            searching: Arc::new(Semaphore::new(SEARCHES)),
        })
    }

    /// The images of a set; 404 if there is no such set.
    pub fn images(&self, set: Set) -> Answer<&Dataset> {
        match set {
            Set::Train => Ok(&self.splits.train),
            Set::Test => {
                self.splits.test.as_ref().ok_or_else(|| ApiError::missing("this data set has no test images"))
            }
        }
    }

    /// Number of test images, perhaps 0.
    pub fn n_test(&self) -> usize {
        self.splits.test.as_ref().map_or(0, Dataset::len)
    }

    /// Number of rows that a search looks at, of the width `dim`.
    pub fn searched(&self) -> (usize, usize) {
        (self.found_rows.len(), self.bank.dim())
    }

    /// What a client may know of an image; 404 if there is none.
    pub fn describe(&self, set: Set, index: u32) -> Answer<Value> {
        let images = self.image(set, index)?;
        let label = images.label(index as usize);
        Ok(json!({
            "set": set,
            "index": index,
            "name": images.name(index as usize),
            "label": label,
            "class": label.and_then(|label| images.class_name(label)),
        }))
    }

    /// The set that has image `index`; 404 if it is out of range.
    fn image(&self, set: Set, index: u32) -> Answer<&Dataset> {
        let images = self.images(set)?;
        if index as usize >= images.len() {
            let text = format!("there is no image {index}: they are numbered 0 to {}", images.len() - 1);
            return Err(ApiError::missing(text));
        }
        Ok(images)
    }

    /// The `number`th readable image of a set, counted round and round; 404 if there is none.
    pub fn pick(&self, set: Set, number: u64) -> Answer<u32> {
        let indices = match set {
            Set::Train => Arc::clone(&self.found_rows),
            Set::Test => self.images(set)?.trainable_indices().into(),
        };
        let at = number.checked_rem(indices.len() as u64);
        at.map(|at| indices[at as usize]).ok_or_else(|| ApiError::missing("none of these images can be read"))
    }

    /// Decodes image `index`, and makes something of it on the way.
    pub async fn load<T: Send + 'static>(
        &self,
        set: Set,
        index: u32,
        make: impl FnOnce(RgbImage) -> T + Send + 'static,
    ) -> Answer<T> {
        let images = self.image(set, index)?.clone();
        let done = run(&self.decoding, move || images.load(index as usize).map(make)).await?;
        // The data set's fault, not the client's; a quarantined image ends here.
        done.map_err(|error| ApiError::image(StatusCode::UNPROCESSABLE_ENTITY, "this image", &error))
    }

    /// Decodes, or does as much work as decoding; see [`load`](Self::load).
    pub async fn decode<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
        run(&self.decoding, work).await
    }

    /// The right to hold an upload in memory until the permit is dropped.
    pub async fn upload_permit(&self) -> Answer<OwnedSemaphorePermit> {
        permit(&self.uploads).await
    }

    /// The query that image `index` is: its bank row, or its embedding if it has none.
    pub async fn query_of(&self, set: Set, index: u32) -> Answer<Query> {
        let images = self.image(set, index)?;
        if images.is_quarantined(index as usize) {
            let text = format!("image {index} is quarantined: it could not be read when training started");
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, text));
        }
        match set {
            Set::Train => {
                Ok(Query { embedding: self.bank.row(index as usize).into_owned(), own_row: Some(index) })
            }
            Set::Test => self.query(self.load(set, index, |image| image).await?).await,
        }
    }

    /// The query that an image from elsewhere is.
    pub async fn query(&self, image: RgbImage) -> Answer<Query> {
        Ok(Query { embedding: self.embedder.embed(image).await?, own_row: None })
    }

    /// The `k` nearest training images of `query`, exactly; and how long that took once it was its turn.
    pub async fn search(&self, query: Query, k: usize) -> Answer<(Neighbors, Duration)> {
        let (bank, coarse) = (Arc::clone(&self.bank), self.coarse.clone());
        let train = self.splits.train.clone();
        run(&self.searching, move || {
            let start = Instant::now();
            let own = query.own_row.map(|row| [row]);
            let options = SearchOptions {
                own_rows: own.as_ref().map(<[u32; 1]>::as_slice),
                excluded_rows: train.quarantined(),
            };
            let found = match coarse {
                Some(coarse) => coarse.nearest(&query.embedding, &bank.rows(), k, options),
                None => nearest(&query.embedding, bank.stored(), bank.dim(), k, options),
            };
            (found, start.elapsed())
        })
        .await
    }

    /// The map of the bank as JSON; computed when it is first asked for.
    pub async fn map(&self) -> Answer<Arc<str>> {
        let compute = || async {
            let (bank, rows, train) =
                (Arc::clone(&self.bank), Arc::clone(&self.found_rows), self.splits.train.clone());
            run(&self.searching, move || map::json(&bank, &rows, &train).to_string().into()).await
        };
        self.map.get_or_try_init(compute).await.cloned()
    }
}

async fn permit(bound: &Arc<Semaphore>) -> Answer<OwnedSemaphorePermit> {
    match timeout(PATIENCE, Arc::clone(bound).acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(ApiError::busy()),
    }
}

/// Does `work` on a thread that may block, when it is its turn. Work that was begun is finished, and counted, even if
/// the client has gone.
async fn run<T: Send + 'static>(
    bound: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Answer<T> {
    let permit = permit(bound).await?;
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    });
    done.await.map_err(|_| ApiError::internal("a request panicked"))
}
