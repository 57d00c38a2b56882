//! In operations of MLX.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::ops;

pub(super) fn top_k_sample(logits: &Array, noise: &Array, k: i32, scale: f32) -> Result<Array> {
    if logits.size() == 0 {
        return ops::zeros(&logits.shape()[..1], Dtype::Uint32);
    }
    // Stable, with NaN last.
    let order = ops::argsort(&ops::negative(logits)?, -1)?;
    let first = order.index((.., ..k))?;
    let none = ops::full(logits.shape(), false, Dtype::Bool)?;
    let kept = ops::put_along_axis(&none, &first, &Array::from(true), -1)?;
    let scaled = ops::multiply(logits, ops::astype(&Array::from(scale), logits.dtype())?)?;
    let values = (ops::astype(&scaled, Dtype::Float32)? + noise)?;
    let kept = ops::logical_and(&kept, ops::logical_not(&ops::isnan(&values)?)?)?;
    ops::argmax(&ops::where_(&kept, &values, f32::NEG_INFINITY)?, -1, false)
}
