//! Lille 130M.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, BlockNames, Decoder, Mlp, Names, Qkv};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    n_embd: i32,
    n_head: i32,
    n_kv_heads: i32,
    n_layer: usize,
    layer_norm_eps: f32,
    vocab_size: i32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("lille-130m")
            .size("n_embd", self.n_embd)
            .size("vocab_size", self.vocab_size)
            .heads(self.n_head, self.n_kv_heads, None, self.n_embd)
            .eps("layer_norm_eps", self.layer_norm_eps)
            .done()
    }

    /// The multiple of 256 that is nearest to 8/3 of the width.
    fn hidden(&self) -> i32 {
        let third = i64::from(self.n_embd) * 8 / 3;
        (third as f64 / 256.0).round_ties_even() as i32 * 256
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
        .drop("*rotary_emb*", "computed from the config")
        .drop("transformer.lm_head.*", "tied to the embeddings")
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names {
        embed: "transformer.tok_embeddings",
        layers: "transformer.layers",
        norm: "transformer.norm",
        head: "",
    };
    let (dims, eps, heads) = (args.n_embd, args.layer_norm_eps, args.n_head);
    let head_dim = dims / heads;
    let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
    let rope = Rope::new(head_dim, &rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    Decoder::new(w, names, [args.vocab_size, dims], Some(true), norm, args.n_layer, |_, w| {
        let attention = AttentionNames::fused("qkv_proj", "out_proj");
        let sizes = [heads, args.n_kv_heads, head_dim];
        let attention = Attention::fused(&w.pp("attention"), attention, Qkv::Joined, dims, sizes)?;
        Ok(Block {
            names: BlockNames {
                mixer: "attention",
                mlp: "feed_forward",
                norm1: "attention.norm",
                norm2: "feed_forward.norm",
            },
            ..Block::new(
                Attention { rope: Some(rope.clone()), ..attention },
                Mlp::new(&w.pp("feed_forward"), dims, args.hidden(), Activation::Silu)?,
                w.rms_norm("attention.norm", dims, eps)?,
                w.rms_norm("feed_forward.norm", dims, eps)?,
            )
        })
    })
}
