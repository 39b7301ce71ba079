//! The zip archive of PyTorch 1.6 and later: `NAME/data.pkl`, `NAME/data/KEY` for each storage, `NAME/version` and,
//! since 2.1, `NAME/byteorder`. Entries are stored, not compressed, so a storage is a range of the file.
//!
//! Only the central directory is believed, and each entry's local header must agree with it.

use std::collections::HashMap;
use std::ops::Range;

use super::{Container, Layout, Problem};

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
/// Size of the end record without its comment, which takes at most 65,535 bytes.
const END_SIZE: usize = 22;
const MAX_COMMENT: usize = 0xffff;

pub(super) fn begins(start: &[u8]) -> bool {
    start.starts_with(LOCAL)
}

pub(super) fn layout(file: &[u8]) -> Result<Layout, Problem> {
    let entries = entries(file)?;
    if entries.keys().any(|name| is_script(name)) {
        return Err(Problem::Refused("a TorchScript archive, which is a program".into()));
    }
    let mut pickles = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
    let root = match (pickles.next(), pickles.next()) {
        (Some(root), None) => root,
        (None, _) => return Err(Problem::Refused("a zip archive that PyTorch did not write".into())),
        _ => return Err(Problem::Damaged("more than one data.pkl".into())),
    };
    if let Some(name) = entries.iter().find(|(_, content)| content.is_none()).map(|(name, _)| name) {
        return Err(Problem::Refused(format!("{name:?} compressed, where PyTorch stores files as they are")));
    }
    let text = |name: &str| {
        let range = entries.get(&format!("{root}/{name}"))?.clone()?;
        Some(String::from_utf8_lossy(&file[range.start..range.end.min(range.start + 100)]).trim().to_owned())
    };
    let big_endian = match text("byteorder").as_deref() {
        None | Some("little") => false,
        Some("big") => true,
        Some(other) => return Err(Problem::Damaged(format!("byte order {other:?}"))),
    };
    let prefix = format!("{root}/data/");
    let pickle = entries[&format!("{root}/data.pkl")].clone();
    let storage = |(name, range): (&String, &Option<Range<usize>>)| {
        Some((name.strip_prefix(&prefix)?.to_owned(), range.clone()?))
    };
    Ok(Layout {
        container: Container::Zip,
        version: text("version").unwrap_or_else(|| "unknown".into()),
        pickle: pickle.ok_or_else(|| "no data.pkl".to_owned())?,
        storages: entries.iter().filter_map(storage).collect(),
        big_endian,
        tensors: HashMap::new(),
    })
}

/// Whether a file of this name is found in TorchScript archives only.
fn is_script(name: &str) -> bool {
    let inner = name.split_once('/').map_or(name, |(_, inner)| inner);
    inner == "constants.pkl" || inner == "model.json" || inner.starts_with("code/")
}

/// The files in the archive: name and content, which is `None` for a compressed one.
fn entries(file: &[u8]) -> Result<HashMap<String, Option<Range<usize>>>, String> {
    let (count, directory) = directory(file)?;
    let mut rest = &file[directory];
    let mut entries = HashMap::new();
    for _ in 0..count {
        let fixed = rest.get(..46).filter(|fixed| fixed.starts_with(CENTRAL));
        let fixed = fixed.ok_or("a directory of files that is cut short")?;
        let [name_len, extra_len, comment_len] = [28, 30, 32].map(|at| u16_at(fixed, at) as usize);
        let name = rest.get(46..46 + name_len).ok_or("a directory of files that is cut short")?;
        let extra =
            rest.get(46 + name_len..46 + name_len + extra_len).ok_or("a directory that is cut short")?;
        let shown = String::from_utf8_lossy(name).into_owned();
        rest = rest.get(46 + name_len + extra_len + comment_len..).ok_or("a directory that is cut short")?;

        let (flags, method) = (u16_at(fixed, 8), u16_at(fixed, 10));
        let mut sizes = [u32_at(fixed, 24), u32_at(fixed, 20), u32_at(fixed, 42)].map(u64::from);
        wide_sizes(&mut sizes, extra).ok_or_else(|| format!("{shown:?} without its 64-bit size"))?;
        let [size, packed, offset] = sizes;
        if flags & 1 != 0 {
            return Err(format!("{shown:?} encrypted"));
        }
        let content = content(file, offset, packed, name);
        let content = content.ok_or_else(|| format!("{shown:?} not where it should be"))?;
        let stored = method == 0 && size == packed;
        if entries.insert(shown.clone(), stored.then_some(content)).is_some() {
            return Err(format!("{shown:?} twice"));
        }
    }
    Ok(entries)
}

