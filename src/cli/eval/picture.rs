//! Queries with their nearest training images, as a picture.

use std::path::Path;

use crate::data::dataset::Splits;
use crate::error::{Error, Result};
use crate::eval::knn::Neighbors;
use crate::eval::monitor::Queries;
use crate::gallery::choose::by_turns;
use crate::report::contact_sheet::{self, Tile, contact_sheet};

/// Queries and neighbours in the picture.
const PICTURE_ROWS: usize = 10;
const PICTURE_NEIGHBORS: usize = 12;

/// Draws one row per query: itself, then its nearest training images, framed by whether the class agrees.
///
/// # Errors
/// An image that cannot be read, or a picture that cannot be written.
pub fn draw(path: &Path, splits: &Splits, queries: &Queries, neighbors: &Neighbors) -> Result<()> {
    let asked = splits.test.as_ref().unwrap_or(&splits.train);
    let mut rows = Vec::new();
    for q in by_turns(&queries.labels, 0..queries.labels.len(), PICTURE_ROWS) {
        let mut row = vec![Tile { image: asked.load(queries.indices[q] as usize)?, frame: None }];
        for &i in neighbors.of(q).0.iter().take(PICTURE_NEIGHBORS) {
            let same = splits.train.label(i as usize) == Some(queries.labels[q]);
            let frame = Some(if same { contact_sheet::SAME } else { contact_sheet::OTHER });
            row.push(Tile { image: splits.train.load(i as usize)?, frame });
        }
        rows.push(row);
    }
    let sheet = contact_sheet(&rows, 64);
    sheet.save(path).map_err(|e| Error::io(path, "write the picture", std::io::Error::other(e)))
}
