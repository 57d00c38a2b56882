//! Quantized matrices and their products.
//!
//! A quantized matrix is three arrays: `weight`, whose rows hold `bits`-wide codes packed into
//! `uint32`; `scales`, one for each group of `group_size` codes of a row; and, for the affine mode,
//! `biases` of the same shape. A row of `n` codes takes `n * bits / 32` words.

use std::ffi::CStr;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{indexing::wrapped_batch, never_empty};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ffi::{op, ops_vec};
use crate::kernels;

/// How codes become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizationMode {
    /// `code * scale + bias`; scale and bias in the dtype of the matrix.
    #[default]
    Affine,
    /// 4-bit floats (e2m1) in groups of 32 with a power of two (e8m0) as scale; OCP microscaling.
    Mxfp4,
    /// 8-bit floats (e4m3) in groups of 32 with a power of two (e8m0) as scale; OCP microscaling.
    Mxfp8,
    /// 4-bit floats (e2m1) in groups of 16 with an 8-bit float (e4m3) as scale, and optionally one
    /// `float32` scale for the whole matrix.
    Nvfp4,
}

impl QuantizationMode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// MLX's name: `affine`, `mxfp4`, ...
    pub fn name(self) -> &'static str {
        self.c_name().to_str().expect("the names are ASCII")
    }

    pub(crate) fn c_name(self) -> &'static CStr {
        match self {
            Self::Affine => c"affine",
            Self::Mxfp4 => c"mxfp4",
            Self::Mxfp8 => c"mxfp8",
            Self::Nvfp4 => c"nvfp4",
        }
    }
}

impl fmt::Display for QuantizationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for QuantizationMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|m| m.name() == name);
        found.ok_or_else(|| Error::argument("quantization", format!("unknown mode `{name}`")))
    }
}

/// Mode, group size and bits: all that says how a matrix is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantization {
    /// How codes become numbers.
    pub mode: QuantizationMode,
    /// Codes that share a scale: for the affine mode 32, 64 or 128, for the others fixed.
    pub group_size: i32,
    /// Bits per code: for the affine mode 2, 3, 4, 5, 6 or 8, for the others fixed.
    pub bits: i32,
}

impl Quantization {
    /// The affine mode with this group size and width.
    pub const fn affine(group_size: i32, bits: i32) -> Self {
        Self { mode: QuantizationMode::Affine, group_size, bits }
    }

    /// Fails unless MLX has this combination.
    pub fn check(self, op: &'static str) -> Result<()> {
        let fits = match self.mode {
            QuantizationMode::Affine => {
                matches!(self.group_size, 32 | 64 | 128) && matches!(self.bits, 2..=6 | 8)
            }
            mode => self == mode.into(),
        };
        if fits {
            return Ok(());
        }
        Err(Error::argument(op, format!("{self} does not exist")))
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, group_size, bits } = self;
        write!(f, "{mode} with {bits} bits in groups of {group_size}")
    }
}

impl From<QuantizationMode> for Quantization {
    /// The mode with its usual group size and bits.
    fn from(mode: QuantizationMode) -> Self {
        let (group_size, bits) = match mode {
            QuantizationMode::Affine => (64, 4),
            QuantizationMode::Mxfp4 => (32, 4),
            QuantizationMode::Mxfp8 => (32, 8),
            QuantizationMode::Nvfp4 => (16, 4),
        };
        Self { mode, group_size, bits }
    }
}

/// What [`quantize`] makes of a matrix.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// Packed codes, `uint32`: `[..., rows, columns * bits / 32]`.
    pub weight: Array,
    /// One scale for each group: `[..., rows, columns / group_size]`.
    pub scales: Array,
    /// One bias for each group, for the affine mode only; shaped as `scales`.
    pub biases: Option<Array>,
}

/// Quantizes `[..., rows, columns]` of a floating dtype along its last axis, whose size must be a
/// multiple of the group size. Fails for an empty matrix. `global_scale` is a `float32` scalar, for `nvfp4` only.
pub fn quantize(w: &Array, how: Quantization, global_scale: Option<&Array>) -> Result<Quantized> {
    how.check("quantize")?;
    refuse_empty("quantize", w)?;
    let (group_size, bits, mode) = (Some(how.group_size), Some(how.bits), how.mode.c_name());
    let mut parts = ops_vec!(mlx_quantize(w, group_size, bits, mode, global_scale))?.into_iter();
    let missing = || Error::argument("quantize", "MLX returned too few arrays");
    Ok(Quantized {
        weight: parts.next().ok_or_else(missing)?,
        scales: parts.next().ok_or_else(missing)?,
        biases: parts.next(),
    })
}

