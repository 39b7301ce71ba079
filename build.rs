//! Lets the built programs find libtorch from any folder: its library folder becomes part of their rpath.
//! Compiles the little that `tch` leaves out of libtorch. Also tells the tests for which target they were built, and the
//! program with which libtorch.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // tests/licences.rs asks about the packages of this target only: others may not have been downloaded.
    if let Ok(target) = std::env::var("TARGET") {
        println!("cargo:rustc-env=BUILD_TARGET={target}");
    }
    // Without LIBTORCH torch-sys has already stopped the build with its own message.
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        let lib = Path::new(&libtorch).join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        compile_autograd(Path::new(&libtorch));
    }
    println!("cargo:rustc-env=LIBTORCH_VERSION={}", libtorch_version().unwrap_or("unknown".into()));
}

/// src/model/autograd.cpp, against libtorch's headers.
fn compile_autograd(libtorch: &Path) {
    let source = "src/model/autograd.cpp";
    println!("cargo:rerun-if-changed={source}");
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .warnings(false)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .file(source)
        .compile("lemniscate_autograd");
}

/// `2.11.0`, from libtorch's own header.
fn libtorch_version() -> Option<String> {
    let header = Path::new(&std::env::var("LIBTORCH").ok()?).join("include/torch/headeronly/version.h");
    let text = std::fs::read_to_string(header).ok()?;
    let part = |name: &str| {
        let rest =
            text.lines().find_map(|line| line.strip_prefix("#define TORCH_VERSION_")?.strip_prefix(name))?;
        Some(rest.trim().to_owned())
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}
