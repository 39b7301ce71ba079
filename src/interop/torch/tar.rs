//! The tar archive of the first releases: `storages` and `tensors`, each a count and then as many descriptions, and
//! `pickle`, which refers to the tensors by number.
//!
//! A storage is a pickled `(key, location, class)`, the number of its elements in eight bytes, and the elements; after
//! the last one, views of storages are listed as `(key, key of the root, offset, elements)`. A tensor is a pickled
//! `(key, key of its storage, class)`, its rank (four bytes and four more that mean nothing), its extents, its strides
//! and its offset, each in eight bytes.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use super::{Container, Dtype, Layout, Problem};
use crate::pickle::{Id, Pickle};

/// A tensor described in the file `tensors`.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) dtype: Dtype,
    pub(super) storage: Range<usize>,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
    pub(super) offset: i64,
}

/// More axes than any tensor has.
const MAX_RANK: i32 = 64;

pub(super) fn begins(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

pub(super) fn layout(file: &[u8]) -> Result<Layout, Problem> {
    let files = files(file)?;
    let part = |name: &str| {
        let missing = || Problem::Refused("a tar archive that PyTorch did not write".into());
        files.get(name).cloned().ok_or_else(missing)
    };
    let (pickle, storages, tensors) = (part("pickle")?, part("storages")?, part("tensors")?);
    let storages = read_storages(Part { file, at: storages.start, end: storages.end })?;
    let tensors = read_tensors(Part { file, at: tensors.start, end: tensors.end }, &storages)?;
    Ok(Layout {
        container: Container::Tar,
        version: "0.1".into(),
        pickle,
        storages: storages.into_iter().map(|(key, (_, range))| (key, range)).collect(),
        big_endian: false,
        tensors,
    })
}

/// The files in the archive: name and content.
fn files(file: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    let broken = |error: std::io::Error| format!("a tar archive that cannot be read: {error}");
    let mut archive = tar::Archive::new(Cursor::new(file));
    let mut files = HashMap::new();
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.to_string_lossy().trim_start_matches("./").to_owned();
        let start = entry.raw_file_position();
        let end = start.checked_add(entry.size()).filter(|&end| end <= file.len() as u64);
        let end = end.ok_or_else(|| format!("the end of the archive within {name:?}"))?;
        files.insert(name, start as usize..end as usize);
    }
    Ok(files)
}

/// Each storage's type and bytes, by its key.
fn read_storages(mut part: Part<'_>) -> Result<HashMap<String, (Dtype, Range<usize>)>, Problem> {
    let mut storages = HashMap::new();
    for _ in 0..part.count()? {
        let pickle = part.pickle()?;
        let &[key, _location, class] = pickle.items(pickle.root()).unwrap_or_default() else {
            return Err(Problem::Damaged("a storage without key, location and class".into()));
        };
        let class = pickle.global(class).ok_or_else(|| "a storage without a class".to_owned())?;
        let dtype = Dtype::of_storage(class.name)
            .ok_or_else(|| Problem::Refused(format!("a storage of class {class:.80}")))?;
        let numel = u64::try_from(part.number()?).map_err(|_| "a storage of negative size".to_owned())?;
        let bytes =
            numel.checked_mul(dtype.size() as u64).ok_or_else(|| "a storage of absurd size".to_owned())?;
        storages.insert(name_of(&pickle, key)?, (dtype, part.take(bytes)?));
    }
    let views = part.pickle()?;
    for &view in views.items(views.root()).unwrap_or_default() {
        let &[key, root, offset, numel] = views.items(view).unwrap_or_default() else {
            return Err(Problem::Damaged("a view of a storage that is not described".into()));
        };
        let root = name_of(&views, root)?;
        let (dtype, range) =
            storages.get(&root).ok_or_else(|| format!("a view of storage {root:?}, which is missing"))?;
        let place = |id| views.int(id).and_then(|n| usize::try_from(n).ok()?.checked_mul(dtype.size()));
        let range = place(offset).zip(place(numel)).and_then(|(offset, bytes)| {
            let start = range.start.checked_add(offset)?;
            start.checked_add(bytes).filter(|&end| end <= range.end).map(|end| start..end)
        });
        let range = range.ok_or_else(|| format!("a view outside of storage {root:?}"))?;
        let view = (*dtype, range);
        storages.insert(name_of(&views, key)?, view);
    }
    Ok(storages)
}

fn read_tensors(
    mut part: Part<'_>,
    storages: &HashMap<String, (Dtype, Range<usize>)>,
) -> Result<HashMap<String, Described>, Problem> {
    let mut tensors = HashMap::new();
    for _ in 0..part.count()? {
        let pickle = part.pickle()?;
        let &[key, storage, _class] = pickle.items(pickle.root()).unwrap_or_default() else {
            return Err(Problem::Damaged("a tensor without key, storage and class".into()));
        };
        let storage = name_of(&pickle, storage)?;
        let missing = || format!("a tensor in storage {storage:?}, which is missing");
        let (dtype, storage) = storages.get(&storage).cloned().ok_or_else(missing)?;
        let rank = part.number()? as i32;
        if !(0..=MAX_RANK).contains(&rank) {
            return Err(Problem::Damaged(format!("a tensor of {rank} axes")));
        }
        let mut numbers = || (0..rank).map(|_| part.number()).collect::<Result<Vec<i64>, String>>();
        let (shape, strides) = (numbers()?, numbers()?);
        let offset = part.number()?;
        tensors.insert(name_of(&pickle, key)?, Described { dtype, storage, shape, strides, offset });
    }
    Ok(tensors)
}

/// A key: a number, which the pickle may give as text.
pub(super) fn name_of(pickle: &Pickle<'_>, id: Id) -> Result<String, String> {
    match pickle.int(id) {
        Some(number) => Ok(number.to_string()),
        None => pickle.text(id).map(|text| text.into_owned()).ok_or_else(|| "a key that is no number".into()),
    }
}

/// A file of the archive, read from its start.
struct Part<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Part<'a> {
    fn pickle(&mut self) -> Result<Pickle<'a>, String> {
        let pickle = Pickle::read(&self.file[self.at..self.end]).map_err(|error| error.to_string())?;
        self.at += pickle.consumed();
        Ok(pickle)
    }

    fn count(&mut self) -> Result<i64, String> {
        let pickle = self.pickle()?;
        pickle.int(pickle.root()).ok_or_else(|| "a count that is no number".into())
    }

    fn number(&mut self) -> Result<i64, String> {
        let range = self.take(8)?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.file[range]);
        Ok(i64::from_le_bytes(bytes))
    }

    fn take(&mut self, bytes: u64) -> Result<Range<usize>, String> {
        if bytes > (self.end - self.at) as u64 {
            return Err("the end of the archive within a storage or a tensor".into());
        }
        let start = self.at;
        self.at += bytes as usize;
        Ok(start..self.at)
    }
}
