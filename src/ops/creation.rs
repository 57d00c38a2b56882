//! New arrays.

use std::ffi::CStr;

use crate::array::{Array, Dtype, Operand};
use crate::error::Result;
use crate::ffi::{VectorArray, op, ops_vec};

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

/// The shape of `a` filled with `value`, which may be an array that broadcasts with it.
pub fn full_like(a: &Array, value: impl Operand, dtype: Dtype) -> Result<Array> {
    let value = value.to_arg(Some(dtype))?;
    op!(mlx_full_like(a, value, dtype))
}

/// `num` numbers from `start` to `stop`, evenly apart; `stop` is the last of them if `endpoint`, else
/// the next. Computed in `float32` (`float64` for that dtype).
pub fn linspace(start: f64, stop: f64, num: i32, endpoint: bool, dtype: Dtype) -> Result<Array> {
    op!(mlx_linspace_endpoint(start, stop, num, endpoint, dtype))
}

/// `[n, m]` of zeros, with ones on diagonal `k`: 0 is the main one, positive ones lie above it.
pub fn eye(n: i32, m: i32, k: i32, dtype: Dtype) -> Result<Array> {
    let k = diagonal_within(n, m, k);
    op!(mlx_eye(n, m, k, dtype))
}

/// The identity matrix `[n, n]`.
pub fn identity(n: i32, dtype: Dtype) -> Result<Array> {
    op!(mlx_identity(n, dtype))
}

/// `[n, m]` of ones on and below diagonal `k`, and zeros above it.
pub fn tri(n: i32, m: i32, k: i32, dtype: Dtype) -> Result<Array> {
    let k = diagonal_within(n, m, k);
    op!(mlx_tri(n, m, k, dtype))
}

/// `k`, or the nearest diagonal just outside of `[n, m]`: MLX computes `-k` and `m - k` in 32 bits.
pub(super) fn diagonal_within(n: i32, m: i32, k: i32) -> i32 {
    k.clamp(-n.max(0), m.max(0))
}

macro_rules! windows {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// `size` weights in `float32`; none if it is below 1.
        pub fn $name(size: i32) -> Result<Array> {
            op!($f(size))
        }
    )* };
}

windows! {
    /// The triangular window `1 - |2n / (size - 1) - 1|`.
    bartlett => mlx_bartlett;
    /// The window `0.42 - 0.5 cos(2πn / (size - 1)) + 0.08 cos(4πn / (size - 1))`.
    blackman => mlx_blackman;
    /// The window `0.54 - 0.46 cos(2πn / (size - 1))`.
    hamming => mlx_hamming;
    /// The window `0.5 - 0.5 cos(2πn / (size - 1))`.
    hanning => mlx_hanning;
}

/// How the coordinates of [`meshgrid`] are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indexing {
    /// The first input runs along the columns, the second along the rows, as on paper.
    Xy,
    /// Input `i` runs along axis `i`.
    Ij,
}

/// The coordinates of a grid: for each vector an array over the grid with its values. `sparse` leaves
/// the other axes at size 1.
pub fn meshgrid<'a>(
    arrays: impl IntoIterator<Item = &'a Array>,
    sparse: bool,
    indexing: Indexing,
) -> Result<Vec<Array>> {
    let indexing: &CStr = match indexing {
        Indexing::Xy => c"xy",
        Indexing::Ij => c"ij",
    };
    let arrays = VectorArray::new(arrays);
    ops_vec!(mlx_meshgrid(arrays, sparse, indexing))
}
