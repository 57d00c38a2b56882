//! On the GPU: a few queries to quantized keys and values.

use super::{Attention, NAME};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::fast::TemplateArg;
use crate::kernels::Spec;
use crate::kernels::metal::{Launch, QUANTIZED_ATTENTION, is_active};
use crate::ops::{self, Quantization};

/// Features of a head that a lane may have.
const MOST: i64 = 8;
/// Queries of a head for which decoding keys and values each time is worth it.
const FEW: i32 = 16;

/// Whether shaders run here, and one is for these queries and parts of keys and values.
pub(super) fn suits(how: Quantization, q: &Array, parts: &[&Array; 6]) -> bool {
    let dims =
        |codes: &Array| codes.shape().last().map_or(0, |&words| i64::from(words) * 32 / i64::from(how.bits));
    let fits = |n: i64| n > 0 && n % i64::from(how.group_size) == 0 && n / 32 <= MOST;
    let [k, k_scales, k_biases, v, v_scales, v_biases] = parts;
    is_active()
        && q.shape().iter().rev().nth(1).is_some_and(|&length| length <= FEW)
        && how.group_size % 32 == 0
        && fits(dims(k))
        && fits(dims(v))
        && [k_scales, k_biases, v_scales, v_biases].iter().all(|part| part.dtype() == q.dtype())
}

/// Of arrays that fit together and are not empty: queries, codes, scales and biases of keys and of values, then the
/// mask, `[batch, heads, length, keys]`, and the sinks where there are any.
pub(super) fn attention(kernel: &Attention, how: Quantization, inputs: &[Array]) -> Result<Vec<Array>> {
    let (queries, [keys, values], mask, sinks) = kernel.split(inputs)?;
    let (&[batch, heads, length, dims], [_, v_scales, ..]) = (queries.shape(), values) else {
        return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
    };
    let (dtype, value_dims) = (queries.dtype(), v_scales.dim(3)? * how.group_size);
    let none = |dtype| ops::zeros(&[1, 1, 1, 1], dtype);
    let seen = mask.filter(|mask| mask.dtype() == Dtype::Bool);
    let added = mask.filter(|mask| mask.dtype() != Dtype::Bool);
    let kind = match mask {
        None => i32::from(kernel.causal),
        Some(_) if seen.is_some() => 2,
        Some(_) => 3,
    };
    let mut all: Vec<Array> = [queries].into_iter().chain(keys).chain(values).cloned().collect();
    all.push(seen.map_or_else(|| none(Dtype::Bool), |mask| Ok(mask.clone()))?);
    all.push(added.map_or_else(|| none(dtype), |mask| ops::astype(mask, dtype))?);
    all.push(sinks.map_or_else(|| ops::zeros(&[1], dtype), |sinks| ops::astype(sinks, dtype))?);
    all.extend([Array::from(kernel.scale), Array::from(kernel.cap.unwrap_or(0.0))]);
    let int = TemplateArg::Int;
    Launch {
        shader: &QUANTIZED_ATTENTION,
        inputs: &all,
        template: &[
            ("T", dtype.into()),
            ("BITS", int(how.bits)),
            ("GROUP", int(how.group_size)),
            ("KEY", int(dims / 32)),
            ("VALUE", int(value_dims / 32)),
            ("MASK", int(kind)),
            ("SINKS", TemplateArg::Bool(sinks.is_some())),
        ],
        grid: [512, batch * heads * length, 1],
        thread_group: [512, 1, 1],
        outputs: &[Spec::new(&[batch, heads, length, value_dims], dtype)],
    }
    .run()
}
