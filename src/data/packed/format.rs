//! The layout of a packed data set: what a file must be for any of it to be believed. docs/formats.md has it as a table.
//!
//! Header, images, index, footer. Images stand end to end in the order of their rows, the training images first, and
//! the index has their lengths: there is no offset that could point elsewhere. The footer's hash covers header, index
//! and itself; each image has checksums of its own in the index, so that opening a file touches no pixel.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::form::Form;
use crate::data::decode::{MAX_ALLOC, MAX_SIDE};

/// The first bytes of every packed data set.
pub const MAGIC: &[u8; 8] = b"LMNPACK\n";
/// The last bytes of every complete one.
const END: &[u8; 8] = b"LMNPEND\n";
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Bytes before the first image: magic, version, zero.
pub(super) const HEADER: usize = 16;
/// Bytes after the index: its offset, its length, hash, magic.
const FOOTER: usize = 8 + 8 + 32 + 8;
/// Bytes of an image's record in the index.
pub(super) const RECORD: usize = 56;

/// What an image's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A sentence that says why the image could not be read when the set was packed.
    Unreadable,
    /// An image file: JPEG, PNG and whatever else is decoded.
    File,
    /// Pixels, `[height, width, 3]`, 8 bits a channel.
    Pixels,
}

/// One image's entry in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// BLAKE3 of its bytes.
    pub hash: [u8; 32],
    /// Number of its bytes.
    pub length: u32,
    /// CRC-32C of its bytes.
    pub crc: u32,
    /// Index into the classes; 0 without labels.
    pub label: u32,
    /// Bytes of its name.
    pub name_length: u32,
    /// In pixels, upright; 0 if it is unreadable.
    pub width: u16,
    /// In pixels, upright; 0 if it is unreadable.
    pub height: u16,
    /// What the bytes are.
    pub kind: Kind,
}

impl Record {
    /// The record of an image with these bytes; without a name yet.
    pub(super) fn of(kind: Kind, (width, height): (u16, u16), bytes: &[u8], label: u32) -> Self {
        Record {
            hash: blake3::hash(bytes).into(),
            length: bytes.len() as u32,
            crc: crc32c::crc32c(bytes),
            label,
            name_length: 0,
            width,
            height,
            kind,
        }
    }

    pub(super) fn encode(&self) -> [u8; RECORD] {
        let mut out = [0; RECORD];
        out[..32].copy_from_slice(&self.hash);
        for (at, value) in [(32, self.length), (36, self.crc), (40, self.label), (44, self.name_length)] {
            out[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        out[48..50].copy_from_slice(&self.width.to_le_bytes());
        out[50..52].copy_from_slice(&self.height.to_le_bytes());
        out[52..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        out
    }

    /// Reads a record; what is impossible in one is refused.
    pub(super) fn decode(bytes: &[u8; RECORD]) -> Result<Self, String> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let kind = match u32_at(52) {
            0 => Kind::Unreadable,
            1 => Kind::File,
            2 => Kind::Pixels,
            other => return Err(format!("an image of the unknown kind {other}")),
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[..32]);
        let record = Record {
            hash,
            length: u32_at(32),
            crc: u32_at(36),
            label: u32_at(40),
            name_length: u32_at(44),
            width: u16_at(48),
            height: u16_at(50),
            kind,
        };
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), String> {
        let Record { length, width, height, kind, .. } = *self;
        let size = || format!("an image of {width} x {height} pixels in {length} bytes");
        let (width, height) = (u64::from(width), u64::from(height));
        let possible = match kind {
            Kind::Unreadable => width == 0 && height == 0,
            _ => width.min(height) > 0 && width.max(height) <= u64::from(MAX_SIDE),
        };
        let fits = kind != Kind::Pixels || width * height * 3 == u64::from(length);
        if possible && fits && u64::from(length) <= MAX_ALLOC { Ok(()) } else { Err(size()) }
    }
}

/// The first part of the index, as JSON: how the images were packed, and what there is of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The form that was asked for.
    pub form: Form,
    /// The layout that the images came from.
    pub source: String,
    /// Class names; empty without labels.
    pub classes: Vec<String>,
    /// The splits, in order: `train`, then `test` where there is one.
    pub splits: Vec<SplitAbout>,
}

/// What there is of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitAbout {
    /// `train` or `test`.
    pub name: String,
    /// Number of images.
    pub images: u64,
    /// Whether the records' labels mean anything.
    pub labelled: bool,
    /// Bytes of all names together.
    pub name_bytes: u64,
}

/// Where a split's parts lie in the file. All of it was checked.
#[derive(Clone, Debug)]
pub struct SplitLayout {
    /// Its records, one after the other, of equal length.
    pub records: Range<usize>,
    /// The end of each image.
    pub ends: Vec<u64>,
    /// Where its first image starts.
    pub start: u64,
    /// The end of each name.
    pub name_ends: Vec<u64>,
    /// Where its first name starts.
    pub names: u64,
}

/// A file's index, read and checked.
#[derive(Clone, Debug)]
pub struct Layout {
    /// How it was packed.
    pub about: About,
    /// For each of `about.splits`.
    pub splits: Vec<SplitLayout>,
    /// Bytes of all images.
    pub image_bytes: u64,
}

