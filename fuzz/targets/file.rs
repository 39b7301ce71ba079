//! A file of PyTorch's as `inspect` and `import` treat it: opened, every tensor read, shown, made a checkpoint of.

use std::path::Path;

use lemniscate::interop::import::{Accept, ImportOptions, import};
use lemniscate::interop::inspect::inspect;
use lemniscate::interop::recognise::Hints;
use lemniscate::interop::torch::TorchFile;

/// Does all of that to `data`, which lies in a file of its own for as long as it takes.
pub fn read(data: &[u8]) {
    thread_local!(static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().expect("a temporary file"));
    FILE.with(|file| {
        std::fs::write(file.path(), data).expect("written");
        read_at(file.path());
    });
}

fn read_at(path: &Path) {
    let Ok(file) = TorchFile::open(path) else { return };
    if let Ok(checkpoint) = file.read() {
        for id in checkpoint.pickle().ids() {
            if let Ok(Some(tensor)) = checkpoint.tensor(id) {
                assert_eq!(tensor.bytes().len(), tensor.n_bytes());
            }
        }
    }
    drop(file);
    if let Ok(found) = inspect(path, Hints::default()) {
        let _ = found.tree();
    }
    let _ = import(path, &ImportOptions { hints: Hints::default(), accept: Accept::Part });
}
