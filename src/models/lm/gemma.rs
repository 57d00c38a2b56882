//! Gemma: Llama with GELU, norms whose factors are shifted by one, and scaled embeddings.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, Mlp, Names, Sizes, tied_by_default};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("gemma").done()
    }

    fn tied(&self) -> Option<bool> {
        tied_by_default(self.sizes.tie_word_embeddings)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Sizes { tie_word_embeddings: args.tied(), ..args.sizes.clone() }.rules()
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &Sizes { tie_word_embeddings: args.tied(), ..args.sizes.clone() };
    let (dims, hidden) = (sizes.hidden_size, sizes.intermediate_size);
    let rope = Rope::new(sizes.head_dim(), &args.rope, 10_000.0)?;
    let norm = Sizes::shifted_norm;
    let model = sizes.named_decoder(w, Names::LLAMA, norm, |_, w| {
        Ok(Block::new(
            Attention { rope: Some(rope.clone()), ..sizes.attention(&w.pp("self_attn"))? },
            // Old configs say `gelu`, and mean its approximation.
            Mlp::new(&w.pp("mlp"), dims, hidden, Activation::GeluTanh)?,
            norm(sizes, w, "input_layernorm")?,
            norm(sizes, w, "post_attention_layernorm")?,
        ))
    })?;
    Ok(Decoder { embed_scale: Some((dims as f32).sqrt()), ..model })
}
