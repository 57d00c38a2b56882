//! Kernels in Metal's language or CUDA C++ that the caller writes.
//!
//! Not run by this repository's tests, which have neither Metal nor CUDA: that a kernel computes. Run
//! by them: that a machine without the backend says so.

use std::ffi::{CStr, CString};

use crate::array::{Array, Dtype, element_count};
use crate::error::{Error, Result};
use crate::ffi::{
    CudaConfig, CudaKernelHandle, KernelText, MetalConfig, MetalKernelHandle, VectorArray, VectorString, call,
};

/// The text of a kernel. MLX writes the function around it: the signature has every input (`const T*`,
/// or a reference for a scalar), and every output (`T*`), by name. Where the body mentions
/// `<input>_shape`, `<input>_strides` or `<input>_ndim`, these are arguments too.
#[derive(Debug, Clone, Copy)]
pub struct KernelSource<'a> {
    /// A name for the function.
    pub name: &'a str,
    /// Names of the input arrays.
    pub inputs: &'a [&'a str],
    /// Names of the output arrays; at least one.
    pub outputs: &'a [&'a str],
    /// The body of the function.
    pub body: &'a str,
    /// What comes before the function.
    pub header: &'a str,
    /// Whether inputs that are not row-major are copied first.
    pub ensure_row_contiguous: bool,
}

/// How a kernel is started.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Threads in all, by dimension.
    pub grid: [i32; 3],
    /// Threads per group, by dimension.
    pub thread_group: [i32; 3],
    /// Shape and dtype of each output.
    pub outputs: &'a [(&'a [i32], Dtype)],
    /// Constants of the kernel, by name.
    pub template: &'a [(&'a str, TemplateArg)],
    /// What the outputs hold before the kernel runs; undefined values if `None`.
    pub init_value: Option<f32>,
    /// Whether the generated source is printed.
    pub verbose: bool,
}

/// A constant of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateArg {
    /// A type.
    Dtype(Dtype),
    /// An integer.
    Int(i32),
    /// A flag.
    Bool(bool),
}

impl From<Dtype> for TemplateArg {
    fn from(dtype: Dtype) -> Self {
        Self::Dtype(dtype)
    }
}

