//! Gemma: Llama with GELU, norms whose factors are shifted by one, and scaled embeddings.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Block, Decoder, Mlp, Names};
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
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("gemma")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .drop("lm_head.*", "tied to the embeddings")
}

/// The model.
pub type Model = Decoder<Block<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| w.shifted_norm(name, dims, eps);
    let layers = args.num_hidden_layers;
    let model = Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], Some(true), norm, layers, |_, w| {
        Ok(Block::new(
            attention(args, &w.pp("self_attn"))?,
            // Old configs say `gelu`, and mean its approximation.
            Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, Activation::GeluTanh)?,
            w.shifted_norm("input_layernorm", dims, eps)?,
            w.shifted_norm("post_attention_layernorm", dims, eps)?,
        ))
    })?;
    Ok(Decoder { embed_scale: Some((dims as f32).sqrt()), ..model })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    Ok(Attention {
        rope: Some(Rope::new(head_dim, &args.rope, 10_000.0)?),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
