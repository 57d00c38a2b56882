//! Qwen2, Qwen2.5 and Qwen3 with vision: their language model.

use super::qwen3 as text;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{TextConfig, TextPart, text_rules};

/// The config.
pub type Args = TextConfig<text::Args>;

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    text_rules(&["visual", "vision_tower"], text::rules(&args.0))
}

/// The model.
pub type Model = TextPart<text::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: text::model(&args.0, &w.pp("language_model"))? })
}
