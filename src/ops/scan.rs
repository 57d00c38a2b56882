//! Running reductions along an axis.
//!
//! The shape stays; `axis` `None` runs over the flattened array. `reverse` runs from the end.
//! Without `inclusive`, an element counts only what came before it.

use super::never_empty;
use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::ffi::op;

macro_rules! scans {
    ($($(#[$doc:meta])* $name:ident[$($dtype:ident)?] => $all:ident $one:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(
            a: &Array,
            axis: impl Into<Option<i32>>,
            reverse: bool,
            inclusive: bool,
        ) -> Result<Array> {
            $(let $dtype: Option<Dtype> = None;)?
            let scan = match axis.into() {
                None => op!($all(a, reverse, inclusive $(, $dtype)?)),
                Some(axis) => op!($one(a, axis, reverse, inclusive $(, $dtype)?)),
            };
            never_empty(scan)
        }
    )* };
}

scans! {
    /// The running sum; of `bool`, as `int32`.
    cumsum[dtype] => mlx_cumsum mlx_cumsum_axis;
    /// The running product; of `bool`, as `int32`.
    cumprod[dtype] => mlx_cumprod mlx_cumprod_axis;
    /// The running maximum.
    cummax[] => mlx_cummax mlx_cummax_axis;
    /// The running minimum.
    cummin[] => mlx_cummin mlx_cummin_axis;
    /// The running [`logaddexp`](super::logaddexp).
    logcumsumexp[] => mlx_logcumsumexp mlx_logcumsumexp_axis;
}
