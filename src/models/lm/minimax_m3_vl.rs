//! The language model of MiniMax M3.

use serde::Deserialize;

use super::minimax_m3;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::TextPart;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    text_config: minimax_m3::Args,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.text_config.check()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .drop("*vision_tower.*", "of the vision tower")
        .drop("*multi_modal_projector.*", "from the vision tower")
        .drop("patch_merge_mlp.*", "from the vision tower")
        .rename("model.language_model.*", "language_model.model.*")
        .rename("lm_head.*", "language_model.lm_head.*")
        .append(minimax_m3::rules(&args.text_config))
}

/// The model.
pub type Model = TextPart<minimax_m3::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: minimax_m3::model(&args.text_config, &w.pp("language_model"))? })
}
