//! Elementwise arithmetic.

use crate::array::{Array, Operand, operands};
use crate::error::Result;
use crate::ffi::op;

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(a: impl Operand, b: impl Operand) -> Result<Array> {
            let (a, b) = operands(&a, &b)?;
            op!($f(a, b))
        }
    )* };
}

binary! {
    /// `a + b`.
    add => mlx_add;
    /// `a - b`.
    subtract => mlx_subtract;
    /// `a * b`.
    multiply => mlx_multiply;
    /// `a / b`, in floating point.
    divide => mlx_divide;
    /// The remainder of `a / b`, with the sign of `b`.
    remainder => mlx_remainder;
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(a: &Array) -> Result<Array> {
            op!($f(a))
        }
    )* };
}

unary! {
    /// `-a`.
    negative => mlx_negative;
    /// Whether each element is zero, as `bool`.
    logical_not => mlx_logical_not;
}
