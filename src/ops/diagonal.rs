//! Diagonals and triangles of matrices.
//!
//! Diagonal 0 is the main one; positive ones lie above it, negative ones below.

use super::{axis_index, creation::diagonal_within};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ffi::op;

/// Of a vector, the square matrix with it on diagonal `k`; of a matrix, its diagonal `k`.
pub fn diag(a: &Array, k: i32) -> Result<Array> {
    let k = match *a.shape() {
        [rows, columns] => diagonal_within(rows, columns, k),
        [size] if i64::from(size) + i64::from(k.unsigned_abs()) > i64::from(i32::MAX) => {
            return Err(Error::argument("diag", format!("diagonal {k} of a vector of {size}")));
        }
        _ => k,
    };
    op!(mlx_diag(a, k))
}

/// `offset` within what the two axes have.
fn offset_within(op: &'static str, a: &Array, offset: i32, axis1: i32, axis2: i32) -> Result<i32> {
    let size = |axis| axis_index(op, axis, a.ndim()).map(|at| a.shape()[at]);
    Ok(diagonal_within(size(axis1)?, size(axis2)?, offset))
}

/// The diagonal at `offset` of the matrices that `axis1` and `axis2` span, as a new last axis.
pub fn diagonal(a: &Array, offset: i32, axis1: i32, axis2: i32) -> Result<Array> {
    let offset = offset_within("diagonal", a, offset, axis1, axis2)?;
    op!(mlx_diagonal(a, offset, axis1, axis2))
}

/// The sum of a [`diagonal`], added up as `dtype`.
pub fn trace(a: &Array, offset: i32, axis1: i32, axis2: i32, dtype: Dtype) -> Result<Array> {
    let offset = offset_within("trace", a, offset, axis1, axis2)?;
    op!(mlx_trace_axes(a, offset, axis1, axis2, dtype))
}

/// The matrices of the last two axes, with zeros above diagonal `k`.
pub fn tril(a: &Array, k: i32) -> Result<Array> {
    let k = offset_within("tril", a, k, -2, -1)?;
    op!(mlx_tril(a, k))
}

/// The matrices of the last two axes, with zeros below diagonal `k`.
pub fn triu(a: &Array, k: i32) -> Result<Array> {
    let k = offset_within("triu", a, k, -2, -1)?;
    op!(mlx_triu(a, k))
}
