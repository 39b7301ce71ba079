//! Features that are looked at many times: in memory, or in a file where they do not fit.

use std::path::Path;

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// The features `[N, F]` of N images, filled row by row.
pub struct Cache {
    dim: usize,
    filled: usize,
    store: Store,
}

enum Store {
    Memory(Vec<f32>),
    /// A file without a name: it is gone when this is.
    File(MmapMut),
}

/// Bytes of the features of `rows` images, `dim` numbers each.
pub fn bytes(rows: usize, dim: usize) -> u64 {
    rows as u64 * dim as u64 * size_of::<f32>() as u64
}

/// Bytes of memory that the system says are free for use, where it says so (Linux).
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

impl Cache {
    /// An empty one for `rows` images of `dim` numbers: in memory, or in a file in `folder`.
    ///
    /// # Errors
    /// If the file cannot be made or has no room.
    pub fn new(rows: usize, dim: usize, folder: Option<&Path>) -> Result<Self> {
        let store = match folder {
            None => Store::Memory(vec![0.0; rows * dim]),
            Some(folder) => {
                let fail = |e| Error::io(folder, "keep features there", e);
                let file = tempfile::tempfile_in(folder).map_err(fail)?;
                file.set_len(bytes(rows, dim).max(1)).map_err(fail)?;
                // SAFETY: the file has no name, so that nobody else can open it and change its length or contents.
                Store::File(unsafe { MmapMut::map_mut(&file) }.map_err(fail)?)
            }
        };
        Ok(Cache { dim, filled: 0, store })
    }

    /// Features kept in memory, `[N, F]`.
    ///
    /// # Panics
    /// If they are not whole rows.
    #[cfg(test)]
    pub fn of(values: Vec<f32>, dim: usize) -> Self {
        assert_eq!(values.len() % dim, 0, "whole rows");
        Cache { dim, filled: values.len() / dim, store: Store::Memory(values) }
    }

    /// Numbers of a row, F.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows filled so far, N.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether no row is filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Adds whole rows.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn push(&mut self, rows: &[f32]) {
        let at = self.filled * self.dim;
        self.all_mut()[at..at + rows.len()].copy_from_slice(rows);
        self.filled += rows.len() / self.dim;
    }

    /// The rows `range`, `[n, F]`.
    ///
    /// # Panics
    /// If they are not filled.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[f32] {
        assert!(range.end <= self.filled, "row {} of {}", range.end, self.filled);
        &self.all()[range.start * self.dim..range.end * self.dim]
    }

    /// Row `index`, `[F]`.
    ///
    /// # Panics
    /// If it is not filled.
    pub fn row(&self, index: usize) -> &[f32] {
        self.rows(index..index + 1)
    }

    /// Every filled row, to be changed.
    pub fn rows_mut(&mut self) -> &mut [f32] {
        let end = self.filled * self.dim;
        &mut self.all_mut()[..end]
    }

    fn all(&self) -> &[f32] {
        match &self.store {
            Store::Memory(values) => values,
            // SAFETY: a mapping begins at a page, which is aligned for f32, and every pattern of bits is one.
            Store::File(map) => unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), map.len() / 4) },
        }
    }

    fn all_mut(&mut self) -> &mut [f32] {
        match &mut self.store {
            Store::Memory(values) => values,
            // SAFETY: as above, and the mapping is borrowed exclusively.
            Store::File(map) => unsafe {
                std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), map.len() / 4)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_file_keep_the_same_rows() {
        let folder = tempfile::tempdir().unwrap();
        for place in [None, Some(folder.path())] {
            let mut cache = Cache::new(3, 2, place).unwrap();
            cache.push(&[1.0, 2.0]);
            cache.push(&[3.0, 4.0, 5.0, 6.0]);
            assert_eq!((cache.len(), cache.row(1)), (3, &[3.0, 4.0][..]));
            cache.rows_mut()[5] = 7.0;
            assert_eq!(cache.rows(1..3), [3.0, 4.0, 5.0, 7.0]);
        }
        assert!(Cache::new(3, 2, Some(&folder.path().join("nowhere"))).is_err());
        assert_eq!(bytes(1_000_000, 9216), 36_864_000_000);
    }
}
