//! Compiles CUDA source with NVRTC and launches it through NVIDIA's driver; both are found at run time.
//!
//! Work goes to the stream that libtorch uses in this thread, in the device's primary context, which is libtorch's too.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::{null, null_mut};

use crate::model::cuda;
use crate::model::cuda::graph::current_stream;

type Status = c_int;
type Handle = *mut c_void;

/// The driver's names for properties of a device.
const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// Kernels in a device's memory.
#[derive(Debug)]
pub(super) struct Module {
    module: Handle,
    function_of: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> Status,
    #[allow(clippy::type_complexity)] // As the driver has it.
    launch: unsafe extern "C" fn(
        Handle,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Handle,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> Status,
    error_name: ErrorName,
    multiprocessors: usize,
}

type ErrorName = unsafe extern "C" fn(Status, *mut *const c_char) -> Status;

impl Module {
    /// Compiles `source` with the macros `defines`, such as `DIM=128`, for CUDA device number `device`.
    ///
    /// # Errors
    /// What is missing, or what the compiler says.
    pub(super) fn compile(source: &str, defines: &[String], device: usize) -> Result<Self, String> {
        let driver = Library::open(&["libcuda.so.1".into()])?;
        // SAFETY: of all in the block: names and types are those of cuda.h, version 12 and later; pointers are to locals that
        // live for the call. The primary context is retained for the life of the process.
        unsafe {
            let error_name: ErrorName = driver.function("cuGetErrorName")?;
            let check = |status: Status, what: &str| match status {
                0 => Ok(()),
                _ => Err(format!("{what} failed: {}", name_of(error_name, status))),
            };
            let init: unsafe extern "C" fn(c_uint) -> Status = driver.function("cuInit")?;
            check(init(0), "cuInit")?;
            let get: unsafe extern "C" fn(*mut c_int, c_int) -> Status = driver.function("cuDeviceGet")?;
            let mut id = 0;
            check(get(&raw mut id, device as c_int), "cuDeviceGet")?;
            let retain: unsafe extern "C" fn(*mut Handle, c_int) -> Status =
                driver.function("cuDevicePrimaryCtxRetain")?;
            let mut context = null_mut();
            check(retain(&raw mut context, id), "cuDevicePrimaryCtxRetain")?;
            let make_current: unsafe extern "C" fn(Handle) -> Status = driver.function("cuCtxSetCurrent")?;
            check(make_current(context), "cuCtxSetCurrent")?;
            let attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status =
                driver.function("cuDeviceGetAttribute")?;
            let property = |number| {
                let mut value = 0;
                check(attribute(&raw mut value, number, id), "cuDeviceGetAttribute").map(|()| value)
            };
            let (major, minor) = (property(CAPABILITY_MAJOR)?, property(CAPABILITY_MINOR)?);
            if major < 8 {
                return Err(format!("they need compute capability 8.0; this GPU has {major}.{minor}"));
            }
            let binary = compile(source, defines, &format!("sm_{major}{minor}"))?;
            let load: unsafe extern "C" fn(*mut Handle, *const c_void) -> Status =
                driver.function("cuModuleLoadData")?;
            let mut module = null_mut();
            check(load(&raw mut module, binary.as_ptr().cast()), "cuModuleLoadData")?;
            Ok(Module {
                module,
                function_of: driver.function("cuModuleGetFunction")?,
                launch: driver.function("cuLaunchKernel")?,
                error_name,
                multiprocessors: property(MULTIPROCESSORS)?.max(1) as usize,
            })
        }
    }

    /// How many thread blocks of any size the device surely runs at once.
    pub(super) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Queues `kernel` with a grid of x × y blocks of `threads`, behind what libtorch has queued.
    ///
    /// # Panics
    /// If the driver refuses, as libtorch's own operations do.
    ///
    /// # Safety
    /// `arguments` lead to the kernel's parameters, in number, order and type; what pointers among these lead to is on the
    /// device and as large as the kernel expects.
    pub(super) unsafe fn launch(
        &self,
        kernel: &CStr,
        [x, y]: [c_uint; 2],
        threads: c_uint,
        arguments: &mut [*mut c_void],
    ) {
        let mut function = null_mut();
        // SAFETY: the module is loaded for good; the name is a C string.
        let found = unsafe { (self.function_of)(&raw mut function, self.module, kernel.as_ptr()) };
        self.assert_done(found, kernel);
        // SAFETY: the caller's promise; the driver copies what `arguments` lead to before it returns.
        let done = unsafe {
            (self.launch)(
                function,
                x,
                y,
                1,
                threads,
                1,
                1,
                0,
                current_stream(),
                arguments.as_mut_ptr(),
                null_mut(),
            )
        };
        self.assert_done(done, kernel);
    }

