//! Matrix products.

use crate::array::Array;
use crate::error::Result;
use crate::ffi::op;

/// The matrix product of `[..., m, k]` and `[..., k, n]`: `[..., m, n]`. Leading dimensions
/// broadcast; a vector is a row on the left and a column on the right, and its dimension goes.
pub fn matmul(a: &Array, b: &Array) -> Result<Array> {
    op!(mlx_matmul(a, b))
}

/// `alpha * (a @ b) + beta * c`; `c` broadcasts to the product's shape.
pub fn addmm(c: &Array, a: &Array, b: &Array, alpha: f32, beta: f32) -> Result<Array> {
    op!(mlx_addmm(c, a, b, alpha, beta))
}
