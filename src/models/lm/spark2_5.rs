//! Spark 2.5: attention with a gate for each head, three layers of four with a window.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, Decoder, GatedAttention, LayerType, Mlp, Names, Qkv,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::ops;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    vocab_size: i32,
    sliding_window: i32,
    /// By default layers 3, 7, 11, ... see all positions.
    layer_types: Option<Vec<LayerType>>,
    #[serde(default = "eps")]
    rms_norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    #[serde(default = "sigmoid")]
    gate_attn_act_mode: Activation,
    #[serde(default = "yes")]
    headwise_attn_output_gate: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn eps() -> f32 {
    1e-6
}

fn gelu() -> Activation {
    Activation::Gelu
}

fn sigmoid() -> Activation {
    Activation::Sigmoid
}

fn yes() -> bool {
    true
}

const NAMES: Names = Names { embed: "model.embedding", ..Names::LLAMA };

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let gate = self.gate_attn_act_mode;
        Checks::new("spark2_5")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window)
            .heads(heads, kv_heads, Some(self.head_dim), self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .that(self.headwise_attn_output_gate, || "`headwise_attn_output_gate` is false".to_owned())
            .that(gate == Activation::Sigmoid, || format!("`gate_attn_act_mode` is {gate:?}"))
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn slides(&self, layer: usize) -> bool {
        self.layer_types.as_ref().map_or(layer % 4 != 3, |types| types[layer] == LayerType::SlidingAttention)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .rename("model.embed_tokens.*", "model.embedding.*")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<GatedAttention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, Some(args.tie_word_embeddings));
    Decoder::new(w, NAMES, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        Ok(Block::new(
            attention(args, i, &w.pp("self_attn"))?,
            Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<GatedAttention> {
    let sizes = [args.num_attention_heads, args.num_key_value_heads, args.head_dim];
    let (rope, window) = if args.slides(layer) {
        (args.rope.sliding(10_000.0), Some(args.sliding_window))
    } else {
        (args.rope.full(), None)
    };
    let names = AttentionNames::fused("q_k_v_proj", "out_proj");
    let attention = Attention {
        rope: Some(Rope::new(rope.dims(args.head_dim, 1.0)?, &rope, 10_000.0)?),
        window,
        ..Attention::fused(w, names, Qkv::Joined, args.hidden_size, sizes)?
    };
    GatedAttention::new(w, attention, "g_proj", args.hidden_size, true, ops::sigmoid)
}
