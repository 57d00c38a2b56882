//! Matrix products and what is built on them.

use std::ffi::CString;

use super::{clip, indexing::wrapped_batch};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ffi::{VectorArray, op};
use crate::kernels;

/// The matrix product of `[..., m, k]` and `[..., k, n]`: `[..., m, n]`. Leading dimensions
/// broadcast; a vector is a row on the left and a column on the right, and its dimension goes.
pub fn matmul(a: &Array, b: &Array) -> Result<Array> {
    kernels::matmul(a, b)
}

/// `alpha * (a @ b) + beta * c`; `c` broadcasts to the product's shape.
pub fn addmm(c: &Array, a: &Array, b: &Array, alpha: f32, beta: f32) -> Result<Array> {
    kernels::addmm(c, a, b, alpha, beta)
}

/// [`matmul`] with blocks masked: of the result (`mask_out`), and of either operand. A mask has one
/// element for each `block_size` x `block_size` tile (32 or 64), `bool` or a factor.
///
/// On the CPU in `float32` only.
pub fn block_masked_mm(
    a: &Array,
    b: &Array,
    block_size: i32,
    mask_out: Option<&Array>,
    mask_lhs: Option<&Array>,
    mask_rhs: Option<&Array>,
) -> Result<Array> {
    op!(mlx_block_masked_mm(a, b, block_size, mask_out, mask_lhs, mask_rhs))
}

/// Products of matrices picked from two batches: matrix `lhs_indices[i]` of `a` with matrix
/// `rhs_indices[i]` of `b`, each an index into the flattened batch, modulo its size. The indices
/// broadcast; `None` takes the matrices in order. `sorted_indices` promises that the indices ascend.
///
/// On the CPU in `float32`, `float16` and `bfloat16`.
pub fn gather_mm(
    a: &Array,
    b: &Array,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    sorted_indices: bool,
) -> Result<Array> {
    let lhs = wrapped_batch("gather_mm", a, lhs_indices)?;
    let rhs = wrapped_batch("gather_mm", b, rhs_indices)?;
    kernels::gather_mm(a, b, lhs.as_ref(), rhs.as_ref(), sorted_indices)
}

/// For each pair `(start, end)` of `segments` (integers, `[..., 2]`), the product of the columns
/// `start..end` of `a` with those rows of `b`: `[m, k]` and `[k, n]` give `[..., m, n]`. What lies
/// beyond `k` is cut off.
pub fn segmented_mm(a: &Array, b: &Array, segments: &Array) -> Result<Array> {
    if a.ndim() != 2 || b.ndim() != 2 || a.shape()[1] != b.shape()[0] {
        let (lhs, rhs) = (a.shape().to_vec(), b.shape().to_vec());
        return Err(Error::Shape { op: "segmented_mm", lhs, rhs });
    }
    if !segments.dtype().is_integer() {
        return Err(Error::argument("segmented_mm", format!("segments of {}", segments.dtype())));
    }
    let segments = clip(&super::astype(segments, Dtype::Int64)?, 0..=a.shape()[1])?;
    op!(mlx_segmented_mm(a, b, segments))
}

/// Every product of an element of `a` with one of `b`: `[size of a, size of b]`.
pub fn outer(a: &Array, b: &Array) -> Result<Array> {
    op!(mlx_outer(a, b))
}

/// Sums of products over the last axis of both.
pub fn inner(a: &Array, b: &Array) -> Result<Array> {
    op!(mlx_inner(a, b))
}

/// The sum of `conjugate(a) * b` along `axis`, which both have in the same place; the other axes broadcast.
pub fn vecdot(a: &Array, b: &Array, axis: i32) -> Result<Array> {
    op!(mlx_vecdot(a, b, axis))
}

/// The Kronecker product. Fails for empty arrays.
pub fn kron(a: &Array, b: &Array) -> Result<Array> {
    op!(mlx_kron(a, b))
}

/// Which axes [`tensordot`] sums over: the last `n` of `a` with the first `n` of `b` (`2`), or these
/// of both, pair by pair (`(&[1], &[0])`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contraction<'a> {
    /// The last of `a` with the first of `b`.
    Inner(i32),
    /// These axes of `a` with these of `b`.
    Axes(&'a [i32], &'a [i32]),
}

impl From<i32> for Contraction<'_> {
    fn from(n: i32) -> Self {
        Contraction::Inner(n)
    }
}

impl<'a, const N: usize> From<(&'a [i32; N], &'a [i32; N])> for Contraction<'a> {
    fn from((a, b): (&'a [i32; N], &'a [i32; N])) -> Self {
        Contraction::Axes(a, b)
    }
}

impl<'a> From<(&'a [i32], &'a [i32])> for Contraction<'a> {
    fn from((a, b): (&'a [i32], &'a [i32])) -> Self {
        Contraction::Axes(a, b)
    }
}

/// Sums of products over pairs of axes; the other axes of `a`, then those of `b`, remain.
pub fn tensordot<'a>(a: &Array, b: &Array, axes: impl Into<Contraction<'a>>) -> Result<Array> {
    match axes.into() {
        Contraction::Inner(n) => op!(mlx_tensordot_axis(a, b, n)),
        Contraction::Axes(of_a, of_b) => op!(mlx_tensordot(a, b, [of_a], [of_b])),
    }
}

/// Einstein summation: `"bij,bjk->bik"`. Letters that are not in the result are summed over.
pub fn einsum<'a>(subscripts: &str, operands: impl IntoIterator<Item = &'a Array>) -> Result<Array> {
    let text = CString::new(subscripts).map_err(|e| Error::argument("einsum", e.to_string()))?;
    let (text, operands) = (text.as_c_str(), VectorArray::new(operands));
    op!(mlx_einsum(text, operands))
}

/// The Walsh-Hadamard transform along the last axis, times `scale` (by default one over the square root
/// of the size). The size is a power of two, or that times 12, 20 or 28.
pub fn hadamard_transform(a: &Array, scale: Option<f32>) -> Result<Array> {
    op!(mlx_hadamard_transform(a, scale))
}
