//! GPT-OSS: experts with biases, attention sinks, every second layer with a window.

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, Decoder, ExpertCount, LayerType, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::nn::activations::clamped_swiglu;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    num_hidden_layers: usize,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    rms_norm_eps: f32,
    hidden_size: i32,
    intermediate_size: i32,
    head_dim: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    sliding_window: Option<i32>,
    /// By default layers 0, 2, 4, ... slide.
    layer_types: Option<Vec<LayerType>>,
    swiglu_alpha: f32,
    swiglu_limit: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            num_hidden_layers: 36,
            experts: ExpertCount::default(),
            num_experts_per_tok: 4,
            vocab_size: 201_088,
            tie_word_embeddings: None,
            rms_norm_eps: 1e-5,
            hidden_size: 2880,
            intermediate_size: 2880,
            head_dim: 64,
            num_attention_heads: 64,
            num_key_value_heads: 8,
            sliding_window: Some(128),
            layer_types: None,
            swiglu_alpha: 1.702,
            swiglu_limit: 7.0,
            rope: RopeConfig::default(),
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let head_dim = Some(self.head_dim);
        let slides =
            self.layer_types.as_ref().is_none_or(|types| types.contains(&LayerType::SlidingAttention));
        Checks::new("gpt_oss")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .that(self.sliding_window.is_some() || !slides, || "`sliding_window` is missing".to_owned())
            .heads(self.num_attention_heads, self.num_key_value_heads, head_dim, self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn routing(&self) -> Routing {
        Routing::new(self.num_experts_per_tok, Scoring::SoftmaxOfChosen)
    }

    fn slides(&self, layer: usize) -> bool {
        self.layer_types
            .as_ref()
            .map_or(layer.is_multiple_of(2), |types| types[layer] == LayerType::SlidingAttention)
    }
}

/// How the names of a checkpoint become the model's. Published experts have their gate and up projections
/// interleaved: in mxfp4, as blocks of 16 bytes with their scales, or dense, `[experts, in, out]`.
pub fn rules(args: &Args) -> Rules {
    let dealt = |rules: Rules, from: &str, to: &str, axis| {
        let [gate, up] = ["gate_proj", "up_proj"].map(|name| format!("*.experts.{name}.{to}"));
        rules.deal(&format!("*.experts.gate_up_proj{from}"), &[&gate, &up], axis)
    };
    let rules = Rules::new()
        .view("*.experts.*_blocks", Dtype::Uint32)
        .reshape("*.experts.*_blocks", &[0, 0, -1])
        .transpose("*.experts.gate_up_proj", &[0, 2, 1])
        .transpose("*.experts.down_proj", &[0, 2, 1])
        .rename("*.experts.down_proj", "*.experts.down_proj.weight")
        .rename("*.experts.down_proj_blocks", "*.experts.down_proj.weight")
        .rename("*.experts.down_proj_scales", "*.experts.down_proj.scales")
        .rename("*.experts.down_proj_bias", "*.experts.down_proj.bias");
    let parts = [("", "weight"), ("_blocks", "weight"), ("_scales", "scales"), ("_bias", "bias")];
    let rules = parts.into_iter().fold(rules, |rules, (from, to)| dealt(rules, from, to, 1));
    rules.tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Block<Attention, Moe>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layers = args.num_hidden_layers;
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], args.tie_word_embeddings, norm, layers, |i, w| {
        Ok(Block::new(
            attention(args, i, &w.pp("self_attn"))?,
            experts(args, &w.pp("mlp"))?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.num_key_value_heads, args.head_dim);
    Ok(Attention {
        sinks: Some(("sinks", w.get_shaped("sinks", &[heads])?)),
        rope: Some(Rope::new(head_dim, &args.rope, 150_000.0)?),
        window: args.sliding_window.filter(|_| args.slides(layer)),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}

fn experts(args: &Args, w: &Weights) -> Result<Moe> {
    let names = MoeNames { gate: "router", experts: "experts", ..MoeNames::PLAIN };
    let sizes = [args.experts.get(), args.intermediate_size];
    let moe = Moe::new(w, names, args.routing(), args.hidden_size, sizes)?;
    let (alpha, limit) = (args.swiglu_alpha, args.swiglu_limit);
    let act = move |gate: &Array, x: &Array| clamped_swiglu(gate, x, alpha, limit);
    Ok(Moe { experts: moe.experts.with(act), ..moe })
}
