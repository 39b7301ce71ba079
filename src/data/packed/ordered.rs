//! Work in parallel, results in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Results that may be begun or wait for an earlier one, at most.
const WINDOW: usize = 256;
/// Bytes that may wait, about: more is not begun until some were taken.
const MAX_WAITING: usize = 256 << 20;

struct State<T> {
    /// The next index that nobody works on.
    next: usize,
    /// Results begun but not taken, from index `taken` on.
    begun: VecDeque<Option<std::thread::Result<T>>>,
    taken: usize,
    /// Bytes of the results that wait.
    waiting: usize,
    stopped: bool,
}

struct Queue<T> {
    state: Mutex<State<T>>,
    /// Signalled when there may be something to begin, or no reason to go on.
    room: Condvar,
    /// Signalled when the result that is to be taken next is there.
    ready: Condvar,
}

/// Ends the workers, also if taking a result panics.
struct Stop<'a, T>(&'a Queue<T>);

impl<T> Drop for Stop<'_, T> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.room.notify_all();
    }
}

/// Calls `make` with each index of `range` on `threads` threads and hands the results to `take` in order, on this
/// thread. `bytes` says how much memory a result takes, which bounds how far the workers run ahead.
///
/// # Errors
/// The first error of `take`, which ends the work; [`Error::Worker`] if `make` panics.
pub(super) fn in_order<T: Send>(
    range: Range<usize>,
    threads: usize,
    make: impl Fn(usize) -> T + Sync,
    bytes: impl Fn(&T) -> usize + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let state =
        State { next: range.start, begun: VecDeque::new(), taken: range.start, waiting: 0, stopped: false };
    let queue = Queue { state: Mutex::new(state), room: Condvar::new(), ready: Condvar::new() };
    std::thread::scope(|scope| {
        let _stop = Stop(&queue);
        for _ in 0..threads.clamp(1, range.len().max(1)) {
            std::thread::Builder::new()
                .name("packing".into())
                .spawn_scoped(scope, || queue.work(range.end, &make, &bytes))
                .map_err(|source| Error::io(".", "start a thread", source))?;
        }
        for _ in range.clone() {
            take(queue.take(&bytes).map_err(|_panic| Error::Worker { worker: "packing" })?)?;
        }
        Ok(())
    })
}

impl<T> Queue<T> {
    /// Nobody panics while holding the lock.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, end: usize, make: &impl Fn(usize) -> T, bytes: &impl Fn(&T) -> usize) {
        while let Some(index) = self.claim(end) {
            let made = catch_unwind(AssertUnwindSafe(|| make(index)));
            let mut state = self.lock();
            state.waiting += made.as_ref().map_or(0, bytes);
            let place = index - state.taken;
            state.begun[place] = Some(made);
            if place == 0 {
                self.ready.notify_one();
            }
        }
    }

    fn claim(&self, end: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.next == end {
                return None;
            }
            // The one that is to be taken next may always be begun: what waits, waits for it.
            let ahead = state.begun.len();
            if ahead == 0 || (ahead < WINDOW && state.waiting < MAX_WAITING) {
                break;
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.next += 1;
        state.begun.push_back(None);
        Some(state.next - 1)
    }

    fn take(&self, bytes: &impl Fn(&T) -> usize) -> std::thread::Result<T> {
        let mut state = self.lock();
        loop {
            if let Some(made) = state.begun.front_mut().and_then(Option::take) {
                state.begun.pop_front();
                state.taken += 1;
                state.waiting -= made.as_ref().map_or(0, bytes);
                drop(state);
                self.room.notify_all();
                return made;
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn collect(threads: usize, weight: usize) -> Vec<usize> {
        let mut seen = Vec::new();
        let make = |i: usize| {
            std::thread::sleep(Duration::from_micros((i * 37 % 11) as u64 * 100));
            i * i
        };
        in_order(
            3..300,
            threads,
            make,
            |_| weight,
            |value| {
                seen.push(value);
                Ok(())
            },
        )
        .unwrap();
        seen
    }

    #[test]
    fn results_come_in_order_whoever_makes_them_and_however_large_they_are() {
        let expected: Vec<usize> = (3..300).map(|i| i * i).collect();
        assert_eq!(collect(1, 0), expected);
        assert_eq!(collect(5, 1), expected);
        assert_eq!(collect(5, MAX_WAITING), expected);
        in_order(0..0, 4, |_| (), |()| 0, |()| panic!("there is nothing")).unwrap();
    }

    #[test]
    fn an_error_or_a_panic_ends_the_work() {
        let stop = |i: usize| if i == 7 { Err(Error::usage("enough")) } else { Ok(()) };
        let error = in_order(0..1_000_000, 3, |i| i, |_| 0, stop).unwrap_err();
        assert_eq!(error.to_string(), "enough");
        let error = in_order(0..100, 3, |i| assert!(i != 7), |()| 0, |()| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Worker { .. }), "{error}");
    }
}
