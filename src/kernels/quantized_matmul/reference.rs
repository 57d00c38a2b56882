//! MLX's own operation.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::ffi::op;
use crate::ops::{self, Quantization};

pub(super) fn quantized_matmul(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    transpose: bool,
    how: Quantization,
) -> Result<Array> {
    let (group_size, bits, mode) = (Some(how.group_size), Some(how.bits), how.mode.c_name());
    let y = op!(mlx_quantized_matmul(x, w, scales, biases, transpose, group_size, bits, mode))?;
    // MLX would divide by the size of each dimension.
    if x.size() == 0 || w.size() == 0 { ops::zeros(y.shape(), y.dtype()) } else { Ok(y) }
}

/// The matrix behind affine codes, not empty, in operations that have a gradient by scales and biases.
pub(super) fn decoded(w: &Array, [scales, biases]: [&Array; 2], how: Quantization) -> Result<Array> {
    let one = ops::ones(scales.shape(), Dtype::Float32)?;
    let codes = ops::dequantize(w, &one, Some(&ops::zeros_like(&one)?), how, None, None)?;
    let codes = ops::unflatten(&codes, -1, &[-1, how.group_size])?;
    let weights = (codes * ops::expand_dims(scales, -1)?)? + ops::expand_dims(biases, -1)?;
    ops::flatten(&weights?, -2, -1)
}

pub(super) fn quantized_rows(
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    how: Quantization,
    ids: &Array,
) -> Result<Array> {
    let biases = biases.map(|b| ops::take(b, ids, 0)).transpose()?;
    ops::dequantize(&ops::take(w, ids, 0)?, &ops::take(scales, ids, 0)?, biases.as_ref(), how, None, None)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn gather_qmm(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    transpose: bool,
    how: Quantization,
    sorted: bool,
) -> Result<Array> {
    let (group_size, bits, mode) = (Some(how.group_size), Some(how.bits), how.mode.c_name());
    let y = op!(mlx_gather_qmm(x, w, scales, biases, lhs, rhs, transpose, group_size, bits, mode, sorted))?;
    if y.size() == 0 || w.size() == 0 { ops::zeros(y.shape(), y.dtype()) } else { Ok(y) }
}
