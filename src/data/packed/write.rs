//! Packing: every image once, in parallel, into one file.

use std::path::Path;

use super::form::{Form, Packed};
use super::format::{About, Kind, Record, SplitAbout, encode_index};
use super::ordered::in_order;
use super::partial::{Partial, Plan};
use crate::data::{Dataset, Splits};
use crate::error::{Error, Result};

/// How to pack.
#[derive(Clone, Copy, Debug)]
pub struct PackOptions {
    /// What images become.
    pub form: Form,
    /// Go on without images that cannot be read: they keep their rows, quarantined.
    pub quarantine: bool,
    /// Threads that decode, resize and encode; 0 for one a core.
    pub threads: usize,
}

/// What was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Images, of both splits, unreadable ones included.
    pub images: usize,
    /// Images that cannot be read.
    pub unreadable: usize,
    /// Images that an earlier, unfinished packing had done.
    pub resumed: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Packs `splits` into the file `out`, replacing one that is there. The bytes depend on the images and the form, not on
/// the number of threads, and not on whether the packing was interrupted and repeated. `progress` hears how many
/// images are done, `stop` is asked whether to stop.
///
/// # Errors
/// [`Error::Unreadable`] with every image that cannot be read, unless they may be quarantined; [`Error::Interrupted`] if
/// `stop` said so; and if the file cannot be written. In all these cases what was packed is kept beside `out`, and the
/// same call goes on with it.
pub fn pack(
    splits: &Splits,
    out: &Path,
    options: PackOptions,
    progress: &mut dyn FnMut(usize),
    stop: &dyn Fn() -> bool,
) -> Result<Report> {
    let parts: Vec<&Dataset> = std::iter::once(&splits.train).chain(&splits.test).collect();
    let total: usize = parts.iter().map(|data| data.len()).sum();
    // The split and the row in it of an image, counted through all splits.
    let place = |image: usize| match image.checked_sub(splits.train.len()) {
        Some(row) => (1, row),
        None => (0, image),
    };
    let make = |image: usize| {
        let (split, row) = place(image);
        let packed = Packed::of(parts[split], row, options.form);
        let record =
            Record::of(packed.kind, packed.size, &packed.bytes, parts[split].label(row).unwrap_or(0));
        (packed, record)
    };
    let plan = Plan::new(
        options.form,
        parts.iter().map(|data| Ok((data.fingerprint()?, data.len()))).collect::<Result<_>>()?,
    );
    let readable = |image: usize| make(image).0.kind != Kind::Unreadable;
    let mut partial = Partial::open(out, &plan, readable)?;
    let resumed = partial.records().len();
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    progress(resumed);
    in_order(
        resumed..total,
        threads,
        make,
        |(packed, _)| packed.bytes.len(),
        |(packed, record)| {
            partial.push(&packed, record)?;
            let done = partial.records().len();
            progress(done);
            if stop() && done < total {
                partial.commit()?;
                let saved = format!("{done} of {total} images are kept; the same command goes on");
                return Err(Error::Interrupted { saved });
            }
            Ok(())
        },
    )?;

    let mut records = partial.records().to_vec();
    let name = |image: usize| {
        let (split, row) = place(image);
        parts[split].name(row)
    };
    let unreadable: Vec<usize> =
        (0..total).filter(|&image| records[image].kind == Kind::Unreadable).collect();
    let hopeless = |split: usize| {
        unreadable.iter().filter(|&&image| place(image).0 == split).count() == parts[split].len()
    };
    if !unreadable.is_empty() && (!options.quarantine || (0..parts.len()).any(hopeless)) {
        partial.commit()?;
        let listed = unreadable.iter().map(|&image| {
            let reason = String::from_utf8_lossy(&make(image).0.bytes).into_owned();
            (name(image).into_owned(), reason)
        });
        return Err(Error::Unreadable { total, unreadable: listed.collect() });
    }
    let mut names = vec![Vec::new(); parts.len()];
    for (image, record) in records.iter_mut().enumerate() {
        let name = name(image);
        record.name_length = name.len() as u32;
        names[place(image).0].extend(name.as_bytes());
    }
    let about = About {
        form: options.form,
        source: splits.format.to_string(),
        classes: splits.train.classes().to_vec(),
        splits: parts
            .iter()
            .zip(["train", "test"])
            .zip(&names)
            .map(|((data, name), names)| SplitAbout {
                name: name.into(),
                images: data.len() as u64,
                labelled: data.labels().is_some(),
                name_bytes: names.len() as u64,
            })
            .collect(),
    };
    let test = records.split_off(splits.train.len());
    let index = encode_index(&about, &[records, test].into_iter().zip(names).collect::<Vec<_>>());
    partial.finish(index)?;
    let bytes = std::fs::metadata(out).map_err(|e| Error::io(out, "read", e))?.len();
    Ok(Report { images: total, unreadable: unreadable.len(), resumed, bytes })
}
