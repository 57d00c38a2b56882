//! Drawing from the `k` largest of each row.

mod metal;
mod reference;

use super::{CustomKernel, Spec, View, ViewMut};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};

const NAME: &str = "top_k_sample";

/// The index of the largest of `logits * scale + noise` among the `k` largest logits of each row: `uint32`,
/// `[rows]`. With noise of the standard Gumbel distribution this draws from `softmax(logits * scale)` of those `k`
/// (Kool et al., "Stochastic Beams and Where to Find Them", 2019).
///
/// `logits` is `[rows, width]` of a floating dtype, in which the product is taken; `noise` is `float32`, of the
/// same shape; `k` is from 1 to `width`. Of equal ones the first counts. NaN is never drawn where something
/// else is left. Fails for anything else.
pub fn top_k_sample(logits: &Array, noise: &Array, k: i32, scale: f32) -> Result<Array> {
    let float = matches!(logits.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let fits = matches!(logits.shape(), &[_, width] if (1..=width).contains(&k));
    if !float || !fits || noise.dtype() != Dtype::Float32 || noise.shape() != logits.shape() {
        let (x, noise) = (format!("{logits:?}"), format!("{noise:?}"));
        return Err(Error::argument(NAME, format!("{k} of {x} with noise {noise}")));
    }
    if logits.size() > 0 && super::metal::is_active() {
        return Ok(super::apply(TopKSample { k, scale }, [logits, noise])?.swap_remove(0));
    }
    reference::top_k_sample(logits, noise, k, scale)
}

struct TopKSample {
    k: i32,
    scale: f32,
}

impl CustomKernel for TopKSample {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let rows = inputs.first().and_then(|logits| logits.shape.first());
        let rows = rows.ok_or_else(|| Error::argument(NAME, "no rows"))?;
        Ok(vec![Spec::new(&[*rows], Dtype::Uint32)])
    }

    fn cpu(&self, _: &[View<'_>], _: &mut [ViewMut<'_>]) -> Result<()> {
        Err(Error::unsupported(NAME, "the reference runs on the CPU"))
    }

    fn metal(&self, inputs: &[Array]) -> Option<Result<Vec<Array>>> {
        let [logits, noise] = inputs else { return None };
        Some(metal::top_k_sample(logits, noise, self.k, self.scale))
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [logits, noise] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        Ok(vec![reference::top_k_sample(logits, noise, self.k, self.scale)?])
    }
}
