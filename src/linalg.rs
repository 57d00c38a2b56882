//! Linear algebra on the last two axes of an array; those before are batches.
//!
//! The factorisations (and what stands on them: inverses, solutions, eigenvalues, determinants, the
//! spectral and nuclear norms) exist on the CPU only; on a GPU they fail, and
//! `with_device(Device::cpu(), ..)` computes them there. They take `float32` and `float64`, some
//! `complex64` too, and matrices with at least one row and column. What LAPACK finds while it computes
//! (a singular matrix, no convergence) is an error of the evaluation.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ffi::{op, ops_vec, ops2};
use crate::ops::{self, Axes};

/// Fails unless `a` holds matrices with elements: MLX divides by their size.
fn matrices(op: &'static str, a: &Array) -> Result<()> {
    match a.shape() {
        [.., rows, columns] if *rows > 0 && *columns > 0 => Ok(()),
        shape => Err(Error::argument(op, format!("no matrices of at least one element: {shape:?}"))),
    }
}

/// The triangle of a symmetric matrix that is read, as LAPACK names it.
fn triangle(upper: bool) -> &'static std::ffi::CStr {
    if upper { c"U" } else { c"L" }
}

/// Which norm [`norm`] takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// The root of the sum of squares; any number of axes.
    Euclidean,
    /// Over one axis, `(sum |a|^p)^(1/p)`, with its limits for infinite `p`, and for 0 the number of
    /// non-zeros. Over two, that of the matrix for `p` of 1 or infinity (the largest sum of a column or
    /// row), 2 (the largest singular value), or the negative of these (the smallest).
    P(f64),
    /// The sum of the singular values; two axes.
    Nuclear,
}

/// The norm of vectors or matrices along `axes`, in floating point; `..` means all axes.
pub fn norm<'a>(a: &Array, norm: Norm, axes: impl Into<Axes<'a>>, keepdims: bool) -> Result<Array> {
    let ndim = a.ndim() as i32;
    let axes = axes.into().list(a.ndim());
    let axes = axes.iter().map(|&axis| a.dim(axis).map(|_| if axis < 0 { axis + ndim } else { axis }));
    let axes = axes.collect::<Result<Vec<i32>>>()?;
    if axes.iter().enumerate().any(|(i, axis)| axes[..i].contains(axis)) {
        return Err(Error::argument("norm", format!("an axis twice in {axes:?}")));
    }
    match norm {
        // MLX takes at most two axes.
        Norm::Euclidean if axes.len() > 2 => {
            let squares = ops::square(&ops::abs(a)?)?;
            ops::sqrt(&ops::sum(&squares, &axes, keepdims)?)
        }
        Norm::Euclidean => op!(mlx_linalg_norm_l2(a, [axes], keepdims)),
        Norm::P(p) => {
            if axes.len() == 2 && p.abs() == 2.0 {
                matrices("norm", a)?;
            }
            op!(mlx_linalg_norm(a, p, [axes], keepdims))
        }
        Norm::Nuclear => {
            matrices("norm", a)?;
            let name = c"nuc";
            op!(mlx_linalg_norm_matrix(a, name, [axes], keepdims))
        }
    }
}

/// The cross product of vectors along `axis`, which has size 3, or 2 for vectors in the plane.
pub fn cross(a: &Array, b: &Array, axis: i32) -> Result<Array> {
    op!(mlx_linalg_cross(a, b, axis))
}

/// `(q, r)` with `a = q r`: `q` has orthonormal columns, `r` is upper triangular. For `[m, n]` they are
/// `[m, k]` and `[k, n]` with the smaller size `k`. Real.
pub fn qr(a: &Array) -> Result<(Array, Array)> {
    matrices("qr", a)?;
    ops2!(mlx_linalg_qr(a))
}

/// `(u, s, vt)` with `a = u diag(s) vt`: `u` is `[m, m]`, `vt` is `[n, n]`, both orthogonal (unitary),
/// and `s` holds the singular values, falling. Real or complex.
pub fn svd(a: &Array) -> Result<(Array, Array, Array)> {
    matrices("svd", a)?;
    let compute_uv = true;
    let [u, s, vt] = ops::exactly(ops_vec!(mlx_linalg_svd(a, compute_uv))?)?;
    Ok((u, s, vt))
}