    fn assert_done(&self, status: Status, kernel: &CStr) {
        // SAFETY: the function is the driver's.
        let name = || unsafe { name_of(self.error_name, status) };
        assert_eq!(status, 0, "CUDA kernel {}: {}", kernel.to_string_lossy(), name());
    }
}

/// The driver's name of an error, such as `CUDA_ERROR_INVALID_VALUE`.
///
/// # Safety
/// `error_name` is the driver's `cuGetErrorName`.
unsafe fn name_of(error_name: ErrorName, status: Status) -> String {
    let mut name = null();
    // SAFETY: the caller's promise; the name it gives is a constant.
    match unsafe { error_name(status, &raw mut name) } {
        // SAFETY: on success it is a C string.
        0 if !name.is_null() => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        _ => format!("error {status}"),
    }
}

/// `source` compiled for `architecture`, such as `sm_90`: a device's binary.
///
/// # Errors
/// If NVRTC cannot be found, or with the compiler's messages.
pub(super) fn compile(source: &str, defines: &[String], architecture: &str) -> Result<Vec<u8>, String> {
    let library = nvrtc()?;
    let text = CString::new(source).map_err(|_| "the source holds a NUL".to_owned())?;
    let options: Vec<CString> = ["--std=c++17".to_owned(), format!("--gpu-architecture={architecture}")]
        .into_iter()
        .chain(defines.iter().map(|define| format!("-D{define}")))
        .map(|option| CString::new(option).map_err(|_| "an option holds a NUL".to_owned()))
        .collect::<Result<_, _>>()?;
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: of all in the block: names and types are those of nvrtc.h; pointers are to locals that live for the call, and
    // buffers have the sizes that NVRTC has just said.
    unsafe {
        let create: unsafe extern "C" fn(
            *mut Handle,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status = library.function("nvrtcCreateProgram")?;
        let mut program = null_mut();
        if create(&raw mut program, text.as_ptr(), c"kernels.cu".as_ptr(), 0, null(), null()) != 0 {
            return Err("NVRTC makes no program".to_owned());
        }
        let run: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Status =
            library.function("nvrtcCompileProgram")?;
        let status = run(program, options.len() as c_int, options.as_ptr());
        let read = |size_of: &str, get: &str| -> Result<Vec<u8>, String> {
            let size_of: unsafe extern "C" fn(Handle, *mut usize) -> Status = library.function(size_of)?;
            let get: unsafe extern "C" fn(Handle, *mut u8) -> Status = library.function(get)?;
            let mut size = 0;
            if size_of(program, &raw mut size) != 0 {
                return Err("NVRTC gives no result".to_owned());
            }
            let mut bytes = vec![0; size];
            match get(program, bytes.as_mut_ptr()) {
                0 => Ok(bytes),
                _ => Err("NVRTC gives no result".to_owned()),
            }
        };
        let result = match status {
            0 => read("nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
            _ => {
                let log = read("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
                Err(format!("NVRTC: {}", String::from_utf8_lossy(&log).trim_end_matches('\0').trim()))
            }
        };
        let destroy: unsafe extern "C" fn(*mut Handle) -> Status = library.function("nvrtcDestroyProgram")?;
        destroy(&raw mut program);
        result
    }
}

/// NVRTC: as the loader finds it, or beside the CUDA libraries that libtorch has loaded.
fn nvrtc() -> Result<Library, String> {
    let beside = ["libcublas.so.13", "libcudart.so.13"].into_iter().filter_map(cuda::mapped);
    let folders: Vec<PathBuf> = beside.filter_map(|path| path.parent().map(PathBuf::from)).collect();
    let places = |name: &str| -> Vec<PathBuf> {
        folders.iter().map(|folder| folder.join(name)).chain([PathBuf::from(name)]).collect()
    };
    // NVRTC looks for its other half by name only, where this one may not be; once loaded it is found.
    let _ = Library::open(&places("libnvrtc-builtins.so.13.0"));
    Library::open(&places("libnvrtc.so.13"))
}

/// A shared library, loaded for good.
struct Library(Handle);

impl Library {
    /// The first of `places` that can be loaded.
    fn open(places: &[PathBuf]) -> Result<Self, String> {
        let mut said = String::new();
        for place in places {
            match cuda::open(place) {
                Ok(handle) => return Ok(Library(handle.as_ptr())),
                Err(reason) => said = reason,
            }
        }
        Err(said)
    }

    /// # Safety
    /// `F` is the type of a pointer to the function of that name.
    unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        assert_eq!(size_of::<F>(), size_of::<Handle>(), "a pointer to a function");
        let symbol = CString::new(name).map_err(|_| "a name holds a NUL".to_owned())?;
        // SAFETY: the handle is that of a loaded library.
        let found = unsafe { libc::dlsym(self.0, symbol.as_ptr()) };
        if found.is_null() {
            return Err(format!("{name} is not where it was looked for"));
        }
        // SAFETY: the caller's promise; the sizes were compared.
        Ok(unsafe { std::mem::transmute_copy::<Handle, F>(&found) })
    }
}
