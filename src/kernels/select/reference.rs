//! The same in operations of MLX.

use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::error::Result;
use crate::ffi::op;
use crate::ops;

pub(super) fn argmax(x: &Array, keepdims: bool) -> Result<Array> {
    let axis = -1;
    op!(mlx_argmax_axis(x, axis, keepdims))
}

pub(super) fn logsumexp(x: &Array, keepdims: bool) -> Result<Array> {
    let axis = -1;
    op!(mlx_logsumexp_axis(x, axis, keepdims))
}

pub(super) fn top(x: &Array, count: i32) -> Result<Array> {
    ops::argsort(&(-x)?, -1)?.index((Ellipsis, ..count))
}

pub(super) fn keep_top_p(logprobs: &Array, top_p: f32) -> Result<Array> {
    let sorted = ops::sort(&ops::stop_gradient(logprobs)?, -1)?;
    let probs = ops::exp(&ops::astype(&sorted, Dtype::Float32)?)?;
    let above = ops::cumsum(&probs, -1, true, false)?;
    let total = ops::sum(&probs, -1, true)?;
    let dropped = ops::greater_equal(&above, (total * f64::from(top_p))?)?;
    let dropped = ops::sum(&ops::astype(&dropped, Dtype::Int32)?, -1, true)?;
    let threshold = ops::take_along_axis(&sorted, &dropped, -1)?;
    ops::where_(&ops::less(logprobs, &threshold)?, f32::NEG_INFINITY, logprobs)
}

pub(super) fn keep_top_k(logprobs: &Array, top_k: i32) -> Result<Array> {
    let order = ops::argpartition(&(-ops::stop_gradient(logprobs)?)?, top_k - 1, -1)?;
    let rest = ops::split(&order, [top_k], -1)?.swap_remove(1);
    let none = ops::full(&[1], f32::NEG_INFINITY, logprobs.dtype())?;
    ops::put_along_axis(logprobs, &rest, &none, -1)
}

/// As MLX draws from one distribution.
pub(super) fn draw(logits: &Array, u: &Array) -> Result<Array> {
    let x = ops::flatten(&ops::astype(logits, Dtype::Float32)?, 0, -1)?;
    let max = ops::max(&x, .., false)?;
    let largest = ops::astype(&ops::equal(&x, &max)?, Dtype::Float32)?;
    let weights = ops::where_(&ops::isinf(&max)?, &largest, ops::exp(&(&x - &max)?)?)?;
    let below = ops::cumsum(&weights, 0, false, false)?;
    let at = (u * ops::sum(&weights, .., false)?)?;
    let passed = ops::searchsorted(&below, &at, ops::Side::Right)?;
    ops::subtract(&passed, Array::from(1u32))
}
