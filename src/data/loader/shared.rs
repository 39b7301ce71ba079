//! What the caller and the workers of a loader share.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Batch, LoaderOptions, View};
use crate::data::ImageSource;
use crate::data::augment::Scratch;
use crate::data::watch::{self, Wait, Watch};
use crate::error::{Error, Result};

/// Most samples that a worker takes at once.
const MAX_PIECE: usize = 8;

pub(super) struct Shared {
    source: Arc<dyn ImageSource>,
    view: View,
    order: Vec<u32>,
    batch_size: usize,
    /// Samples in a piece of work.
    piece: usize,
    prefetch: usize,
    read_timeout: Duration,
    watch: Watch,
    state: Mutex<State>,
    /// Signalled when a batch was taken, or the loader stops.
    room: Condvar,
    /// Signalled when a batch is complete, or a worker ends.
    ready: Condvar,
    stopped: AtomicBool,
    /// A read took longer than it may.
    hangs: AtomicBool,
    samples: AtomicU64,
    decode_ns: AtomicU64,
    augment_ns: AtomicU64,
}

struct State {
    /// Position in `order` of the next piece that nobody works on.
    next: usize,
    /// Batches that the caller took.
    taken: usize,
    /// Batches begun but not taken; the first is number `taken`.
    begun: VecDeque<Slot>,
    /// Memory of batches given back.
    spare: Vec<Vec<u8>>,
    /// Workers still running; the first start before any batch can be taken.
    alive: usize,
}

/// A batch in the making.
struct Slot {
    pixels: Arc<Mutex<Vec<u8>>>,
    /// Samples not yet done.
    missing: usize,
    /// The failure at the lowest position in `order`, so that it does not depend on the workers.
    failure: Option<(usize, Error)>,
}

/// Samples to be made: where they are in `order`, and where they go.
struct Piece {
    batch: usize,
    positions: Range<usize>,
    pixels: Arc<Mutex<Vec<u8>>>,
}

