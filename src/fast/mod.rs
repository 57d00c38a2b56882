//! Fused operations of transformers.
//!
//! On a GPU each is one kernel of MLX; on the CPU one of [`crate::kernels`], or composed of the operations of
//! [`crate::ops`]. Where operands differ in dtype, the result has the one they promote to.

mod kernel;

pub use kernel::{CudaKernel, KernelSource, Launch, MetalKernel, TemplateArg, cuda_kernel, metal_kernel};

use std::borrow::Cow;

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ffi::op;
use crate::kernels;
use crate::ops::{Quantization, Quantized};

/// Root-mean-square normalisation over the last axis: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// `x` is floating, `[..., dims]`, `weight` is `[dims]`; the mean is taken in `float32`.
/// (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.)
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    kernels::rms_norm(x, weight, eps)
}

/// `x + y`, and its [`rms_norm`]: a residual stream and what its next branch gets.
pub fn add_rms_norm(x: &Array, y: &Array, weight: &Array, eps: f32) -> Result<[Array; 2]> {
    kernels::add_rms_norm(x, y, weight, eps)
}

/// Layer normalisation over the last axis: `(x - mean) / sqrt(variance + eps) * weight + bias`.
///
/// `x` is floating, `[..., dims]`, `weight` and `bias` are `[dims]`; the statistics are taken in
/// `float32`. (Ba, Kiros and Hinton, "Layer Normalization", 2016.)
pub fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f32) -> Result<Array> {
    kernels::layer_norm(x, weight, bias, eps)
}

/// How fast each pair of dimensions turns in [`rope`].
#[derive(Debug, Clone, Copy)]
pub enum RopeFrequencies<'a> {
    /// Pair `i` of `dims / 2` turns by `base^(-2 i / dims)` per position.
    Base(f32),
    /// Pair `i` turns by `1 / periods[i]` per position; `[dims / 2]`.
    Periods(&'a Array),
}

impl From<f32> for RopeFrequencies<'_> {
    fn from(base: f32) -> Self {
        Self::Base(base)
    }
}

impl<'a> From<&'a Array> for RopeFrequencies<'a> {
    fn from(periods: &'a Array) -> Self {
        Self::Periods(periods)
    }
}

/// The position of the first element of each sequence in [`rope`].
#[derive(Debug, Clone, Copy)]
pub enum RopeOffset<'a> {
    /// One for the whole batch.
    All(i32),
    /// Integers, a scalar or `[batch]`: one per sequence. As an array it can change without a new
    /// trace of a compiled function.
    Each(&'a Array),
}

impl From<i32> for RopeOffset<'_> {
    fn from(offset: i32) -> Self {
        Self::All(offset)
    }
}

impl<'a> From<&'a Array> for RopeOffset<'a> {
    fn from(offset: &'a Array) -> Self {
        Self::Each(offset)
    }
}

/// Rotary position encoding of the first `dims` of the last axis; the rest stays as it is.
///
/// `x` is floating, `[batch, ..., length, head_dim]` with at least three dimensions; `dims` is even.
/// The pair is `(2 i, 2 i + 1)` if `traditional`, else `(i, i + dims / 2)`, and turns by
/// `scale * position * frequency`. `frequencies` is a base or an array, `offset` an integer or an array:
/// `rope(&x, 64, false, 10000.0, 1.0, 0)`. (Su et al., "RoFormer", 2021.)
pub fn rope<'a>(
    x: &Array,
    dims: i32,
    traditional: bool,
    frequencies: impl Into<RopeFrequencies<'a>>,
    scale: f32,
    offset: impl Into<RopeOffset<'a>>,
) -> Result<Array> {
    let (turn, periods) = turn(dims, traditional, frequencies.into(), scale)?;
    kernels::rope(x, turn, &offset.into().array(), periods.as_deref())
}

pub(crate) fn turn(
    dims: i32,
    traditional: bool,
    frequencies: RopeFrequencies<'_>,
    scale: f32,
) -> Result<(kernels::Turn, Option<Cow<'_, Array>>)> {
    let (base, periods) = match frequencies {
        RopeFrequencies::Base(base) => (Some(base), None),
        RopeFrequencies::Periods(periods) if periods.dtype() == Dtype::Float32 => {
            (None, Some(Cow::Borrowed(periods)))
        }
        RopeFrequencies::Periods(periods) => {
            (None, Some(Cow::Owned(crate::ops::astype(periods, Dtype::Float32)?)))
        }
    };
    Ok((kernels::Turn { dims, traditional, base, scale }, periods))
}

impl RopeOffset<'_> {
    fn array(self) -> Array {
        match self {
            RopeOffset::All(offset) => Array::from(offset),
            RopeOffset::Each(offset) => offset.clone(),
        }
    }
}

