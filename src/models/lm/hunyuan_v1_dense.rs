//! Hunyuan dense: Llama with norms of queries and keys after they have turned.

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
    #[serde(default = "yes")]
    use_qk_norm: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes.checks("hunyuan_v1_dense").done()
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
    let heads = [sizes.num_attention_heads, sizes.kv_heads(), sizes.head_dim()];
    let rope = Rope::new(sizes.head_dim(), &args.rope, 10_000.0)?;
    let (q_norm, k_norm) = ("query_layernorm", "key_layernorm");
    let names = AttentionNames { q_norm, k_norm, ..AttentionNames::LLAMA };
    sizes.decoder(w, |_, w| {
        let at = w.pp("self_attn");
        let norm = |name| if args.use_qk_norm { sizes.heads_norm(&at, name, 1) } else { Ok(None) };
        let attention = Attention {
            q_norm: norm(q_norm)?,
            k_norm: norm(k_norm)?,
            norms_after_rope: true,
            rope: Some(rope.clone()),
            ..Attention::named(&at, names, sizes.hidden_size, heads)?
        };
        sizes.block(w, attention, sizes.mlp(&w.pp("mlp"))?)
    })
}
