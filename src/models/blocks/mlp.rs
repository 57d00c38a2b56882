//! The gated feed-forward layer of most language models.

use std::fmt;
use std::rc::Rc;

use super::FeedForward;
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::activations::Activation;
use crate::nn::{Linear, Module, join};

/// A function of a gate and of what it gates.
#[derive(Clone)]
pub(super) struct Gated(Rc<dyn Fn(&Array, &Array) -> Result<Array>>);

impl Gated {
    pub(super) fn new(act: impl Fn(&Array, &Array) -> Result<Array> + 'static) -> Self {
        Self(Rc::new(act))
    }

    pub(super) fn apply(&self, gate: &Array, x: &Array) -> Result<Array> {
        (self.0)(gate, x)
    }
}

impl fmt::Debug for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gated")
    }
}

/// `down(act(gate(x)) * up(x))` (Shazeer, "GLU Variants Improve Transformer", 2020).
#[derive(Debug, Clone)]
pub struct Mlp {
    names: MlpNames,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    act: Gated,
}

/// Where a checkpoint has the parts of an [`Mlp`].
#[derive(Debug, Clone, Copy)]
pub struct MlpNames {
    /// What the activation function gets.
    pub gate: &'static str,
    /// What is gated.
    pub up: &'static str,
    /// Back to the features of the model.
    pub down: &'static str,
}

impl MlpNames {
    /// Those of Llama and most others.
    pub const LLAMA: Self = Self { gate: "gate_proj", up: "up_proj", down: "down_proj" };
}

impl Mlp {
    /// From `dims` features to `hidden` and back.
    pub fn new(w: &Weights, dims: i32, hidden: i32, act: Activation) -> Result<Self> {
        Self::named(w, MlpNames::LLAMA, dims, hidden, act)
    }

    /// As [`new`](Self::new), for a checkpoint with other names.
    pub fn named(w: &Weights, names: MlpNames, dims: i32, hidden: i32, act: Activation) -> Result<Self> {
        Ok(Self {
            names,
            gate_proj: w.linear(names.gate, dims, hidden)?,
            up_proj: w.linear(names.up, dims, hidden)?,
            down_proj: w.linear(names.down, hidden, dims)?,
            act: Gated::new(move |gate, x| act.apply(gate)? * x),
        })
    }

    /// With another unit than `act(gate) * up`: a function of the gate and of what it gates.
    pub fn with(self, act: impl Fn(&Array, &Array) -> Result<Array> + 'static) -> Self {
        Self { act: Gated::new(act), ..self }
    }
}

impl Module for Mlp {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.gate_proj.visit(&join(path, self.names.gate), f);
        self.up_proj.visit(&join(path, self.names.up), f);
        self.down_proj.visit(&join(path, self.names.down), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.gate_proj.visit_mut(&join(path, self.names.gate), f);
        self.up_proj.visit_mut(&join(path, self.names.up), f);
        self.down_proj.visit_mut(&join(path, self.names.down), f);
    }
}

impl FeedForward for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let gated = self.act.apply(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
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
