//! The zip archive of PyTorch 1.6 and later.
#![no_main]

mod file;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if data.starts_with(b"PK") {
        file::read(data);
    }
});
