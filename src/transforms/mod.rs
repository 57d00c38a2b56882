//! Evaluation and function transforms.
//!
//! A function of arrays is a closure `Fn(&[Array]) -> Result<R>`, where `R` is an [`Array`], an array of
//! them (`[a, b]`) or a `Vec`. It may capture anything, arrays included. What it returns as `Err` comes
//! out of the transform unchanged, and a panic in it as [`Error::Panic`](crate::Error::Panic).

mod grad;

pub use grad::{grad, value_and_grad, value_and_grad_with};

use crate::array::Array;
use crate::error::Result;
use crate::ffi::{self, VectorArray};

/// Computes `arrays` and waits for them.
///
/// An error raised on a stream comes back here, and the stream can be used again.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    ffi::eval(&VectorArray::new(arrays))
}

/// Starts computing `arrays` and returns. An error of the computation comes back from the next
/// [`eval`] of what depends on it.
pub fn async_eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    let arrays = VectorArray::new(arrays);
    ffi::call!(mlx_async_eval;; arrays)
}
