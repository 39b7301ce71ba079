//! Our checkpoints: opened, every tensor looked at, shown, and loaded as a run that goes on.
#![no_main]

mod folder;

use std::fs;
use std::path::PathBuf;

use folder::folder;
use lemniscate::checkpoint::format::{Checkpoint, save_atomic};
use lemniscate::interop::inspect::inspect;
use lemniscate::interop::recognise::Hints;
use lemniscate::train::state::{Saved, load};
use libfuzzer_sys::fuzz_target;

/// Where the checksum's digits are in a file of ours; see `src/checkpoint/format.rs`.
const DIGITS: std::ops::Range<usize> = 35..99;

/// Puts the right checksum in, so that more than the first check is tried.
fn with_checksum(mut file: Vec<u8>) -> Vec<u8> {
    if let Some(digits) = file.get_mut(DIGITS) {
        digits.fill(b'0');
        let hash = blake3::hash(&file).to_hex();
        file[DIGITS].copy_from_slice(hash.as_bytes());
    }
    file
}

fuzz_target!(|data: &[u8]| {
    thread_local!(static FOLDER: PathBuf = folder());
    let Some((&kind, rest)) = data.split_first() else { return };
    FOLDER.with(|folder| {
        let path = folder.join("last.ckpt");
        let bytes = if kind & 1 == 1 { rest.to_vec() } else { with_checksum(rest.to_vec()) };
        // A new file each time: the one before may still be mapped.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).expect("written");
        if let Ok(found) = inspect(&path, Hints::default()) {
            let _ = found.tree();
        }
        let Ok(checkpoint) = Checkpoint::open(&path) else { return };
        for tensor in checkpoint.tensors() {
            assert_eq!(tensor.bytes.len() * 8, tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize());
        }
        save_atomic(&folder.join("copy.ckpt"), &checkpoint.view()).expect("what was read can be written");
        if let Ok(saved) = Saved::read(&checkpoint) {
            let _ = load(&checkpoint, &saved, &saved.config, tch::Device::Cpu);
        }
    });
});
