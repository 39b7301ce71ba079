//! CUDA graphs: work that is queued on a device, recorded once and queued again in one piece, for what a single launch costs.
//!
//! `tch` has none of this, so graph.cpp gives libtorch's own to C. It needs libtorch's headers, which a machine that runs the
//! program need not have: `scripts/libtorch.py --cuda` compiles it beside libtorch's CUDA part, into a library whose name holds
//! a checksum of the source, and it is loaded here. Looked for beside the `libtorch_cuda.so` in use, then in the cache.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::OnceLock;

use super::{LIBRARY, VERSION, cache, mapped, open};

const SOURCE: &[u8] = include_bytes!("graph.cpp");

/// A function of graph.cpp's: null, or why it could not be done.
type Said = *const c_char;
type Leave = unsafe extern "C" fn(c_int) -> Said;
type OnDevice = unsafe extern "C" fn(c_int, *mut *mut c_void) -> Said;
type OfGraph = unsafe extern "C" fn(*mut c_void) -> Said;
type Free = unsafe extern "C" fn(*mut c_void);

thread_local! {
    /// What [`current_stream`] says.
    static STREAM: Cell<*mut c_void> = const { Cell::new(null_mut()) };
}

/// The stream on which libtorch queues this thread's work, as the driver takes it: null is the default one.
pub fn current_stream() -> *mut c_void {
    STREAM.get()
}

/// The functions of graph.cpp.
#[derive(Clone, Copy)]
struct Shim {
    leave_default_stream: Leave,
    current_stream: OnDevice,
    begin: OnDevice,
    end: OfGraph,
    replay: OfGraph,
    free: Free,
}

/// Records work on one device, and replays the last recording.
pub struct Graphs {
    shim: Shim,
    device: c_int,
    recording: Option<Recording>,
}

impl Graphs {
    /// For the CUDA device of that number. From now on this thread's work there is queued on a stream of its own.
    ///
    /// # Errors
    /// Why there are no graphs.
    pub fn new(device: usize) -> Result<Self, String> {
        let shim = shim()?;
        let device = c_int::try_from(device).map_err(|e| e.to_string())?;
        // SAFETY: the library was compiled of this source; the call takes a number and returns what `checked` wants.
        unsafe { checked((shim.leave_default_stream)(device)) }?;
        let mut stream = null_mut();
        // SAFETY: as above; the call writes to `stream`, which lives long enough.
        unsafe { checked((shim.current_stream)(device, &mut stream)) }?;
        STREAM.set(stream);
        Ok(Graphs { shim, device, recording: None })
    }

    /// Records what `work` queues, in place of an earlier recording. Nothing of it is done before a
    /// [replay](Self::replay). Tensors that are read or written must stay where they are; what is computed on the host
    /// becomes a constant.
    ///
    /// # Errors
    /// If something in `work` cannot be recorded. Nothing has been queued then.
    pub fn record(&mut self, work: impl FnOnce()) -> Result<(), String> {
        self.recording = None;
        let mut graph = null_mut();
        // SAFETY: as in `new`; the call writes to `graph`, which lives long enough.
        unsafe { checked((self.shim.begin)(self.device, &mut graph)) }?;
        let recording = Recording { shim: self.shim, graph };
        caught(work)?;
        // SAFETY: `graph` is from `begin`, and is freed when `recording` is dropped.
        unsafe { checked((self.shim.end)(graph)) }?;
        self.recording = Some(recording);
        Ok(())
    }

    /// Queues what was recorded.
    ///
    /// # Errors
    /// If nothing was, or the device refuses.
    pub fn replay(&mut self) -> Result<(), String> {
        let recording = self.recording.as_ref().ok_or("nothing was recorded")?;
        // SAFETY: the graph was recorded to its end, and lives as long as `recording`.
        unsafe { checked((self.shim.replay)(recording.graph)) }
    }
}

struct Recording {
    shim: Shim,
    graph: *mut c_void,
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: the graph is from `begin`, and nobody else frees it.
        unsafe { (self.shim.free)(self.graph) }
    }
}

/// What a function of graph.cpp said.
///
/// # Safety
/// `said` is null or a C string.
unsafe fn checked(said: Said) -> Result<(), String> {
    if said.is_null() {
        return Ok(());
    }
    // SAFETY: a C string, by the caller's word; it is copied before another call can replace it.
    let said = unsafe { CStr::from_ptr(said) }.to_string_lossy();
    // libtorch goes on with advice about other settings.
    Err(said.lines().next().unwrap_or("unknown").to_owned())
}

/// Does `work`; a panic in it becomes an error. An operation that cannot be recorded panics, and the run can go on without
/// recordings.
fn caught(work: impl FnOnce()) -> Result<(), String> {
    // A closure under `no_grad` that panics leaves gradients off; this guard puts that right when it goes.
    let restored = tch::no_grad_guard();
    let outcome = catch_unwind(AssertUnwindSafe(|| tch::with_grad(work)));
    drop(restored);
    outcome.map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("an operation failed");
        said.lines().next().unwrap_or_default().to_owned()
    })
}

/// The name of the library: that of another source is not taken for this one's.
pub fn library_name() -> String {
    let mut checksum = flate2::Crc::new();
    checksum.update(SOURCE);
    format!("liblemniscate_graph-{:08x}.so", checksum.sum())
}

/// The library, loaded on the first call, after libtorch's CUDA part.
fn shim() -> Result<Shim, String> {
    static LOADED: OnceLock<Result<Shim, String>> = OnceLock::new();
    LOADED.get_or_init(|| load(&folders())).clone()
}

