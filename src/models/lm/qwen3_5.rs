//! Qwen3.5: the language model is built as Qwen3-Next, with or without experts.

use super::qwen3_next;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{TextConfig, TextPart, text_rules};

/// The config.
pub type Args = TextConfig<qwen3_next::Args>;

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .rename("mtp.*", "language_model.mtp.*")
        .append(text_rules(&["visual", "vision_tower"], qwen3_next::rules(&args.0)))
}

/// The model.
pub type Model = TextPart<qwen3_next::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: qwen3_next::model(&args.0, &w.pp("language_model"))? })
}