/// Workers don't panic while they hold a lock; if one did, the batch says so by its failure.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        source: Arc<dyn ImageSource>,
        view: View,
        order: Vec<u32>,
        batch_size: usize,
        options: LoaderOptions,
    ) -> Self {
        let LoaderOptions { workers, prefetch, read_timeout } = options;
        let state = State { next: 0, taken: 0, begun: VecDeque::new(), spare: Vec::new(), alive: workers };
        Shared {
            source,
            view,
            order,
            batch_size,
            piece: (batch_size / (4 * workers)).clamp(1, MAX_PIECE),
            prefetch,
            read_timeout,
            watch: Watch::new(workers, read_timeout),
            state: Mutex::new(state),
            room: Condvar::new(),
            ready: Condvar::new(),
            stopped: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            samples: AtomicU64::new(0),
            decode_ns: AtomicU64::new(0),
            augment_ns: AtomicU64::new(0),
        }
    }

    pub(super) fn batches(&self) -> usize {
        self.order.len().div_ceil(self.batch_size)
    }

    pub(super) fn taken(&self) -> usize {
        lock(&self.state).taken
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Under the lock, lest a worker that has just looked go to sleep after the signal.
        let _state = lock(&self.state);
        self.room.notify_all();
    }

    pub(super) fn recycle(&self, pixels: Vec<u8>) {
        let mut state = lock(&self.state);
        if state.spare.len() < self.prefetch {
            state.spare.push(pixels);
        }
    }

    /// Samples done, time decoding, time augmenting.
    pub(super) fn costs(&self) -> (u64, Duration, Duration) {
        let time = |counter: &AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        (self.samples.load(Ordering::Relaxed), time(&self.decode_ns), time(&self.augment_ns))
    }

    /// Positions in `order` of batch `batch`.
    fn positions(&self, batch: usize) -> Range<usize> {
        let start = batch * self.batch_size;
        start..(start + self.batch_size).min(self.order.len())
    }

    /// Whether a worker was given up, which may never end.
    pub(super) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    /// Waits for the next batch; `None` after the last.
    pub(super) fn take(&self) -> Option<Result<Batch>> {
        let mut wait = Wait::new(&self.watch);
        let mut state = lock(&self.state);
        if state.taken == self.batches() {
            return None;
        }
        while state.begun.front().is_none_or(|slot| slot.missing > 0) {
            if state.alive == 0 {
                // Every worker is gone with work left, by a panic outside of any sample. Never a hang.
                state.taken = self.batches();
                return Some(Err(Error::Worker { worker: "loader" }));
            }
            let (woken, slept) =
                self.ready.wait_timeout(state, wait.step()).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if let Some(index) = slept.timed_out().then(|| wait.overdue()).flatten() {
                state.taken = self.batches();
                self.hangs.store(true, Ordering::Relaxed);
                self.stopped.store(true, Ordering::Relaxed);
                return Some(Err(watch::hangs(&self.source.name(index as usize), self.read_timeout)));
            }
        }
        let slot = state.begun.pop_front()?;
        let positions = self.positions(state.taken);
        state.taken += 1;
        drop(state);
        self.room.notify_all();
        let pixels = std::mem::take(&mut *lock(&slot.pixels));
        if let Some((_, error)) = slot.failure {
            self.recycle(pixels);
            return Some(Err(error));
        }
        Some(Ok(Batch { indices: self.order[positions].to_vec(), pixels, size: self.view.size() }))
    }

    /// Waits for a piece of work; `None` when there is none left.
    fn claim(&self) -> Option<Piece> {
        let mut state = lock(&self.state);
        loop {
            if self.stopped.load(Ordering::Relaxed) || state.next == self.order.len() {
                return None;
            }
            if state.next / self.batch_size < state.taken + self.prefetch {
                break;
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let batch = state.next / self.batch_size;
        let all = self.positions(batch);
        let number = batch - state.taken;
        if number == state.begun.len() {
            let mut pixels = state.spare.pop().unwrap_or_default();
            pixels.resize(all.len() * self.view.bytes(), 0);
            let pixels = Arc::new(Mutex::new(pixels));
            state.begun.push_back(Slot { pixels, missing: all.len(), failure: None });
        }
        let positions = state.next..(state.next + self.piece).min(all.end);
        state.next = positions.end;
        Some(Piece { batch, positions, pixels: Arc::clone(&state.begun[number].pixels) })
    }

    /// Counts a piece as done, well or not.
    fn finish(&self, piece: &Piece, failure: Option<(usize, Error)>) {
        let mut state = lock(&self.state);
        // After the caller has given up, nothing is taken any longer.
        let Some(number) = piece.batch.checked_sub(state.taken) else { return };
        let slot = &mut state.begun[number];
        slot.missing -= piece.positions.len();
        if let Some(failure) = failure
            && slot.failure.as_ref().is_none_or(|known| failure.0 < known.0)
        {
            slot.failure = Some(failure);
        }
        if slot.missing == 0 && number == 0 {
            self.ready.notify_all();
        }
    }

    /// Makes the views of a piece, one at a time in `view`, up to the first failure.
    fn make(
        &self,
        worker: usize,
        piece: &Piece,
        scratch: &mut Scratch,
        view: &mut [u8],
    ) -> Option<(usize, Error)> {
        for position in piece.positions.clone() {
            if self.stopped.load(Ordering::Relaxed) {
                return None;
            }
            let made = catch_unwind(AssertUnwindSafe(|| {
                let index = self.order[position];
                let _reading = self.watch.reading(worker, index);
                self.make_one(index, scratch, view)
            }));
            match made {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some((position, error)),
                Err(_panic) => return Some((position, Error::Worker { worker: "loader" })),
            }
            let start = (position - piece.batch * self.batch_size) * view.len();
            lock(&piece.pixels)[start..start + view.len()].copy_from_slice(view);
        }
        None
    }

    fn make_one(&self, index: u32, scratch: &mut Scratch, view: &mut [u8]) -> Result<()> {
        let cost = self.view.make(self.source.as_ref(), index, scratch, view)?;
        let count = |counter: &AtomicU64, time: Duration| {
            counter.fetch_add(time.as_nanos() as u64, Ordering::Relaxed)
        };
        count(&self.decode_ns, cost.decode);
        count(&self.augment_ns, cost.augment);
        self.samples.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn work(&self, worker: usize) {
        let mut scratch = Scratch::default();
        let mut view = vec![0; self.view.bytes()];
        while let Some(piece) = self.claim() {
            let failure = self.make(worker, &piece, &mut scratch, &mut view);
            self.finish(&piece, failure);
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("view", &self.view).field("batches", &self.batches()).finish()
    }
}

/// Tells the caller that a worker ended, however it did.
struct Farewell<'a>(&'a Shared);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).alive -= 1;
        self.0.ready.notify_all();
    }
}

/// Starts worker `number`.
pub(super) fn spawn(shared: Arc<Shared>, number: usize) -> Result<JoinHandle<()>> {
    let work = move || {
        let _farewell = Farewell(&shared);
        shared.work(number);
    };
    let thread = std::thread::Builder::new().name(format!("loader-{number}"));
    thread.spawn(work).map_err(|source| Error::io(".", "start a loader thread", source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::TestTransform;

    struct Nothing;

    impl ImageSource for Nothing {
        fn len(&self) -> usize {
            4
        }

        fn load(&self, _index: usize) -> Result<image::RgbImage> {
            Ok(image::RgbImage::new(2, 2))
        }

        fn name(&self, _index: usize) -> std::borrow::Cow<'_, str> {
            "nothing".into()
        }
    }

    #[test]
    fn workers_that_are_gone_are_an_error_and_not_a_hang() {
        let view = View::Test { transform: TestTransform::cifar(2) };
        let options = LoaderOptions { workers: 1, prefetch: 1, ..LoaderOptions::default() };
        let shared = Shared::new(Arc::new(Nothing), view, vec![0, 1, 2, 3], 2, options);
        drop(Farewell(&shared));
        assert!(matches!(shared.take(), Some(Err(Error::Worker { .. }))));
        assert!(shared.take().is_none());
    }
}
