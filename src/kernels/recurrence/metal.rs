//! On the GPU.

use super::cpu::Rule;
use super::{NAME, Sizes};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::fast::TemplateArg;
use crate::kernels::Spec;
use crate::kernels::metal::{GATED_DELTA, Launch, STATE_SPACE};
use crate::ops;

/// Columns of a state that a lane may have.
const MOST: usize = 8;

/// Whether a shader has this rule and these sizes.
pub(super) fn suits(rule: Rule, sizes: Sizes) -> bool {
    let Sizes { batch, length, heads, key_dim, value_dim, .. } = sizes;
    let filled = [batch, length, heads, key_dim, value_dim].iter().all(|&size| size > 0);
    rule != Rule::Wkv && key_dim.div_ceil(32) <= MOST && filled
}

/// Outputs and last state.
pub(super) fn recurrence(rule: Rule, sizes: Sizes, inputs: &[Array]) -> Result<Vec<Array>> {
    let [queries, keys, values, log_decay, rest @ ..] = inputs else {
        return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
    };
    let single = |x: &Array| ops::astype(x, Dtype::Float32);
    let delta = rule == Rule::Delta;
    let (beta, state) = rest.split_at(usize::from(delta).min(rest.len()));
    let Sizes { batch, heads, key_dim, value_dim, decays, .. } = sizes;
    let alike = keys.dtype() == queries.dtype() && (!delta || values.dtype() == queries.dtype());
    let dtype = if alike { queries.dtype() } else { Dtype::Float32 };
    let cast = |x: &Array| ops::astype(x, dtype);
    let shape: Vec<i32> = [batch, heads, value_dim, key_dim].map(|n| n as i32).into();
    let state = state.first().map_or_else(|| ops::zeros(&shape, Dtype::Float32), single)?;
    let mut all = vec![cast(queries)?, cast(keys)?, if delta { cast(values)? } else { single(values)? }];
    all.push(single(log_decay)?);
    all.extend(beta.iter().map(single).collect::<Result<Vec<_>>>()?);
    all.push(state);
    let mut outputs = Launch {
        shader: if delta { &GATED_DELTA } else { &STATE_SPACE },
        inputs: &all,
        template: &[
            ("T", dtype.into()),
            ("COLUMNS", TemplateArg::Int(key_dim.div_ceil(32) as i32)),
            ("BY_COLUMN", TemplateArg::Bool(decays == key_dim && log_decay.ndim() == 4)),
        ],
        grid: [32, value_dim as i32, (batch * heads) as i32],
        thread_group: [32, 4, 1],
        outputs: &[Spec::new(values.shape(), dtype), Spec::new(&shape, Dtype::Float32)],
    }
    .run()?;
    if let Some(out) = outputs.first_mut() {
        *out = ops::astype(out, queries.dtype())?;
    }
    Ok(outputs)
}