/// Whether a file that begins with `bytes` claims to be a packed data set.
pub fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// What stands before the first image.
pub fn header() -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out
}

/// What stands after the images, of which `offset` is the end: `index` and the footer that vouches for it.
pub fn seal(offset: u64, mut index: Vec<u8>) -> Vec<u8> {
    let mut place = offset.to_le_bytes().to_vec();
    place.extend((index.len() as u64).to_le_bytes());
    let hash = footer_hash(&index, &place);
    index.extend(place);
    index.extend(hash.as_bytes());
    index.extend(END);
    index
}

fn footer_hash(index: &[u8], place: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header()).update(index).update(place);
    hasher.finalize()
}

impl Layout {
    /// Reads the index of the file that `bytes` are and checks all of it; no image is looked at.
    ///
    /// # Errors
    /// What was found instead of a whole packed data set.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if !begins(bytes) || bytes.len() < HEADER {
            return Err("another kind of file".into());
        }
        if bytes[..HEADER] != header() {
            let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            return Err(format!("version {version}; this program reads version {VERSION}"));
        }
        let Some(body) = bytes.len().checked_sub(FOOTER).filter(|&body| body >= HEADER) else {
            return Err(UNFINISHED.into());
        };
        let (body, footer) = bytes.split_at(body);
        let (place, seal) = footer.split_at(16);
        if seal[32..] != *END {
            return Err(UNFINISHED.into());
        }
        let u64_at = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&place[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (offset, length) = (u64_at(0), u64_at(8));
        let start = usize::try_from(offset)
            .ok()
            .filter(|&start| start >= HEADER && offset.checked_add(length) == Some(body.len() as u64));
        let start = start.ok_or("an index that does not end where the file does")?;
        let index = &body[start..];
        if footer_hash(index, place).as_bytes() != &seal[..32] {
            return Err("a damaged one: the hash of its index does not match".into());
        }
        Self::parse(index, start)
    }

    /// `index` begins at `start` in the file, where the images end.
    fn parse(index: &[u8], start: usize) -> Result<Self, String> {
        let mut rest = Rest { bytes: index, at: start };
        let (_, length) = rest.take(8)?;
        let length = length.iter().rev().fold(0, |length, &byte| length << 8 | u64::from(byte));
        let (_, about) = rest.take(size(length)?)?;
        let about: About = serde_json::from_slice(about)
            .map_err(|error| format!("a description that is not understood: {error}"))?;
        let names: Vec<&str> = about.splits.iter().map(|split| split.name.as_str()).collect();
        if !matches!(names[..], ["train"] | ["train", "test"]) {
            return Err(format!("the splits {names:?}"));
        }
        let mut image = HEADER as u64;
        let mut splits = Vec::new();
        for split in &about.splits {
            let (place, records) = rest.take(size(split.images.saturating_mul(RECORD as u64))?)?;
            let (names, _) = rest.take(size(split.name_bytes)?)?;
            let mut layout = SplitLayout {
                records: place,
                ends: Vec::with_capacity(records.len() / RECORD),
                start: image,
                name_ends: Vec::with_capacity(records.len() / RECORD),
                names: names.start as u64,
            };
            let mut name = names.start as u64;
            for record in records.as_chunks::<RECORD>().0 {
                let record = Record::decode(record)?;
                // The records are in memory, so that their 32-bit lengths cannot add up to more than 64 bits hold.
                image += u64::from(record.length);
                name += u64::from(record.name_length);
                layout.ends.push(image);
                layout.name_ends.push(name);
            }
            if name != names.end as u64 {
                let found = name - names.start as u64;
                return Err(format!("names of {found} bytes in the place of {}", names.len()));
            }
            splits.push(layout);
        }
        if !rest.bytes.is_empty() {
            return Err(format!("{} bytes too many in its index", rest.bytes.len()));
        }
        if image != start as u64 {
            return Err(format!("an index of images up to byte {image}, and images up to byte {start}"));
        }
        Ok(Layout { about, splits, image_bytes: image - HEADER as u64 })
    }
}

/// What a file without a footer is.
pub(super) const UNFINISHED: &str = "its end is missing: it was cut short, or never finished";

/// Bytes that must be there; more than can be addressed cannot.
fn size(length: u64) -> Result<usize, String> {
    usize::try_from(length).map_err(|_| format!("{length} bytes announced"))
}

/// What is left of the index.
struct Rest<'a> {
    bytes: &'a [u8],
    /// Where in the file it begins.
    at: usize,
}

impl<'a> Rest<'a> {
    /// The next `n` bytes and where in the file they are.
    fn take(&mut self, n: usize) -> Result<(Range<usize>, &'a [u8]), String> {
        let split = self.bytes.split_at_checked(n);
        let (taken, rest) = split.ok_or("an index that ends too early")?;
        let place = self.at..self.at + n;
        (self.bytes, self.at) = (rest, place.end);
        Ok((place, taken))
    }
}

/// The index of `about` and, for each split, its records and its names, end to end.
pub fn encode_index(about: &About, splits: &[(Vec<Record>, Vec<u8>)]) -> Vec<u8> {
    let text = serde_json::to_vec(about).expect("texts and numbers only");
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    for (records, names) in splits {
        out.reserve(records.len() * RECORD + names.len());
        for record in records {
            out.extend(record.encode());
        }
        out.extend(names);
    }
    out
}
