//! Groups of processes.

use std::ffi::CStr;

use super::{CArg, enter, sys};

super::handles::handle!(
    /// A group of processes.
    GroupHandle(mlx_distributed_group), mlx_distributed_group_free, empty
);

impl GroupHandle {
    pub(crate) fn rank(&self) -> i32 {
        let _guard = enter();
        // SAFETY: the handle is live.
        unsafe { sys::mlx_distributed_group_rank(self.0) }
    }

    pub(crate) fn size(&self) -> i32 {
        let _guard = enter();
        // SAFETY: the handle is live.
        unsafe { sys::mlx_distributed_group_size(self.0) }
    }
}

/// Whether MLX can communicate by `backend`.
pub(crate) fn distributed_is_available(backend: &CStr) -> bool {
    let _guard = enter();
    // SAFETY: a NUL-terminated string.
    unsafe { sys::mlx_distributed_is_available(backend.c()) }
}