/// [`rope`] of the [`rms_norm`] of `x`, as queries and keys have it in many language models. `weight` is
/// `[head_dim]`.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_rope<'a>(
    x: &Array,
    weight: &Array,
    eps: f32,
    dims: i32,
    traditional: bool,
    frequencies: impl Into<RopeFrequencies<'a>>,
    scale: f32,
    offset: impl Into<RopeOffset<'a>>,
) -> Result<Array> {
    let (turn, periods) = turn(dims, traditional, frequencies.into(), scale)?;
    kernels::rms_norm_rope(x, weight, eps, turn, &offset.into().array(), periods.as_deref())
}

/// Which keys a query sees in [`scaled_dot_product_attention`].
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// All of them.
    None,
    /// Those up to its own position, where the last query is at the last key.
    Causal,
    /// `bool`: those where it is true. Else it is added to the scores, and its dtype must promote to
    /// that of the result. Broadcasts to `[batch, heads, query_length, key_length]`.
    Array(&'a Array),
}

impl<'a> From<Option<&'a Array>> for Mask<'a> {
    fn from(mask: Option<&'a Array>) -> Self {
        mask.map_or(Mask::None, Mask::Array)
    }
}

impl<'a> From<&'a Array> for Mask<'a> {
    fn from(mask: &'a Array) -> Self {
        Mask::Array(mask)
    }
}

/// Attention: `softmax(scale * queries keys^T + mask) values`, with the softmax in `float32`.
///
/// `queries` is `[batch, heads, query_length, dims]`, `keys` `[batch, kv_heads, key_length, dims]`,
/// `values` `[batch, kv_heads, key_length, value_dims]`; the result is
/// `[batch, heads, query_length, value_dims]`. `heads` is a multiple of `kv_heads`, and each key head
/// serves that many neighbouring query heads, without being copied. `sinks`, `[heads]`, are scores of
/// one more key per head, whose value is zero (Xiao et al., "Efficient Streaming Language Models with
/// Attention Sinks", 2023, as in gpt-oss).
pub fn scaled_dot_product_attention<'a>(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    mask: impl Into<Mask<'a>>,
    sinks: Option<&Array>,
) -> Result<Array> {
    // MLX divides by the number of key heads before it looks at it, and leaves the lengths to a kernel.
    if let ([_, k_heads, k_length, _], [_, _, v_length, _]) = (keys.shape(), values.shape())
        && (*k_heads == 0 || k_length != v_length)
    {
        let (lhs, rhs) = (keys.shape().to_vec(), values.shape().to_vec());
        return Err(Error::Shape { op: "scaled_dot_product_attention", lhs, rhs });
    }
    let scores = kernels::Scores { scale, cap: None, mask: mask.into(), sinks };
    kernels::attention(queries, keys, values, scores)
}

/// [`scaled_dot_product_attention`] with scores that `cap * tanh(score / cap)` keeps between `-cap` and `cap`, before
/// the mask (Gemma 2).
pub fn soft_capped_attention<'a>(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    cap: f32,
    mask: impl Into<Mask<'a>>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let scores = kernels::Scores { scale, cap: Some(cap), mask: mask.into(), sinks };
    kernels::attention(queries, keys, values, scores)
}

/// [`scaled_dot_product_attention`] to keys and values that are each quantized along their last axis, as in a
/// quantized cache. On the CPU they are decoded as they are met, in the affine mode.
pub fn quantized_attention<'a>(
    queries: &Array,
    keys: &Quantized,
    values: &Quantized,
    how: Quantization,
    scale: f32,
    mask: impl Into<Mask<'a>>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let scores = kernels::Scores { scale, cap: None, mask: mask.into(), sinks };
    kernels::quantized_attention(queries, keys, values, how, scores)
}

/// Cross entropy of each target: `logsumexp(logits) - logits[target]`, `float32`.
///
/// `logits` is floating, `[..., classes]`; `targets` are integers, `[...]`. The loss of a target outside
/// `0..classes` is NaN, and its gradient zero.
pub fn cross_entropy(logits: &Array, targets: &Array) -> Result<Array> {
    let classes = logits.shape().last().copied().unwrap_or(0);
    if classes == 0 || !targets.dtype().is_integer() {
        return Err(Error::argument(
            "cross_entropy",
            format!("logits {:?} and targets of {}", logits.shape(), targets.dtype()),
        ));
    }
    // MLX would read beyond the logits of a row.
    let (first, last) = (Array::from(0i32), Array::from(classes - 1));
    let (wide, small) = (Dtype::Int64, Dtype::Int32);
    let targets = op!(mlx_astype(targets, wide))?;
    let valid = op!(mlx_clip(targets, first, last))?;
    let is_valid = op!(mlx_equal(targets, valid))?;
    let valid = op!(mlx_astype(valid, small))?;
    let loss = op!(mlx_fast_cross_entropy(logits, valid))?;
    let nan = Array::from(f32::NAN);
    op!(mlx_where(is_valid, loss, nan))
}
