//! A tensor in a file: a view of a storage, its bytes touched when they are asked for.

use std::borrow::Cow;

use super::Dtype;

/// What a tensor may repeat (by strides of 0 or overlapping windows) beyond the size of its file.
const MAX_REPEATED: usize = 64 << 20;

/// A tensor of a [`Checkpoint`](super::Checkpoint): within its storage, whatever its strides.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// In elements.
    pub(super) strides: Vec<usize>,
    /// In elements.
    pub(super) offset: usize,
    pub(super) storage: &'a [u8],
    pub(super) big_endian: bool,
    /// Whether it is a parameter of a module.
    pub(super) parameter: bool,
}

impl<'a> Tensor<'a> {
    /// A view of `storage`, if it lies within.
    pub(super) fn new(
        dtype: Dtype,
        (shape, strides, offset): (&[i64], &[i64], i64),
        storage: &'a [u8],
        big_endian: bool,
        file_size: usize,
    ) -> Result<Self, String> {
        let bad = |what: &str| {
            format!("a tensor of {what} (extents {shape:?}, strides {strides:?}, offset {offset})")
        };
        let sizes = |list: &[i64]| list.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
        if shape.len() != strides.len() || shape.len() > 64 {
            return Err(bad("differing or too many axes"));
        }
        let extents = sizes(shape).ok_or_else(|| bad("negative size"))?;
        let steps = sizes(strides).ok_or_else(|| bad("negative strides"))?;
        let offset = usize::try_from(offset).map_err(|_| bad("negative offset"))?;
        let bytes = extents.iter().try_fold(dtype.size(), |bytes, &extent| bytes.checked_mul(extent));
        // With an extent of 0, the product of the others may still overflow: nothing is there all the same.
        let bytes = if extents.contains(&0) { 0 } else { bytes.ok_or_else(|| bad("absurd size"))? };
        if bytes > 0 {
            let last = extents
                .iter()
                .zip(&steps)
                .try_fold(offset, |last, (&extent, &step)| last.checked_add((extent - 1).checked_mul(step)?));
            let needed = last.and_then(|last| last.checked_add(1)?.checked_mul(dtype.size()));
            if needed.is_none_or(|needed| needed > storage.len()) {
                return Err(format!(
                    "{}, in a storage of {} bytes",
                    bad("elements outside its storage"),
                    storage.len()
                ));
            }
            if bytes > file_size.max(MAX_REPEATED) {
                return Err(bad("far more elements than its file holds"));
            }
        }
        Ok(Tensor { dtype, shape: extents, strides: steps, offset, storage, big_endian, parameter: false })
    }

    /// A plain tensor that fills `bytes`, least significant byte first.
    ///
    /// # Errors
    /// If `bytes` is too short for it.
    pub fn plain(dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Result<Self, String> {
        let shape: Vec<i64> = shape.iter().map(|&extent| i64::try_from(extent).unwrap_or(i64::MAX)).collect();
        let mut strides = vec![1i64; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
        }
        Tensor::new(dtype, (&shape, &strides, 0), bytes, false, bytes.len())
    }

    /// Type of the numbers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether it was a parameter of a module, not a plain tensor or a buffer.
    pub fn is_parameter(&self) -> bool {
        self.parameter
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        if self.shape.contains(&0) { 0 } else { self.shape.iter().product() }
    }

    /// Bytes that the elements take, each once.
    pub fn n_bytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// Where the storage lies in memory: equal for tensors that share it.
    pub fn storage_address(&self) -> usize {
        self.storage.as_ptr() as usize
    }

    /// Whether the elements lie in the file in the order in which [`bytes`](Self::bytes) gives them.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == step;
            step *= extent.max(1);
            fits
        })
    }

    /// The elements, the last axis running fastest, least significant byte first: borrowed from the file where it has
    /// them so.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        let size = self.dtype.size();
        if self.numel() == 0 {
            return Cow::Borrowed(&[]);
        }
        let mut bytes = if self.is_contiguous() {
            let content = &self.storage[self.offset * size..][..self.n_bytes()];
            if !self.big_endian {
                return Cow::Borrowed(content);
            }
            content.to_vec()
        } else {
            self.gathered()
        };
        if self.big_endian {
            for word in bytes.chunks_exact_mut(self.dtype.word()) {
                word.reverse();
            }
        }
        Cow::Owned(bytes)
    }

    /// The elements one by one, by their strides.
    fn gathered(&self) -> Vec<u8> {
        let size = self.dtype.size();
        let mut bytes = Vec::with_capacity(self.n_bytes());
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..self.numel() {
            bytes.extend_from_slice(&self.storage[at * size..][..size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
        bytes
    }

    /// A copy as a tensor of libtorch's, on the CPU.
    ///
    /// # Errors
    /// If `tch` does not know the type.
    pub fn to_tch(&self) -> Result<tch::Tensor, String> {
        let kind = self.dtype.kind().ok_or_else(|| format!("{} is not a type that tch knows", self.dtype))?;
        let shape: Vec<i64> = self.shape.iter().map(|&extent| extent as i64).collect();
        if self.numel() == 0 {
            return Ok(tch::Tensor::zeros(shape, (kind, tch::Device::Cpu)));
        }
        tch::Tensor::f_from_data_size(&self.bytes(), &shape, kind).map_err(|error| error.to_string())
    }
}
