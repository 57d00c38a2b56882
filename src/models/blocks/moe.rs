//! The feed-forward layer that is a mixture of experts.

use super::{BlockNames, FeedForward, Mlp, Routing, SwitchGlu, weighted_sum};
use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::nn::activations::Activation;
use crate::nn::{Linear, Module, join};
use crate::ops;

/// Where a checkpoint has the parts of a [`Moe`].
#[derive(Debug, Clone, Copy)]
pub struct MoeNames {
    /// The router.
    pub gate: &'static str,
    /// What corrects its choice; `None` if nothing does.
    pub correction: Option<&'static str>,
    /// The experts.
    pub experts: &'static str,
    /// The layer that every token goes through as well.
    pub shared: &'static str,
}

impl MoeNames {
    /// Those of most models.
    pub const PLAIN: MoeNames =
        MoeNames { gate: "gate", correction: None, experts: "switch_mlp", shared: "shared_expert" };

    /// Those of DeepSeek V3, and of what is built as it is.
    pub const DEEPSEEK: MoeNames = MoeNames {
        correction: Some("gate.e_score_correction_bias"),
        shared: "shared_experts",
        ..Self::PLAIN
    };
}

/// Experts, of which each token goes through some, and a layer that all go through (Dai et al.,
/// "DeepSeekMoE", 2024).
#[derive(Debug)]
pub struct Moe {
    /// Where the checkpoint has the parts.
    pub names: MoeNames,
    /// To the logits of the experts.
    pub gate: Linear,
    /// `[experts]`: added to the scores for the choice.
    pub correction: Option<Array>,
    /// Which experts are chosen, and how much they count.
    pub routing: Routing,
    /// One for each expert.
    pub experts: SwitchGlu,
    /// For all tokens.
    pub shared: Option<Mlp>,
    /// The logit of how much `shared` counts; without it, it counts in full.
    pub shared_gate: Option<Linear>,
}

impl BlockNames {
    /// Those of Mixtral, and of what is built as it is.
    pub const MIXTRAL: BlockNames = BlockNames { mlp: "block_sparse_moe", ..Self::LLAMA };
}

impl Rules {
    /// And experts that a checkpoint has one by one, `from.0`, `from.1`, ..., stacked at `to`. Mixtral's
    /// names of their layers become the usual ones.
    pub fn stack_experts(self, from: &str, to: &str) -> Self {
        let usual = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];
        let rename = |rules: Self, (short, long)| {
            rules.rename(format!("{from}.{{#}}.{short}.{{}}"), format!("{from}.{{#}}.{long}.{{}}"))
        };
        let rules = usual.into_iter().fold(self, rename);
        rules.stack(&format!("{from}.{{#}}.{{}}.{{}}"), &format!("{to}.{{}}.{{}}"))
    }
}

/// The layer that says how much the shared one counts.
const SHARED_GATE: &str = "shared_expert_gate";

impl Moe {
    /// Reads `count` experts from `dims` features to `hidden` and back, and their router.
    pub fn new(
        w: &Weights,
        names: MoeNames,
        routing: Routing,
        dims: i32,
        [count, hidden]: [i32; 2],
    ) -> Result<Self> {
        Ok(Self {
            names,
            gate: w.linear(names.gate, dims, count)?,
            correction: names.correction.map(|name| w.get_shaped(name, &[count])).transpose()?,
            routing,
            experts: SwitchGlu::new(&w.pp(names.experts), count, dims, hidden)?,
            shared: None,
            shared_gate: None,
        })
    }

    /// And a shared layer of so many hidden features, if any, with its gate if the checkpoint has one.
    pub fn with_shared(self, w: &Weights, dims: i32, hidden: impl Into<Option<i32>>) -> Result<Self> {
        let Some(hidden) = hidden.into() else { return Ok(self) };
        let gated = w.pp(SHARED_GATE).contains("weight");
        Ok(Self {
            shared: Some(Mlp::new(&w.pp(self.names.shared), dims, hidden, Activation::Silu)?),
            shared_gate: gated.then(|| w.linear(SHARED_GATE, dims, 1)).transpose()?,
            ..self
        })
    }
}

impl FeedForward for Moe {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (experts, weights) = self.routing.route(&self.gate.forward(x)?, self.correction.as_ref())?;
        let routed = weighted_sum(&self.experts.forward(x, &experts)?, &weights)?;
        let Some(shared) = &self.shared else { return Ok(routed) };
        let shared = shared.forward(x)?;
        match &self.shared_gate {
            Some(gate) => routed + (ops::sigmoid(&gate.forward(x)?)? * shared)?,
            None => routed + shared,
        }
    }
}

impl Module for Moe {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.gate.visit(&join(path, self.names.gate), f);
        self.correction.visit(&join(path, self.names.correction.unwrap_or_default()), f);
        self.experts.visit(&join(path, self.names.experts), f);
        self.shared.visit(&join(path, self.names.shared), f);
        self.shared_gate.visit(&join(path, SHARED_GATE), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.gate.visit_mut(&join(path, self.names.gate), f);
        self.correction.visit_mut(&join(path, self.names.correction.unwrap_or_default()), f);
        self.experts.visit_mut(&join(path, self.names.experts), f);
        self.shared.visit_mut(&join(path, self.names.shared), f);
        self.shared_gate.visit_mut(&join(path, SHARED_GATE), f);
    }
}
