//! MLX's own operations.

use super::{NAME, Scores};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::fast::Mask;
use crate::ffi::op;
use crate::ops::{self, Quantization, Quantized};

pub(super) fn attention(q: &Array, k: &Array, v: &Array, scores: Scores<'_>) -> Result<Array> {
    let Scores { scale, mask, sinks, .. } = scores;
    if scores.cap.is_some() {
        let (spread, keys) = (|x: &Array| ops::expand_dims(x, 2), axes(k)?);
        let product = |q: &Array| ops::matmul(q, &ops::swapaxes(&spread(k)?, -1, -2)?);
        return composed(q, keys, scores, product, |weights| ops::matmul(weights, &spread(v)?));
    }
    let (mode, mask) = match mask {
        Mask::None => (c"", None),
        Mask::Causal => (c"causal", None),
        Mask::Array(mask) => (c"array", Some(mask)),
    };
    let force_fused = false;
    op!(mlx_fast_scaled_dot_product_attention(q, k, v, scale, mode, mask, sinks, force_fused))
}

pub(super) fn quantized_attention(
    q: &Array,
    k: &Quantized,
    v: &Quantized,
    how: Quantization,
    scores: Scores<'_>,
) -> Result<Array> {
    let product = |x: &Array, with: &Quantized, transpose| {
        let spread = |x: &Array| ops::expand_dims(x, 2);
        let biases = with.biases.as_ref().map(spread).transpose()?;
        let (weight, scales) = (spread(&with.weight)?, spread(&with.scales)?);
        ops::quantized_matmul(x, &weight, &scales, biases.as_ref(), transpose, how)
    };
    let keys = axes(&k.weight)?;
    composed(q, keys, scores, |q| product(q, k, true), |weights| product(weights, v, false))
}

fn axes(x: &Array) -> Result<[i32; 4]> {
    let wrong = |_| Error::argument(NAME, format!("keys of shape {:?}", x.shape()));
    x.shape().try_into().map_err(wrong)
}

/// Attention by a product with the keys, of `[batch, kv_heads, keys, _]`, and one with the values.
fn composed(
    q: &Array,
    [_, kv_heads, keys, _]: [i32; 4],
    scores: Scores<'_>,
    with_keys: impl FnOnce(&Array) -> Result<Array>,
    with_values: impl FnOnce(&Array) -> Result<Array>,
) -> Result<Array> {
    let [batch, heads, length, dims] = axes(q)?;
    let groups = heads.checked_div(kv_heads).unwrap_or(0);
    let queries = ops::reshape(&(q * scores.scale)?, &[batch, kv_heads, groups, length, dims])?;
    let mut products = with_keys(&queries)?;
    if let Some(cap) = scores.cap {
        products = (ops::tanh(&(products / cap)?)? * cap)?;
    }
    let mut products = masked(products, scores.mask, [kv_heads, groups, length, keys])?;
    if let Some(sinks) = scores.sinks {
        let sinks = ops::reshape(&ops::astype(sinks, products.dtype())?, &[1, kv_heads, groups, 1, 1])?;
        let sinks = ops::broadcast_to(&sinks, &[batch, kv_heads, groups, length, 1])?;
        products = ops::concatenate([&sinks, &products], -1)?;
    }
    let mut weights = ops::softmax(&products, -1, true)?;
    if scores.sinks.is_some() {
        weights = ops::exactly::<2>(ops::split(&weights, [1], -1)?)?[1].clone();
    }
    let out = with_values(&weights)?;
    ops::reshape(&out, &[batch, heads, length, out.dim(-1)?])
}

/// `scores`, `[batch, kv_heads, groups, length, keys]`, behind the mask.
fn masked(scores: Array, mask: Mask<'_>, [kv_heads, groups, length, keys]: [i32; 4]) -> Result<Array> {
    let mask = match mask {
        Mask::None => return Ok(scores),
        Mask::Causal => ops::tri(length, keys, keys - length, Dtype::Bool)?,
        Mask::Array(mask) => match mask.shape() {
            [.., 1, _, _] => ops::expand_dims(mask, -3)?,
            [.., _, _, _] => ops::unflatten(mask, -3, &[kv_heads, groups])?,
            _ => mask.clone(),
        },
    };
    if mask.dtype() == Dtype::Bool {
        ops::where_(&mask, &scores, lowest(scores.dtype()))
    } else {
        scores + mask
    }
}

/// The lowest finite number: a row of scores that sees nothing gets no NaN.
fn lowest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float16 => half::f16::MIN.to_f64(),
        Dtype::Bfloat16 => half::bf16::MIN.to_f64(),
        _ => f64::from(f32::MIN),
    }
}
