//! Shapes, axes and memory layout.

use super::{Axes, axis_index, unary};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ffi::{VectorArray, call, op, ops_vec};

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

/// One axis as several of these sizes, one of which may be -1 (unless another is 0).
pub fn unflatten(a: &Array, axis: i32, shape: &[i32]) -> Result<Array> {
    if shape.contains(&0) && shape.contains(&-1) {
        return Err(Error::argument("unflatten", format!("a size to infer beside a 0: {shape:?}")));
    }
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

/// `a` laid out row-major (or column-major, if it is that already and `allow_col_major`).
pub fn contiguous(a: &Array, allow_col_major: bool) -> Result<Array> {
    op!(mlx_contiguous(a, allow_col_major))
}

/// A view of the elements of `a`, taken row-major, with this `shape`: element `[i, j, ...]` is number
/// `offset + i * strides[0] + j * strides[1] + ...`. Fails if one of them lies outside of `a`.
pub fn as_strided(a: &Array, shape: &[i32], strides: &[i64], offset: usize) -> Result<Array> {
    if shape.len() != strides.len() || shape.iter().any(|&n| n < 0) {
        return Err(Error::argument("as_strided", format!("shape {shape:?} with strides {strides:?}")));
    }
    if !shape.contains(&0) {
        let ends = shape.iter().zip(strides).map(|(&n, &s)| (i128::from(n) - 1) * i128::from(s));
        let (mut low, mut high) = (offset as i128, offset as i128);
        ends.for_each(|end| if end < 0 { low += end } else { high += end });
        if low < 0 || high >= a.size() as i128 {
            let message = format!("elements {low} to {high} of an array of {}", a.size());
            return Err(Error::argument("as_strided", message));
        }
    }
    let offset = if shape.contains(&0) { 0 } else { offset };
    op!(mlx_as_strided(a, [shape], [strides], offset))
}

/// The bytes of `a` as elements of `dtype`: along the last axis as many more or fewer as the sizes
/// differ. Fails for `bool`, which not every byte is, and for a last axis that does not come out even.
pub fn view(a: &Array, dtype: Dtype) -> Result<Array> {
    if dtype == Dtype::Bool && a.dtype() != Dtype::Bool {
        return Err(Error::argument("view", "bytes as bool; use `not_equal`"));
    }
    let last = i64::from(a.shape().last().copied().unwrap_or(1));
    if last * a.dtype().size() as i64 / dtype.size() as i64 > i64::from(i32::MAX) {
        return Err(Error::argument("view", format!("a last axis of {last} as {dtype}")));
    }
    op!(mlx_view(a, dtype))
}

unary! {
    /// A scalar as `[1]`; anything else stays.
    atleast_1d => mlx_atleast_1d;
    /// A scalar as `[1, 1]`, a vector as a row; anything else stays.
    atleast_2d => mlx_atleast_2d;
    /// At least three dimensions: `[1, 1, 1]`, `[1, n, 1]` or `[n, m, 1]`.
    atleast_3d => mlx_atleast_3d;
    /// Another node with the same value.
    copy => mlx_copy;
}

/// `inputs`, which are computed only after `dependencies`.
pub fn depends<'a, 'b>(
    inputs: impl IntoIterator<Item = &'a Array>,
    dependencies: impl IntoIterator<Item = &'b Array>,
) -> Result<Vec<Array>> {
    let inputs: Vec<&Array> = inputs.into_iter().collect();
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    let (inputs, dependencies) = (VectorArray::new(inputs), VectorArray::new(dependencies));
    let mut out = VectorArray::empty();
    call!(mlx_depends; out.0; inputs, dependencies)?;
    out.to_arrays()
}

/// `a`, through which no gradient flows.
pub fn stop_gradient(a: &Array) -> Result<Array> {
    op!(mlx_stop_gradient(a))
}

/// The number of elements along `axes` (or, `inverted`, one over it), as a scalar of `dtype`. In a
/// function compiled for any shape, it is that of the shape the function is called with.
pub fn number_of_elements<'a>(
    a: &Array,
    axes: impl Into<Axes<'a>>,
    inverted: bool,
    dtype: Dtype,
) -> Result<Array> {
    let axes: Vec<i32> = match axes.into() {
        Axes::All => (0..a.ndim() as i32).collect(),
        Axes::One(axis) => vec![axis],
        Axes::Many(axes) => axes.into_owned(),
    };
    let counted =
        axes.iter().map(|&axis| axis_index("number_of_elements", axis, a.ndim()).map(|at| at as i32));
    let axes = counted.collect::<Result<Vec<i32>>>()?;
    op!(mlx_number_of_elements(a, [axes], inverted, dtype))
}
