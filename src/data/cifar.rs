//! Stub.
use super::{DataFormat, Splits};
use crate::error::{Error, Result};
use std::path::Path;

/// Stub.
pub fn detect(_path: &Path) -> Option<DataFormat> {
    None
}

/// Stub.
pub fn open(path: &Path, _format: DataFormat) -> Result<Splits> {
    Err(Error::Data { path: path.to_owned(), reason: "CIFAR is not read yet".into(), hint: None })
}
