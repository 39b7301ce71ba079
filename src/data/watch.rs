//! Who reads which image since when, so that a file system that no longer answers is noticed and not waited for.
//!
//! A read that hangs cannot be ended from outside: its thread is left behind, and whoever waits for it gets an error
//! with the image's name. Time counts while somebody waits, in small steps: a process that was stopped for an hour and
//! then goes on has not waited for an hour.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::RgbImage;

use super::dataset::Dataset;
use crate::error::{Error, Result};

/// How long one image may take to be read and decoded unless somebody says otherwise. A hard-mounted network file
/// system may well need minutes until its server is back.
pub const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest that a waiting thread sleeps before it looks around.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// What each of several workers is reading.
#[derive(Debug)]
pub(super) struct Watch {
    limit: Duration,
    readers: Vec<Mutex<Option<(u32, Instant)>>>,
}

impl Watch {
    /// Nobody reads anything yet; a read that takes longer than `limit` hangs.
    pub(super) fn new(workers: usize, limit: Duration) -> Self {
        Watch { limit, readers: (0..workers).map(|_| Mutex::new(None)).collect() }
    }

    /// Says that `worker` reads image `index` until the result is dropped.
    pub(super) fn reading(&self, worker: usize, index: u32) -> Reading<'_> {
        *self.reader(worker) = Some((index, Instant::now()));
        Reading { watch: self, worker }
    }

    /// The image that has been read the longest, if that is beyond the limit.
    fn overdue(&self) -> Option<u32> {
        let now = Instant::now();
        let all = (0..self.readers.len()).filter_map(|worker| *self.reader(worker));
        let (index, since) = all.min_by_key(|&(_, since)| since)?;
        (now.saturating_duration_since(since) >= self.limit).then_some(index)
    }

    fn reader(&self, worker: usize) -> MutexGuard<'_, Option<(u32, Instant)>> {
        self.readers[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with its read, however that ends.
pub(super) struct Reading<'a> {
    watch: &'a Watch,
    worker: usize,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        *self.watch.reader(self.worker) = None;
    }
}

/// Somebody's wait for what the readers of a [`Watch`] will bring.
pub(super) struct Wait<'a> {
    watch: &'a Watch,
    waited: Duration,
    asleep: Instant,
}

impl<'a> Wait<'a> {
    /// A wait that begins now.
    pub(super) fn new(watch: &'a Watch) -> Self {
        Wait { watch, waited: Duration::ZERO, asleep: Instant::now() }
    }

    /// How long to sleep before [`overdue`](Self::overdue) is asked; call it just before.
    pub(super) fn step(&mut self) -> Duration {
        self.asleep = Instant::now();
        (self.watch.limit / 8).clamp(Duration::from_millis(1), LONGEST_STEP)
    }

    /// After a sleep in vain: the image that hangs, once this wait has lasted for the limit.
    pub(super) fn overdue(&mut self) -> Option<u32> {
        // Not the whole time since then: the process may have been stopped in between.
        self.waited += self.asleep.elapsed().min(2 * LONGEST_STEP);
        if self.waited < self.watch.limit { None } else { self.watch.overdue() }
    }
}

/// The error for image `name`, which takes longer than `limit`.
pub(super) fn hangs(name: &str, limit: Duration) -> Error {
    Error::Slow { image: name.to_owned(), seconds: limit.as_secs_f64() }
}

/// Decodes image `index` of `dataset`, or gives up after `limit`.
///
/// # Errors
/// If the image cannot be read, or not in time; the error names it.
pub fn load_within(dataset: &Dataset, index: usize, limit: Duration) -> Result<RgbImage> {
    let (send, receive) = channel();
    let images = dataset.clone();
    let work = move || {
        // Whoever has given up hears nothing.
        let _ = send.send(images.load(index));
    };
    std::thread::Builder::new()
        .name("read".into())
        .spawn(work)
        .map_err(|source| Error::io(".", "start a thread", source))?;
    match receive.recv_timeout(limit) {
        Ok(loaded) => loaded,
        Err(RecvTimeoutError::Timeout) => Err(hangs(&dataset.name(index), limit)),
        Err(RecvTimeoutError::Disconnected) => Err(Error::Worker { worker: "reading" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(40);

    #[test]
    fn the_longest_read_is_overdue_once_somebody_has_waited_for_it() {
        let watch = Watch::new(2, LIMIT);
        let mut wait = Wait::new(&watch);
        let first = watch.reading(1, 7);
        std::thread::sleep(LIMIT);
        let _second = watch.reading(0, 8);
        assert_eq!(watch.overdue(), Some(7));
        // Nobody has waited yet: whoever computed meanwhile is told nothing.
        wait.step();
        assert_eq!(wait.overdue(), None);
        wait.step();
        std::thread::sleep(LIMIT);
        assert_eq!(wait.overdue(), Some(7));
        drop(first);
        assert_eq!(wait.overdue(), Some(8));
    }

    #[test]
    fn many_short_reads_are_no_hanging_one() {
        let watch = Watch::new(1, LIMIT);
        let mut wait = Wait::new(&watch);
        for index in 0..10 {
            wait.step();
            let reading = watch.reading(0, index);
            std::thread::sleep(LIMIT / 4);
            assert_eq!(wait.overdue(), None, "after {index}");
            drop(reading);
        }
    }
}
