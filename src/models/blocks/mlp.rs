//! The gated feed-forward layer of most language models.

use std::fmt;
use std::rc::Rc;

use serde::Deserialize;

use super::FeedForward;
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::kernels::{Chain, Node, Unit};
use crate::nn::activations::Activation;
use crate::nn::{Linear, Module, join};
use crate::ops;

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
    gate_up: GateUp,
    down_proj: Linear,
    act: Gated,
    /// The same, if a kernel knows it.
    unit: Option<Unit>,
}

#[derive(Debug, Clone)]
enum GateUp {
    Separate([Linear; 2]),
    /// The gate, then what it gates.
    Joined(Linear),
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
        let gate_up = [w.linear(names.gate, dims, hidden)?, w.linear(names.up, dims, hidden)?];
        Self::of(w, names, GateUp::Separate(gate_up), [dims, hidden], act)
    }

    /// As [`new`](Self::new), with one projection `gate_up_proj`.
    pub fn fused(w: &Weights, dims: i32, hidden: i32, act: Activation) -> Result<Self> {
        Self::fused_named(w, MlpNames { gate: "gate_up_proj", ..MlpNames::LLAMA }, dims, hidden, act)
    }

    /// As [`named`](Self::named), with one projection `names.gate`.
    pub fn fused_named(
        w: &Weights,
        names: MlpNames,
        dims: i32,
        hidden: i32,
        act: Activation,
    ) -> Result<Self> {
        let gate_up = GateUp::Joined(w.linear(names.gate, dims, 2 * hidden)?);
        Self::of(w, names, gate_up, [dims, hidden], act)
    }

    fn of(w: &Weights, names: MlpNames, gate_up: GateUp, sizes: [i32; 2], act: Activation) -> Result<Self> {
        let down_proj = w.linear(names.down, sizes[1], sizes[0])?;
        let (gated, unit) = (Gated::new(move |gate, x| act.gated(gate, x)), act.unit());
        Ok(Self { names, gate_up, down_proj, act: gated, unit })
    }

    /// With another unit than `act(gate) * up`: a function of the gate and of what it gates.
    pub fn with(self, act: impl Fn(&Array, &Array) -> Result<Array> + 'static) -> Self {
        Self { act: Gated::new(act), unit: None, ..self }
    }
}

impl Module for Mlp {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        match &self.gate_up {
            GateUp::Separate([gate, up]) => {
                gate.visit(&join(path, self.names.gate), f);
                up.visit(&join(path, self.names.up), f);
            }
            GateUp::Joined(both) => both.visit(&join(path, self.names.gate), f),
        }
        self.down_proj.visit(&join(path, self.names.down), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        match &mut self.gate_up {
            GateUp::Separate([gate, up]) => {
                gate.visit_mut(&join(path, self.names.gate), f);
                up.visit_mut(&join(path, self.names.up), f);
            }
            GateUp::Joined(both) => both.visit_mut(&join(path, self.names.gate), f),
        }
        self.down_proj.visit_mut(&join(path, self.names.down), f);
    }
}

impl FeedForward for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let [gate, up] = match &self.gate_up {
            GateUp::Separate([gate, up]) => Linear::forward_all([gate, up], x)?,
            GateUp::Joined(both) => ops::exactly(ops::split(&both.forward(x)?, 2, -1)?)?,
        };
        self.down_proj.forward(&self.act.apply(&gate, &up)?)
    }

    fn record(&self, chain: &mut Chain, x: Node) -> Result<Option<Node>> {
        let Some(unit) = self.unit else { return Ok(None) };
        let parts = match &self.gate_up {
            GateUp::Separate([gate, up]) => Linear::record([gate, up], chain, x)?,
            GateUp::Joined(both) => match Linear::record([both], chain, x)? {
                Some([both]) => {
                    let (axis, width) = (2, chain.spec(both).shape[2]);
                    let gate = chain.slice(both, axis, [0, width / 2])?;
                    Some([gate, chain.slice(both, axis, [width / 2, width])?])
                }
                None => None,
            },
        };
        let Some([gate, up]) = parts else { return Ok(None) };
        let Some(gated) = chain.gated(unit, gate, up)? else { return Ok(None) };
        Ok(Linear::record([&self.down_proj], chain, gated)?.map(|[down]| down))
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

/// What the feed-forward layers of a config's `mlp_layer_types` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpType {
    /// One layer for all tokens.
    Dense,
    /// Experts.
    Sparse,
}
