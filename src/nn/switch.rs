//! Linear layers of which each token uses some, and those that differ from head to head.

use super::Weight;
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::{ops, parameters};

/// `x W_i^T + b_i`, with the weights of the expert `i` that a token was sent to.
#[derive(Debug, Clone)]
pub struct SwitchLinear {
    /// `[experts, out, in]`.
    pub weight: Weight,
    /// `[experts, out]`.
    pub bias: Option<Array>,
}

parameters!(SwitchLinear { weight: "", bias });

impl SwitchLinear {
    /// `[..., m, in]` to `[..., m, out]`. `experts` are integers whose shape broadcasts with the `...`;
    /// `sorted` promises that they ascend.
    pub fn forward(&self, x: &Array, experts: &Array, sorted: bool) -> Result<Array> {
        let x = self.weight.gather(x, experts, sorted)?;
        match &self.bias {
            Some(bias) => x + ops::expand_dims(&ops::take(bias, experts, 0)?, -2)?,
            None => Ok(x),
        }
    }
}

/// `x W_h^T`, with weights of its own for each head.
#[derive(Debug, Clone)]
pub struct MultiLinear {
    /// `[heads, out, in]`.
    pub weight: Weight,
}

parameters!(MultiLinear { weight: "" });

impl MultiLinear {
    /// `[batch, heads, length, in]` to `[batch, heads, length, out]`; `x` may have one head for all.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        self.weight.project(x)
    }

    /// The product with the matrices not transposed: `[batch, heads, length, out]` to
    /// `[batch, heads, length, in]`.
    pub fn back(&self, x: &Array) -> Result<Array> {
        self.weight.project_back(x)
    }
}

impl Weights {
    /// The layer `name` of so many experts, from `input` to `output` features, with biases if there are
    /// any.
    pub fn switch_linear(&self, name: &str, experts: i32, input: i32, output: i32) -> Result<SwitchLinear> {
        let w = self.pp(name);
        let bias = w.contains("bias").then(|| w.get_shaped("bias", &[experts, output])).transpose()?;
        Ok(SwitchLinear { weight: Weight::load(&w, &[experts, output, input])?, bias })
    }

    /// The layer `name` of so many heads, from `input` to `output` features.
    pub fn multi_linear(&self, name: &str, heads: i32, input: i32, output: i32) -> Result<MultiLinear> {
        Ok(MultiLinear { weight: Weight::load(&self.pp(name), &[heads, output, input])? })
    }
}
