//! Step 3.5: gated attention, sliding layers with heads of their own number, experts with a limit.

use serde::Deserialize;

use crate::array::Array;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, Decoder, FeedForward, GatedAttention, LayerType, Mixer, Mlp, Moe, MoeNames, Names,
    PerLayer, Routing, Scoring,
};
use crate::nn::activations::{Activation, silu};
use crate::nn::{Rope, RopeConfig, RopeScaling};
use crate::ops;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    vocab_size: i32,
    num_attention_heads: i32,
    num_attention_groups: i32,
    head_dim: i32,
    intermediate_size: i32,
    #[serde(default = "eps")]
    rms_norm_eps: f32,
    rope_theta: Option<PerLayer<f64>>,
    rope_scaling: Option<RopeScaling>,
    max_position_embeddings: Option<i32>,
    #[serde(default = "window")]
    sliding_window: i32,
    /// By default layers 0, 2, 4, ... slide.
    layer_types: Option<Vec<LayerType>>,
    /// The layers that `rope_scaling` is for; all by default.
    yarn_only_types: Option<Vec<LayerType>>,
    partial_rotary_factors: Option<Vec<f64>>,
    /// Of sliding layers.
    attention_other_setting: Option<Heads>,
    #[serde(default = "yes")]
    use_head_wise_attn_gate: bool,
    moe_num_experts: i32,
    moe_top_k: i32,
    moe_intermediate_size: i32,
    share_expert_dim: i32,
    /// Numbers of the layers with experts; all but the first by default.
    moe_layers_enum: Option<String>,
    moe_router_scaling_factor: Option<f32>,
    norm_expert_weight: Option<bool>,
    swiglu_limits: Option<Vec<Option<f32>>>,
    swiglu_limits_shared: Option<Vec<Option<f32>>>,
}

fn eps() -> f32 {
    1e-5
}

