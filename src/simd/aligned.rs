//! A flat buffer that starts on a cache line, so that no row of 16·n numbers straddles one more line than
//! it must: every vector load of the kernels touches exactly one line.

use super::Element;
use memmap2::MmapMut;
use std::fmt::{self, Debug, Formatter};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// From this many bytes on a buffer asks for huge pages: rows gathered at random from small pages spend longer on
/// finding their address than on arriving.
const HUGE: usize = 4 << 20;

/// `len` numbers that start on a cache line.
pub(crate) struct Aligned<E = f32> {
    memory: Memory,
    len: usize,
    elements: PhantomData<E>,
}

enum Memory {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

impl<E: Element> Aligned<E> {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let lines = len.div_ceil(LINE / size_of::<E>());
        let bytes = lines.saturating_mul(size_of::<Line>());
        let memory = match (bytes >= HUGE).then(|| pages(bytes)).flatten() {
            Some(pages) => Memory::Pages(pages),
            None => Memory::Lines(vec![Line([0; LINE]); lines]),
        };
        Aligned { memory, len, elements: PhantomData }
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

impl<E: Element> Clone for Aligned<E> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<E: Element> Deref for Aligned<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        let start = match &self.memory {
            Memory::Lines(lines) => lines.as_ptr().cast(),
            Memory::Pages(pages) => pages.as_ptr().cast(),
        };
        // SAFETY: `zeros` made at least `len` numbers here, all initialised: lines are `repr(C)` around 64 bytes
        // with neither gap nor padding, and pages are zeroed and aligned to more than a line. Any bits are an `Element`.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl<E: Element> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        let start = match &mut self.memory {
            Memory::Lines(lines) => lines.as_mut_ptr().cast(),
            Memory::Pages(pages) => pages.as_mut_ptr().cast(),
        };
        // SAFETY: as in `deref`; the exclusive borrow of `self` is passed on.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl<E: Element + Debug> Debug for Aligned<E> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<E: Element> PartialEq for Aligned<E> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<E: Element + Debug>() {
        let (zero, other) = (E::from_f32(0.0), E::from_f32(1.5));
        let large = HUGE / size_of::<E>();
        for len in [0, 1, 15, 16, 17, 31, 32, 33, 300, large - 1, large, 2 * large + 1] {
            let mut buffer = Aligned::<E>::zeros(len);
            assert!(buffer.len() == len && buffer.iter().all(|x| *x == zero));
            buffer.iter_mut().rev().take(2).for_each(|x| *x = other);
            assert_eq!(buffer.clone(), buffer);
            assert_eq!(buffer.iter().filter(|x| **x == other).count(), len.min(2));
            assert_eq!(buffer.as_ptr() as usize % LINE, 0);
        }
    }

    #[test]
    fn starts_on_a_cache_line_and_keeps_its_values() {
        check::<f32>();
        check::<half::bf16>();
    }
}
