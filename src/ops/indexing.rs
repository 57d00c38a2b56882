//! Taking elements out, and putting them in.

use crate::array::Array;
use crate::error::Result;
use crate::ffi::op;

/// `a[start:stop:stride]` along every axis; negative positions count from the end, and what lies
/// beyond the array is cut off, as in NumPy.
pub fn slice(a: &Array, start: &[i32], stop: &[i32], strides: &[i32]) -> Result<Array> {
    op!(mlx_slice(a, [start], [stop], [strides]))
}

/// `a` with `a[start:stop:stride]` replaced by `update`, which broadcasts to it.
pub fn slice_update(
    a: &Array,
    update: &Array,
    start: &[i32],
    stop: &[i32],
    strides: &[i32],
) -> Result<Array> {
    op!(mlx_slice_update(a, update, [start], [stop], [strides]))
}

/// A block of `size` that begins, along `axes`, where the integers of `start` say.
pub fn slice_dynamic(a: &Array, start: &Array, axes: &[i32], size: &[i32]) -> Result<Array> {
    op!(mlx_slice_dynamic(a, start, [axes], [size]))
}

/// `a` with a block replaced by `update` that begins, along `axes`, where the integers of `start` say.
pub fn slice_update_dynamic(a: &Array, update: &Array, start: &Array, axes: &[i32]) -> Result<Array> {
    op!(mlx_slice_update_dynamic(a, update, start, [axes]))
}

/// The entries of `a` at `indices` along `axis`, or of the flattened array: the axis is replaced by
/// the shape of `indices`.
pub fn take(a: &Array, indices: &Array, axis: impl Into<Option<i32>>) -> Result<Array> {
    match axis.into() {
        None => op!(mlx_take(a, indices)),
        Some(axis) => op!(mlx_take_axis(a, indices, axis)),
    }
}

/// The entries of `a` that `indices` names along `axis`, position by position: `indices` has as many
/// dimensions as `a`, and the other dimensions broadcast.
pub fn take_along_axis(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    op!(mlx_take_along_axis(a, indices, axis))
}
