//! Phi-3 and Phi-4: Llama with fused projections, of which a part of each head turns.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, AttentionNames, Block, Decoder, Mlp, Sizes};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    /// How many positions every layer sees; all by default.
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("phi3").size("sliding_window", self.sliding_window.unwrap_or(1)).done()
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
    let sizes = &args.sizes;
    sizes.decoder(w, |_, w| {
        let mlp = Mlp::fused(&w.pp("mlp"), sizes.hidden_size, sizes.intermediate_size, sizes.hidden_act)?;
        sizes.block(w, attention(args, &w.pp("self_attn"))?, mlp)
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let dims = args.rope.dims(args.sizes.head_dim(), 1.0)?;
    Ok(Attention {
        rope: Some(Rope::new(dims, &args.rope, 10_000.0)?),
        window: args.sliding_window,
        keeps_all: true,
        ..args.sizes.joined_attention(w, AttentionNames::fused("qkv_proj", "o_proj"))?
    })
}
