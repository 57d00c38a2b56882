//! Shapes: reshaping, axes, joining, splitting, repeating.

use std::borrow::Cow;

use super::Axes;
use crate::array::Array;
use crate::error::Result;
use crate::ffi::{VectorArray, op, ops_vec};

/// The same elements, row-major, in another shape; one dimension may be -1 and is inferred.
pub fn reshape(a: &Array, shape: &[i32]) -> Result<Array> {
    op!(mlx_reshape(a, [shape]))
}

/// The axes reversed (`..`), or in this order.
pub fn transpose<'a>(a: &Array, axes: impl Into<Axes<'a>>) -> Result<Array> {
    match axes.into() {
        Axes::All => op!(mlx_transpose(a)),
        Axes::One(axis) => {
            let axes = [axis];
            op!(mlx_transpose_axes(a, [axes]))
        }
        Axes::Many(axes) => op!(mlx_transpose_axes(a, [axes])),
    }
}

/// Two axes exchanged.
pub fn swapaxes(a: &Array, axis1: i32, axis2: i32) -> Result<Array> {
    op!(mlx_swapaxes(a, axis1, axis2))
}

/// One axis moved to another place; the others keep their order.
pub fn moveaxis(a: &Array, source: i32, destination: i32) -> Result<Array> {
    op!(mlx_moveaxis(a, source, destination))
}

/// Axes of size 1 put in, at these places of the result. `..` adds none.
pub fn expand_dims<'a>(a: &Array, axes: impl Into<Axes<'a>>) -> Result<Array> {
    match axes.into() {
        Axes::All => Ok(a.clone()),
        Axes::One(axis) => op!(mlx_expand_dims(a, axis)),
        Axes::Many(axes) => op!(mlx_expand_dims_axes(a, [axes])),
    }
}

/// Axes of size 1 taken out: all of them (`..`), or these. Fails if one has another size.
pub fn squeeze<'a>(a: &Array, axes: impl Into<Axes<'a>>) -> Result<Array> {
    match axes.into() {
        Axes::All => op!(mlx_squeeze(a)),
        Axes::One(axis) => op!(mlx_squeeze_axis(a, axis)),
        Axes::Many(axes) => op!(mlx_squeeze_axes(a, [axes])),
    }
}

/// `start` to `end`, inclusive, as one axis.
pub fn flatten(a: &Array, start: i32, end: i32) -> Result<Array> {
    op!(mlx_flatten(a, start, end))
}

/// One axis as several of these sizes, one of which may be -1.
pub fn unflatten(a: &Array, axis: i32, shape: &[i32]) -> Result<Array> {
    op!(mlx_unflatten(a, axis, [shape]))
}

/// `a` as if repeated to `shape`, without a copy.
pub fn broadcast_to(a: &Array, shape: &[i32]) -> Result<Array> {
    op!(mlx_broadcast_to(a, [shape]))
}

/// All arrays broadcast to their common shape.
pub fn broadcast_arrays<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<Vec<Array>> {
    let arrays = VectorArray::new(arrays);
    ops_vec!(mlx_broadcast_arrays(arrays))
}

/// Arrays joined along an axis that they have; the other dimensions must be equal.
pub fn concatenate<'a>(arrays: impl IntoIterator<Item = &'a Array>, axis: i32) -> Result<Array> {
    let arrays = VectorArray::new(arrays);
    op!(mlx_concatenate_axis(arrays, axis))
}

/// Arrays of one shape joined along a new axis.
pub fn stack<'a>(arrays: impl IntoIterator<Item = &'a Array>, axis: i32) -> Result<Array> {
    let arrays = VectorArray::new(arrays);
    op!(mlx_stack_axis(arrays, axis))
}

/// How [`split`] cuts: into equal parts (`3`), or before these indices (`[2, 5]`, or a slice).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts<'a> {
    /// As many parts, all of one size.
    Equal(i32),
    /// A new part starts at each index.
    At(Cow<'a, [i32]>),
}

impl From<i32> for Parts<'_> {
    fn from(parts: i32) -> Self {
        Parts::Equal(parts)
    }
}

impl<const N: usize> From<[i32; N]> for Parts<'_> {
    fn from(indices: [i32; N]) -> Self {
        Parts::At(Cow::Owned(indices.to_vec()))
    }
}

impl<'a, const N: usize> From<&'a [i32; N]> for Parts<'a> {
    fn from(indices: &'a [i32; N]) -> Self {
        Parts::At(Cow::Borrowed(indices))
    }
}

impl<'a> From<&'a [i32]> for Parts<'a> {
    fn from(indices: &'a [i32]) -> Self {
        Parts::At(Cow::Borrowed(indices))
    }
}

/// `a` cut along `axis`. Fails if equal parts do not come out even.
pub fn split<'a>(a: &Array, parts: impl Into<Parts<'a>>, axis: i32) -> Result<Vec<Array>> {
    match parts.into() {
        Parts::Equal(parts) => ops_vec!(mlx_split(a, parts, axis)),
        Parts::At(indices) => ops_vec!(mlx_split_sections(a, [indices], axis)),
    }
}

/// Each element `repeats` times in a row, along `axis` or over the flattened array.
pub fn repeat(a: &Array, repeats: i32, axis: impl Into<Option<i32>>) -> Result<Array> {
    match axis.into() {
        None => op!(mlx_repeat(a, repeats)),
        Some(axis) => op!(mlx_repeat_axis(a, repeats, axis)),
    }
}

/// The whole array `reps[i]` times along axis `i`; the shorter of shape and `reps` is extended by
/// ones in front.
pub fn tile(a: &Array, reps: &[i32]) -> Result<Array> {
    op!(mlx_tile(a, [reps]))
}

/// `a` laid out row-major (or column-major, if it is that already and `allow_col_major`).
pub fn contiguous(a: &Array, allow_col_major: bool) -> Result<Array> {
    op!(mlx_contiguous(a, allow_col_major))
}

/// `a`, through which no gradient flows.
pub fn stop_gradient(a: &Array) -> Result<Array> {
    op!(mlx_stop_gradient(a))
}
