//! A data set packed into one file: checked index, images in the order of their rows, mapped into memory.
//!
//! What is promised: opening verifies header, index and footer by a BLAKE3 hash and touches no image. Each image is
//! verified by its CRC-32C whenever it is read, which finds damage; [`ImageSource::content_hash`], and with it a scan
//! (`lemniscate data`), also verifies its BLAKE3 hash. A data set's fingerprint covers these hashes, so that a
//! packed copy is identified by its content to the last bit.
//!
//! The file is mapped: whoever cuts it short while it is in use stops the program. It is only ever written as a
//! whole and renamed into place, by [`write::pack`].

pub mod form;
pub mod format;
mod ordered;
mod partial;
pub mod write;

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use memmap2::Mmap;

use self::format::{About, Kind, Layout, RECORD, Record, SplitLayout};
use super::{DataFormat, Dataset, ImageSource, Pixels, Splits, decode, owned};
use crate::error::{Error, Result};

pub use form::Form;

/// Whether `path` is a file that claims to be a packed data set.
pub fn detect(path: &Path) -> bool {
    use std::io::Read;
    let mut start = Vec::new();
    // A pipe would wait forever.
    path.is_file()
        && File::open(path).is_ok_and(|file| file.take(8).read_to_end(&mut start).is_ok())
        && format::begins(&start)
}

/// What a packed data set says of itself.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How it was packed, and what there is.
    pub about: About,
    /// Bytes of all images.
    pub image_bytes: u64,
    /// Images that could not be read when it was packed, for each split.
    pub unreadable: Vec<usize>,
}

/// Reads what the packed data set at `path` says of itself; its index is verified.
///
/// # Errors
/// As [`open`].
pub fn summary(path: &Path) -> Result<Summary> {
    let (map, layout) = map(path)?;
    let unreadable = layout.splits.into_iter().map(|split| Packed::new(&map, split).unreadable().len());
    Ok(Summary { unreadable: unreadable.collect(), about: layout.about, image_bytes: layout.image_bytes })
}

/// Opens the packed data set at `path`. Images that could not be read when it was packed are quarantined.
///
/// # Errors
/// If it cannot be read, is not complete, or a byte of its index is not what it was.
pub fn open(path: &Path) -> Result<Splits> {
    let (map, Layout { about, splits, .. }) = map(path)?;
    let mut notes = Vec::new();
    let mut opened = Vec::new();
    for (split, layout) in about.splits.iter().zip(splits) {
        let packed = Packed::new(&map, layout);
        let unreadable = packed.unreadable();
        let labels = split.labelled.then(|| packed.records().map(|record| record.label).collect());
        let source = Arc::new(packed);
        let data = match labels {
            Some(labels) => Dataset::labelled(DataFormat::Packed, source, labels, about.classes.clone()),
            None => Dataset::unlabelled(DataFormat::Packed, source),
        };
        let bad = |error: Error| Error::format(path, "a packed data set", error.to_string());
        let mut data = data.map_err(bad)?;
        if !unreadable.is_empty() {
            data = data.with_quarantine(&unreadable).map_err(bad)?;
            notes.push(format!(
                "{}: {} {} images could not be read when they were packed; they keep their rows and enter no batch",
                path.display(),
                unreadable.len(),
                split.name
            ));
        }
        opened.push(data);
    }
    let mut opened = opened.into_iter();
    let train = opened.next().ok_or_else(|| Error::format(path, "a split to train on", "none"))?;
    Ok(Splits { train, test: opened.next(), format: DataFormat::Packed, root: path.to_owned(), notes })
}

fn map(path: &Path) -> Result<(Arc<Mmap>, Layout)> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    // SAFETY: the map is private and only read; as for every mapped file, whoever shortens it meanwhile stops us.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
    let layout = Layout::read(&map).map_err(|found| match found == format::UNFINISHED {
        true => Error::Data {
            path: path.to_owned(),
            reason: found,
            hint: Some(
                "the `lemniscate pack` command that was writing it goes on when it is repeated".into(),
            ),
        },
        false => Error::format(path, "a packed data set", found),
    })?;
    Ok((Arc::new(map), layout))
}

/// The images of one split. What `layout` says of `map` was checked.
struct Packed {
    map: Arc<Mmap>,
    layout: SplitLayout,
}

impl Packed {
    fn new(map: &Arc<Mmap>, layout: SplitLayout) -> Self {
        Packed { map: Arc::clone(map), layout }
    }

