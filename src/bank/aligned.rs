//! A flat `f32` buffer that starts on a cache line, so that no row of 16·n numbers straddles one more line than
//! it must: every vector load of the kernels touches exactly one line.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// `len` numbers on whole, aligned cache lines; the rest of the last line is zero.
#[derive(Clone, Debug)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Aligned { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// A copy of `values`.
    pub(crate) fn from_slice(values: &[f32]) -> Self {
        let mut copy = Self::zeros(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` around `[f32; 16]`, whose size equals its alignment of 64 bytes, so the
        // lines are one run of at least `len` initialised numbers.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` is passed on.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
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
        for len in [0, 1, 15, 16, 17, 300] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let buffer = Aligned::from_slice(&values);
            assert_eq!(*buffer, *values);
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
        }
    }
}
