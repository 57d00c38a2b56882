//! Elementwise arithmetic and rounding.
//!
//! Two operands broadcast against each other, and promote to the smallest dtype that holds both kinds.

use std::ops::{RangeFrom, RangeInclusive, RangeToInclusive};

use super::{binary, greater_equal, less_equal, logical_and, unary, where_};
use crate::array::{Arg, Array, Dtype, Operand, operands};
use crate::error::Result;
use crate::ffi::{self, op, ops_vec};

binary! {
    /// `a + b`.
    add => mlx_add;
    /// `a - b`.
    subtract => mlx_subtract;
    /// `a * b`.
    multiply => mlx_multiply;
    /// `a / b`, in floating point.
    divide => mlx_divide;
    /// `a` to the power `b`.
    power => mlx_power;
    /// The larger of each pair; NaN if either is.
    maximum => mlx_maximum;
    /// The smaller of each pair; NaN if either is.
    minimum => mlx_minimum;
    /// `ln(exp(a) + exp(b))` without overflow.
    logaddexp => mlx_logaddexp;
}

unary! {
    /// `-a`. Fails for `bool`.
    negative => mlx_negative;
    /// `a`.
    positive => mlx_positive;
    /// `|a|`.
    abs => mlx_abs;
    /// -1, 0 or 1 with the sign of `a`; of a complex number, `a / |a|`.
    sign => mlx_sign;
    /// `a * a`.
    square => mlx_square;
    /// The square root.
    sqrt => mlx_sqrt;
    /// `1 / sqrt(a)`.
    rsqrt => mlx_rsqrt;
    /// `1 / a`.
    reciprocal => mlx_reciprocal;
    /// The largest integer not above each element.
    floor => mlx_floor;
    /// The smallest integer not below each element.
    ceil => mlx_ceil;
    /// The integer part: rounds towards zero.
    trunc => mlx_trunc;
    /// The complex conjugate.
    conjugate => mlx_conjugate;
    /// The real part, as `float32` if `a` is complex.
    real => mlx_real;
    /// The imaginary part, as `float32`.
    imag => mlx_imag;
}

/// Rounds half to even, at `decimals` digits after the point (before it, if negative).
pub fn round(a: &Array, decimals: i32) -> Result<Array> {
    op!(mlx_round(a, decimals))
}

/// `a / b` rounded down; of integers, 0 where `b` is 0.
///
/// (MLX 0.32.2 itself rounds signed integers towards zero here, but not in `divmod`.)
pub fn floor_divide(a: impl Operand, b: impl Operand) -> Result<Array> {
    let (a, b) = operands(&a, &b)?;
    if a.dtype().is_signed() || b.dtype().is_signed() {
        return Ok(quotient_and_remainder(&a, &b)?.0);
    }
    match Divisor::of(&a, &b)? {
        None => op!(mlx_floor_divide(a, b)),
        Some(Divisor { safe, factor }) => multiply(op!(mlx_floor_divide(a, safe)), factor),
    }
}

/// The remainder of `a / b`, with the sign of `b`; of integers, 0 where `b` is 0.
pub fn remainder(a: impl Operand, b: impl Operand) -> Result<Array> {
    let (a, b) = operands(&a, &b)?;
    match Divisor::of(&a, &b)? {
        None => op!(mlx_remainder(a, b)),
        Some(Divisor { safe, .. }) => op!(mlx_remainder(a, safe)),
    }
}

/// [`floor_divide`] and [`remainder`] at once.
pub fn divmod(a: impl Operand, b: impl Operand) -> Result<(Array, Array)> {
    let (a, b) = operands(&a, &b)?;
    quotient_and_remainder(&a, &b)
}

fn quotient_and_remainder(a: &Arg, b: &Arg) -> Result<(Array, Array)> {
    let divisor = Divisor::of(a, b)?;
    let safe = divisor.as_ref().map_or(b.array(), |d| &d.safe);
    let [mut quotient, remainder] = super::exactly(ops_vec!(mlx_divmod(a, safe))?)?;
    if let Some(Divisor { factor, .. }) = &divisor {
        quotient = multiply(&quotient, factor)?;
    }
    Ok((quotient, remainder))
}

/// An integer divisor without 0 and -1: dividing by the first, and the smallest integer by the second,
/// ends the process on x86.
struct Divisor {
    /// The divisor, or 1 where that is -1, 0 or 1.
    safe: Array,
    /// What the quotient by `safe` is to be multiplied with: 1, or the divisor where `safe` is not it.
    factor: Array,
}

impl Divisor {
    /// `None` where the division is in floating point, or `b` a number that harms nobody.
    fn of(a: &Array, b: &Arg) -> Result<Option<Self>> {
        if a.dtype().is_inexact() || b.dtype().is_inexact() {
            return Ok(None);
        }
        if let Arg::Owned(number) = b {
            let bytes = ffi::array_bytes(number)?;
            if bytes.iter().any(|&byte| byte != bytes[0]) || ![0, 0xff].contains(&bytes[0]) {
                return Ok(None);
            }
        }
        let mut small = less_equal(b.array(), 1)?;
        if b.dtype().is_signed() {
            small = logical_and(&small, greater_equal(b.array(), -1))?;
        }
        let safe = where_(&small, 1, b.array())?;
        let factor = where_(&small, b.array(), 1)?;
        Ok(Some(Self { safe, factor }))
    }
}

/// Bounds of [`clip`], inclusive: `low..`, `..=high` or `low..=high`, of numbers or arrays.
pub trait Bounds {
    /// The lower and the upper bound beside an array of `dtype`.
    fn to_args(&self, dtype: Dtype) -> Result<(Option<Arg<'_>>, Option<Arg<'_>>)>;
}

macro_rules! bounds {
    ($($range:ident: $this:ident => $low:expr, $high:expr;)*) => { $(
        impl<T: Operand> Bounds for $range<T> {
            fn to_args(&self, dtype: Dtype) -> Result<(Option<Arg<'_>>, Option<Arg<'_>>)> {
                let $this = self;
                let arg = |bound: Option<_>| bound.map(|b| T::to_arg(b, Some(dtype))).transpose();
                Ok((arg($low)?, arg($high)?))
            }
        }
    )* };
}

bounds! {
    RangeFrom: r => Some(&r.start), None;
    RangeToInclusive: r => None, Some(&r.end);
    RangeInclusive: r => Some(r.start()), Some(r.end());
}

/// Each element, no less than the lower bound and no more than the upper one: `clip(&x, 0.0..)`,
/// `clip(&x, -1.0..=1.0)`, `clip(&x, &low..=&high)`. Arrays and bounds broadcast and promote.
pub fn clip(a: &Array, bounds: impl Bounds) -> Result<Array> {
    let (low, high) = bounds.to_args(a.dtype())?;
    let (low, high) = (low.as_ref().map(Arg::array), high.as_ref().map(Arg::array));
    op!(mlx_clip(a, low, high))
}

/// Replaces NaN by `nan`, and infinities by `posinf` and `neginf` (`None`: the largest and smallest
/// finite numbers of the dtype). Integers stay as they are.
pub fn nan_to_num(a: &Array, nan: f32, posinf: Option<f32>, neginf: Option<f32>) -> Result<Array> {
    op!(mlx_nan_to_num(a, nan, posinf, neginf))
}

/// `a` as elements of `dtype`. Floats become integers by rounding towards zero; what does not fit is
/// unspecified. No copy is made where the dtype is the same.
pub fn astype(a: &Array, dtype: Dtype) -> Result<Array> {
    op!(mlx_astype(a, dtype))
}
