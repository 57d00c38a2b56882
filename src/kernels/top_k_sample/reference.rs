//! In operations of MLX, on what [`select::top`] finds.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::kernels::select;
use crate::ops;

pub(super) fn top_k_sample(logits: &Array, noise: &Array, k: i32, scale: f32) -> Result<Array> {
    if logits.size() == 0 {
        return ops::zeros(&logits.shape()[..1], Dtype::Uint32);
    }
    // By where they are, so that of equal ones the first counts.
    let kept = ops::sort(&select::top(logits, k)?, -1)?;
    let at = |x: &Array| ops::take_along_axis(x, &kept, -1);
    let scaled = ops::multiply(&at(logits)?, ops::astype(&Array::from(scale), logits.dtype())?)?;
    let values = (ops::astype(&scaled, Dtype::Float32)? + at(noise)?)?;
    let values = ops::where_(&ops::isnan(&values)?, f32::NEG_INFINITY, &values)?;
    let best = ops::argmax(&values, -1, true)?;
    ops::squeeze(&ops::take_along_axis(&kept, &best, -1)?, -1)
}
