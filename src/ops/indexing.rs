//! Taking elements out, and putting them in.
//!
//! An index that is an array counts modulo the size of its axis: -1 is the last, as in NumPy, and one
//! that is out of range wraps around. (MLX itself would read or write elsewhere; the
//! wrapping is one operation on the indices: about 10 microseconds for few of them on a CPU.)

use super::{axis_index, full, maximum, minimum, number_of_elements};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ffi::{VectorArray, op};

/// Strides that select what `strides` select and that MLX can compute with.
fn usable_strides(op: &'static str, a: &Array, strides: &[i32]) -> Result<Vec<i32>> {
    if strides.contains(&0) {
        return Err(Error::argument(op, "a stride of 0"));
    }
    let sizes = a.shape().iter().chain(std::iter::repeat(&1));
    Ok(strides.iter().zip(sizes).map(|(&s, &n)| s.clamp(-n.max(1), n.max(1))).collect())
}

/// `a[start:stop:stride]` along every axis; negative positions count from the end, and what lies
/// beyond the array is cut off, as in NumPy. Fails for a stride of 0.
pub fn slice(a: &Array, start: &[i32], stop: &[i32], strides: &[i32]) -> Result<Array> {
    let strides = usable_strides("slice", a, strides)?;
    op!(mlx_slice(a, [start], [stop], [strides]))
}

macro_rules! slice_updates {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(
            a: &Array,
            update: &Array,
            start: &[i32],
            stop: &[i32],
            strides: &[i32],
        ) -> Result<Array> {
            let strides = usable_strides(stringify!($name), a, strides)?;
            op!($f(a, update, [start], [stop], [strides]))
        }
    )* };
}

slice_updates! {
    /// `a` with `a[start:stop:stride]` replaced by `update`, which broadcasts to it and takes its dtype.
    slice_update => mlx_slice_update;
    /// As [`slice_update`], adding `update` to what is there.
    slice_update_add => mlx_slice_update_add;
    /// As [`slice_update`], multiplying what is there by `update`.
    slice_update_prod => mlx_slice_update_prod;
    /// As [`slice_update`], keeping the larger.
    slice_update_max => mlx_slice_update_max;
    /// As [`slice_update`], keeping the smaller.
    slice_update_min => mlx_slice_update_min;
}

/// A block of `size` that begins, along `axes`, where the integers of `start` say (elsewhere at 0).
/// A start that would let the block leave the array moves it back inside.
pub fn slice_dynamic(a: &Array, start: &Array, axes: &[i32], size: &[i32]) -> Result<Array> {
    if size.len() != a.ndim() || size.iter().zip(a.shape()).any(|(&s, &n)| s < 0 || s > n) {
        return Err(Error::Shape { op: "slice_dynamic", lhs: a.shape().to_vec(), rhs: size.to_vec() });
    }
    let start = start_within("slice_dynamic", a, start, axes, size)?;
    op!(mlx_slice_dynamic(a, start, [axes], [size]))
}

/// `a` with a block replaced by `update` that begins, along `axes`, where the integers of `start` say.
/// A start that would let the block leave the array moves it back inside.
///
/// `update` may lack leading axes: along those of `axes` its size is 1 there, else that of `a`.
pub fn slice_update_dynamic(a: &Array, update: &Array, start: &Array, axes: &[i32]) -> Result<Array> {
    let (shape, block) = (a.shape(), update.shape());
    let mismatch = || Error::Shape { op: "slice_update_dynamic", lhs: shape.to_vec(), rhs: block.to_vec() };
    let missing = shape.len().checked_sub(block.len()).ok_or_else(mismatch)?;
    let mut size = [&shape[..missing], block].concat();
    if size.iter().zip(shape).any(|(s, n)| s > n) {
        return Err(mismatch());
    }
    for &axis in axes {
        let axis = axis_index("slice_update_dynamic", axis, shape.len())?;
        if axis < missing {
            size[axis] = 1;
        }
    }
    let start = start_within("slice_update_dynamic", a, start, axes, &size)?;
    op!(mlx_slice_update_dynamic(a, update, start, [axes]))
}

