//! What becomes of memory that is freed.

/// Tells the allocator to keep what is freed from now on. A step frees and asks for the same hundreds of megabytes again;
/// given back to the system in between, every page of them would be mapped and cleared again, a tenth of a step's time. Kept
/// memory is used less tightly: docs/RELIABILITY.md has by how much the process grows.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: changes how glibc allocates from now on, nothing that was allocated. Where it refuses, all stays as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