fn window() -> i32 {
    512
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Heads {
    num_attention_heads: i32,
    num_attention_groups: i32,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let layers = self.num_hidden_layers;
        let bases = self.rope_theta.as_ref().is_none_or(|bases| bases.covers(layers));
        let [full, sliding] = [false, true].map(|slides| self.heads(slides));
        let numbers = self.moe_layers_enum.as_ref().is_none_or(|text| numbers(text).is_some());
        Checks::new("step3p5")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("share_expert_dim", self.share_expert_dim)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window)
            .heads(full.num_attention_heads, full.num_attention_groups, Some(self.head_dim), self.hidden_size)
            .heads(
                sliding.num_attention_heads,
                sliding.num_attention_groups,
                Some(self.head_dim),
                self.hidden_size,
            )
            .routing(self.moe_num_experts, &self.routing())
            .layer_types(layers, self.layer_types.as_deref())
            .that(bases, || format!("`rope_theta` is a list shorter than {layers} layers"))
            .that(numbers, || format!("`moe_layers_enum` is {:?}", self.moe_layers_enum))
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn heads(&self, slides: bool) -> Heads {
        let (num_attention_heads, num_attention_groups) =
            (self.num_attention_heads, self.num_attention_groups);
        let own = self.attention_other_setting.filter(|_| slides);
        own.unwrap_or(Heads { num_attention_heads, num_attention_groups })
    }

    fn routing(&self) -> Routing {
        Routing {
            normalize: self.norm_expert_weight.unwrap_or(true),
            scale: self.moe_router_scaling_factor.unwrap_or(3.0),
            ..Routing::new(self.moe_top_k, Scoring::Sigmoid)
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        let listed = self.moe_layers_enum.as_ref().filter(|text| !text.is_empty());
        listed.and_then(|text| numbers(text)).map_or(layer > 0, |layers| layers.contains(&layer))
    }

    fn slides(&self, layer: usize) -> bool {
        self.layer_types
            .as_ref()
            .map_or(layer.is_multiple_of(2), |types| types[layer] == LayerType::SlidingAttention)
    }

    fn rope(&self, layer: usize) -> Result<Rope> {
        let of = self.layer_types.as_ref().map_or(LayerType::FullAttention, |types| types[layer]);
        let only = self.yarn_only_types.as_ref().filter(|types| !types.is_empty());
        let scaled = only.is_none_or(|types| types.contains(&of));
        let config = RopeConfig {
            rope_theta: self.rope_theta.as_ref().and_then(|bases| bases.get(layer)),
            rope_scaling: self.rope_scaling.clone().filter(|_| scaled),
            max_position_embeddings: self.max_position_embeddings,
            partial_rotary_factor: self.partial_rotary_factors.as_ref().and_then(|f| f.get(layer).copied()),
            ..RopeConfig::default()
        };
        Rope::new(config.dims(self.head_dim, 1.0)?, &config, 10_000.0)
    }
}

/// The numbers of a list with commas.
fn numbers(text: &str) -> Option<Vec<usize>> {
    let text = text.trim();
    if text.is_empty() { Some(Vec::new()) } else { text.split(',').map(|n| n.trim().parse().ok()).collect() }
}

/// The limit of a layer, if it has one.
fn limit(limits: Option<&Vec<Option<f32>>>, layer: usize) -> Option<f32> {
    limits?.get(layer).copied().flatten().filter(|&limit| limit > 0.0)
}

/// `silu(gate) x`, with `silu(gate)` at most `limit` and `x` between `-limit` and `limit`.
fn limited_swiglu(gate: &Array, x: &Array, limit: f32) -> Result<Array> {
    ops::minimum(&silu(gate)?, limit)? * ops::clip(x, -limit..=limit)?
}

/// How the names of a checkpoint become the model's. Published norms have `weight - 1`.
pub fn rules(args: &Args) -> Rules {
    // More than any model has of layers that predict the tokens after the next.
    let next = (0..8).map(|i| format!("model.layers.{}.*", args.num_hidden_layers + i));
    let published = Rules::new()
        .add("*norm.weight", 1.0)
        .rename("*.moe.gate.*", "*.mlp.gate.gate.*")
        .rename("*.moe.router_bias", "*.mlp.gate.router_bias")
        .rename("*.moe.*", "*.mlp.switch_mlp.*")
        .rename("model.layers.{}.share_expert.*", "model.layers.{}.mlp.share_expert.*");
    next.fold(Rules::new(), |rules, key| rules.drop(key, "predicts a token after the next"))
        .drop("*.mtp*", "predicts the tokens after the next")
        .when("model.layers.*.moe.*", published)
}

/// The model.
pub type Model = Decoder<Block<Box<dyn Mixer>, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layers = args.num_hidden_layers;
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], Some(false), norm, layers, |i, w| {
        Ok(Block::new(
            attention(args, i, &w.pp("self_attn"))?,
            feed_forward(args, i, &w.pp("mlp"))?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn Mixer>> {
    let (dims, head_dim, slides) = (args.hidden_size, args.head_dim, args.slides(layer));
    let Heads { num_attention_heads, num_attention_groups } = args.heads(slides);
    let norm = |name| Ok(Some(w.rms_norm(name, head_dim, args.rms_norm_eps)?.into()));
    let attention = Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(args.rope(layer)?),
        window: slides.then_some(args.sliding_window),
        ..Attention::new(w, dims, num_attention_heads, num_attention_groups, head_dim)?
    };
    if !args.use_head_wise_attn_gate {
        return Ok(Box::new(attention));
    }
    Ok(Box::new(GatedAttention::new(w, attention, "g_proj", dims, true, ops::sigmoid)?))
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    let shared = limit(args.swiglu_limits_shared.as_ref(), layer);
    let mlp = |w: &Weights, hidden| {
        let mlp = Mlp::new(w, dims, hidden, Activation::Silu)?;
        Ok(match shared {
            Some(limit) => mlp.with(move |gate, x| limited_swiglu(gate, x, limit)),
            None => mlp,
        })
    };
    if !args.has_experts(layer) {
        return Ok(Box::new(mlp(w, args.intermediate_size)?));
    }
    let names = MoeNames {
        gate: "gate.gate",
        correction: Some("gate.router_bias"),
        shared: "share_expert",
        ..MoeNames::PLAIN
    };
    let sizes = [args.moe_num_experts, args.moe_intermediate_size];
    let moe = Moe::new(w, names, args.routing(), dims, sizes)?;
    let experts = match limit(args.swiglu_limits.as_ref(), layer) {
        Some(limit) => moe.experts.with(move |gate, x| limited_swiglu(gate, x, limit)),
        None => moe.experts,
    };
    let shared = Some(mlp(&w.pp(names.shared), args.share_expert_dim)?);
    Ok(Box::new(Moe { experts, shared, ..moe }))
}
