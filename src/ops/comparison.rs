//! Comparisons, logic and bits.

use super::{binary, unary};
use crate::array::{Array, Operand, operands};
use crate::error::Result;
use crate::ffi::op;

binary! {
    /// `a == b`, elementwise, as `bool`.
    equal => mlx_equal;
    /// `a != b`, elementwise, as `bool`.
    not_equal => mlx_not_equal;
    /// `a < b`, elementwise, as `bool`.
    less => mlx_less;
    /// `a <= b`, elementwise, as `bool`.
    less_equal => mlx_less_equal;
    /// `a > b`, elementwise, as `bool`.
    greater => mlx_greater;
    /// `a >= b`, elementwise, as `bool`.
    greater_equal => mlx_greater_equal;
    /// Whether both are non-zero, as `bool`.
    logical_and => mlx_logical_and;
    /// Whether either is non-zero, as `bool`.
    logical_or => mlx_logical_or;
    /// Whether exactly one is non-zero, as `bool`.
    logical_xor => mlx_logical_xor;
    /// Bitwise and of integers or bools.
    bitwise_and => mlx_bitwise_and;
    /// Bitwise or of integers or bools.
    bitwise_or => mlx_bitwise_or;
    /// Bitwise exclusive or of integers or bools.
    bitwise_xor => mlx_bitwise_xor;
    /// Bits of integers moved up by `b`; unspecified unless `b` is within the width of the dtype.
    left_shift => mlx_left_shift;
    /// Bits of integers moved down by `b`; unspecified unless `b` is within the width of the dtype.
    right_shift => mlx_right_shift;
}

unary! {
    /// Whether each element is zero, as `bool`.
    logical_not => mlx_logical_not;
    /// Every bit inverted, of integers or bools.
    bitwise_invert => mlx_bitwise_invert;
    /// Whether each element is NaN, as `bool`.
    isnan => mlx_isnan;
    /// Whether each element is an infinity, as `bool`.
    isinf => mlx_isinf;
    /// Whether each element is positive infinity, as `bool`.
    isposinf => mlx_isposinf;
    /// Whether each element is negative infinity, as `bool`.
    isneginf => mlx_isneginf;
    /// Whether each element is neither infinite nor NaN, as `bool`.
    isfinite => mlx_isfinite;
}

/// `x` where `condition` is non-zero, else `y`. All three broadcast; `x` and `y` promote.
pub fn where_(condition: &Array, x: impl Operand, y: impl Operand) -> Result<Array> {
    let (x, y) = operands(&x, &y)?;
    op!(mlx_where(condition, x, y))
}

/// Whether `|a - b| <= atol + rtol * |b|`, elementwise, as `bool`; infinities are close to
/// themselves, and NaN to NaN if `equal_nan`.
pub fn isclose(a: impl Operand, b: impl Operand, rtol: f64, atol: f64, equal_nan: bool) -> Result<Array> {
    let (a, b) = operands(&a, &b)?;
    op!(mlx_isclose(a, b, rtol, atol, equal_nan))
}

/// Whether [`isclose`] holds for all elements: a scalar `bool`.
pub fn allclose(a: impl Operand, b: impl Operand, rtol: f64, atol: f64, equal_nan: bool) -> Result<Array> {
    let (a, b) = operands(&a, &b)?;
    op!(mlx_allclose(a, b, rtol, atol, equal_nan))
}

/// Whether shapes and all elements are equal: a scalar `bool`. NaN equals NaN if `equal_nan`.
pub fn array_equal(a: &Array, b: &Array, equal_nan: bool) -> Result<Array> {
    op!(mlx_array_equal(a, b, equal_nan))
}
