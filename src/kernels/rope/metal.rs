//! On the GPU.

use super::Turn;
use crate::array::Array;
use crate::error::Result;
use crate::fast::TemplateArg;
use crate::kernels::Spec;
use crate::kernels::metal::{Launch, RMS_NORM_ROPE};
use crate::ops;

/// `x`, of the weight's dtype and not empty, with its norm and turned; `offset` is `int32`, one or one for each
/// sequence, and `periods` `float32`.
pub(super) fn rms_norm_rope(
    x: &Array,
    weight: &Array,
    eps: f32,
    turn: Turn,
    offset: &Array,
    periods: Option<&Array>,
) -> Result<Vec<Array>> {
    let &[batch, .., length, width] = x.shape() else { unreachable!("it has three dimensions") };
    let by_head = ops::reshape(x, &[batch, -1, length, width])?;
    let half = turn.dims / 2;
    let frequencies = match periods {
        Some(periods) => ops::reciprocal(periods)?,
        None => {
            let base = f64::from(turn.base.unwrap_or(1.0));
            let frequency = |i: i32| base.powf(-f64::from(i) / f64::from(half)) as f32;
            Array::from_slice(&(0..half).map(frequency).collect::<Vec<_>>(), &[half])?
        }
    };
    let rows = batch * by_head.dim(1)? * length;
    let outputs = Launch {
        shader: &RMS_NORM_ROPE,
        inputs: &[
            by_head.clone(),
            weight.clone(),
            frequencies,
            offset.clone(),
            Array::from(eps),
            Array::from(turn.scale),
        ],
        template: &[("T", x.dtype().into()), ("TRADITIONAL", TemplateArg::Bool(turn.traditional))],
        grid: [32, rows, 1],
        thread_group: [32, 8, 1],
        outputs: &[Spec::new(by_head.shape(), x.dtype())],
    }
    .run()?;
    outputs.iter().map(|y| ops::reshape(y, x.shape())).collect()
}