/// The matrix behind codes, scales and biases, as `dtype`; by default the dtype of the scales, and
/// `bfloat16` for the modes other than affine.
pub fn dequantize(
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    how: Quantization,
    global_scale: Option<&Array>,
    dtype: Option<Dtype>,
) -> Result<Array> {
    check_packed("dequantize", w, scales, biases, how)?;
    refuse_empty("dequantize", w)?;
    let (group_size, bits, mode) = (Some(how.group_size), Some(how.bits), how.mode.c_name());
    op!(mlx_dequantize(w, scales, biases, group_size, bits, mode, global_scale, dtype))
}

/// `x @ dequantize(w)`, or with `transpose` `x @ dequantize(w).T`: `[..., m, k]` with `[..., n, k]`
/// (packed along `k`) gives `[..., m, n]`.
///
/// The result has the dtype of `x`, promoted with that of the scales for the affine mode.
pub fn quantized_matmul(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    transpose: bool,
    how: Quantization,
) -> Result<Array> {
    check_packed("quantized_matmul", w, scales, biases, how)?;
    if w.ndim() > 2 && x.ndim() <= 2 {
        let (lhs, rhs) = (x.shape().to_vec(), w.shape().to_vec());
        return Err(Error::Shape { op: "quantized_matmul", lhs, rhs });
    }
    kernels::quantized_matmul(x, w, scales, biases, transpose, how)
}

/// [`quantized_matmul`] of one `x` with each of several matrices `[n, k]`, codes, scales and biases, that are quantized
/// alike and transposed.
pub fn quantized_matmuls(
    x: &Array,
    matrices: &[(&Array, &Array, Option<&Array>)],
    how: Quantization,
) -> Result<Vec<Array>> {
    for (w, scales, biases) in matrices {
        check_packed("quantized_matmuls", w, scales, *biases, how)?;
        if w.ndim() > 2 {
            let (lhs, rhs) = (x.shape().to_vec(), w.shape().to_vec());
            return Err(Error::Shape { op: "quantized_matmuls", lhs, rhs });
        }
    }
    kernels::quantized_matmuls(x, matrices, how)
}

/// [`quantized_matmul`] of matrices picked from two batches, as [`gather_mm`](super::gather_mm) picks
/// them: matrix `lhs_indices[i]` of `x` with matrix `rhs_indices[i]` of `w`.
#[allow(clippy::too_many_arguments)]
pub fn gather_qmm(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    transpose: bool,
    how: Quantization,
    sorted_indices: bool,
) -> Result<Array> {
    if lhs_indices.is_none() && rhs_indices.is_none() {
        return quantized_matmul(x, w, scales, biases, transpose, how);
    }
    check_packed("gather_qmm", w, scales, biases, how)?;
    refuse_empty("gather_qmm", w)?;
    let lhs = wrapped_batch("gather_qmm", x, lhs_indices)?;
    let rhs = wrapped_batch("gather_qmm", w, rhs_indices)?;
    kernels::gather_qmm(x, w, scales, biases, lhs.as_ref(), rhs.as_ref(), transpose, how, sorted_indices)
}

/// `x @ w.T` with both quantized: `x` (floating, `[..., m, k]`) on the way, `w` on the way too
/// (floating, `[n, k]`, without scales) or before (packed, with its scales). Any mode but affine.
///
/// `global_scales`, of `x` and of `w`, are `float32` scalars for `nvfp4`. On the CPU, only for packed
/// `w`, one row of `x`, and no global scales.
pub fn qqmm(
    x: &Array,
    w: &Array,
    scales: Option<&Array>,
    how: Quantization,
    global_scales: Option<(&Array, &Array)>,
) -> Result<Array> {
    check_qqmm("qqmm", x, w, scales, how, global_scales)?;
    let (scale_x, scale_w) = global_scales.unzip();
    let (group_size, bits, mode) = (Some(how.group_size), Some(how.bits), how.mode.c_name());
    never_empty(op!(mlx_qqmm(x, w, scales, group_size, bits, mode, scale_x, scale_w)))
}

