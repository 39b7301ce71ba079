//! Stub.
use super::Splits;
use crate::error::{Error, Result};
use std::path::Path;

/// Stub.
pub fn detect(_path: &Path) -> bool {
    false
}

/// Stub.
pub fn open(path: &Path) -> Result<Splits> {
    Err(Error::Data { path: path.to_owned(), reason: "idx files are not read yet".into(), hint: None })
}
