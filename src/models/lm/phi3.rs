//! Phi-3 and Phi-4: Llama with fused projections, of which a part of each head turns.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, AttentionNames, Block, Decoder, Mlp, Names, Qkv};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    vocab_size: i32,
    /// By default the head is tied if the checkpoint has none.
    tie_word_embeddings: Option<bool>,
    /// How many positions every layer sees; all by default.
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("phi3")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    match args.tie_word_embeddings {
        Some(true) => rules.drop("lm_head.*", "tied to the embeddings"),
        _ => rules,
    }
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layers = args.num_hidden_layers;
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], args.tie_word_embeddings, norm, layers, |_, w| {
        Ok(Block::new(
            attention(args, &w.pp("self_attn"))?,
            Mlp::fused(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let head_dim = args.hidden_size / args.num_attention_heads;
    let sizes = [args.num_attention_heads, args.kv_heads(), head_dim];
    let names = AttentionNames::fused("qkv_proj", "o_proj");
    Ok(Attention {
        rope: Some(Rope::new(args.rope.dims(head_dim, 1.0)?, &args.rope, 10_000.0)?),
        window: args.sliding_window,
        keeps_all: true,
        ..Attention::fused(w, names, Qkv::Joined, args.hidden_size, sizes)?
    })
}
