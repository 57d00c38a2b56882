//! Attention whose output passes a gate.

use super::{Attention, Mixer};
use crate::array::{Array, Dtype};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{Linear, Module, join};
use crate::ops;

/// Attention of which each head, or each feature of a head, counts as much as the layer's input says (Qiu
/// et al., "Gated Attention for Large Language Models", 2025).
#[derive(Debug)]
pub struct GatedAttention {
    attention: Attention,
    name: &'static str,
    /// To one gate for each head, or for each feature of the heads.
    gate: Linear,
    per_head: bool,
    act: fn(&Array) -> Result<Array>,
}

impl GatedAttention {
    /// Reads the gate `name`, from `dims` features. `act` makes it positive.
    pub fn new(
        w: &Weights,
        attention: Attention,
        name: &'static str,
        dims: i32,
        per_head: bool,
        act: fn(&Array) -> Result<Array>,
    ) -> Result<Self> {
        let gates = if per_head { attention.heads } else { attention.heads * attention.head_dim };
        Ok(Self { gate: w.linear(name, dims, gates)?, attention, name, per_head, act })
    }
}

impl Mixer for GatedAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let out = self.attention.heads_of(x, masks, cache)?;
        let gate = ops::astype(&self.gate.forward(x)?, Dtype::Float32)?;
        let gate = ops::astype(&(self.act)(&gate)?, out.dtype())?;
        let out = if self.per_head {
            let heads = ops::unflatten(&out, -1, &[self.attention.heads, -1])?;
            ops::flatten(&(heads * ops::expand_dims(&gate, -1)?)?, -2, -1)?
        } else {
            (out * gate)?
        };
        self.attention.o_proj.forward(&out)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.attention.make_cache()
    }
}

impl Module for GatedAttention {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.attention.visit(path, f);
        self.gate.visit(&join(path, self.name), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.attention.visit_mut(path, f);
        self.gate.visit_mut(&join(path, self.name), f);
    }
}
