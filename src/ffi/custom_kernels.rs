//! Kernels that the caller writes.

use std::ffi::CStr;

use super::{VectorString, enter, last_error, sys};
use crate::error::Result;

super::handles::handle!(
    /// A kernel in Metal's language, compiled when it first runs.
    MetalKernelHandle(mlx_fast_metal_kernel), mlx_fast_metal_kernel_free
);
super::handles::handle!(
    /// How a Metal kernel is started.
    MetalConfig(mlx_fast_metal_kernel_config), mlx_fast_metal_kernel_config_free
);
super::handles::handle!(
    /// A kernel in CUDA C++, compiled when it first runs.
    CudaKernelHandle(mlx_fast_cuda_kernel), mlx_fast_cuda_kernel_free
);
super::handles::handle!(
    /// How a CUDA kernel is started.
    CudaConfig(mlx_fast_cuda_kernel_config), mlx_fast_cuda_kernel_config_free
);

/// Name, inputs, outputs, body and header of a kernel.
pub(crate) struct KernelText<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) inputs: VectorString,
    pub(crate) outputs: VectorString,
    pub(crate) source: &'a CStr,
    pub(crate) header: &'a CStr,
}

macro_rules! kernels {
    ($($handle:ident($config:ident): $new:ident($($name:ident: $t:ty),*), $new_config:ident;)*) => { $(
        impl $handle {
            pub(crate) fn new(text: &KernelText<'_>, $($name: $t),*) -> Result<Self> {
                let (inputs, outputs) = (text.inputs.0, text.outputs.0);
                let (name, source, header) = (text.name.as_ptr(), text.source.as_ptr(), text.header.as_ptr());
                let _guard = enter();
                // SAFETY: live lists and NUL-terminated strings, which MLX copies.
                let raw = unsafe { sys::$new(name, inputs, outputs, source, header, $($name),*) };
                if raw.ctx.is_null() { Err(last_error(stringify!($new))) } else { Ok(Self(raw)) }
            }
        }

        impl $config {
            pub(crate) fn new() -> Self {
                let _guard = enter();
                // SAFETY: no arguments. Without memory for it the handle is empty, which later calls report.
                Self(unsafe { sys::$new_config() })
            }
        }
    )* };
}

kernels! {
    MetalKernelHandle(MetalConfig):
        mlx_fast_metal_kernel_new(ensure_row_contiguous: bool, atomic_outputs: bool),
        mlx_fast_metal_kernel_config_new;
    CudaKernelHandle(CudaConfig):
        mlx_fast_cuda_kernel_new(ensure_row_contiguous: bool, shared_memory: i32),
        mlx_fast_cuda_kernel_config_new;
}