    fn records(&self) -> impl Iterator<Item = Record> {
        let records = self.map[self.layout.records.clone()].as_chunks::<RECORD>().0;
        // Each was decoded once when the file was opened.
        records.iter().filter_map(|record| Record::decode(record).ok())
    }

    fn record(&self, index: usize) -> Result<Record> {
        let records = self.map[self.layout.records.clone()].as_chunks::<RECORD>().0;
        Record::decode(&records[index]).map_err(|found| self.fail(index, found))
    }

    /// Rows of the images that could not be read, ascending.
    fn unreadable(&self) -> Vec<u32> {
        let records = (0..).zip(self.records());
        records.filter(|(_, record)| record.kind == Kind::Unreadable).map(|(row, _)| row).collect()
    }

    fn fail(&self, index: usize, reason: String) -> Error {
        Error::Image { image: self.name(index).into_owned(), reason }
    }

    /// The bytes of image `index`, intact, and its record; an error if there is no image.
    fn bytes(&self, index: usize) -> Result<(Record, &[u8])> {
        let record = self.record(index)?;
        let start = if index == 0 { self.layout.start } else { self.layout.ends[index - 1] };
        let bytes = &self.map[start as usize..self.layout.ends[index] as usize];
        if crc32c::crc32c(bytes) != record.crc {
            return Err(self.fail(index, "damaged in the packed file: its checksum does not match".into()));
        }
        match record.kind {
            Kind::Unreadable => Err(self.fail(index, String::from_utf8_lossy(bytes).into_owned())),
            Kind::File | Kind::Pixels => Ok((record, bytes)),
        }
    }

    fn decode(&self, index: usize, record: &Record, bytes: &[u8]) -> Result<RgbImage> {
        if record.kind == Kind::File {
            return decode::decode_bytes(bytes, &self.name(index));
        }
        RgbImage::from_raw(record.width.into(), record.height.into(), bytes.to_vec())
            .ok_or_else(|| self.fail(index, "fewer pixels than announced".into()))
    }

    fn verify(&self, index: usize, record: &Record, bytes: &[u8]) -> Result<[u8; 32]> {
        let hash: [u8; 32] = blake3::hash(bytes).into();
        if hash != record.hash {
            return Err(self.fail(index, "damaged in the packed file: its hash does not match".into()));
        }
        Ok(hash)
    }
}

impl ImageSource for Packed {
    fn len(&self) -> usize {
        self.layout.ends.len()
    }

    fn load(&self, index: usize) -> Result<RgbImage> {
        let (record, bytes) = self.bytes(index)?;
        self.decode(index, &record, bytes)
    }

    /// Plain pixels are not copied, and files were decoded whole when they were packed.
    fn load_rows(&self, index: usize, rows: &mut dyn FnMut(u32, u32) -> u32) -> Result<Pixels<'_>> {
        let (record, bytes) = self.bytes(index)?;
        if record.kind == Kind::File {
            return decode::decode_rows(bytes.into(), &self.name(index), rows).map(owned);
        }
        let (width, height) = (record.width.into(), record.height.into());
        rows(width, height);
        Pixels::from_raw(width, height, bytes.into())
            .ok_or_else(|| self.fail(index, "fewer pixels than announced".into()))
    }

    fn name(&self, index: usize) -> Cow<'_, str> {
        let start = if index == 0 { self.layout.names } else { self.layout.name_ends[index - 1] };
        String::from_utf8_lossy(&self.map[start as usize..self.layout.name_ends[index] as usize])
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>> {
        let (record, bytes) = self.bytes(index)?;
        Ok((record.kind == Kind::File).then(|| bytes.to_vec()))
    }

    fn content_hash(&self, index: usize) -> Result<[u8; 32]> {
        let (record, bytes) = self.bytes(index)?;
        self.verify(index, &record, bytes)
    }

    fn load_hashed(&self, index: usize) -> Result<(RgbImage, [u8; 32])> {
        let (record, bytes) = self.bytes(index)?;
        let hash = self.verify(index, &record, bytes)?;
        Ok((self.decode(index, &record, bytes)?, hash))
    }

    /// Names and hashes of the content, as the verified index has them.
    fn identify(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        hasher.update(&self.map[self.layout.records.clone()]);
        let names = self.layout.names as usize..self.layout.name_ends.last().map_or(0, |&end| end as usize);
        hasher.update(&self.map[names]);
        Ok(())
    }
}
