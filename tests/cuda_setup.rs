//! What is said where CUDA is asked for and cannot be had. Each missing piece is made to be the first that is missing: with
//! stubs in place of the driver and of libtorch's CUDA part, no GPU and no CUDA is needed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{describe, lemniscate, tiny};

/// Whether the pieces that these tests leave out are there.
fn has_a_driver() -> bool {
    let there = Path::new("/proc/driver/nvidia").exists();
    if there {
        println!("skipped: this machine has an NVIDIA driver");
    }
    there
}

/// A shared library with nothing in it.
fn stub(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let source = path.with_extension("c");
    fs::write(&source, "int lemniscate_stub(void) { return 1; }\n").unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(path).arg(&source).status().unwrap();
    assert!(built.success());
}

struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Machine { folder: tempfile::tempdir().unwrap() }
    }

    fn torch(&self) -> PathBuf {
        self.folder.path().join("torch")
    }

    fn with_driver(self) -> Self {
        stub(&self.folder.path().join("driver/libcuda.so.1"));
        self
    }

    fn with_version(self, version: &str) -> Self {
        fs::create_dir_all(self.torch()).unwrap();
        fs::write(self.torch().join("version.py"), format!("__version__ = '{version}'\n")).unwrap();
        self
    }

    /// Trains a little on `device`; `named` says that the environment names the folder of libtorch's CUDA part.
    fn train(&self, device: &str, named: bool) -> Output {
        let mut command = lemniscate(
            self.folder.path(),
            tiny("synthetic:40x16", "run", &["--device", device, "--max-steps", "1"]),
        );
        command.env("LD_LIBRARY_PATH", self.folder.path().join("driver"));
        command.env("LEMNISCATE_CACHE", self.folder.path().join("cache"));
        command.env_remove("LEMNISCATE_LIBTORCH_CUDA");
        if named {
            command.env("LEMNISCATE_LIBTORCH_CUDA", self.torch());
        }
        command.output().unwrap()
    }

    fn refuses(&self, named: bool, expected: &[&str]) {
        let output = self.train("cuda", named);
        let said = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
        for words in [&["--device cuda:0", "hint: "], expected].concat() {
            assert!(said.contains(words), "{words:?} is not in: {said}");
        }
        assert!(!self.folder.path().join("run").exists(), "nothing was begun");
    }
}

#[test]
fn without_a_driver_that_is_what_is_said() {
    if !has_a_driver() {
        Machine::new().refuses(false, &["no NVIDIA driver", "libcuda.so.1", "nvidia-smi"]);
    }
}

#[test]
fn without_the_cuda_part_of_libtorch_every_place_is_named() {
    if !has_a_driver() {
        let machine = Machine::new().with_driver();
        machine.refuses(
            false,
            &["libtorch_cuda.so, is in none of", "/lib", "/cache/libtorch-", "libtorch.py --cuda"],
        );
        machine.refuses(true, &[machine.torch().to_str().unwrap()]);
    }
}

#[test]
fn another_version_is_not_loaded() {
    if !has_a_driver() {
        let machine = Machine::new().with_driver().with_version("2.10.0+cu130");
        stub(&machine.torch().join("lib/libtorch_cuda.so"));
        machine.refuses(true, &["belongs to libtorch 2.10.0, and this program needs 2.11"]);
        fs::remove_file(machine.torch().join("version.py")).unwrap();
        machine.refuses(true, &["nothing beside", "libtorch_cuda.so says that it belongs to libtorch 2.11"]);
    }
}

#[test]
fn what_cannot_be_loaded_or_is_no_cuda_is_said_to_be_so() {
    if !has_a_driver() {
        let machine = Machine::new().with_driver().with_version("2.11.0+cu130");
        let library = machine.torch().join("lib/libtorch_cuda.so");
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        fs::write(&library, "this is no library").unwrap();
        machine.refuses(true, &["libtorch_cuda.so cannot be loaded: "]);
        stub(&library);
        machine.refuses(true, &["was loaded, but libtorch found no CUDA in it"]);
    }
}

#[test]
fn auto_trains_on_the_cpu_and_the_log_says_why() {
    if !has_a_driver() {
        let machine = Machine::new().with_driver();
        let output = machine.train("auto", false);
        assert!(output.status.success(), "{}", describe(&output));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("CUDA"), "{}", describe(&output));
        let log = fs::read_to_string(machine.folder.path().join("run/train.log")).unwrap();
        assert!(log.contains("on the CPU: libtorch's CUDA part"), "{log}");
    }
}
