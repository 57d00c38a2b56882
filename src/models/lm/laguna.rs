//! Laguna: gated attention with as many heads as each layer has, experts with a shared one.

use serde::Deserialize;
use serde_json::Value;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, Decoder, ExpertCount, FeedForward, GatedAttention, LayerType, Mixer, Mlp, MlpType, Moe,
    MoeNames, Names, Routing, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::ops;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    vocab_size: i32,
    hidden_size: i32,
    intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    #[serde(default = "eps")]
    rms_norm_eps: f32,
    /// `false`, `true` or `per-head`, or `per-element`.
    gating: Option<Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    sliding_window: Option<i32>,
    layer_types: Option<Vec<LayerType>>,
    num_attention_heads_per_layer: Option<Vec<i32>>,
    mlp_layer_types: Option<Vec<MlpType>>,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    moe_intermediate_size: i32,
    shared_expert_intermediate_size: i32,
    moe_routed_scaling_factor: Option<f32>,
    moe_router_logit_softcapping: Option<f32>,
    moe_router_score_func: Option<Scoring>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn eps() -> f32 {
    1e-6
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let layers = self.num_hidden_layers;
        let heads = self.num_attention_heads_per_layer.as_ref().map_or(layers, Vec::len);
        let mlps = self.mlp_layer_types.as_ref().map_or(layers, Vec::len);
        let checks = Checks::new("laguna")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("shared_expert_intermediate_size", self.shared_expert_intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .routing(self.experts.get(), &self.routing())
            .layer_types(layers, self.layer_types.as_deref())
            .that(heads == layers, || format!("{heads} `num_attention_heads_per_layer` for {layers} layers"))
            .that(mlps == layers, || format!("{mlps} `mlp_layer_types` for {layers} layers"))
            .eps("rms_norm_eps", self.rms_norm_eps);
        let each = self.num_attention_heads_per_layer.iter().flatten();
        let heads = |checks: Checks, &heads: &i32| {
            checks.heads(heads, self.num_key_value_heads, Some(self.head_dim), self.hidden_size)
        };
        each.fold(heads(checks, &self.num_attention_heads), heads).done()
    }

    fn routing(&self) -> Routing {
        Routing {
            cap: self.moe_router_logit_softcapping.filter(|&cap| cap > 0.0),
            normalize: true,
            scale: self.moe_routed_scaling_factor.unwrap_or(1.0),
            ..Routing::new(self.num_experts_per_tok, self.moe_router_score_func.unwrap_or(Scoring::Sigmoid))
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        self.mlp_layer_types.as_ref().map_or(layer > 0, |types| types[layer] == MlpType::Sparse)
    }

    fn slides(&self, layer: usize) -> bool {
        self.layer_types.as_ref().is_some_and(|types| types[layer] == LayerType::SlidingAttention)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .rename("language_model.*", "*")
        .rename("*.mlp.gate.weight", "*.mlp.gate.proj.weight")
        .rename("*.mlp.experts.e_score_correction_bias", "*.mlp.gate.e_score_correction_bias")
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<Box<dyn Mixer>, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, Some(args.tie_word_embeddings));
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        Ok(Block::new(
            attention(args, i, &w.pp("self_attn"))?,
            feed_forward(args, i, &w.pp("mlp"))?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn Mixer>> {
    let (dims, kv_heads, head_dim) = (args.hidden_size, args.num_key_value_heads, args.head_dim);
    let heads =
        args.num_attention_heads_per_layer.as_ref().map_or(args.num_attention_heads, |all| all[layer]);
    let norm = |name| Ok(Some(w.rms_norm(name, head_dim, args.rms_norm_eps)?.into()));
    let partial_rotary_factor = args.rope.partial_rotary_factor;
    let (rope, window) = if args.slides(layer) {
        (RopeConfig { partial_rotary_factor, ..args.rope.sliding(10_000.0) }, args.sliding_window)
    } else {
        (args.rope.full(), None)
    };
    let attention = Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(Rope::new(rope.dims(head_dim, 1.0)?, &rope, 10_000.0)?),
        window,
        ..Attention::new(w, dims, heads, kv_heads, head_dim)?
    };
    let per_head = match &args.gating {
        Some(Value::Bool(false)) => return Ok(Box::new(attention)),
        Some(Value::String(gating)) => gating != "per-element",
        _ => true,
    };
    let act = |gate: &Array| ops::logaddexp(gate, 0);
    Ok(Box::new(GatedAttention::new(w, attention, "g_proj", dims, per_head, act)?))
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    if !args.has_experts(layer) {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let names = MoeNames { gate: "gate.proj", shared: "shared_expert", ..MoeNames::DEEPSEEK };
    let moe = Moe::new(w, names, args.routing(), dims, [args.experts.get(), args.moe_intermediate_size])?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_expert_intermediate_size)?))
}
