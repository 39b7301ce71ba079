//! Work on libtorch's own threads.
//!
//! Between two of its operations GNU's OpenMP keeps its threads awake, waiting in a loop for some milliseconds. Threads of
//! our own would share the processors with those; so work that goes back and forth with libtorch's is done by them.

use std::ffi::{c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

/// How many threads libtorch uses.
pub(super) fn count() -> usize {
    tch::get_num_threads().max(1) as usize
}

/// Calls `work` with each of `items`, in no order that could be relied upon, on as many threads as libtorch uses.
///
/// # Panics
/// If `work` does, after all threads have stopped.
pub(super) fn share<T: Send>(items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items.fuse());
    let panicked = Mutex::new(None);
    let worker = || {
        let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
        let all = catch_unwind(AssertUnwindSafe(|| {
            while let Some(item) = next() {
                work(item);
            }
        }));
        if let Err(payload) = all {
            *panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        }
    };
    on_each_thread(count(), &worker);
    if let Some(payload) = panicked.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(payload);
    }
}

/// Calls `worker`, which must not panic, on `threads` threads at once and waits for all of them.
fn on_each_thread<F: Fn() + Sync>(threads: usize, worker: &F) {
    extern "C" fn call<F: Fn()>(worker: *mut c_void) {
        // SAFETY: it is the reference that was passed on below, and outlives all calls.
        unsafe { (*worker.cast::<F>().cast_const())() }
    }
    match openmp() {
        _ if threads == 1 => worker(),
        Some(parallel) => {
            let data = std::ptr::from_ref(worker).cast_mut().cast();
            // SAFETY: returns when every thread has returned from `call`; `F` may be called from any of them.
            unsafe { parallel(call::<F>, data, threads as c_uint, 0) }
        }
        None => rayon::scope(|scope| (0..threads).for_each(|_| scope.spawn(|_| worker()))),
    }
}

/// `GOMP_parallel(function, data, threads, flags)`, what a C compiler makes of `#pragma omp parallel`.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// That function of the OpenMP which libtorch brought along; another OpenMP than GNU's may not have it.
fn openmp() -> Option<Parallel> {
    static FOUND: OnceLock<Option<Parallel>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name ends in zero, and what has it is a function of this type.
        unsafe {
            let address = libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr());
            (!address.is_null()).then(|| std::mem::transmute::<*mut c_void, Parallel>(address))
        }
    })
}

/// Calls `work` with another number of libtorch's threads; one caller at a time, since that number is the process's.
#[cfg(test)]
pub(super) fn with_count<T>(threads: usize, work: impl FnOnce() -> T) -> T {
    static CHANGED: Mutex<()> = Mutex::new(());
    let _changed = CHANGED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = tch::get_num_threads();
    tch::set_num_threads(threads as i32);
    let result = work();
    tch::set_num_threads(before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn every_item_is_worked_on_once() {
        let seen: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        share(seen.iter(), |item| {
            item.fetch_add(1, Relaxed);
        });
        assert!(seen.iter().all(|count| count.load(Relaxed) == 1));
        share(std::iter::empty::<usize>(), |_| unreachable!());
    }

    #[test]
    fn a_panic_comes_through_and_later_work_is_done() {
        let failed = catch_unwind(|| share(0..10, |item| assert_ne!(item, 3, "as intended")));
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        share(0..10, |item| {
            sum.fetch_add(item, Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
