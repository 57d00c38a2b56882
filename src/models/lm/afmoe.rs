//! AFMoE (Trinity): gated attention, norms on both sides of each branch, experts with a shared one; layers
//! that see all positions have none.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Decoder, ExpertCount, FeedForward, GatedAttention, Groups, LayerType, Mlp, Moe, MoeNames,
    Names, Routing, Sandwich, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::ops;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    layer_types: Option<Vec<LayerType>>,
    /// Every so many layers one sees all positions, where there are no `layer_types`.
    global_attn_every_n_layers: Option<usize>,
    vocab_size: i32,
    hidden_size: i32,
    intermediate_size: i32,
    moe_intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    #[serde(default = "eps")]
    rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    num_shared_experts: Option<i32>,
    num_dense_layers: usize,
    route_norm: Option<bool>,
    route_scale: Option<f32>,
    score_func: Option<Scoring>,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    sliding_window: i32,
    #[serde(default)]
    mup_enabled: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn eps() -> f32 {
    1e-5
}

const NORMS: [&str; 4] =
    ["input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"];

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("afmoe")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("num_shared_experts", self.shared_size().unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window)
            .heads(self.num_attention_heads, self.kv_heads(), Some(self.head_dim()), self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(64)
    }

    fn shared_size(&self) -> Option<i32> {
        let count = self.num_shared_experts.unwrap_or(1);
        (count > 0).then(|| count.saturating_mul(self.moe_intermediate_size))
    }

    fn routing(&self) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1)),
            normalize: self.route_norm.unwrap_or(true),
            scale: self.route_scale.unwrap_or(1.0),
            ..Routing::new(self.num_experts_per_tok, self.score_func.unwrap_or(Scoring::Sigmoid))
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .stack_experts("*.mlp.experts", "*.mlp.experts")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Sandwich<GatedAttention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, Some(args.tie_word_embeddings));
    let model = Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        let mixer = attention(args, i, &w.pp("self_attn"))?;
        let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
        Sandwich::new(mixer, feed_forward(args, i, &w.pp("mlp"))?, NORMS, norm)
    })?;
    Ok(Decoder { embed_scale: args.mup_enabled.then(|| (dims as f32).sqrt()), ..model })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<GatedAttention> {
    let (dims, head_dim) = (args.hidden_size, args.head_dim());
    let norm = |name| Ok(Some(w.rms_norm(name, head_dim, args.rms_norm_eps)?.into()));
    let slides = match &args.layer_types {
        Some(types) => types[layer] == LayerType::SlidingAttention,
        None => !(layer + 1).is_multiple_of(args.global_attn_every_n_layers.unwrap_or(4)),
    };
    let attention = Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: slides.then(|| Rope::new(head_dim, &args.rope, 10_000.0)).transpose()?,
        window: slides.then_some(args.sliding_window),
        ..Attention::new(w, dims, args.num_attention_heads, args.kv_heads(), head_dim)?
    };
    GatedAttention::new(w, attention, "gate_proj", dims, false, ops::sigmoid)
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    if layer < args.num_dense_layers {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let names = MoeNames {
        gate: "router.gate",
        correction: Some("expert_bias"),
        experts: "experts",
        shared: "shared_experts",
    };
    let moe = Moe::new(w, names, args.routing(), dims, [args.experts.get(), args.moe_intermediate_size])?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_size())?))
}
