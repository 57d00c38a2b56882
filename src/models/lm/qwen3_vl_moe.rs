//! The language model of Qwen3-VL MoE.

use serde::Deserialize;

use super::qwen3_moe;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{TextPart, text_rules};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    text_config: qwen3_moe::Args,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.text_config.check()
    }
}

/// How the names of a checkpoint become the model's. Published experts are fused, `[experts, in, out]`;
/// transformers 5 saves `[experts, out, in]`.
pub fn rules(args: &Args) -> Rules {
    let (dims, hidden) = (args.text_config.dims(), args.text_config.expert_size());
    let fused = "*.mlp.experts.gate_up_proj";
    let parts = ["*.mlp.switch_mlp.gate_proj.weight", "*.mlp.switch_mlp.up_proj.weight"];
    let inner = Rules::new()
        .transpose(&format!("{fused} [_, {dims}, {}]", 2 * i64::from(hidden)), &[0, 2, 1])
        .split(fused, &parts, 1, &[])
        .transpose(&format!("*.mlp.experts.down_proj [_, {hidden}, {dims}]"), &[0, 2, 1])
        .rename("*.mlp.experts.down_proj", "*.mlp.switch_mlp.down_proj.weight")
        .append(qwen3_moe::rules(&args.text_config));
    text_rules(&["visual", "vision_tower"], inner)
}

/// The model.
pub type Model = TextPart<qwen3_moe::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: qwen3_moe::model(&args.text_config, &w.pp("language_model"))? })
}
