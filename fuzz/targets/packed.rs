//! A packed data set: opened, described, every image of it read and hashed.
#![no_main]

use std::path::Path;

use lemniscate::data::packed::{format, summary};
use lemniscate::data::{DataFormat, OpenOptions, open};
use libfuzzer_sys::fuzz_target;

/// Bytes of the offset, the length, the hash and the magic at the end of a file.
const FOOTER: usize = 56;

fuzz_target!(|data: &[u8]| {
    read(data);
    // Again with the hash that belongs to what it covers, so that the parser meets whatever stands there.
    let Some(end) = data.len().checked_sub(FOOTER) else { return };
    let mut offset = [0; 8];
    offset.copy_from_slice(&data[end..end + 8]);
    let offset = u64::from_le_bytes(offset);
    if let Some(index) = usize::try_from(offset).ok().and_then(|offset| data.get(offset..end)) {
        let images = &data[..offset as usize];
        read(&[images, &format::seal(offset, index.to_vec())].concat());
    }
});

fn read(data: &[u8]) {
    thread_local!(static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().expect("a temporary file"));
    FILE.with(|file| {
        std::fs::write(file.path(), data).expect("written");
        read_at(file.path());
    });
}

fn read_at(path: &Path) {
    let Ok(splits) = open(path, Some(DataFormat::Packed), &OpenOptions::default()) else { return };
    summary(path).expect("what can be opened can be described");
    for data in std::iter::once(&splits.train).chain(&splits.test) {
        data.fingerprint().expect("the index was read");
        for index in 0..data.len() {
            let _ = (data.name(index), data.source().encoded(index), data.source().load_hashed(index));
            if let Ok(image) = data.load(index) {
                assert!(image.width() > 0 && image.height() > 0 && !data.is_quarantined(index));
            }
        }
    }
}
