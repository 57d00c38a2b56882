//! MLX's own operations.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::ffi::op;
use crate::ops;

pub(super) fn matmul(a: &Array, b: &Array) -> Result<Array> {
    op!(mlx_matmul(a, b))
}

pub(super) fn addmm(c: &Array, a: &Array, b: &Array, alpha: f32, beta: f32) -> Result<Array> {
    let floating = [a, b, c].iter().all(|x| x.dtype().is_floating());
    if floating && a.shape().last() == Some(&0) {
        // Nothing to sum: MLX's own reads beyond some `c`, and refuses others.
        let product = matmul(a, b)?;
        return ops::broadcast_to(&(c * beta)?, product.shape())? + product;
    }
    op!(mlx_addmm(c, a, b, alpha, beta))
}

/// MLX has it in `float32` only.
pub(super) fn gather_mm(
    a: &Array,
    b: &Array,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    sorted: bool,
    dtype: Dtype,
) -> Result<Array> {
    if dtype == Dtype::Float32 {
        return op!(mlx_gather_mm(a, b, lhs, rhs, sorted));
    }
    let (a, b) = (&ops::astype(a, Dtype::Float32)?, &ops::astype(b, Dtype::Float32)?);
    ops::astype(&op!(mlx_gather_mm(a, b, lhs, rhs, sorted))?, dtype)
}
