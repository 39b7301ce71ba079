//! libtorch's CUDA part, found and loaded at run time.
//!
//! The program links libtorch's CPU part only. Where CUDA is wanted, `libtorch_cuda.so` of the same version is loaded
//! into the process: it registers its devices and kernels with the libtorch that is there already. That has to happen
//! before libtorch is asked about CUDA for the first time, since it keeps the first answer.
//!
//! Searched in this order: the folder that [`FOLDER`] names, and then no other; the folder of the libtorch in use; what
//! `scripts/libtorch.py --cuda` put into the cache.

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::OnceLock;

use tch::Cuda;

use super::tf32;

pub mod graph;

/// The environment variable that names a libtorch with CUDA: the folder of Python's `torch`, or its `lib`.
pub const FOLDER: &str = "LEMNISCATE_LIBTORCH_CUDA";
/// The driver's library, which comes with the driver and with nothing else.
const DRIVER: &str = "libcuda.so.1";
const LIBRARY: &str = "libtorch_cuda.so";
/// The version that the program was built with; the CUDA part has to be of the same.
const VERSION: &str = env!("LIBTORCH_VERSION");

/// Why there is no CUDA here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is none for this operating system.
    System,
    /// No NVIDIA driver; with the loader's words.
    Driver(String),
    /// No CUDA part of libtorch in any of these folders.
    Library(Vec<PathBuf>),
    /// One of another version than the libtorch in use.
    Version {
        /// The library.
        library: PathBuf,
        /// Its version; `None` where nothing beside it tells.
        found: Option<String>,
        /// What is needed.
        expected: String,
    },
    /// One that cannot be loaded; with the loader's words.
    Unloadable(PathBuf, String),
    /// Something was loaded, and libtorch knows of no CUDA all the same.
    Unregistered,
    /// All is there but a device.
    Device,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Absent::System => f.write_str("CUDA needs Linux"),
            Absent::Driver(said) => write!(f, "there is no NVIDIA driver ({said})"),
            Absent::Library(folders) => {
                let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
                write!(f, "libtorch's CUDA part, {LIBRARY}, is in none of: {}", folders.join(", "))
            }
            Absent::Version { library, found: Some(found), expected } => {
                write!(
                    f,
                    "{} belongs to libtorch {found}, and this program needs {expected}",
                    library.display()
                )
            }
            Absent::Version { library, found: None, expected } => {
                write!(f, "nothing beside {} says that it belongs to libtorch {expected}", library.display())
            }
            Absent::Unloadable(library, said) => write!(f, "{} cannot be loaded: {said}", library.display()),
            Absent::Unregistered => write!(f, "{LIBRARY} was loaded, but libtorch found no CUDA in it"),
            Absent::Device => f.write_str("no CUDA device was found"),
        }
    }
}

impl Absent {
    /// What a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Absent::System => "use --device cpu",
            Absent::Driver(_) => "install NVIDIA's driver (nvidia-smi has to work), or use --device cpu",
            Absent::Library(_) | Absent::Version { .. } | Absent::Unloadable(..) | Absent::Unregistered => {
                "scripts/libtorch.py --cuda fetches it, LEMNISCATE_LIBTORCH_CUDA=/dir names another; or use --device cpu"
            }
            Absent::Device => "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu",
        }
    }
}

/// The number of CUDA devices, at least one; loads what they need on the first call.
///
/// # Errors
/// What is missing.
pub fn devices() -> Result<usize, Absent> {
    static FOUND: OnceLock<Result<usize, Absent>> = OnceLock::new();
    FOUND.get_or_init(look).clone()
}

fn look() -> Result<usize, Absent> {
    if !cfg!(target_os = "linux") {
        return Err(Absent::System);
    }
    Search::here().load()?;
    if !tch::utils::has_cuda() {
        return Err(Absent::Unregistered);
    }
    let count = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Absent::Device),
    }
}

/// How a GPU is to compute: cuDNN measures its convolutions and keeps the fastest for each shape, and what is left in
/// fp32 goes through the tensor cores as TF32.
pub(super) fn prefer_speed() {
    Cuda::cudnn_set_benchmark(true);
    tf32::allow(true);
}

/// Where the driver and libtorch's CUDA part are looked for.
struct Search {
    driver: PathBuf,
    folders: Vec<PathBuf>,
    version: &'static str,
}

impl Search {
    /// As this process is to search; with nothing to do where the program is linked with CUDA.
    fn here() -> Self {
        let folders = match std::env::var_os(FOLDER) {
            Some(folder) => vec![PathBuf::from(folder)],
            None => {
                let beside = mapped("libtorch_cpu.so").and_then(|path| path.parent().map(Path::to_owned));
                beside.into_iter().chain(cached()).collect()
            }
        };
        Search { driver: DRIVER.into(), folders, version: VERSION }
    }

    /// Loads the CUDA part, if it is not there already.
    fn load(&self) -> Result<(), Absent> {
        open(&self.driver).map_err(Absent::Driver)?;
        if mapped(LIBRARY).is_some() {
            return Ok(());
        }
        let library = self.find()?;
        open(&library).map(drop).map_err(|said| Absent::Unloadable(library, said))
    }

