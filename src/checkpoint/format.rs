//! The checkpoint file: a safetensors file that knows when it has been damaged.
//!
//! Any safetensors reader opens it. Its header begins, always and exactly, with
//! `{"__metadata__":{"blake3":"<64 hexadecimal digits>","format":"lemniscate checkpoint 1"`; the digits are
//! the BLAKE3 hash of the whole file with those 64 digits written as zeros. So a change of any byte, header
//! included, and any truncation or extension is noticed before anything in the file is believed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic;
use crate::error::{Error, Result};

/// What the `format` field says before the version.
pub const FORMAT: &str = "lemniscate checkpoint";
/// The version written, and the only one read.
pub const VERSION: u32 = 1;

/// Metadata keys that belong to the format; callers may not use them.
const RESERVED: [&str; 2] = ["blake3", "format"];
/// How every header begins, in this version and all later ones: it fixes the place of the checksum.
const OPENING: &[u8] = br#"{"__metadata__":{"blake3":""#;
/// Bytes before the header: its length, as a little-endian `u64`.
const LENGTH: usize = 8;
/// Where the checksum's digits lie in the file.
const CHECKSUM: Range<usize> = LENGTH + OPENING.len()..LENGTH + OPENING.len() + 64;
/// What stands in the place of the checksum while it is computed.
const ZEROS: [u8; 64] = [b'0'; 64];
/// The largest header safetensors readers accept.
const MAX_HEADER: usize = 100_000_000;

#[cfg(target_endian = "big")]
compile_error!("checkpoints hold little-endian numbers, and are read and written without conversion");

/// One tensor as bytes: little-endian, in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorBytes<'a> {
    /// Its name: `encoder.conv1.weight`, `bank.memory`.
    pub name: Cow<'a, str>,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its elements.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TensorBytes<'a> {
    /// A tensor of `dtype` and `shape` in `bytes`.
    ///
    /// # Panics
    /// If `bytes` has not the length that `dtype` and `shape` ask for.
    pub fn new(
        name: impl Into<Cow<'a, str>>,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        let (name, shape, bytes) = (name.into(), shape.into(), bytes.into());
        let bits = shape.iter().product::<usize>() * dtype.bitsize();
        assert_eq!(bits, bytes.len() * 8, "{name}: {dtype:?} {shape:?} does not fill {} bytes", bytes.len());
        TensorBytes { name, dtype, shape, bytes }
    }

    /// A float tensor, borrowed.
    ///
    /// # Panics
    /// If `values` has not the length that `shape` asks for.
    pub fn from_f32(name: impl Into<Cow<'a, str>>, shape: impl Into<Vec<usize>>, values: &'a [f32]) -> Self {
        // SAFETY: every f32 is four initialised bytes, bytes need no alignment, and the lifetime is kept.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        Self::new(name, Dtype::F32, shape, bytes)
    }

    /// The elements of a float tensor, or `None` if it is of another type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let number = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
        (self.dtype == Dtype::F32).then(|| self.bytes.as_chunks().0.iter().map(number).collect())
    }
}

/// What is to be saved: borrowed tensors, so that saving takes no second copy of them.
#[derive(Clone, Debug, Default)]
pub struct CheckpointView<'a> {
    /// The tensors, in any order; names are distinct.
    pub tensors: Vec<TensorBytes<'a>>,
    /// Everything else, as text (often JSON).
    pub metadata: BTreeMap<String, String>,
}

impl CheckpointView<'_> {
    /// Stores `value` as JSON under `key`.
    ///
    /// # Panics
    /// If `value` cannot be JSON (a map whose keys are not text).
    pub fn set(&mut self, key: &str, value: &impl Serialize) {
        let text = serde_json::to_string(value).expect("checkpoint fields are plain JSON");
        self.metadata.insert(key.to_owned(), text);
    }
}

/// Writes a checkpoint over `path` and syncs it; see [`atomic::replace`]. The same view gives the same bytes.
///
/// # Errors
/// If the file cannot be written; the old one is then intact.
/// # Panics
/// If tensor names repeat or collide with `__metadata__`, or metadata uses the keys `blake3` or `format`.
pub fn save_atomic(path: &Path, view: &CheckpointView) -> Result<()> {
    atomic::replace(path, |file| write(file, view))
}

