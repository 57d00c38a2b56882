//! The language model of MiniMax M3.

use serde::Deserialize;

use super::minimax_m3;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{TextPart, text_rules};

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
    let parts = ["vision_tower", "multi_modal_projector", "patch_merge_mlp"];
    text_rules(&parts, minimax_m3::rules(&args.text_config))
}

/// The model.
pub type Model = TextPart<minimax_m3::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: minimax_m3::model(&args.text_config, &w.pp("language_model"))? })
}