/// `start`, moved so that a block of `size` lies inside `a`.
fn start_within(op: &'static str, a: &Array, start: &Array, axes: &[i32], size: &[i32]) -> Result<Array> {
    check_integer(op, start)?;
    let last = |&axis: &i32| {
        let axis = axis_index(op, axis, a.ndim())?;
        Ok(i64::from(a.shape()[axis] - size[axis]))
    };
    let last = axes.iter().map(last).collect::<Result<Vec<i64>>>()?;
    if start.size() != axes.len() || start.ndim() > 1 {
        return Err(Error::argument(
            op,
            format!("a start of shape {:?} for {} axes", start.shape(), axes.len()),
        ));
    }
    let last = Array::from_slice(&last, start.shape())?;
    // In this order: the result is then a new row of integers, which is what MLX reads.
    minimum(maximum(&super::astype(start, Dtype::Int64)?, 0)?, &last)
}

fn check_integer(op: &'static str, indices: &Array) -> Result<()> {
    if indices.dtype().is_integer() {
        return Ok(());
    }
    Err(Error::argument(op, format!("indices of {}; they must be integers", indices.dtype())))
}

/// Whether an index of `dtype`, counted from the end if negative, may lie outside `0..size`.
fn can_exceed(dtype: Dtype, size: usize) -> bool {
    let bits = dtype.size() * 8 - usize::from(dtype.is_signed());
    (size as u128) < 1 << bits
}

/// `indices` modulo the size of `axis` of `a`, or of all of it.
pub(crate) fn wrapped(op: &'static str, a: &Array, indices: &Array, axis: Option<i32>) -> Result<Array> {
    check_integer(op, indices)?;
    let all: Vec<i32> = (0..a.ndim() as i32).collect();
    let (size, axes) = match axis {
        Some(axis) => {
            let axis = axis_index(op, axis, a.ndim())?;
            (a.shape()[axis] as usize, &all[axis..=axis])
        }
        None => (a.size(), &all[..]),
    };
    if size == 0 && indices.size() != 0 {
        return Err(Error::argument(op, "an index into nothing"));
    }
    if size == 0 || !can_exceed(indices.dtype(), size) {
        return Ok(indices.clone());
    }
    // Not a plain number: a function compiled for any shape must ask for the size when it runs.
    let size = number_of_elements(a, axes, false, indices.dtype())?;
    op!(mlx_remainder(indices, size))
}

/// `indices` modulo a `size` that is not 0.
fn modulo(indices: &Array, size: i64) -> Result<Array> {
    let size = full(&[], size, indices.dtype())?;
    op!(mlx_remainder(indices, size))
}

/// `indices` of the matrices that `of` is a batch of, modulo their number.
pub(super) fn wrapped_batch(op: &'static str, of: &Array, indices: Option<&Array>) -> Result<Option<Array>> {
    let Some(indices) = indices else {
        return Ok(None);
    };
    check_integer(op, indices)?;
    let batch = &of.shape()[..of.ndim().saturating_sub(2)];
    let size: usize = batch.iter().map(|&n| n as usize).product();
    if size == 0 && indices.size() != 0 {
        return Err(Error::argument(op, "an index into nothing"));
    }
    if size == 0 || !can_exceed(indices.dtype(), size) {
        return Ok(Some(indices.clone()));
    }
    modulo(indices, size as i64).map(Some)
}

/// The entries of `a` at `indices` along `axis`, or of the flattened array: the axis is replaced by
/// the shape of `indices`.
pub fn take(a: &Array, indices: &Array, axis: impl Into<Option<i32>>) -> Result<Array> {
    let axis = axis.into();
    let indices = wrapped("take", a, indices, axis)?;
    match axis {
        None => op!(mlx_take(a, indices)),
        Some(axis) => op!(mlx_take_axis(a, indices, axis)),
    }
}

/// The entries of `a` that `indices` names along `axis`, position by position: `indices` has as many
/// dimensions as `a`, and the other dimensions broadcast.
pub fn take_along_axis(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    let indices = wrapped("take_along_axis", a, indices, Some(axis))?;
    op!(mlx_take_along_axis(a, indices, axis))
}

/// `a` with the entries that `indices` names along `axis` replaced by `values`, position by position;
/// which of several values for one place stays is unspecified.
pub fn put_along_axis(a: &Array, indices: &Array, values: &Array, axis: i32) -> Result<Array> {
    let indices = wrapped("put_along_axis", a, indices, Some(axis))?;
    op!(mlx_put_along_axis(a, indices, values, axis))
}

