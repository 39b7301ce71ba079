//! What the rows of a bank are stored in: single precision, or half the bytes.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use tch::{Device, Kind, Tensor, kind};

use crate::model::Precision;
use crate::simd::{Aligned, Element};

/// Rows as they are stored, borrowed, row by row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rows<'a> {
    /// Single precision.
    Fp32(&'a [f32]),
    /// The upper half of each number's bits.
    Bf16(&'a [bf16]),
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(rows: &'a [f32]) -> Self {
        Rows::Fp32(rows)
    }
}

impl<'a> From<&'a Vec<f32>> for Rows<'a> {
    fn from(rows: &'a Vec<f32>) -> Self {
        Rows::Fp32(rows)
    }
}

impl<'a> Rows<'a> {
    /// How many numbers.
    #[allow(clippy::len_without_is_empty)] // Asked to tell how many rows there are.
    pub fn len(self) -> usize {
        match self {
            Rows::Fp32(rows) => rows.len(),
            Rows::Bf16(rows) => rows.len(),
        }
    }

    /// The numbers in `range`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Rows::Fp32(rows) => Rows::Fp32(&rows[range]),
            Rows::Bf16(rows) => Rows::Bf16(&rows[range]),
        }
    }

    /// The same numbers as f32, which holds every bf16: borrowed, or copied where they are stored otherwise.
    pub fn to_f32(self) -> Cow<'a, [f32]> {
        match self {
            Rows::Fp32(rows) => Cow::Borrowed(rows),
            Rows::Bf16(rows) => rows.iter().map(|&x| Element::to_f32(x)).collect(),
        }
    }

    /// Copies them to the start of `to`, each rounded to the nearest number there is.
    fn copy_to<E: Element>(self, to: &mut [E]) {
        fn copy<A: Element, E: Element>(from: &[A], to: &mut [E]) {
            to[..from.len()].iter_mut().zip(from).for_each(|(to, from)| *to = E::from_f32(from.to_f32()));
        }
        match self {
            Rows::Fp32(rows) => copy(rows, to),
            Rows::Bf16(rows) => copy(rows, to),
        }
    }

    /// A copy on the CPU, in what they are stored in, `[N, dim]`.
    ///
    /// # Panics
    /// If they are no rows of `dim`.
    pub(crate) fn to_tensor(self, dim: usize) -> Tensor {
        let tensor = match self {
            Rows::Fp32(rows) => Tensor::from_slice(rows),
            // What tch takes for half precision is made what it is.
            Rows::Bf16(rows) => Tensor::from_slice(rows).view_dtype(Kind::BFloat16),
        };
        tensor.view([-1, dim as i64])
    }
}

/// The numbers of a bf16 tensor on the host, row by row.
pub(super) fn bf16_of(tensor: &Tensor) -> Vec<bf16> {
    let mut numbers = vec![bf16::ZERO; tensor.numel()];
    let count = numbers.len();
    // By the kind that tch takes them for, which is half precision.
    let bits = tensor.to_device(Device::Cpu).contiguous().view_dtype(<bf16 as kind::Element>::KIND);
    bits.copy_data(&mut numbers, count);
    numbers
}

/// Rows that a bank owns.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Storage {
    Fp32(Aligned<f32>),
    Bf16(Aligned<bf16>),
}

impl Storage {
    /// `len` zeros.
    pub(super) fn zeros(len: usize, precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Storage::Fp32(Aligned::zeros(len)),
            Precision::Bf16 => Storage::Bf16(Aligned::zeros(len)),
        }
    }

    pub(super) fn precision(&self) -> Precision {
        match self {
            Storage::Fp32(_) => Precision::Fp32,
            Storage::Bf16(_) => Precision::Bf16,
        }
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        match self {
            Storage::Fp32(rows) => Rows::Fp32(rows),
            Storage::Bf16(rows) => Rows::Bf16(rows),
        }
    }

    /// Overwrites the numbers from `start` on, each rounded to the nearest.
    ///
    /// # Panics
    /// If there are fewer.
    pub(super) fn write(&mut self, start: usize, numbers: Rows) {
        match self {
            Storage::Fp32(rows) => numbers.copy_to(&mut rows[start..]),
            Storage::Bf16(rows) => numbers.copy_to(&mut rows[start..]),
        }
    }
}

/// Bytes of one number.
pub(super) fn element_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Fp32 => size_of::<f32>(),
        Precision::Bf16 => size_of::<bf16>(),
    }
}
