//! PyTorch files in, standard files out.

pub mod contents;
pub mod embeddings;
pub mod export;
pub mod import;
pub mod inspect;
pub mod npy;
pub mod onnx;
pub mod published;
pub mod recognise;
pub mod source;
pub mod table;
pub mod torch;

use std::path::Path;

use self::import::{Accept, ImportOptions, Imported, import};
use self::source::Kind;
use crate::checkpoint::run_folder::RunFolder;
use crate::error::{Error, Result};
use crate::train::start::{self, Found};

/// Opens whatever holds an encoder: a run folder, a checkpoint, or another program's file, imported on the way.
///
/// # Errors
/// Those of [`start::find`] and of [`import()`].
pub fn find(path: &Path) -> Result<Found> {
    if is_foreign(path)? { find_foreign(path, Accept::Complete) } else { start::find(path) }
}

/// Opens whatever holds the trunk of an encoder, to start a run from it; heads of another form are passed over.
///
/// # Errors
/// As [`find`].
pub fn find_trunk(path: &Path) -> Result<Found> {
    if is_foreign(path)? { find_foreign(path, Accept::Trunk) } else { start::find(path) }
}

/// Opens `path` to go on with: also locks the run folder, where the checkpoint lies in one.
///
/// # Errors
/// Those of [`start::find_to_resume`] and of [`import()`], and if the file has no memory bank to go on with.
pub fn find_to_resume(path: &Path) -> Result<(Found, Option<RunFolder>)> {
    let (found, folder) = match is_foreign(path)? {
        true => (find_foreign(path, Accept::Complete)?, None),
        false => start::find_to_resume(path)?,
    };
    if found.saved.data.images == 0 {
        return Err(Error::Resume {
            path: path.to_owned(),
            reason: "it has weights, but no memory bank".into(),
            hint: Some("--pretrained FILE starts a new run from its weights".into()),
        });
    }
    Ok((found, folder))
}

fn is_foreign(path: &Path) -> Result<bool> {
    Ok(!path.is_dir() && matches!(source::kind(path)?, Kind::Torch | Kind::Safetensors))
}

fn find_foreign(path: &Path, accept: Accept) -> Result<Found> {
    let Imported { checkpoint, report } =
        import(path, &ImportOptions { accept, ..ImportOptions::default() })?;
    let mut notes = vec![format!("imported {}", report.summary())];
    notes.extend(report.notes);
    Found::of(checkpoint, notes)
}
