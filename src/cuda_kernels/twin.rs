//! kernels.cu on the CPU, through `twin.cpp`.

use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use tch::Kind;

use super::{KERNELS, Kernels, Target, defines};

/// As many as make the parts of the full softmax uneven.
pub(super) const MULTIPROCESSORS: usize = 3;

/// The source compiled as a shared library.
#[derive(Debug)]
pub(crate) struct Twin {
    launch: unsafe extern "C" fn(*const c_char, c_uint, c_uint, c_uint, *mut *mut c_void) -> bool,
    /// The library's fibres are its own, one launch at a time.
    running: Mutex<()>,
}

impl Kernels {
    /// The same kernels for tensors on the CPU. A width and precision is compiled once for all tests of the process.
    pub(crate) fn twin(dim: usize, kind: Kind) -> Self {
        static COMPILED: Mutex<Vec<(Vec<String>, &'static Twin)>> = Mutex::new(Vec::new());
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let defines = defines(dim, kind);
        let known = compiled.iter().find(|(other, _)| *other == defines).map(|&(_, twin)| twin);
        let twin = known.unwrap_or_else(|| {
            let twin: &'static Twin = Box::leak(Box::new(Twin::compile(&defines)));
            compiled.push((defines, twin));
            twin
        });
        Kernels { target: Target::Twin(twin), dim, kind }
    }
}

impl Twin {
    fn compile(defines: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("twin.cpp"), folder.path().join("twin.so"));
        let text = [include_str!("twin.cpp"), KERNELS, include_str!("twin_launch.cpp")].join("\n");
        std::fs::write(&source, text).unwrap();
        let mut compiler = Command::new(std::env::var("CXX").unwrap_or("c++".into()));
        compiler.args([
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-Wno-unused-function",
        ]);
        compiler.args(["-shared", "-fPIC", "-ffp-contract=off"]);
        compiler.args(defines.iter().map(|define| format!("-D{define}")));
        let output = compiler.arg(&source).arg("-o").arg(&library).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = CString::new(library.as_os_str().as_bytes()).unwrap();
        // SAFETY: a library that was just made of our own source, with nothing that runs when it is loaded; its function
        // `launch` is of this type.
        let launch = unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null(), "the twin loads");
            let launch = libc::dlsym(handle, c"launch".as_ptr());
            assert!(!launch.is_null(), "the twin has a way in");
            std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*const c_char, c_uint, c_uint, c_uint, *mut *mut c_void) -> bool,
            >(launch)
        };
        Twin { launch, running: Mutex::new(()) }
    }

    /// Runs `kernel` to its end.
    ///
    /// # Safety
    /// [`super::driver::Module::launch`]'s, with memory of ours.
    pub(super) unsafe fn launch(
        &self,
        kernel: &CStr,
        [x, y]: [c_uint; 2],
        threads: c_uint,
        arguments: &mut [*mut c_void],
    ) {
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise; one launch at a time.
        let known = unsafe { (self.launch)(kernel.as_ptr(), x, y, threads, arguments.as_mut_ptr()) };
        assert!(known, "{} is one of the kernels", kernel.to_string_lossy());
    }
}
