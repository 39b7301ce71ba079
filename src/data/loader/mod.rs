//! Batches of views, made ahead of their use by worker threads.
//!
//! The work of an epoch is a fixed sequence of small pieces, a few samples each, which workers take in order. All
//! workers therefore help with the batch that is needed next, and a slow image holds up only its own batch.
//! What a batch holds is a function of its indices and the [`View`], never of the workers. Workers run at most
//! [`LoaderOptions::prefetch`] batches ahead, which bounds the memory; the caller can give batches back for reuse.

mod shared;
mod view;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::data::ImageSource;
use crate::data::augment::below;
use crate::data::watch::DEFAULT_READ_TIMEOUT;
use crate::error::{Error, Result};
use crate::rng::{Purpose, stream};

use shared::Shared;
pub use view::{View, ViewCost};

/// Views of some images, in the order that was asked for.
#[derive(Debug)]
pub struct Batch {
    /// Number of each image in its data set: its bank row.
    pub indices: Vec<u32>,
    /// `[B, size, size, 3]`, 8 bits a channel.
    pub pixels: Vec<u8>,
    /// Side of the views, in pixels.
    pub size: u32,
}

/// How much work is done at once, and ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Threads that decode and augment; at least one is started.
    pub workers: usize,
    /// Batches finished or begun but not yet taken by the caller; at least one.
    pub prefetch: usize,
    /// How long one image may take before its file system is taken to hang.
    pub read_timeout: Duration,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions { workers: default_workers(), prefetch: 3, read_timeout: DEFAULT_READ_TIMEOUT }
    }
}

/// Worker threads for this machine: all cores but one, which feeds the device or computes; at most 16. Workers
/// that are ahead sleep, so that a few too many cost nothing.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() - 1).clamp(1, 16)
}

/// The order in which an epoch visits `indices`: a permutation that depends on nothing but (seed, epoch) and the
/// indices themselves.
pub fn epoch_order(indices: &[u32], seed: u64, epoch: u64) -> Vec<u32> {
    let mut order = indices.to_vec();
    let mut rng = stream(seed, Purpose::Order, epoch, 0);
    for last in (1..order.len()).rev() {
        // Indices are 32-bit numbers and distinct, so their count less one is a 32-bit number as well.
        order.swap(last, below(&mut rng, last as u32 + 1) as usize);
    }
    order
}

/// What loading has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoaderStatistics {
    /// Images turned into views, including those of batches that were not taken yet.
    pub samples: u64,
    /// Time spent reading and decoding, summed over the workers.
    pub decode: Duration,
    /// Time spent making views, summed over the workers.
    pub augment: Duration,
    /// Time the caller waited for batches.
    pub wait: Duration,
    /// Time the caller waited for the latest batch.
    pub last_wait: Duration,
}

/// An iterator over the batches of one pass. Dropping it stops the workers.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    wait: Duration,
    last_wait: Duration,
}

impl Loader {
    /// Starts the workers on `order`, indices into `source`; the last batch may be smaller than `batch_size`.
    ///
    /// To resume in the middle of an epoch pass the rest of its order: nothing that was skipped is decoded.
    ///
    /// # Errors
    /// [`Error::Usage`] for a batch size of 0 and for an index that the source does not have; [`Error::Io`] if
    /// no thread can be started.
    pub fn new(
        source: Arc<dyn ImageSource>,
        view: View,
        order: Vec<u32>,
        batch_size: usize,
        options: LoaderOptions,
    ) -> Result<Self> {
        if batch_size == 0 {
            return Err(Error::usage("the batch size must be at least 1"));
        }
        if let Some(index) = order.iter().find(|&&index| index as usize >= source.len()) {
            return Err(Error::usage(format!("image {index} was asked for, but there are {}", source.len())));
        }
        let workers = options.workers.max(1);
        let options = LoaderOptions { workers, prefetch: options.prefetch.max(1), ..options };
        let shared = Arc::new(Shared::new(source, view, order, batch_size, options));
        let mut loader = Loader {
            shared,
            workers: Vec::with_capacity(workers),
            wait: Duration::ZERO,
            last_wait: Duration::ZERO,
        };
        for number in 0..workers {
            // An error here drops the loader, which stops the threads already started.
            loader.workers.push(shared::spawn(Arc::clone(&loader.shared), number)?);
        }
        Ok(loader)
    }

    /// Batches in this pass, taken or not.
    pub fn batches(&self) -> usize {
        self.shared.batches()
    }

    /// Takes a batch back, so that a later one can use its memory.
    pub fn recycle(&self, batch: Batch) {
        self.shared.recycle(batch.pixels);
    }

    /// What loading has cost so far.
    pub fn statistics(&self) -> LoaderStatistics {
        let (samples, decode, augment) = self.shared.costs();
        LoaderStatistics { samples, decode, augment, wait: self.wait, last_wait: self.last_wait }
    }
}

/// Each batch once, in order. A batch with an unreadable image is an `Err` in its place, which names the first
/// one; a worker's panic is [`Error::Worker`] in the place of the batch that it was busy with. Later batches
/// follow all the same, but none after [`Error::Slow`]: an image that takes longer than
/// [`LoaderOptions::read_timeout`].
impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = Instant::now();
        let batch = self.shared.take();
        self.last_wait = start.elapsed();
        self.wait += self.last_wait;
        batch
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.shared.batches() - self.shared.taken();
        (left, Some(left))
    }
}

impl ExactSizeIterator for Loader {}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop();
        if self.shared.hangs() {
            // A thread in a read that does not return cannot be waited for. It keeps what it uses, and ends with the
            // process at the latest.
            return;
        }
        for worker in self.workers.drain(..) {
            // A worker's panic was reported in its batch's place.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests;
