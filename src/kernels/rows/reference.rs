//! MLX's own operations.

use crate::array::Array;
use crate::error::Result;
use crate::ffi::op;

pub(super) fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    op!(mlx_fast_rms_norm(x, weight, eps))
}

pub(super) fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f32) -> Result<Array> {
    op!(mlx_fast_layer_norm(x, weight, bias, eps))
}

pub(super) fn softmax(x: &Array) -> Result<Array> {
    let (axis, precise) = (-1, true);
    op!(mlx_softmax_axis(x, axis, precise))
}
