//! Evaluation and function transforms.

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