/// Number of entries and place of the central directory.
fn directory(file: &[u8]) -> Result<(u64, Range<usize>), String> {
    let none = "a zip archive without an end; it may be cut short";
    let last = file.len().checked_sub(END_SIZE).ok_or(none)?;
    let first = last.saturating_sub(MAX_COMMENT);
    let is_end = |at: &usize| {
        file[*at..].starts_with(END) && at + END_SIZE + u16_at(file, at + 20) as usize == file.len()
    };
    let end = (first..=last).rev().find(is_end).ok_or(none)?;
    let mut count = u64::from(u16_at(file, end + 10));
    let mut size = u64::from(u32_at(file, end + 12));
    let mut offset = u64::from(u32_at(file, end + 16));
    if let Some(locator) = end.checked_sub(20).filter(|&at| file[at..].starts_with(LOCATOR_64)) {
        let at = usize::try_from(u64_at(file, locator + 8)).map_err(|_| none)?;
        let wide = at.checked_add(56).and_then(|after| file.get(at..after));
        let wide =
            wide.filter(|wide| wide.starts_with(END_64)).ok_or("a 64-bit zip archive without its end")?;
        (count, size, offset) = (u64_at(wide, 32), u64_at(wide, 40), u64_at(wide, 48));
    }
    let range = offset
        .checked_add(size)
        .filter(|&after| after <= end as u64)
        .map(|after| offset as usize..after as usize);
    range.map(|range| (count, range)).ok_or_else(|| "a directory of files outside the file".into())
}

/// Replaces those of size, packed size and offset that do not fit 32 bits by the 64-bit ones of the extra field.
fn wide_sizes(sizes: &mut [u64; 3], mut extra: &[u8]) -> Option<()> {
    let missing = |size: &u64| *size == u64::from(u32::MAX);
    if !sizes.iter().any(missing) {
        return Some(());
    }
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
        let field = extra.get(4..4 + length)?;
        if id == 1 {
            let mut values = field.chunks_exact(8);
            for size in sizes.iter_mut().filter(|size| missing(size)) {
                *size = u64_at(values.next()?, 0);
            }
            return Some(());
        }
        extra = &extra[4 + length..];
    }
    None
}

/// Where an entry's content lies, if its local header is there and gives the same name.
fn content(file: &[u8], offset: u64, size: u64, name: &[u8]) -> Option<Range<usize>> {
    let header = file.get(usize::try_from(offset).ok()?..)?;
    if header.len() < 30 || !header.starts_with(LOCAL) {
        return None;
    }
    let (name_len, extra_len) = (u16_at(header, 26) as usize, u16_at(header, 28) as usize);
    if header.get(30..30 + name_len)? != name {
        return None;
    }
    let start = offset.checked_add((30 + name_len + extra_len) as u64)?;
    let end = start.checked_add(size).filter(|&end| end <= file.len() as u64)?;
    Some(start as usize..end as usize)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of stored files as the 64-bit form has it: every size and place in an extra field.
    fn wide_archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut bytes, mut central) = (Vec::new(), Vec::new());
        for (name, content) in files {
            let size = content.len() as u64;
            let offset = bytes.len() as u64;
            let lengths = |extra: u16| [(name.len() as u16).to_le_bytes(), extra.to_le_bytes()].concat();
            bytes.extend([LOCAL, &[0; 14], &[0xff; 8], &lengths(0), name.as_bytes(), content].concat());
            let fields =
                [&[1u8, 0, 24, 0][..], &size.to_le_bytes(), &size.to_le_bytes(), &offset.to_le_bytes()];
            let header = [CENTRAL, &[0; 16], &[0xff; 8], &lengths(28), &[0; 10], &[0xff; 4], name.as_bytes()];
            central.extend([header.concat(), fields.concat()].concat());
        }
        let (directory, size) = (bytes.len() as u64, central.len() as u64);
        let end = directory + size;
        bytes.extend(central);
        bytes.extend([END_64, &44u64.to_le_bytes(), &[0; 12], &[0; 8]].concat());
        bytes.extend(
            [(files.len() as u64).to_le_bytes(), size.to_le_bytes(), directory.to_le_bytes()].concat(),
        );
        bytes.extend([LOCATOR_64, &[0; 4], &end.to_le_bytes(), &[1, 0, 0, 0]].concat());
        bytes.extend([END, &[0; 4], &[0xff; 12], &[0; 2]].concat());
        bytes
    }

    #[test]
    fn archives_of_more_than_4_gigabytes_have_their_sizes_elsewhere() {
        let bytes =
            wide_archive(&[("a/data.pkl", b"N."), ("a/data/7", b"12345678"), ("a/byteorder", b"big")]);
        let layout = layout(&bytes).unwrap();
        assert_eq!(bytes[layout.pickle], *b"N.");
        assert_eq!(bytes[layout.storages["7"].clone()], *b"12345678");
        assert!(layout.big_endian);
    }

    #[test]
    fn what_is_ambiguous_or_unknown_is_an_error() {
        for (files, reason) in [
            (&[("a/data.pkl", &b"N."[..]), ("b/data.pkl", b"N.")][..], "more than one data.pkl"),
            (&[("a/data.pkl", b"N."), ("a/data.pkl", b"N.")], "\"a/data.pkl\" twice"),
            (&[("a/data.pkl", b"N."), ("a/byteorder", b"middle")], "byte order \"middle\""),
            (&[("a/other", b"N.")], "PyTorch did not write"),
            (&[("a/data.pkl", b"N."), ("a/code/x.py", b"")], "TorchScript"),
        ] {
            let (Problem::Damaged(found) | Problem::Refused(found)) =
                layout(&wide_archive(files)).unwrap_err();
            assert!(found.contains(reason), "{found}");
        }
        let mut bytes = wide_archive(&[("a/data.pkl", b"N.")]);
        bytes[30] = b'b';
        let (Problem::Damaged(found) | Problem::Refused(found)) = layout(&bytes).unwrap_err();
        assert!(found.contains("not where it should be"), "{found}");
    }
}
