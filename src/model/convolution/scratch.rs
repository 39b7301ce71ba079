//! Working memory that each thread keeps from one use to the next: fresh memory would have to be mapped and cleared.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::model::channels_last::Chunk;
use crate::simd::{Aligned, LANES};

thread_local! {
    /// What is not in use. There is never more than was in use at once.
    static SPARE: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// Chunks on cache lines of their own, with anything in them; given back when dropped.
pub(super) struct Scratch {
    memory: Aligned,
    chunks: usize,
}

impl Scratch {
    /// That many chunks.
    pub fn new(chunks: usize) -> Self {
        let length = chunks * LANES;
        let fitting = SPARE.with_borrow_mut(|spare| {
            spare.sort_by_key(|memory| memory.len());
            let smallest = spare.partition_point(|memory| memory.len() < length);
            if smallest < spare.len() {
                return Some(spare.remove(smallest));
            }
            // Too small, like all of them; larger memory comes in its place.
            drop(spare.pop());
            None
        });
        Scratch { memory: fitting.unwrap_or_else(|| Aligned::zeros(length)), chunks }
    }

    /// That many chunks of zeros.
    pub fn zeros(chunks: usize) -> Self {
        let mut scratch = Self::new(chunks);
        scratch.as_flattened_mut().fill(0.0);
        scratch
    }
}

impl Deref for Scratch {
    type Target = [Chunk];
    #[inline(always)]
    fn deref(&self) -> &[Chunk] {
        &self.memory.as_chunks().0[..self.chunks]
    }
}

impl DerefMut for Scratch {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [Chunk] {
        &mut self.memory.as_chunks_mut().0[..self.chunks]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Aligned::zeros(0));
        // Where the thread itself is ending there is nobody left to keep it for.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().push(memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_does_not_pile_up() {
        std::thread::spawn(|| {
            let address = |scratch: &Scratch| scratch.as_ptr() as usize;
            let mut small = Scratch::new(3);
            small.fill([1.0; LANES]);
            let large = Scratch::new(100);
            let before = (address(&small), address(&large));
            drop((large, small));
            let (small, large) = (Scratch::zeros(2), Scratch::new(50));
            assert_eq!((address(&small), address(&large)), before);
            assert!(small.len() == 2 && small.iter().all(|chunk| *chunk == [0.0; LANES]));
            drop((small, large));
            for chunks in [200, 300, 400] {
                assert_eq!(Scratch::new(chunks).len(), chunks);
            }
            SPARE.with_borrow(|spare| assert_eq!(spare.len(), 2));
        })
        .join()
        .unwrap();
    }
}
