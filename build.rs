//! Lets the built programs find libtorch from any folder: its library folder becomes part of their rpath.
//! Also tells the tests for which target they were built.

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
    }
}
