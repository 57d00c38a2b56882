//! Mistral 4: DeepSeek-V3 with experts chosen by a softmax, and queries that grow with their position.

use serde::Deserialize;

use super::deepseek_v3::{self, Layer};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Decoder, LatentAttention, MoeNames, Routing, Scoring};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Args(deepseek_v3::Args);

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.0.checks("mistral4", &self.routing()).done()
    }

    fn routing(&self) -> Routing {
        self.0.experts.routing(Scoring::Softmax)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new()
        .drop("*.activation_scale", "scales of inputs, which are not quantized")
        .split(
            "*.mlp.experts.gate_up_proj",
            &["*.mlp.switch_mlp.gate_proj.weight", "*.mlp.switch_mlp.up_proj.weight"],
            1,
            &[],
        )
        .rename("*.mlp.experts.down_proj", "*.mlp.switch_mlp.down_proj.weight");
    rules.append(deepseek_v3::rules(&args.0))
}

/// The model.
pub type Model = Decoder<Layer<LatentAttention>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = MoeNames { correction: None, ..MoeNames::DEEPSEEK };
    args.0.decoder(w, names, args.routing(), |_, w| {
        let attention = args.0.attention(w, 1e-6, 10_000.0)?;
        Ok(LatentAttention { growth: args.0.rope.query_growth()?, ..attention })
    })
}
