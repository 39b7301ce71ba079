//! The legacy stream of PyTorch 0.1.10 to 1.5: five pickles (a magic number, the protocol's version, facts about the
//! machine, the object, the keys of its storages) and then, in the order of the keys, each storage: the number of its
//! elements in eight bytes, and the elements.

use std::collections::HashMap;

use super::rebuild::StorageId;
use super::{Container, Layout, Problem};
use crate::pickle::{Pickle, Value};

/// 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The only version there has been.
const VERSION: i64 = 1001;

pub(super) fn begins(start: &[u8]) -> bool {
    Pickle::read(&start[..start.len().min(64)]).is_ok_and(|pickle| is_magic(&pickle))
}

fn is_magic(pickle: &Pickle<'_>) -> bool {
    matches!(pickle.get(pickle.root()), Value::BigInt(bytes) if bytes.get(..10) == Some(&MAGIC))
}

pub(super) fn layout(file: &[u8]) -> Result<Layout, Problem> {
    let mut at = 0;
    let mut next = |what: &str| -> Result<(Pickle<'_>, usize), Problem> {
        let start = at;
        let pickle = Pickle::read(&file[start..]).map_err(|error| format!("{what}: {error}"))?;
        at += pickle.consumed();
        Ok((pickle, start))
    };

    next("the magic number")?;
    let (version, _) = next("the version")?;
    let version = version.int(version.root()).ok_or_else(|| "a version that is no number".to_owned())?;
    if version != VERSION {
        return Err(Problem::Refused(format!("protocol version {version}, where only {VERSION} is known")));
    }
    let (machine, _) = next("the machine")?;
    let little = machine.entry(machine.root(), "little_endian").map(|id| machine.get(id));
    if little != Some(&Value::Bool(true)) {
        // PyTorch has both written such storages as they were and turned them; nothing in the file tells which.
        return Err(Problem::Refused("a legacy stream of a big-endian machine".into()));
    }
    let (object, start) = next("the object")?;
    let pickle = start..start + object.consumed();
    let (keys, _) = next("the keys of the storages")?;

    let ids = StorageId::all(&object)?;
    let list = keys.items(keys.root()).ok_or_else(|| "keys of storages that are no list".to_owned())?;
    let mut storages = HashMap::new();
    for &key in list {
        let key = keys.text(key).ok_or_else(|| "a storage's key that is no text".to_owned())?.into_owned();
        let id = ids.get(&key).ok_or_else(|| format!("storage {key:?}, to which nothing refers"))?;
        let found = file.get(at..).and_then(<[u8]>::first_chunk::<8>).map(|bytes| u64::from_le_bytes(*bytes));
        let numel = found.ok_or_else(|| format!("the end of the file before storage {key:?}"))?;
        if numel != id.numel {
            return Err(Problem::Damaged(format!("storage {key:?} of {numel} elements, not {}", id.numel)));
        }
        let start = at + 8;
        let bytes =
            numel.checked_mul(id.dtype.size() as u64).filter(|&bytes| bytes <= (file.len() - start) as u64);
        let bytes = bytes.ok_or_else(|| format!("the end of the file within storage {key:?}"))?;
        at = start + bytes as usize;
        if storages.insert(key.clone(), start..at).is_some() {
            return Err(Problem::Damaged(format!("storage {key:?} twice")));
        }
    }
    Ok(Layout {
        container: Container::Legacy,
        version: version.to_string(),
        pickle,
        storages,
        big_endian: false,
        tensors: HashMap::new(),
    })
}
