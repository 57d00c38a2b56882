//! New arrays.

use crate::array::{Array, Dtype, Operand};
use crate::error::Result;
use crate::ffi::op;

/// `start`, `start + step`, ... up to but without `stop`: shape `[ceil((stop - start) / step)]`.
///
/// Fails for `bool`, a zero step, and bounds that are not finite.
pub fn arange(
    start: impl Into<f64>,
    stop: impl Into<f64>,
    step: impl Into<f64>,
    dtype: Dtype,
) -> Result<Array> {
    let (start, stop, step) = (start.into(), stop.into(), step.into());
    op!(mlx_arange(start, stop, step, dtype))
}

/// `shape` filled with `value`, which may be an array that broadcasts to it.
pub fn full(shape: &[i32], value: impl Operand, dtype: Dtype) -> Result<Array> {
    let value = value.to_arg(Some(dtype))?;
    op!(mlx_full([shape], value, dtype))
}

/// `shape` filled with 0.
pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Array> {
    op!(mlx_zeros([shape], dtype))
}

/// `shape` filled with 1.
pub fn ones(shape: &[i32], dtype: Dtype) -> Result<Array> {
    op!(mlx_ones([shape], dtype))
}

/// Zeros with the shape and dtype of `a`.
pub fn zeros_like(a: &Array) -> Result<Array> {
    op!(mlx_zeros_like(a))
}

/// Ones with the shape and dtype of `a`.
pub fn ones_like(a: &Array) -> Result<Array> {
    op!(mlx_ones_like(a))
}
