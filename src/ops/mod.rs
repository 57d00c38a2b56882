//! Operations, grouped as MLX's documentation groups them.
//!
//! Every operation is lazy: it checks shapes and dtypes, adds a node to the graph and returns. What
//! it computes runs on the device of the current scope (see [`crate::with_device`]). Axes count from
//! the last when they are negative; shapes broadcast by NumPy's rules; plain numbers beside arrays
//! are weak (see [`Operand`](crate::array::Operand)). An operation whose result would be larger than the
//! machine's memory is an error.

mod arithmetic;
mod axes;
mod comparison;
mod convolution;
mod creation;
mod diagonal;
mod elementary;
mod indexing;
mod join;
mod matmul;
mod quantized;
mod reduction;
mod scan;
mod shape;
mod sorting;

pub use arithmetic::*;
pub use axes::*;
pub use comparison::*;
pub use convolution::*;
pub use creation::*;
pub use diagonal::*;
pub use elementary::*;
pub use indexing::*;
pub use join::*;
pub use matmul::*;
pub use quantized::*;
pub use reduction::*;
pub use scan::*;
pub use shape::*;
pub use sorting::*;

/// Operations with one array in and one out.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(a: &$crate::array::Array) -> $crate::error::Result<$crate::array::Array> {
            $crate::ffi::op!($f(a))
        }
    )* };
}

/// Operations on two operands that broadcast and promote.
macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(
            a: impl $crate::array::Operand,
            b: impl $crate::array::Operand,
        ) -> $crate::error::Result<$crate::array::Array> {
            let (a, b) = $crate::array::operands(&a, &b)?;
            $crate::ffi::op!($f(a, b))
        }
    )* };
}

use {binary, unary};

/// The outputs of an operation that has `N` of them.
pub(crate) fn exactly<const N: usize>(outputs: Vec<crate::Array>) -> crate::Result<[crate::Array; N]> {
    outputs.try_into().map_err(|outputs: Vec<_>| {
        crate::Error::argument("outputs", format!("{} where {N} were expected", outputs.len()))
    })
}

/// `result`, or zeros if it has no elements: for operations whose loops divide by the size of an axis.
fn never_empty(result: crate::Result<crate::Array>) -> crate::Result<crate::Array> {
    result.and_then(|array| match array.size() {
        0 => zeros(array.shape(), array.dtype()),
        _ => Ok(array),
    })
}
