//! The gated feed-forward layer of most language models.

use super::FeedForward;
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::Linear;
use crate::nn::activations::Activation;
use crate::parameters;

/// `down(act(gate(x)) * up(x))` (Shazeer, "GLU Variants Improve Transformer", 2020).
#[derive(Debug, Clone)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    act: Activation,
}

parameters!(Mlp { gate_proj, up_proj, down_proj });

impl Mlp {
    /// From `dims` features to `hidden` and back.
    pub fn new(w: &Weights, dims: i32, hidden: i32, act: Activation) -> Result<Self> {
        Ok(Self {
            gate_proj: w.linear("gate_proj", dims, hidden)?,
            up_proj: w.linear("up_proj", dims, hidden)?,
            down_proj: w.linear("down_proj", hidden, dims)?,
            act,
        })
    }
}

impl FeedForward for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let gate = self.act.apply(&self.gate_proj.forward(x)?)?;
        self.down_proj.forward(&(gate * self.up_proj.forward(x)?)?)
    }
}