/// Streams a checkpoint to `file`, from its beginning, and then fills in the checksum.
pub(crate) fn write(file: &mut (impl Write + Seek), view: &CheckpointView) -> io::Result<()> {
    // Wide types first, as safetensors does: every tensor is aligned to its elements in a mapped file.
    let mut tensors: Vec<_> = view.tensors.iter().collect();
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let header = header(&tensors, &view.metadata);
    if header.len() > MAX_HEADER {
        return Err(io::Error::other(format!("a header of {} bytes is too large", header.len())));
    }
    let length = (header.len() as u64).to_le_bytes();
    let mut hasher = blake3::Hasher::new();
    for part in [&length[..], &header].into_iter().chain(tensors.iter().map(|t| &*t.bytes)) {
        hasher.update(part);
        file.write_all(part)?;
    }
    file.seek(SeekFrom::Start(CHECKSUM.start as u64))?;
    file.write_all(hasher.finalize().to_hex().as_bytes())
}

fn header(tensors: &[&TensorBytes], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    fn json(value: &(impl Serialize + ?Sized)) -> String {
        serde_json::to_string(value).expect("text and numbers are JSON")
    }
    let mut header = OPENING.to_vec();
    header.extend(ZEROS);
    header.extend(format!(r#"","format":"{FORMAT} {VERSION}""#).bytes());
    for (key, value) in metadata {
        assert!(!RESERVED.contains(&key.as_str()), "the metadata key {key} belongs to the format");
        header.extend(format!(",{}:{}", json(key), json(value)).bytes());
    }
    header.push(b'}');
    let mut names = std::collections::BTreeSet::from(["__metadata__"]);
    let mut start = 0;
    for tensor in tensors {
        assert!(names.insert(&tensor.name), "two tensors are called {}", tensor.name);
        let end = start + tensor.bytes.len();
        let info =
            TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, end) };
        header.extend(format!(",{}:{}", json(&tensor.name), json(&info)).bytes());
        start = end;
    }
    header.push(b'}');
    // Spaces, so that the tensors begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// Where a tensor's bytes are.
#[derive(Debug)]
pub(crate) enum Place {
    /// In the mapped file.
    File(Range<usize>),
    /// In memory: the file has them in another form.
    Memory(Vec<u8>),
}

/// Each tensor's type and shape, and where its bytes are.
pub(crate) type Places = BTreeMap<String, (Dtype, Vec<usize>, Place)>;

/// A checkpoint that has been read and found whole, or made of another program's file.
///
/// The file is mapped: memory is taken only while its pages are looked at.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    map: Mmap,
    tensors: Places,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a checkpoint and verifies every byte of it.
    ///
    /// # Errors
    /// If it cannot be read, is something else (named, where it can be), is damaged, or has another version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |found: String| Error::format(path, "a lemniscate checkpoint", found);
        let kind = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
        if !kind.is_file() {
            return Err(refuse(if kind.is_dir() { "a folder" } else { "a special file" }.into()));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
        // Zero bytes cannot be mapped.
        if file.metadata().map_err(|e| Error::io(path, "read", e))?.len() == 0 {
            return Err(refuse("an empty file".into()));
        }
        // SAFETY: checkpoints are replaced by renaming and never written in place, so a mapped one does not
        // change; whoever edits one by other means while it is being read must expect any outcome.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Sequential);
        let (tensors, metadata) = contents(&map).map_err(refuse)?;
        Ok(Checkpoint { path: path.to_owned(), map, tensors, metadata })
    }

    /// What another program's file at `path`, mapped in `map`, comes to as a checkpoint.
    ///
    /// # Panics
    /// If a tensor's bytes do not fill its shape, or lie outside of the file.
    pub(crate) fn assemble(
        path: &Path,
        map: Mmap,
        tensors: Places,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let checkpoint = Checkpoint { path: path.to_owned(), map, tensors, metadata };
        // Looking at each one checks it.
        checkpoint.tensors().for_each(drop);
        checkpoint
    }

    /// All of it, to be written elsewhere.
    pub fn view(&self) -> CheckpointView<'_> {
        CheckpointView { tensors: self.tensors().collect(), metadata: self.metadata.clone() }
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All metadata but the format's own.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What [`CheckpointView::set`] stored under `key`.
    ///
    /// # Errors
    /// If it is missing or of another form.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let refuse = |found: String| Error::format(&self.path, format!("the field `{key}`"), found);
        let text = self.metadata.get(key).ok_or_else(|| refuse("none".into()))?;
        serde_json::from_str(text).map_err(|e| refuse(format!("one that cannot be read ({e})")))
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn tensor(&self, name: &str) -> Result<TensorBytes<'_>> {
        let (name, (dtype, shape, place)) = self
            .tensors
            .get_key_value(name)
            .ok_or_else(|| Error::format(&self.path, format!("a tensor `{name}`"), "none"))?;
        Ok(TensorBytes::new(name, *dtype, shape.clone(), self.bytes(place)))
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorBytes<'_>> {
        self.tensors.iter().map(|(name, (dtype, shape, place))| {
            TensorBytes::new(name, *dtype, shape.clone(), self.bytes(place))
        })
    }

    fn bytes<'a>(&'a self, place: &'a Place) -> &'a [u8] {
        match place {
            Place::File(range) => &self.map[range.clone()],
            Place::Memory(bytes) => bytes,
        }
    }
}

