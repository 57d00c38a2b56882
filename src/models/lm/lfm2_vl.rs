//! The language model of LFM2-VL.

use super::lfm2;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{TextConfig, TextPart, text_rules};

/// The config.
pub type Args = TextConfig<lfm2::Args>;

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    text_rules(&["vision_tower", "multi_modal_projector"], lfm2::rules(&args.0))
}

/// The model.
pub type Model = TextPart<lfm2::Model>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    Ok(TextPart { language_model: lfm2::model(&args.0, &w.pp("language_model"))? })
}