/// [`qqmm`] of matrices picked from two batches, as [`gather_mm`](super::gather_mm) picks them. Not on
/// the CPU.
#[allow(clippy::too_many_arguments)]
pub fn gather_qqmm(
    x: &Array,
    w: &Array,
    scales: Option<&Array>,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    how: Quantization,
    global_scales: Option<(&Array, &Array)>,
    sorted_indices: bool,
) -> Result<Array> {
    check_qqmm("gather_qqmm", x, w, scales, how, global_scales)?;
    let lhs = wrapped_batch("gather_qqmm", x, lhs_indices)?;
    let rhs = wrapped_batch("gather_qqmm", w, rhs_indices)?;
    let (lhs, rhs) = (lhs.as_ref(), rhs.as_ref());
    let (scale_x, scale_w) = global_scales.unzip();
    let (group_size, bits, mode) = (Some(how.group_size), Some(how.bits), how.mode.c_name());
    op!(mlx_gather_qqmm(x, w, scales, lhs, rhs, group_size, bits, mode, scale_x, scale_w, sorted_indices))
}

/// Floating numbers as 8-bit floats (e4m3), in `uint8`.
pub fn to_fp8(a: &Array) -> Result<Array> {
    op!(mlx_to_fp8(a))
}

/// 8-bit floats (e4m3, in `uint8`) as numbers of a floating `dtype`.
pub fn from_fp8(a: &Array, dtype: Dtype) -> Result<Array> {
    op!(mlx_from_fp8(a, dtype))
}

fn check_qqmm(
    op: &'static str,
    x: &Array,
    w: &Array,
    scales: Option<&Array>,
    how: Quantization,
    global_scales: Option<(&Array, &Array)>,
) -> Result<()> {
    how.check(op)?;
    refuse_empty(op, w)?;
    if how.mode == QuantizationMode::Affine {
        return Err(Error::argument(op, "the affine mode"));
    }
    if global_scales.is_some() && current_device().kind == DeviceKind::Cpu {
        return Err(Error::unsupported("a global scale", format!("{op} on the CPU ignores it")));
    }
    match scales {
        Some(scales) if w.dtype() == Dtype::Uint32 => check_packed(op, w, scales, None, how)?,
        None if w.dtype() != Dtype::Uint32 => {}
        _ => return Err(Error::argument(op, "scales go with a packed matrix (uint32), and only with one")),
    }
    // Quantizing on the way works on whole groups of a row.
    for rows in [Some(x), scales.is_none().then_some(w)].into_iter().flatten() {
        if rows.ndim() == 0 || rows.shape()[rows.ndim() - 1] % how.group_size != 0 {
            let message = format!("rows of shape {:?} in groups of {}", rows.shape(), how.group_size);
            return Err(Error::argument(op, message));
        }
    }
    Ok(())
}

/// MLX divides by the sizes of a matrix.
fn refuse_empty(op: &'static str, matrix: &Array) -> Result<()> {
    if matrix.size() > 0 {
        return Ok(());
    }
    Err(Error::argument(op, format!("an empty matrix, {:?}", matrix.shape())))
}

/// What MLX takes for granted about a quantized matrix: at least two dimensions, as many for the
/// scales, and sizes that agree.
fn check_packed(
    op: &'static str,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    how: Quantization,
) -> Result<()> {
    how.check(op)?;
    let mismatch = |other: &Array| Error::Shape { op, lhs: w.shape().to_vec(), rhs: other.shape().to_vec() };
    let [batch @ .., rows, words] = w.shape() else {
        return Err(Error::argument(op, format!("a quantized matrix of shape {:?}", w.shape())));
    };
    let codes = i64::from(*words) * 32 / i64::from(how.bits);
    match scales.shape() {
        [b @ .., r, groups]
            if b == batch && r == rows && i64::from(*groups) * i64::from(how.group_size) == codes => {}
        _ => return Err(mismatch(scales)),
    }
    if how.mode != QuantizationMode::Affine && scales.dtype() != Dtype::Uint8 {
        return Err(Error::Dtype { op, expected: Dtype::Uint8, found: scales.dtype() });
    }
    match biases {
        Some(biases) if biases.shape() != scales.shape() => Err(mismatch(biases)),
        _ => Ok(()),
    }
}