/// Whether a file that begins with `start`, at least 200 bytes of it, may be a checkpoint of ours.
pub(crate) fn begins(start: &[u8]) -> bool {
    start.get(LENGTH..).is_some_and(|header| header.starts_with(OPENING))
}

/// What a file holds, every byte of it verified; or what it is instead of a checkpoint.
fn contents(file: &[u8]) -> Result<(Places, BTreeMap<String, String>), String> {
    if file.len() < CHECKSUM.end || file[LENGTH..CHECKSUM.start] != *OPENING {
        return Err(describe_foreign(file));
    }
    if checksum(file).to_hex().as_bytes() != &file[CHECKSUM] {
        return Err(describe_damage(file));
    }
    let (header, contents) = SafeTensors::read_metadata(file)
        .map_err(|e| format!("one that is not a valid safetensors file ({e})"))?;
    let mut metadata: BTreeMap<_, _> = contents.metadata().clone().unwrap_or_default().into_iter().collect();
    let format = metadata.remove("format").unwrap_or_default();
    check_version(&format)?;
    metadata.remove("blake3");
    let first = LENGTH + header;
    let place = |(name, info): (String, &TensorInfo)| {
        let (start, end) = info.data_offsets;
        (name, (info.dtype, info.shape.clone(), Place::File(first + start..first + end)))
    };
    Ok((contents.tensors().into_iter().map(place).collect(), metadata))
}

/// The checksum of a file of at least `CHECKSUM.end` bytes.
fn checksum(file: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file[..CHECKSUM.start]).update(&ZEROS).update(&file[CHECKSUM.end..]);
    hasher.finalize()
}

fn check_version(format: &str) -> Result<(), String> {
    let version = format.strip_prefix(FORMAT).and_then(|rest| rest.trim_start().parse::<u32>().ok());
    match version {
        Some(VERSION) => Ok(()),
        Some(newer) if newer > VERSION => {
            Err(format!("version {newer}, from a newer lemniscate; this one reads version {VERSION}"))
        }
        Some(older) => Err(format!("version {older}; this lemniscate reads version {VERSION}")),
        None => Err(format!("the format `{format}`")),
    }
}

/// What is wrong with a checkpoint whose checksum differs, in words.
fn describe_damage(file: &[u8]) -> String {
    let expected =
        header_of(file).map(|(header, contents)| (LENGTH + header.len()).saturating_add(contents.data_len()));
    match expected {
        Some(expected) if file.len() < expected => {
            format!("one cut short: {} of {expected} bytes", file.len())
        }
        Some(expected) if file.len() > expected => {
            format!("one with {} bytes after its end", file.len() - expected)
        }
        _ => "a damaged one: its checksum does not match".into(),
    }
}

/// What a file that does not begin as ours seems to be.
fn describe_foreign(file: &[u8]) -> String {
    if file.starts_with(b"PK\x03\x04") {
        return "a zip archive, perhaps a PyTorch checkpoint".into();
    }
    if file.starts_with(&[0x80]) && file.get(1).is_some_and(|protocol| *protocol <= 5) {
        return "a Python pickle, perhaps an old PyTorch checkpoint".into();
    }
    let Ok((_, contents)) = SafeTensors::read_metadata(file) else {
        return "something else, or one damaged in its first bytes".into();
    };
    let format = contents.metadata().as_ref().and_then(|m| m.get("format"));
    if format.is_some_and(|format| format.starts_with(FORMAT)) {
        "one that another program has rewritten, so that nothing vouches for its content".into()
    } else {
        format!("a safetensors file of {} tensors that lemniscate did not write", contents.tensors().len())
    }
}

/// The header of a file that may be damaged anywhere, if it can still be read.
fn header_of(file: &[u8]) -> Option<(&[u8], Metadata)> {
    let length = u64::from_le_bytes(*file.first_chunk()?);
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_HEADER)?;
    let header = file.get(LENGTH..LENGTH + length)?;
    Some((header, serde_json::from_slice(header).ok()?))
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
