//! Whether a GPU may multiply fp32 matrices as TF32: eight times as fast, with 10 bits behind the point instead of 23.
//! libtorch keeps this in a global setting that `tch` does not reach.

use std::ffi::c_void;

// Two members and an accessor of libtorch's `at::Context`, by their names in the Itanium C++ ABI, which passes `this` as
// the first argument.
unsafe extern "C" {
    /// `at::globalContext()`
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;
    /// `at::Context::setAllowTF32CuBLAS(bool)`
    #[link_name = "_ZN2at7Context18setAllowTF32CuBLASEb"]
    fn set_allowed(context: *mut c_void, allowed: bool);
    /// `at::Context::allowTF32CuBLAS() const`
    #[link_name = "_ZNK2at7Context15allowTF32CuBLASEv"]
    fn is_allowed(context: *const c_void) -> bool;
}

/// Allows TF32 from now on, or forbids it.
pub fn allow(allowed: bool) {
    // SAFETY: the context is libtorch's own and lives as long as the process; the call sets a field of it.
    unsafe { set_allowed(global_context(), allowed) }
}

/// Whether TF32 is allowed.
pub fn allowed() -> bool {
    // SAFETY: as above; the call reads a field.
    unsafe { is_allowed(global_context()) }
}

/// What `compute` returns, computed without TF32: where the last bits of a sum decide.
pub fn without<T>(compute: impl FnOnce() -> T) -> T {
    let before = allowed();
    if before {
        allow(false);
    }
    let result = compute();
    if before {
        allow(true);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_keeps_the_setting() {
        let before = allowed();
        allow(true);
        assert!(allowed());
        assert!(!without(allowed) && allowed());
        allow(false);
        assert!(!allowed() && !without(allowed) && !allowed());
        allow(before);
    }
}
