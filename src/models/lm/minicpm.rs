//! MiniCPM (Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models", 2024): Llama with
//! factors of the embeddings, the residual branches and the logits.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, LogitsScale, Mlp, Sizes};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    dim_model_base: i32,
    scale_depth: f32,
    scale_emb: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("minicpm").size("dim_model_base", self.dim_model_base).done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules()
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    // A checkpoint without a head is tied whatever its config says.
    let tie_word_embeddings = args.sizes.tie_word_embeddings.filter(|&tied| tied);
    let sizes = &Sizes { tie_word_embeddings, ..args.sizes.clone() };
    let rope = Rope::new(sizes.head_dim(), &args.rope, 1_000_000.0)?;
    let residual_scale = Some(args.scale_depth / (sizes.num_hidden_layers as f32).sqrt());
    let model = sizes.decoder(w, |_, w| {
        let attention = Attention { rope: Some(rope.clone()), ..sizes.attention(&w.pp("self_attn"))? };
        Ok(Block { residual_scale, ..sizes.block(w, attention, sizes.mlp(&w.pp("mlp"))?)? })
    })?;
    let factor = args.dim_model_base as f32 / sizes.hidden_size as f32;
    let logits = LogitsScale { factor: Some(factor), cap: None };
    Ok(Decoder { embed_scale: Some(args.scale_emb), logits, ..model })
}
