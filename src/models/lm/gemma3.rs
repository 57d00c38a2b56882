//! Gemma 3 with vision: its language model.

use serde::Deserialize;

use super::gemma3_text as text;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{TextPart, text_rules};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(default)]
    text_config: text::Args,
    vocab_size: Option<i32>,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.text().check()
    }

    fn text(&self) -> text::Args {
        let mut text = self.text_config.clone();
        text.vocab_size = text.vocab_size.or(self.vocab_size);
        text
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    text_rules(&["vision_tower", "multi_modal_projector"], text::rules(&args.text()))
}

/// The model.
pub type Model = TextPart<text::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: text::model(&args.text(), &w.pp("language_model"))? })
}
