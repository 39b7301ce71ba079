//! A flat `f32` buffer that starts on a cache line, so that no row of 16·n numbers straddles one more line than
//! it must: every vector load of the kernels touches exactly one line.

use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// From this many bytes on a buffer asks for huge pages: rows gathered at random from small pages spend longer on
/// finding their address than on arriving.
const HUGE: usize = 4 << 20;

/// `len` numbers that start on a cache line.
#[derive(Debug)]
pub(crate) struct Aligned {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let lines = len.div_ceil(16);
        let bytes = lines.saturating_mul(size_of::<Line>());
        let memory = match (bytes >= HUGE).then(|| pages(bytes)).flatten() {
            Some(pages) => Memory::Pages(pages),
            None => Memory::Lines(vec![Line([0.0; 16]); lines]),
        };
        Aligned { memory, len }
    }
}

/// Zeroed pages, huge ones where the system has them.
fn pages(bytes: usize) -> Option<MmapMut> {
    let pages = MmapMut::map_anon(bytes).ok()?;
    #[cfg(target_os = "linux")]
    // Refused where the kernel knows no huge pages; small ones do as well, only slower.
    let _ = pages.advise(memmap2::Advice::HugePage);
    Some(pages)
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        let start = match &self.memory {
            Memory::Lines(lines) => lines.as_ptr().cast(),
            Memory::Pages(pages) => pages.as_ptr().cast(),
        };
        // SAFETY: `zeros` made at least `len` numbers here, all initialised: lines are `repr(C)` around `[f32; 16]`
        // with neither gap nor padding, and pages are zeroed and aligned to more than a line. Any bits are an `f32`.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        let start = match &mut self.memory {
            Memory::Lines(lines) => lines.as_mut_ptr().cast(),
            Memory::Pages(pages) => pages.as_mut_ptr().cast(),
        };
        // SAFETY: as in `deref`; the exclusive borrow of `self` is passed on.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl PartialEq for Aligned {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_on_a_cache_line_and_keeps_its_values() {
        for len in [0, 1, 15, 16, 17, 300, HUGE / 4 - 1, HUGE / 4, HUGE / 2 + 1] {
            let mut buffer = Aligned::zeros(len);
            assert!(buffer.len() == len && buffer.iter().all(|x| *x == 0.0));
            buffer.iter_mut().rev().take(2).for_each(|x| *x = 1.5);
            assert_eq!(buffer.clone(), buffer);
            assert_eq!(buffer.iter().filter(|x| **x == 1.5).count(), len.min(2));
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
        }
    }
}
