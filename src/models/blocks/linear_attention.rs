//! What surrounds linear attention: decays, unit vectors, a gated norm.

use crate::array::{Array, Dtype};
use crate::error::Result;
pub use crate::kernels::recurrence::{Sequence, gated_delta, linear_attention};
use crate::nn::RmsNorm;
use crate::nn::activations::{silu, softplus};
use crate::{fast, ops};

/// `-exp(a_log) softplus(x + dt_bias)`, in `float32`: how much the state of a head decays.
pub fn log_decay(x: &Array, a_log: &Array, dt_bias: &Array) -> Result<Array> {
    let rate = ops::negative(&ops::exp(&ops::astype(a_log, Dtype::Float32)?)?)?;
    rate * softplus(&(ops::astype(x, Dtype::Float32)? + dt_bias)?)?
}

/// `x / |x|` over the last axis.
pub fn unit_length(x: &Array) -> Result<Array> {
    const EPS: f32 = 1e-6;
    let dims = x.dim(-1)? as f32;
    fast::rms_norm(x, None, EPS / dims)? * dims.powf(-0.5)
}

/// `norm(x) silu(gate)`, with the product in `float32`.
pub fn gated_norm(norm: &RmsNorm, x: &Array, gate: &Array) -> Result<Array> {
    let float = |x: &Array| ops::astype(x, Dtype::Float32);
    ops::astype(&(float(&norm.forward(x)?)? * silu(&float(gate)?)?)?, x.dtype())
}
