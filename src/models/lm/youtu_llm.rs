//! Youtu-LLM: latent attention whose cache has keys and values, without experts.

use serde::Deserialize;

use super::deepseek_v3::{self, Layer};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Decoder, LatentAttention, MoeNames, Scoring};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    tie_word_embeddings: Option<bool>,
    rope_traditional: Option<bool>,
    #[serde(flatten)]
    base: deepseek_v3::Args,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.base.check()
    }

    /// The config as one of DeepSeek's.
    fn base(&self) -> deepseek_v3::Args {
        let mut base = self.base.clone();
        base.tie_word_embeddings = self.tie_word_embeddings.or(Some(true));
        base.rope_interleave &= self.rope_traditional.unwrap_or(true);
        base
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    deepseek_v3::common_rules(&args.base())
}

/// The model.
pub type Model = Decoder<Layer<LatentAttention>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let base = args.base();
    let routing = base.experts.routing(Scoring::Sigmoid);
    base.decoder(w, MoeNames::DEEPSEEK, routing, |_, w| base.attention(w, 1e-6, 1.6e6))
}
