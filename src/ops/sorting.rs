//! Sorting and selecting. `axis` `None` works on the flattened array.

use std::ffi::CStr;

use super::never_empty;
use crate::array::Array;
use crate::error::Result;
use crate::ffi::op;

macro_rules! sorts {
    ($($(#[$doc:meta])* $name:ident($($arg:ident)?) => $all:ident $one:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(a: &Array, $($arg: i32,)? axis: impl Into<Option<i32>>) -> Result<Array> {
            let sorted = match axis.into() {
                None => op!($all(a $(, $arg)?)),
                Some(axis) => op!($one(a $(, $arg)?, axis)),
            };
            never_empty(sorted)
        }
    )* };
}

sorts! {
    /// Sorted, smallest first; NaN last.
    sort() => mlx_sort mlx_sort_axis;
    /// The positions that sort `a`, as `uint32`; equals keep their order.
    argsort() => mlx_argsort mlx_argsort_axis;
    /// Reordered so that element `kth` is where sorting would put it, smaller ones before it and
    /// larger ones after. `kth` may count from the end. Fails if it is out of range.
    partition(kth) => mlx_partition mlx_partition_axis;
    /// The positions that [`partition`] `a`, as `uint32`.
    argpartition(kth) => mlx_argpartition mlx_argpartition_axis;
    /// The `k` largest, in no particular order. Fails if there are fewer.
    topk(k) => mlx_topk mlx_topk_axis;
}

/// On which side of equal elements [`searchsorted`] puts a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before them.
    Left,
    /// After them.
    Right,
}

/// Where each of `values` would go in the ascending vector `sorted` to keep it so, as `uint32`.
pub fn searchsorted(sorted: &Array, values: &Array, side: Side) -> Result<Array> {
    let side: &CStr = match side {
        Side::Left => c"left",
        Side::Right => c"right",
    };
    op!(mlx_searchsorted(sorted, values, side))
}
