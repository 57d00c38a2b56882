//! Llama 4 with vision: its language model.

use serde::Deserialize;

use super::llama4_text as text;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Names, TextPart, text_rules};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    text_config: text::Args,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.text_config.check()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    text_rules(&["vision_model", "multi_modal_projector"], text::inner_rules(&args.text_config))
}

/// The model.
pub type Model = TextPart<text::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    let language_model = text::named(&args.text_config, &w.pp("language_model"), Names::LLAMA, false)?;
    Ok(TextPart { language_model })
}