    fn find(&self) -> Result<PathBuf, Absent> {
        let places = self.folders.iter().flat_map(|folder| [folder.join("lib"), folder.clone()]);
        let library = places
            .map(|place| place.join(LIBRARY))
            .find(|library| library.is_file())
            .ok_or_else(|| Absent::Library(self.folders.clone()))?;
        let found = version_beside(&library);
        if found.as_deref() == Some(self.version) {
            return Ok(library);
        }
        Err(Absent::Version { library, found, expected: self.version.to_owned() })
    }
}

/// The version of the libtorch that `library` lies in, `2.11.0` without what comes behind a plus: from a wheel's
/// `version.py`, or an archive's `build-version`.
fn version_beside(library: &Path) -> Option<String> {
    let home = library.parent()?.parent()?;
    let wheel = std::fs::read_to_string(home.join("version.py")).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim().trim_matches(['\'', '"']).to_owned())
    });
    let version = wheel.or_else(|| std::fs::read_to_string(home.join("build-version")).ok())?;
    Some(version.trim().split('+').next()?.to_owned())
}

/// Where `scripts/libtorch.py --cuda` puts it.
fn cached() -> Option<PathBuf> {
    Some(cache()?.join(format!("libtorch-{VERSION}-cuda/torch")))
}

/// The folder of `scripts/libtorch.py`.
fn cache() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("LEMNISCATE_CACHE").or_else(|| {
        let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
        Some(cache.join("lemniscate"))
    })
}

/// The file of that name that is part of this process.
pub(crate) fn mapped(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    paths.find(|path| path.file_name().is_some_and(|file| file == name))
}

/// Loads a shared library for good, its symbols for all that is loaded after it; the loader's handle of it.
///
/// # Errors
/// The loader's words.
pub(crate) fn open(library: &Path) -> Result<NonNull<c_void>, String> {
    let path = CString::new(library.as_os_str().as_bytes()).map_err(|_| "its name holds a NUL".to_owned())?;
    // SAFETY: the path is a C string. The library's initialisers run: it is NVIDIA's driver or NVRTC, a libtorch of our
    // version, or graph.cpp compiled, which the user installed as such.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if let Some(handle) = NonNull::new(handle) {
        return Ok(handle);
    }
    // SAFETY: after a failure the loader returns a C string that is valid until this thread's next call, or null.
    let said = unsafe { libc::dlerror().as_ref().map(|said| CStr::from_ptr(said)) };
    Err(said
        .map_or_else(|| "the loader does not say why".to_owned(), |said| said.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn search(driver: &Path, folder: &Path) -> Search {
        Search { driver: driver.into(), folders: vec![folder.into()], version: "2.11.0" }
    }

    /// A library with nothing in it.
    fn stub(path: &Path) {
        let source = path.with_extension("c");
        fs::write(&source, "int lemniscate_stub(void) { return 1; }\n").unwrap();
        let mut compiler = std::process::Command::new("cc");
        assert!(compiler.args(["-shared", "-fPIC", "-o"]).arg(path).arg(&source).status().unwrap().success());
    }

    #[test]
    fn each_missing_piece_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (driver, torch) = (folder.path().join("libcuda.so.1"), folder.path().join("torch"));
        let library = torch.join("lib/libtorch_cuda.so");
        fs::create_dir_all(torch.join("lib")).unwrap();
        let refused = || search(&driver, &torch).load().unwrap_err();
        assert!(matches!(refused(), Absent::Driver(said) if said.contains("libcuda.so.1")));
        stub(&driver);
        assert_eq!(refused(), Absent::Library(vec![torch.clone()]));
        fs::write(&library, "not a library").unwrap();
        let version = |found: Option<&str>| Absent::Version {
            library: library.clone(),
            found: found.map(str::to_owned),
            expected: "2.11.0".into(),
        };
        assert_eq!(refused(), version(None));
        fs::write(torch.join("build-version"), "2.10.0+cu130\n").unwrap();
        assert_eq!(refused(), version(Some("2.10.0")));
        // A wheel says it here, and that counts.
        fs::write(torch.join("version.py"), "from typing import Optional\n\n__version__ = '2.11.0+cu130'\n")
            .unwrap();
        assert!(matches!(refused(), Absent::Unloadable(path, said) if path == library && !said.is_empty()));
        for absent in [refused(), version(None), version(Some("1")), Absent::Device, Absent::System] {
            assert!(!absent.to_string().is_empty() && absent.hint().contains("--device cpu"));
        }
    }

    #[test]
    fn a_library_of_the_right_version_is_loaded_from_the_folder_or_its_lib() {
        let folder = tempfile::tempdir().unwrap();
        let (driver, torch) = (folder.path().join("libcuda.so.1"), folder.path().join("torch"));
        fs::create_dir_all(torch.join("lib")).unwrap();
        stub(&driver);
        fs::write(torch.join("version.py"), "__version__ = '2.11.0'\n").unwrap();
        stub(&torch.join("lib/libtorch_cuda.so"));
        assert_eq!(search(&driver, &torch).load(), Ok(()));
        assert_eq!(search(&driver, &torch.join("lib")).find().unwrap(), torch.join("lib/libtorch_cuda.so"));
        assert!(mapped("libtorch_cpu.so").is_some_and(|path| path.is_file()));
        assert_eq!(mapped("libtorch_cpu.so.of.nobody"), None);
    }
}