fn folders() -> Vec<PathBuf> {
    let beside = mapped(LIBRARY).and_then(|path| path.parent().map(Path::to_owned));
    let cached = cache().map(|root| root.join(format!("libtorch-{VERSION}-shim")));
    beside.into_iter().chain(cached).collect()
}

fn load(folders: &[PathBuf]) -> Result<Shim, String> {
    let name = library_name();
    let path = folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file());
    let path = path.ok_or_else(|| {
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!("{name} is in none of: {}; scripts/libtorch.py --cuda compiles it", folders.join(", "))
    })?;
    let unusable = |said: String| format!("{} cannot be used: {said}", path.display());
    let library = open(&path).map_err(unusable)?;
    let function = |name: &CStr| {
        // SAFETY: the library is open, and never closed; the name is a C string.
        let found = unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) };
        if found.is_null() { Err(unusable(format!("it has no {name:?}"))) } else { Ok(found) }
    };
    let (leave, begin) =
        (function(c"lemniscate_leave_default_stream")?, function(c"lemniscate_graph_begin")?);
    let (end, replay) = (function(c"lemniscate_graph_end")?, function(c"lemniscate_graph_replay")?);
    let (stream, free) = (function(c"lemniscate_current_stream")?, function(c"lemniscate_graph_free")?);
    // SAFETY: the functions of these names in graph.cpp are of these types.
    unsafe {
        Ok(Shim {
            leave_default_stream: transmute::<*mut c_void, Leave>(leave),
            current_stream: transmute::<*mut c_void, OnDevice>(stream),
            begin: transmute::<*mut c_void, OnDevice>(begin),
            end: transmute::<*mut c_void, OfGraph>(end),
            replay: transmute::<*mut c_void, OfGraph>(replay),
            free: transmute::<*mut c_void, Free>(free),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A library of these functions in C, under the name that is looked for.
    fn stub(folder: &Path, source: &str) {
        let file = folder.join("stub.c");
        fs::write(&file, source).unwrap();
        let mut compiler = std::process::Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.join(library_name())).arg(&file);
        assert!(compiler.status().unwrap().success());
    }

    /// Counts what is alive, and refuses to end what was begun on device 7.
    const STUB: &str = "
        static int alive, replays, device;
        const char *lemniscate_leave_default_stream(int d) { return d == 9 ? \"no such device\\nadvice\" : 0; }
        const char *lemniscate_current_stream(int d, void **stream) { *stream = &device; return 0; }
        const char *lemniscate_graph_begin(int d, void **graph) { device = d; alive++; *graph = &alive; return 0; }
        const char *lemniscate_graph_end(void *graph) { return device == 7 ? \"broken off\" : 0; }
        const char *lemniscate_graph_replay(void *graph) { replays++; return replays > 2 ? \"enough\" : 0; }
        void lemniscate_graph_free(void *graph) { alive--; }
    ";

    #[test]
    fn what_is_missing_is_said() {
        let (empty, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let refused = |folder: &tempfile::TempDir| load(&[folder.path().to_owned()]).err().unwrap();
        let said = refused(&empty);
        for words in [&library_name(), empty.path().to_str().unwrap(), "scripts/libtorch.py --cuda"] {
            assert!(said.contains(words), "{said}");
        }
        fs::write(broken.path().join(library_name()), "no library").unwrap();
        assert!(refused(&broken).contains("cannot be used: "));
        let other = tempfile::tempdir().unwrap();
        stub(other.path(), "int other(void) { return 1; }");
        assert!(refused(&other).contains("lemniscate_leave_default_stream"));
    }

    #[test]
    fn recordings_are_kept_replaced_and_freed() {
        let folder = tempfile::tempdir().unwrap();
        stub(folder.path(), STUB);
        let shim = load(&[folder.path().to_owned()]).unwrap();
        // SAFETY: the stub's function takes a number.
        let refused = unsafe { checked((shim.leave_default_stream)(9)) };
        assert_eq!(refused, Err("no such device".into()));
        let mut graphs = Graphs { shim, device: 0, recording: None };
        assert!(graphs.replay().is_err(), "nothing was recorded");
        let mut worked = 0;
        graphs.record(|| worked += 1).unwrap();
        graphs.record(|| worked += 1).unwrap();
        assert_eq!(worked, 2);
        assert_eq!((graphs.replay(), graphs.replay()), (Ok(()), Ok(())));
        assert_eq!(graphs.replay(), Err("enough".into()));
        graphs.device = 7;
        assert_eq!(graphs.record(|| ()), Err("broken off".into()));
        assert!(graphs.replay().is_err(), "the earlier recording is gone too");
        let alive = |graphs: &mut Graphs| {
            let mut counter = null_mut();
            // SAFETY: the stub writes the address of its counter, an int that lives as long as the library.
            unsafe {
                checked((graphs.shim.begin)(0, &mut counter)).unwrap();
                (graphs.shim.free)(counter);
                *counter.cast::<c_int>()
            }
        };
        assert_eq!(alive(&mut graphs), 0, "what was begun was freed");
    }

    #[test]
    fn an_operation_that_panics_leaves_gradients_as_they_were() {
        let weights = tch::Tensor::ones([2], (tch::Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let tracked = || (&weights * 2.0).requires_grad();
        let failed = caught(|| tch::no_grad(|| assert!(tracked(), "said here\nand there")));
        assert_eq!(failed, Err("said here".into()));
        assert!(tracked());
        assert_eq!(caught(|| assert!(tracked())), Ok(()));
        tch::no_grad(|| {
            assert!(caught(|| panic!()).is_err());
            assert!(!tracked());
        });
    }
}
