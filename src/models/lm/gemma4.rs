//! Gemma 4 with vision and audio: its language model.

use super::gemma4_text as text;
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
    const OTHERS: [&str; 6] = [
        "vision_tower",
        "vision_embedder",
        "multi_modal_projector",
        "audio_tower",
        "embed_audio",
        "embed_vision",
    ];
    text_rules(&OTHERS, text::rules(&args.0))
}

/// The model.
pub type Model = TextPart<text::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: text::model(&args.0, &w.pp("language_model"))? })
}
