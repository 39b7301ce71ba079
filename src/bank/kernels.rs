//! Dot products with single rows and with tiles of rows, over [`Simd`](crate::simd::Simd).

pub(crate) mod rows;
pub(crate) mod tile;