/// `a` with `values` added to the entries that `indices` names along `axis`, position by position.
pub fn scatter_add_axis(a: &Array, indices: &Array, values: &Array, axis: i32) -> Result<Array> {
    let indices = wrapped("scatter_add_axis", a, indices, Some(axis))?;
    op!(mlx_scatter_add_axis(a, indices, values, axis))
}

/// Indices that keep blocks of `size` inside `a`, and the axes they run along, counted from the first.
fn blocks_within<'a>(
    op: &'static str,
    a: &Array,
    indices: impl IntoIterator<Item = &'a Array>,
    axes: &[i32],
    size: &[i32],
) -> Result<(VectorArray, Vec<i32>)> {
    let indices: Vec<&Array> = indices.into_iter().collect();
    if indices.len() != axes.len() {
        return Err(Error::argument(op, format!("{} indices for {} axes", indices.len(), axes.len())));
    }
    if size.len() != a.ndim() || size.iter().zip(a.shape()).any(|(&s, &n)| s < 0 || s > n) {
        return Err(Error::Shape { op, lhs: a.shape().to_vec(), rhs: size.to_vec() });
    }
    let axes = axes.iter().map(|&axis| axis_index(op, axis, a.ndim()).map(|at| at as i32));
    let axes = axes.collect::<Result<Vec<i32>>>()?;
    let within = |(index, &axis): (&&Array, &i32)| {
        let (block, whole) = (size[axis as usize], a.shape()[axis as usize]);
        if block == 1 {
            return wrapped(op, a, index, Some(axis));
        }
        check_integer(op, index)?;
        let wide = super::astype(index, Dtype::Int64)?;
        minimum(modulo(&wide, whole.max(1).into())?, whole - block)
    };
    let indices = indices.iter().zip(&axes).map(within).collect::<Result<Vec<Array>>>()?;
    Ok((VectorArray::new(&indices), axes))
}

/// Blocks of `slice_sizes` that begin, along `axes`, at the broadcast `indices` (one for each axis):
/// the shape of the indices, followed by `slice_sizes`. A block that would leave the array is moved
/// back inside.
pub fn gather<'a>(
    a: &Array,
    indices: impl IntoIterator<Item = &'a Array>,
    axes: &[i32],
    slice_sizes: &[i32],
) -> Result<Array> {
    let (indices, axes) = blocks_within("gather", a, indices, axes, slice_sizes)?;
    op!(mlx_gather(a, indices, [axes], [slice_sizes]))
}

macro_rules! scatters {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name<'a>(
            a: &Array,
            indices: impl IntoIterator<Item = &'a Array>,
            updates: &Array,
            axes: &[i32],
        ) -> Result<Array> {
            let leading = updates.ndim().checked_sub(a.ndim()).ok_or_else(|| Error::Shape {
                op: stringify!($name),
                lhs: a.shape().to_vec(),
                rhs: updates.shape().to_vec(),
            })?;
            let block = &updates.shape()[leading..];
            let (indices, axes) = blocks_within(stringify!($name), a, indices, axes, block)?;
            let scattered = op!($f(a, indices, updates, [axes]))?;
            // MLX divides by the size of the updates.
            Ok(if updates.size() == 0 { a.clone() } else { scattered })
        }
    )* };
}

scatters! {
    /// `a` with blocks replaced that begin, along `axes`, at the broadcast `indices` (one for each
    /// axis). `updates` has the shape of the indices, followed by that of a block, which has as many
    /// dimensions as `a`. A block that would leave the array is moved back inside; which of several
    /// updates for one place stays is unspecified.
    scatter => mlx_scatter;
    /// As [`scatter`], adding the updates to what is there.
    scatter_add => mlx_scatter_add;
    /// As [`scatter`], multiplying what is there by the updates.
    scatter_prod => mlx_scatter_prod;
    /// As [`scatter`], keeping the largest.
    scatter_max => mlx_scatter_max;
    /// As [`scatter`], keeping the smallest.
    scatter_min => mlx_scatter_min;
}

/// `a` with the entries where `mask` is true replaced by those of `values`, in order.
///
/// The shape of `mask` (`bool`) is the beginning of that of `a`; the rest is that of an entry, and `values` is
/// `[count, ...]` of these. Fails when computed if there are too few values.
pub fn masked_scatter(a: &Array, mask: &Array, values: &Array) -> Result<Array> {
    op!(mlx_masked_scatter(a, mask, values))
}
