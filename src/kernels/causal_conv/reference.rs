//! The convolution in operations of MLX.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops::{self, Conv};

pub(super) fn causal_conv(
    x: &Array,
    weight: &Array,
    bias: Option<&Array>,
    state: Option<&Array>,
    silu: bool,
) -> Result<(Array, Array)> {
    let (&[batch, length, channels], &[_, kernel, _]) = (x.shape(), weight.shape()) else {
        let (lhs, rhs) = (x.shape().to_vec(), weight.shape().to_vec());
        return Err(Error::Shape { op: "causal_conv", lhs, rhs });
    };
    let before = match state {
        Some(state) => state.clone(),
        None => ops::zeros(&[batch, kernel - 1, channels], x.dtype())?,
    };
    let all = ops::concatenate([&before, x], 1)?;
    let state = all.index((.., length.., ..))?;
    let out = match length {
        0 => (x * ops::sum(weight, &[1, 2][..], false)?)?,
        _ => ops::conv1d(&all, weight, Conv { groups: channels, ..Conv::default() })?,
    };
    let out = bias.map_or(Ok(out.clone()), |bias| &out + bias)?;
    Ok((if silu { (&out * ops::sigmoid(&out)?)? } else { out }, state))
}
