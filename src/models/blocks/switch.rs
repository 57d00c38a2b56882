//! Mixtures of experts: each token goes through a few of many feed-forward layers.

use super::mlp::Gated;
use crate::array::{Array, Index::Ellipsis};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::SwitchLinear;
use crate::nn::activations::Activation;
use crate::{ops, parameters};

/// From so many assignments on, tokens are sorted by their expert, so that its weights are read once.
const SORTED_FROM: usize = 64;

/// Gated feed-forward layers, one for each expert: `down_i(act(gate_i(x), up_i(x)))`.
#[derive(Debug)]
pub struct SwitchGlu {
    gate_proj: SwitchLinear,
    up_proj: SwitchLinear,
    down_proj: SwitchLinear,
    act: Gated,
}

parameters!(SwitchGlu { gate_proj, up_proj, down_proj });

impl SwitchGlu {
    /// So many experts, from `dims` features to `hidden` and back, gated by `silu`.
    pub fn new(w: &Weights, experts: i32, dims: i32, hidden: i32) -> Result<Self> {
        Ok(Self::of([
            w.switch_linear("gate_proj", experts, dims, hidden)?,
            w.switch_linear("up_proj", experts, dims, hidden)?,
            w.switch_linear("down_proj", experts, hidden, dims)?,
        ]))
    }

    /// Of the gates, of what they gate, and of the way back, gated by `silu`.
    pub fn of([gate_proj, up_proj, down_proj]: [SwitchLinear; 3]) -> Self {
        Self { gate_proj, up_proj, down_proj, act: Gated::new(crate::nn::activations::swiglu) }
    }

    /// With another unit than `silu(gate) * up`: a function of the gate and of what it gates.
    pub fn with(self, act: impl Fn(&Array, &Array) -> Result<Array> + 'static) -> Self {
        Self { act: Gated::new(act), ..self }
    }

    /// The outputs of the `experts` that each token goes to: `[..., dims]` and integers `[..., k]` to
    /// `[..., k, dims]`.
    pub fn forward(&self, x: &Array, experts: &Array) -> Result<Array> {
        switched(x, experts, |x, experts, sorted| {
            let up = self.up_proj.forward(x, experts, sorted)?;
            let gate = self.gate_proj.forward(x, experts, sorted)?;
            self.down_proj.forward(&self.act.apply(&gate, &up)?, experts, sorted)
        })
    }
}

/// Feed-forward layers without a gate, one for each expert: `fc2_i(act(fc1_i(x)))`.
#[derive(Debug)]
pub struct SwitchMlp {
    fc1: SwitchLinear,
    fc2: SwitchLinear,
    act: Activation,
}

parameters!(SwitchMlp { fc1, fc2 });

impl SwitchMlp {
    /// So many experts, from `dims` features to `hidden` and back.
    pub fn new(w: &Weights, experts: i32, dims: i32, hidden: i32, act: Activation) -> Result<Self> {
        let fc1 = w.switch_linear("fc1", experts, dims, hidden)?;
        Ok(Self { fc1, fc2: w.switch_linear("fc2", experts, hidden, dims)?, act })
    }

    /// As [`SwitchGlu::forward`].
    pub fn forward(&self, x: &Array, experts: &Array) -> Result<Array> {
        switched(x, experts, |x, experts, sorted| {
            let hidden = self.act.apply(&self.fc1.forward(x, experts, sorted)?)?;
            self.fc2.forward(&hidden, experts, sorted)
        })
    }
}

/// `layer` on each pair of a token of `x`, `[..., dims]`, and one of its `experts`, `[..., k]`. The layer
/// gets tokens with an axis of length 1 before the last, the experts, and whether these ascend.
pub fn switched(
    x: &Array,
    experts: &Array,
    layer: impl FnOnce(&Array, &Array, bool) -> Result<Array>,
) -> Result<Array> {
    let experts = ops::stop_gradient(experts)?;
    let x = ops::expand_dims(x, [-2, -3])?;
    if experts.size() < SORTED_FROM {
        return ops::squeeze(&layer(&x, &experts, false)?, -2);
    }
    let each = experts.dim(-1)?;
    let flat = ops::flatten(&experts, 0, -1)?;
    let order = ops::argsort(&flat, 0)?;
    let back = ops::argsort(&order, 0)?;
    let tokens = ops::floor_divide(&order, Array::from(each as u32))?;
    let x = ops::take(&ops::flatten(&x, 0, -3)?, &tokens, 0)?;
    let out = layer(&x, &ops::take(&flat, &order, 0)?, true)?;
    let out = ops::unflatten(&ops::take(&out, &back, 0)?, 0, experts.shape())?;
    ops::squeeze(&out, -2)
}

/// The sum of the experts' outputs `[..., k, dims]` with these weights, `[..., k]`, added up in the wider
/// of their dtypes, in the dtype of the outputs.
pub fn weighted_sum(outputs: &Array, weights: &Array) -> Result<Array> {
    let weighted = (outputs * ops::expand_dims(weights, -1)?)?;
    ops::astype(&ops::sum(&weighted, -2, false)?, outputs.dtype())
}

/// The `k` experts with the highest scores `[..., experts]`, in no order: integers `[..., k]`.
pub fn top_k(scores: &Array, k: i32) -> Result<Array> {
    let order = ops::argpartition(&ops::negative(scores)?, k - 1, -1)?;
    order.index((Ellipsis, ..k))
}