/// The singular values, falling: `[..., min(m, n)]`. Real or complex.
pub fn svdvals(a: &Array) -> Result<Array> {
    matrices("svdvals", a)?;
    let compute_uv = false;
    let [s] = ops::exactly(ops_vec!(mlx_linalg_svd(a, compute_uv))?)?;
    Ok(s)
}

/// `(rows, l, u)` with `a = l[rows] u`: `l` is lower triangular with ones on its diagonal, `u` upper
/// triangular, and `rows` a permutation, `uint32`. Real.
pub fn lu(a: &Array) -> Result<(Array, Array, Array)> {
    matrices("lu", a)?;
    let [rows, l, u] = ops::exactly(ops_vec!(mlx_linalg_lu(a))?)?;
    Ok((rows, l, u))
}

/// `(lu, pivots)`: both triangles of [`lu`] in one matrix, and the row that each row was exchanged
/// with, from the first on. Real.
pub fn lu_factor(a: &Array) -> Result<(Array, Array)> {
    matrices("lu_factor", a)?;
    ops2!(mlx_linalg_lu_factor(a))
}

/// The inverse of square matrices. Real. Evaluation fails if one is singular.
pub fn inv(a: &Array) -> Result<Array> {
    matrices("inv", a)?;
    op!(mlx_linalg_inv(a))
}

/// The inverse of triangular matrices, of which only the triangle is read. Real.
pub fn tri_inv(a: &Array, upper: bool) -> Result<Array> {
    matrices("tri_inv", a)?;
    op!(mlx_linalg_tri_inv(a, upper))
}

/// The pseudo-inverse of Moore and Penrose, `[..., n, m]`. Real.
pub fn pinv(a: &Array) -> Result<Array> {
    op!(mlx_linalg_pinv(a))
}

/// `l` with `a = l l^T`, or `u` with `a = u^T u`, of positive definite matrices; of others the result
/// means nothing, and there is no error. Real.
pub fn cholesky(a: &Array, upper: bool) -> Result<Array> {
    matrices("cholesky", a)?;
    op!(mlx_linalg_cholesky(a, upper))
}

/// The inverse of `a`, given its [`cholesky`] factor. Real.
pub fn cholesky_inv(factor: &Array, upper: bool) -> Result<Array> {
    matrices("cholesky_inv", factor)?;
    op!(mlx_linalg_cholesky_inv(factor, upper))
}

/// `x` with `a x = b` for square `a`; `b` is `[n]` or `[..., n, k]`. Real.
pub fn solve(a: &Array, b: &Array) -> Result<Array> {
    matrices("solve", a)?;
    op!(mlx_linalg_solve(a, b))
}

/// As [`solve`], for triangular `a`, of which only the triangle is read. Real.
pub fn solve_triangular(a: &Array, b: &Array, upper: bool) -> Result<Array> {
    matrices("solve_triangular", a)?;
    op!(mlx_linalg_solve_triangular(a, b, upper))
}

/// `(values, vectors)` with `a vectors = vectors diag(values)` of square matrices, `complex64`, in no
/// particular order; the columns of `vectors` have length 1. Real or complex.
pub fn eig(a: &Array) -> Result<(Array, Array)> {
    matrices("eig", a)?;
    ops2!(mlx_linalg_eig(a))
}

/// The eigenvalues of square matrices, `complex64`. Real or complex.
pub fn eigvals(a: &Array) -> Result<Array> {
    matrices("eigvals", a)?;
    op!(mlx_linalg_eigvals(a))
}

/// `(values, vectors)` of symmetric (Hermitian) matrices, of which only one triangle is read: the
/// values are real and rise, the vectors are orthonormal columns. Real or complex.
pub fn eigh(a: &Array, upper: bool) -> Result<(Array, Array)> {
    matrices("eigh", a)?;
    let triangle = triangle(upper);
    ops2!(mlx_linalg_eigh(a, triangle))
}

/// The eigenvalues of [`eigh`].
pub fn eigvalsh(a: &Array, upper: bool) -> Result<Array> {
    matrices("eigvalsh", a)?;
    let triangle = triangle(upper);
    op!(mlx_linalg_eigvalsh(a, triangle))
}

/// The determinant of square matrices. Real; integers become `float32`.
pub fn det(a: &Array) -> Result<Array> {
    op!(mlx_linalg_det(a))
}

/// `(sign, ln |det|)` of square matrices: 0 and `-inf` for singular ones. Real.
pub fn slogdet(a: &Array) -> Result<(Array, Array)> {
    ops2!(mlx_linalg_slogdet(a))
}
