//! Loss functions.

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::{fast, ops};

/// `-ln softmax(logits)[target]` of each prediction, in `float32`.
///
/// `logits` are `[..., classes]` in floating point, `targets` integers `[...]` below `classes`; the
/// result is `[...]`, and NaN for a target out of range. With `label_smoothing` in `0.0..1.0`, that
/// share of the target is spread over all classes (Szegedy et al., 2016). Fails if the shapes do not
/// go together.
pub fn cross_entropy(logits: &Array, targets: &Array, label_smoothing: f64) -> Result<Array> {
    if !(0.0..1.0).contains(&label_smoothing) {
        let message = format!("label smoothing of {label_smoothing} is not in 0.0..1.0");
        return Err(Error::argument("cross_entropy", message));
    }
    let loss = fast::cross_entropy(logits, targets)?;
    if label_smoothing == 0.0 {
        return Ok(loss);
    }
    let logits = ops::astype(logits, Dtype::Float32)?;
    let uniform = (ops::logsumexp(&logits, -1, false)? - ops::mean(&logits, -1, false)?)?;
    ((1.0 - label_smoothing) * loss)? + (label_smoothing * uniform)?
}

/// The mean of `losses` where `mask`, of the same shape, is not zero; 0 where it is zero everywhere.
/// A scalar.
pub fn masked_mean(losses: &Array, mask: &Array) -> Result<Array> {
    if losses.shape() != mask.shape() {
        let (lhs, rhs) = (losses.shape().to_vec(), mask.shape().to_vec());
        return Err(Error::Shape { op: "masked_mean", lhs, rhs });
    }
    let kept = ops::not_equal(mask, 0)?;
    let count = ops::sum(&ops::astype(&kept, losses.dtype())?, .., false)?;
    // A product would let a NaN that is masked out through.
    let total = ops::sum(&ops::where_(&kept, losses, 0.0)?, .., false)?;
    total / ops::maximum(count, 1.0)?
}