macro_rules! kernel {
    (
        $(#[$doc:meta])* $kernel:ident($handle:ident, $config:ident) for $backend:literal by $available:ident;
        $(#[$make_doc:meta])* $make:ident($option:ident: $t:ty);
        $apply:ident $output:ident $grid:ident $group:ident $init:ident $verbose:ident $dtype:ident $int:ident $bool:ident
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $kernel(Option<$handle>);

        $(#[$make_doc])*
        ///
        /// Without the backend the kernel can be made, and its `apply` fails.
        ///
        /// # Safety
        /// The kernel must read and write only within the arrays it is given, and write all of every
        /// output that has no initial value, for every launch and input that it is applied to.
        #[allow(unsafe_code)]
        pub unsafe fn $make(source: &KernelSource<'_>, $option: $t) -> Result<$kernel> {
            $kernel::compile(source, $option)
        }

        impl $kernel {
            /// For kernels of this crate, which are known to keep to their arrays.
            pub(crate) fn compile(source: &KernelSource<'_>, $option: $t) -> Result<Self> {
                let text = Text::new(source)?;
                if !available(|found| call!($available; *found;)) {
                    return Ok(Self(None));
                }
                $handle::new(&text.borrow(), source.ensure_row_contiguous, $option).map(|k| Self(Some(k)))
            }

            /// The outputs of the kernel, computed when they are needed. Fails on a device other than the
            /// GPU, for numbers of inputs or outputs other than the kernel has, and without the backend.
            /// What the compiler says of the kernel is an error of the evaluation.
            pub fn apply(&self, inputs: &[&Array], launch: &Launch<'_>) -> Result<Vec<Array>> {
                let Some(kernel) = &self.0 else {
                    let why = concat!("MLX was built without ", $backend, ", or the machine has none");
                    return Err(Error::unsupported(concat!("a ", $backend, " kernel"), why));
                };
                launch.check()?;
                let config = $config::new();
                for (shape, dtype) in launch.outputs {
                    call!($output;; config, [shape], dtype)?;
                }
                let ([x, y, z], [gx, gy, gz]) = (launch.grid, launch.thread_group);
                call!($grid;; config, x, y, z)?;
                call!($group;; config, gx, gy, gz)?;
                if let Some(value) = launch.init_value {
                    call!($init;; config, value)?;
                }
                let verbose = launch.verbose;
                call!($verbose;; config, verbose)?;
                for (name, arg) in launch.template {
                    let name = text(name)?;
                    let name = name.as_c_str();
                    match *arg {
                        TemplateArg::Dtype(dtype) => call!($dtype;; config, name, dtype)?,
                        TemplateArg::Int(value) => call!($int;; config, name, value)?,
                        TemplateArg::Bool(value) => call!($bool;; config, name, value)?,
                    }
                }
                let inputs = VectorArray::new(inputs.iter().copied());
                let mut outputs = VectorArray::empty();
                call!($apply; outputs.0; kernel, inputs, config, stream)?;
                outputs.to_arrays()
            }
        }
    };
}

kernel! {
    /// A kernel in Metal's language.
    MetalKernel(MetalKernelHandle, MetalConfig) for "Metal" by mlx_metal_is_available;
    /// A kernel in Metal's language, compiled when it first runs. Where the body mentions attributes of
    /// Metal, such as `thread_position_in_grid`, these are arguments too. With `atomic_outputs` the
    /// outputs are of `atomic<T>`.
    metal_kernel(atomic_outputs: bool);
    mlx_fast_metal_kernel_apply
    mlx_fast_metal_kernel_config_add_output_arg
    mlx_fast_metal_kernel_config_set_grid
    mlx_fast_metal_kernel_config_set_thread_group
    mlx_fast_metal_kernel_config_set_init_value
    mlx_fast_metal_kernel_config_set_verbose
    mlx_fast_metal_kernel_config_add_template_arg_dtype
    mlx_fast_metal_kernel_config_add_template_arg_int
    mlx_fast_metal_kernel_config_add_template_arg_bool
}

kernel! {
    /// A kernel in CUDA C++.
    CudaKernel(CudaKernelHandle, CudaConfig) for "CUDA" by mlx_cuda_is_available;
    /// A kernel in CUDA C++, compiled when it first runs, with `shared_memory` bytes of it per group.
    cuda_kernel(shared_memory: i32);
    mlx_fast_cuda_kernel_apply
    mlx_fast_cuda_kernel_config_add_output_arg
    mlx_fast_cuda_kernel_config_set_grid
    mlx_fast_cuda_kernel_config_set_thread_group
    mlx_fast_cuda_kernel_config_set_init_value
    mlx_fast_cuda_kernel_config_set_verbose
    mlx_fast_cuda_kernel_config_add_template_arg_dtype
    mlx_fast_cuda_kernel_config_add_template_arg_int
    mlx_fast_cuda_kernel_config_add_template_arg_bool
}

fn available(ask: impl FnOnce(&mut bool) -> Result<()>) -> bool {
    let mut found = false;
    ask(&mut found).is_ok() && found
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::argument("kernel", format!("a NUL in {text:?}")))
}

/// The strings of a kernel as C has them.
struct Text {
    name: CString,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
    body: CString,
    header: CString,
}

impl Text {
    fn new(source: &KernelSource<'_>) -> Result<Self> {
        if source.outputs.is_empty() {
            return Err(Error::argument("kernel", "no output"));
        }
        Ok(Self {
            name: text(source.name)?,
            inputs: source.inputs.iter().map(|name| text(name)).collect::<Result<_>>()?,
            outputs: source.outputs.iter().map(|name| text(name)).collect::<Result<_>>()?,
            body: text(source.body)?,
            header: text(source.header)?,
        })
    }

    fn borrow(&self) -> KernelText<'_> {
        let list = |names: &[CString]| {
            VectorString::new(&names.iter().map(|n| n.as_c_str()).collect::<Vec<&CStr>>())
        };
        KernelText {
            name: &self.name,
            inputs: list(&self.inputs),
            outputs: list(&self.outputs),
            source: &self.body,
            header: &self.header,
        }
    }
}

impl Launch<'_> {
    /// Fails for sizes that no launch can have.
    fn check(&self) -> Result<()> {
        if self.grid.iter().chain(&self.thread_group).any(|&n| n < 1) {
            let sizes = format!("grid {:?}, thread group {:?}", self.grid, self.thread_group);
            return Err(Error::argument("kernel", sizes));
        }
        for (shape, dtype) in self.outputs {
            if element_count(shape).and_then(|n| n.checked_mul(dtype.size())).is_none() {
                return Err(Error::argument("kernel", format!("impossible shape {shape:?}")));
            }
        }
        Ok(())
    }
}
