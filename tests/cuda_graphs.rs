//! What CUDA graphs need of C++: that scripts/libtorch.py compiles it, and that libtorch's CUDA part has all that it calls.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on should say so")]
#![cfg(target_os = "linux")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lemniscate::model::cuda::graph::library_name;

/// Runs `scripts/libtorch.py --cuda` for the libtorch in `torch`, with `cache`, and gives what it says and the library.
fn compile(torch: &Path, cache: &Path, compiler: Option<&str>) -> (String, PathBuf) {
    let mut script = Command::new("python3");
    script.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/libtorch.py")).arg("--cuda");
    script.env("LEMNISCATE_LIBTORCH_CUDA", torch).env("LEMNISCATE_CACHE", cache).env_remove("CXX");
    if let Some(compiler) = compiler {
        script.env("CXX", compiler);
    }
    let output = script.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    (said, cache.join(format!("libtorch-{}-shim", env!("LIBTORCH_VERSION"))).join(library_name()))
}

/// Why the script cannot be run here, if so.
fn cannot_compile() -> Option<&'static str> {
    let headers = std::env::var_os("LIBTORCH").map(|libtorch| PathBuf::from(libtorch).join("include"));
    if !headers.is_some_and(|it| it.join("c10/cuda/impl/cuda_cmake_macros.h").is_file()) {
        return Some("this libtorch was built without CUDA, and has none of its headers");
    }
    Command::new("python3").arg("--version").output().err().map(|_| "there is no python3")
}

#[test]
fn it_is_compiled_against_libtorchs_headers_and_no_others() {
    if let Some(reason) = cannot_compile() {
        return println!("skipped: {reason}");
    }
    let folder = tempfile::tempdir().unwrap();
    // The headers of the libtorch in use are those of the whole one.
    let torch = folder.path().join("torch");
    std::fs::create_dir(&torch).unwrap();
    let include = PathBuf::from(std::env::var_os("LIBTORCH").unwrap()).join("include");
    std::os::unix::fs::symlink(include, torch.join("include")).unwrap();
    let cache = folder.path().join("cache");

    let (said, library) = compile(&torch, &cache, Some("no-such-compiler"));
    assert!(said.contains("training will do without CUDA graphs: no-such-compiler "), "{said}");
    assert!(!library.exists());
    let (said, library) = compile(&torch.join("lib"), &cache, None);
    assert!(library.is_file(), "{said}");
    let in_cache: Vec<_> = library.parent().unwrap().read_dir().unwrap().collect();
    assert_eq!(in_cache.len(), 1, "nothing else is left: {in_cache:?}");
    assert_eq!(compile(&torch, &cache, Some("no-such-compiler")).0, "", "it is there already");
}

/// Loads a library; its path must not hold a NUL.
fn open(path: &Path, flags: c_int) -> Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the name is a C string; what is loaded is libtorch, or was compiled of our source.
    let library = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if library.is_null() {
        // SAFETY: after a failure this is a C string.
        return Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned());
    }
    Ok(library)
}

#[test]
fn libtorchs_cuda_part_has_all_that_it_calls() {
    let named = std::env::var_os("LEMNISCATE_LIBTORCH_CUDA").map(PathBuf::from);
    let torch = named.or_else(|| {
        let cache = PathBuf::from(std::env::var_os("HOME")?).join(".cache/lemniscate");
        Some(cache.join(format!("libtorch-{}-cuda/torch", env!("LIBTORCH_VERSION"))))
    });
    let Some(torch) = torch.filter(|torch| torch.join("lib/libtorch_cuda.so").is_file()) else {
        return println!(
            "skipped: no CUDA libtorch; LEMNISCATE_LIBTORCH_CUDA=.../site-packages/torch names one"
        );
    };
    let folder = tempfile::tempdir().unwrap();
    let (said, library) = compile(&torch, folder.path(), None);
    assert!(library.is_file(), "{said}");
    open(&torch.join("lib/libtorch_cuda.so"), libc::RTLD_NOW | libc::RTLD_GLOBAL).unwrap();
    let library = open(&library, libc::RTLD_NOW | libc::RTLD_LOCAL).unwrap();
    if Path::new("/proc/driver/nvidia").exists() {
        return;
    }
    // Without a driver each call is an error, which must arrive as words.
    let refused = |name: &CStr, call: &dyn Fn(*mut c_void) -> *const c_char| {
        // SAFETY: the library is open, the name a C string.
        let function = unsafe { libc::dlsym(library, name.as_ptr()) };
        assert!(!function.is_null(), "{name:?}");
        let said = call(function);
        assert!(!said.is_null(), "{name:?}");
        // SAFETY: a C string that is valid until the next call.
        let said = unsafe { CStr::from_ptr(said) }.to_string_lossy();
        assert!(said.contains("driver"), "{name:?}: {said}");
    };
    refused(c"lemniscate_leave_default_stream", &|function| {
        // SAFETY: the function of graph.cpp of that name has this type.
        unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> *const c_char>(function)(0)
        }
    });
    refused(c"lemniscate_graph_begin", &|function| {
        type Begin = unsafe extern "C" fn(c_int, *mut *mut c_void) -> *const c_char;
        let mut recording = std::ptr::null_mut();
        // SAFETY: as above; nothing is made where it fails.
        let said = unsafe { std::mem::transmute::<*mut c_void, Begin>(function)(0, &mut recording) };
        assert!(recording.is_null());
        said
    });
}
