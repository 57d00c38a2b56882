//! The gated feed-forward layer of most language models.

use super::FeedForward;
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::activations::Activation;
use crate::nn::{Linear, Module, join};
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

/// `down(act(up(x)))`: two layers without a gate.
#[derive(Debug, Clone)]
pub struct PlainMlp {
    names: [&'static str; 2],
    up: Linear,
    down: Linear,
    act: Activation,
}

impl PlainMlp {
    /// From `dims` features to `hidden` and back; `names` are those of the two layers.
    pub fn new(
        w: &Weights,
        names: [&'static str; 2],
        dims: i32,
        hidden: i32,
        act: Activation,
    ) -> Result<Self> {
        let [up, down] = [w.linear(names[0], dims, hidden)?, w.linear(names[1], hidden, dims)?];
        Ok(Self { names, up, down, act })
    }
}

impl FeedForward for PlainMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.down.forward(&self.act.apply(&self.up.forward(x)?)?)
    }
}

impl Module for PlainMlp {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.up.visit(&join(path, self.names[0]), f);
        self.down.visit(&join(path, self.names[1]), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.up.visit_mut(&join(path, self.names[0]), f);
        self.down.visit_mut(&join(path, self.names[1]), f);
    }
}
