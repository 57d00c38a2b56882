//! Reductions.
//!
//! `axes` says what is reduced: `..` for everything, one axis, or several. With `keepdims`, reduced
//! axes stay with size 1. An axis out of range, or named twice, is an error.

use super::Axes;
use crate::array::Array;
use crate::error::Result;
use crate::ffi::op;
use crate::kernels;

/// `a`, row-major where it is empty: over a transposed array of no elements, MLX's reductions on the
/// CPU never end.
fn plain(a: &Array) -> Result<Array> {
    if a.size() == 0 { super::zeros(a.shape(), a.dtype()) } else { Ok(a.clone()) }
}

macro_rules! reductions {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $t:ty),*) => $all:ident $one:ident $many:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name<'a>(a: &Array, axes: impl Into<Axes<'a>>, $($arg: $t),*) -> Result<Array> {
            let a = &plain(a)?;
            match axes.into() {
                Axes::All => op!($all(a, $($arg),*)),
                Axes::One(axis) => op!($one(a, axis, $($arg),*)),
                Axes::Many(axes) => op!($many(a, [axes], $($arg),*)),
            }
        }
    )* };
}

reductions! {
    /// The sum; of nothing, 0. `bool` and small integers are summed as `int32` (or `uint32`).
    sum(keepdims: bool) => mlx_sum mlx_sum_axis mlx_sum_axes;
    /// The product; of nothing, 1. Integer dtypes as for [`sum`].
    prod(keepdims: bool) => mlx_prod mlx_prod_axis mlx_prod_axes;
    /// The mean, in floating point.
    mean(keepdims: bool) => mlx_mean mlx_mean_axis mlx_mean_axes;
    /// The median, in floating point: of an even count, the mean of the middle two.
    median(keepdims: bool) => mlx_median mlx_median_axis mlx_median_axes;
    /// The largest; NaN if there is one. Fails on an empty axis.
    max(keepdims: bool) => mlx_max mlx_max_axis mlx_max_axes;
    /// The smallest; NaN if there is one. Fails on an empty axis.
    min(keepdims: bool) => mlx_min mlx_min_axis mlx_min_axes;
    /// Whether all are non-zero, as `bool`.
    all(keepdims: bool) => mlx_all mlx_all_axis mlx_all_axes;
    /// Whether any is non-zero, as `bool`.
    any(keepdims: bool) => mlx_any mlx_any_axis mlx_any_axes;
    /// How many are non-zero.
    count_nonzero(keepdims: bool) => mlx_count_nonzero mlx_count_nonzero_axis mlx_count_nonzero_axes;
    /// The variance, in floating point: the sum of squared deviations over `n - ddof`.
    var(keepdims: bool, ddof: i32) => mlx_var mlx_var_axis mlx_var_axes;
    /// The standard deviation: the square root of [`var`].
    std(keepdims: bool, ddof: i32) => mlx_std mlx_std_axis mlx_std_axes;
}

/// `e^a / sum(e^a)` along the axes, in floating point; the shape stays. `precise` computes half
/// precision in `float32`.
pub fn softmax<'a>(a: &Array, axes: impl Into<Axes<'a>>, precise: bool) -> Result<Array> {
    let axes = axes.into();
    if matches!(axes, Axes::One(axis) if is_last(axis, a))
        && let Some(y) = kernels::softmax(a)
    {
        return y;
    }
    let a = &plain(a)?;
    match axes {
        Axes::All => op!(mlx_softmax(a, precise)),
        Axes::One(axis) => op!(mlx_softmax_axis(a, axis, precise)),
        Axes::Many(axes) => op!(mlx_softmax_axes(a, [axes], precise)),
    }
}

macro_rules! positions {
    ($($(#[$doc:meta])* $name:ident => $all:ident $one:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(a: &Array, axis: impl Into<Option<i32>>, keepdims: bool) -> Result<Array> {
            match axis.into() {
                None => {
                    // MLX would count the axes of a scalar down from zero.
                    let keepdims = keepdims && a.ndim() > 0;
                    op!($all(a, keepdims))
                }
                Some(axis) => op!($one(a, axis, keepdims)),
            }
        }
    )* };
}

positions! {
    /// Where the smallest is along `axis`, or in the flattened array, as `uint32`: the first of equals.
    argmin => mlx_argmin mlx_argmin_axis;
}

/// Where the largest is along `axis`, or in the flattened array, as `uint32`: the first of equals. A NaN is
/// passed over, unless it comes first: then it is the answer.
pub fn argmax(a: &Array, axis: impl Into<Option<i32>>, keepdims: bool) -> Result<Array> {
    match axis.into() {
        None => {
            // MLX would count the axes of a scalar down from zero.
            let keepdims = keepdims && a.ndim() > 0;
            op!(mlx_argmax(a, keepdims))
        }
        Some(axis) if is_last(axis, a) => kernels::argmax(a, keepdims),
        Some(axis) => op!(mlx_argmax_axis(a, axis, keepdims)),
    }
}

/// `ln(sum(e^a))` without overflow, in floating point.
pub fn logsumexp<'a>(a: &Array, axes: impl Into<Axes<'a>>, keepdims: bool) -> Result<Array> {
    let a = &plain(a)?;
    match axes.into() {
        Axes::All => op!(mlx_logsumexp(a, keepdims)),
        Axes::One(axis) if is_last(axis, a) => kernels::logsumexp(a, keepdims),
        Axes::One(axis) => op!(mlx_logsumexp_axis(a, axis, keepdims)),
        Axes::Many(axes) => op!(mlx_logsumexp_axes(a, [axes], keepdims)),
    }
}

fn is_last(axis: i32, a: &Array) -> bool {
    axis == -1 || axis == a.ndim() as i32 - 1
}
