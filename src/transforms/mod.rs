//! Evaluation and function transforms.
//!
//! A function of arrays is a closure `Fn(&[Array]) -> Result<R>`, where `R` is an [`Array`], an array of
//! them (`[a, b]`) or a `Vec`. It may capture anything, arrays included. What it returns as `Err` comes
//! out of the transform unchanged, and a panic in it as [`Error::Panic`](crate::Error::Panic).

mod compile;
mod custom;
mod export;
mod grad;
mod vector;

pub use compile::{
    CompileMode, Compiled, compile, compile_shapeless, disable_compile, enable_compile, set_compile_mode,
};
pub use custom::{CustomFunction, Function, checkpoint, custom_vjp};
pub use export::{FunctionExporter, ImportedFunction, export_function, graph_to_dot, import_function};
pub use grad::{grad, value_and_grad, value_and_grad_with};
pub use vector::{jvp, vjp, vmap, vmap_with};

use crate::array::Array;
use crate::error::Result;
use crate::ffi::{self, VectorArray};

/// Computes `arrays` and waits for them.
///
/// An error raised on a stream comes back here. The stream can be used again; what could not be computed
/// keeps failing with that error, and so does what depends on it.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    ffi::eval(&VectorArray::new(arrays), false)
}

/// Starts computing `arrays` and returns. An error of the computation comes back from the next [`eval`]
/// of them, or of what depends on them. Not allowed on arguments of a function under a transform.
pub fn async_eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    ffi::eval(&VectorArray::new(arrays), true)
}
