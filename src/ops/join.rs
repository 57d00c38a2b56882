//! Joining, splitting, repeating, padding, rolling.

use std::borrow::Cow;
use std::ffi::CStr;

use super::Axes;
use crate::array::{Array, Operand};
use crate::error::{Error, Result};
use crate::ffi::{VectorArray, op, ops_vec};

/// Arrays joined along an axis that they have, the other dimensions being equal; or, without an axis,
/// all their elements as a vector. Dtypes promote.
pub fn concatenate<'a>(
    arrays: impl IntoIterator<Item = &'a Array>,
    axis: impl Into<Option<i32>>,
) -> Result<Array> {
    let arrays = VectorArray::new(arrays);
    match axis.into() {
        None => op!(mlx_concatenate(arrays)),
        Some(axis) => op!(mlx_concatenate_axis(arrays, axis)),
    }
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

/// The arrays that `axis` lines up, without that axis.
pub fn unstack(a: &Array, axis: i32) -> Result<Vec<Array>> {
    ops_vec!(mlx_unstack_axis(a, axis))
}

/// What [`pad`] puts around an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadMode {
    /// The value given.
    Constant,
    /// The nearest element.
    Edge,
    /// The array mirrored at its outermost elements, which are not repeated.
    Reflect,
    /// The array mirrored at its edges, the outermost elements repeated.
    Symmetric,
}

/// `a` with `widths[i]` elements added before and after it along axis `i`. `value` is a number or a
/// scalar array; only [`PadMode::Constant`] uses it.
///
/// Fails if there is not one pair for every axis, a width is negative, or nothing is to be mirrored.
pub fn pad(a: &Array, widths: &[(i32, i32)], mode: PadMode, value: impl Operand) -> Result<Array> {
    if widths.len() != a.ndim() {
        let message = format!("{} pairs of widths for shape {:?}", widths.len(), a.shape());
        return Err(Error::argument("pad", message));
    }
    let value = value.to_arg(Some(a.dtype()))?;
    if value.size() != 1 {
        return Err(Error::argument("pad", format!("a value of shape {:?}", value.shape())));
    }
    let mode: &CStr = match mode {
        PadMode::Constant => c"constant",
        PadMode::Edge => c"edge",
        PadMode::Reflect => c"reflect",
        PadMode::Symmetric => c"symmetric",
    };
    let axes: Vec<i32> = (0..a.ndim() as i32).collect();
    let (low, high): (Vec<i32>, Vec<i32>) = widths.iter().copied().unzip();
    op!(mlx_pad(a, [axes], [low], [high], value, mode))
}

/// Elements moved on by `shifts` along `axes`, those pushed out coming back at the other end. Along
/// all axes (`..`) or along one, the shifts add up; `..` moves through the flattened array.
pub fn roll<'a>(a: &Array, shifts: &[i32], axes: impl Into<Axes<'a>>) -> Result<Array> {
    match axes.into() {
        Axes::All => op!(mlx_roll(a, [shifts])),
        Axes::One(axis) => op!(mlx_roll_axis(a, [shifts], axis)),
        Axes::Many(axes) => op!(mlx_roll_axes(a, [shifts], [axes])),
    }
}

/// Elements in reverse order along `axes`.
pub fn flip<'a>(a: &Array, axes: impl Into<Axes<'a>>) -> Result<Array> {
    match axes.into() {
        Axes::All => op!(mlx_flip(a)),
        Axes::One(axis) => op!(mlx_flip_axis(a, axis)),
        Axes::Many(axes) => op!(mlx_flip_axes(a, [axes])),
    }
}

/// Differences of neighbours along `axis`, taken `n` times: the axis gets `n` shorter.
pub fn diff(a: &Array, n: i32, axis: i32) -> Result<Array> {
    // Each step is a node of the graph, and after `dim` of them nothing is left.
    let n = n.min(a.dim(axis)?);
    op!(mlx_diff(a, n, axis))
}
