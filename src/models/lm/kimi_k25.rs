//! The language model of Kimi K2.5 and Kimi-VL, which is DeepSeek-V3.

use serde::Deserialize;

use super::deepseek_v3;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{TextPart, text_rules};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    text_config: deepseek_v3::Args,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.text_config.check()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let parts = ["vision_tower", "vision_model", "multi_modal_projector", "mm_projector"];
    text_rules(&parts, deepseek_v3::rules(&args.text_config))
}

/// The model.
pub type Model = TextPart<deepseek_v3::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    let language_model = deepseek_v3::model(&args.text_config, &w.pp("language_model"))?;
    Ok(TextPart { language_model })
}
