//! GPT-NeoX (Black et al., "GPT-NeoX-20B", 2022), Pythia.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, Names, Order, PlainMlp, Qkv,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    intermediate_size: Option<i32>,
    layer_norm_eps: f32,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<Activation>,
    rotary_emb_base: Option<f64>,
    rotary_pct: Option<f64>,
    #[serde(default = "yes")]
    use_parallel_residual: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("gpt_neox")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size.unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_attention_heads, None, self.hidden_size)
            .eps("layer_norm_eps", self.layer_norm_eps)
            .done()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let head = match args.tie_word_embeddings {
        Some(true) => Rules::new().drop("embed_out.*", "tied to the embeddings"),
        _ => Rules::new().rename("embed_out.*", "model.embed_out.*"),
    };
    Rules::new()
        .drop("*.attention.bias", "the causal mask")
        .drop("*.attention.masked_bias", "the causal mask")
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .rename("gpt_neox.layers.*", "model.h.*")
        .rename("gpt_neox.*", "model.*")
        .append(head)
}

/// The model.
pub type Model = Decoder<Block<Attention, PlainMlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let names = Names {
        embed: "model.embed_in",
        layers: "model.h",
        norm: "model.final_layer_norm",
        head: "model.embed_out",
    };
    let (dims, eps, heads) = (args.hidden_size, args.layer_norm_eps, args.num_attention_heads);
    let head_dim = dims / heads;
    let turning = args.rope.dims(head_dim, args.rotary_pct.unwrap_or(0.25))?;
    let rope = Rope::new(turning, &args.rope, args.rotary_emb_base.unwrap_or(10_000.0))?;
    let hidden = args.intermediate_size.unwrap_or(4 * dims);
    let act = args.hidden_act.unwrap_or(Activation::GeluTanh);
    let order = if args.use_parallel_residual { Order::Parallel } else { Order::Sequential };
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let layer = |_, w: &Weights| {
        let attention = AttentionNames::fused("query_key_value", "dense");
        let sizes = [heads, heads, head_dim];
        let attention = Attention::fused(&w.pp("attention"), attention, Qkv::Grouped, dims, sizes)?;
        Ok(Block {
            names: BlockNames { mixer: "attention", ..BlockNames::LLAMA },
            order,
            ..Block::new(
                Attention { rope: Some(rope.clone()), ..attention },
                PlainMlp::new(&w.pp("mlp"), ["dense_h_to_4h", "dense_4h_to_h"], dims, hidden, act)?,
                w.layer_norm("input_layernorm", dims, eps)?,
                w.layer_norm("post_attention_layernorm", dims, eps)?,
            )
        })
    };
    let (sizes, tied) = ([args.vocab_size, dims], args.tie_word_embeddings);
    Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, layer)
}
