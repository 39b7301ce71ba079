//! Embeddings of a whole data set in one file: collected row by row in a file that an interrupted run goes on with,
//! then written in the format that was asked for.
//!
//! Shapes: N images, D numbers an embedding.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::npy;
use super::table::{CsvTable, Line, ParquetTable};
use crate::atomic;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};

/// Formats of embeddings, by the file's extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A NumPy array `[N, D]`, row = image.
    Npy,
    /// The tensor `embeddings` `[N, D]`, row = image.
    Safetensors,
    /// A table of row, name, label, embedding.
    Parquet,
    /// A table of row, name, label and D columns.
    Csv,
}

impl Format {
    /// The format that the name of `path` asks for.
    ///
    /// # Errors
    /// [`Error::Usage`] if it asks for none.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Format::Npy),
            Some("safetensors") => Ok(Format::Safetensors),
            Some("parquet") => Ok(Format::Parquet),
            Some("csv") => Ok(Format::Csv),
            _ => Err(Error::usage(format!(
                "{}: the name should end in .npy, .safetensors, .parquet or .csv",
                path.display()
            ))),
        }
    }
}

/// What rows belong to: rows of another encoder, data set or layer are never mixed with them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// BLAKE3 of the encoder's tensors.
    pub encoder: String,
    /// Fingerprint of the images.
    pub data: String,
    /// Images to embed.
    pub images: usize,
    /// The layer, as [`crate::model::Layer`] prints it.
    pub layer: String,
    /// Side of the images that the encoder is shown, pixels.
    pub image_size: u32,
    /// D.
    pub dim: usize,
}

/// Rows on their way: `OUT.part`, float32 one after the other, and `OUT.part.json`, which says what they are.
pub struct Partial {
    rows: PathBuf,
    about: PathBuf,
    file: BufWriter<File>,
    identity: Identity,
    done: usize,
}

impl Partial {
    /// Goes on with the rows beside `out` that belong to `identity`, or starts anew where there are none. Whole batches of
    /// `batch` rows are kept, so that a row never depends on where a run was interrupted.
    ///
    /// # Errors
    /// If rows of something else lie there, or the files cannot be written.
    pub fn open(out: &Path, identity: Identity, batch: usize) -> Result<Self> {
        let beside = |ending: &str| {
            let mut name = out.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (rows, about) = (beside(".part"), beside(".part.json"));
        let known = match std::fs::read_to_string(&about) {
            Ok(text) => serde_json::from_str::<Identity>(&text).ok(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(&about, "read", e)),
        };
        let empty = std::fs::metadata(&rows).map_or(true, |metadata| metadata.len() == 0);
        match known {
            Some(known) if known != identity && !empty => {
                return Err(Error::Usage {
                    message: format!(
                        "{} holds embeddings of another encoder, data set or layer",
                        rows.display()
                    ),
                    hint: Some(
                        "finish them with the command they were begun with, or remove the file".into(),
                    ),
                });
            }
            Some(known) if known == identity => {}
            _ => {
                // Rows that nothing describes are worth nothing.
                let text =
                    serde_json::to_string(&identity).map_err(|e| Error::usage(format!("JSON: {e}")))?;
                File::create(&rows).map_err(|e| Error::io(&rows, "create", e))?;
                atomic::write_text(&about, &text)?;
            }
        }
        let io = |e| Error::io(&rows, "open", e);
        let mut file = OpenOptions::new().create(true).append(true).open(&rows).map_err(io)?;
        let row_bytes = 4 * identity.dim as u64;
        let rows_there = (file.metadata().map_err(io)?.len() / row_bytes).min(identity.images as u64);
        let complete = rows_there == identity.images as u64;
        let whole = if complete { rows_there } else { rows_there / batch as u64 * batch as u64 };
        file.set_len(whole * row_bytes).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Partial { file: BufWriter::new(file), done: whole as usize, rows, about, identity })
    }

    /// Rows that are there.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Adds rows `[n, D]` and hands them to the operating system, so that only a crash of the machine can lose them.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn push(&mut self, rows: &[f32]) -> Result<()> {
        let write = |file: &mut BufWriter<File>| {
            rows.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?;
            file.flush()
        };
        write(&mut self.file).map_err(|e| Error::io(&self.rows, "write", e))?;
        self.done += rows.len() / self.identity.dim;
        Ok(())
    }

    /// Writes all rows to `out` and removes what was collected. `indices` are the images that the rows belong to; in an
    /// array the rows of other images are NaN, in a table they are left out.
    ///
    /// # Errors
    /// If a file cannot be read or written; the rows are kept then.
    /// # Panics
    /// If rows are missing.
    pub fn finish(self, out: &Path, format: Format, data: &Dataset, indices: &[u32]) -> Result<()> {
        assert_eq!(self.done, indices.len(), "a row for every image");
        let Partial { rows, about, identity, .. } = self;
        let dim = identity.dim;
        let source = || -> io::Result<Rows> { Ok(Rows { file: BufReader::new(File::open(&rows)?), dim }) };
        atomic::replace(out, |file| match format {
            Format::Npy => {
                npy::begin(file, &[data.len(), dim])?;
                write_array(file, source()?, data.len(), indices)
            }
            Format::Safetensors => {
                file.write_all(&safetensors_header(&identity, data.len()))?;
                write_array(file, source()?, data.len(), indices)
            }
            Format::Csv => {
                let mut table = CsvTable::new(file, dim)?;
                each_line(source()?, data, indices, |line| table.push(line))?;
                table.finish()
            }
            Format::Parquet => {
                let mut table = ParquetTable::new(file, dim)?;
                each_line(source()?, data, indices, |line| table.push(line))?;
                table.finish()
            }
        })?;
        for path in [&rows, &about] {
            std::fs::remove_file(path).map_err(|e| Error::io(path, "remove", e))?;
        }
        Ok(())
    }
}

/// Rows read back one by one.
struct Rows {
    file: BufReader<File>,
    dim: usize,
}

impl Rows {
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 4 * self.dim];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Every row of `n`, those that are not among `indices` NaN.
fn write_array(file: &mut File, mut rows: Rows, n: usize, indices: &[u32]) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    let nothing = f32::NAN.to_le_bytes().repeat(rows.dim);
    let mut given = indices.iter().peekable();
    for row in 0..n as u32 {
        if given.next_if_eq(&&row).is_some() {
            file.write_all(&rows.next()?)?;
        } else {
            file.write_all(&nothing)?;
        }
    }
    file.flush()
}

fn each_line(
    mut rows: Rows,
    data: &Dataset,
    indices: &[u32],
    mut push: impl FnMut(Line<'_>) -> io::Result<()>,
) -> io::Result<()> {
    for &index in indices {
        let row = index as usize;
        let values: Vec<f32> =
            rows.next()?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let label = data.label(row).and_then(|label| data.class_name(label));
        push(Line { row, name: &data.name(row), label, values: &values })?;
    }
    Ok(())
}

/// A safetensors header for the one tensor that follows it.
fn safetensors_header(identity: &Identity, n: usize) -> Vec<u8> {
    let bytes = 4 * n * identity.dim;
    let header = serde_json::json!({
        "__metadata__": {
            "producer": concat!("lemniscate ", env!("CARGO_PKG_VERSION")),
            "layer": identity.layer, "encoder": identity.encoder, "data": identity.data,
        },
        "embeddings": { "dtype": "F32", "shape": [n, identity.dim], "data_offsets": [0, bytes] },
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header].concat()
}
