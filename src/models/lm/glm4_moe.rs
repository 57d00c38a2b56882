//! DeepSeek MoE, and GLM-4.5, Solar Open and dots.llm1: its attention with experts chosen as in V3.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, Decoder, ExpertCount, FeedForward, Groups, LayerType, Mlp, Moe, MoeNames, Names,
    Routing, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    vocab_size: i32,
    hidden_size: i32,
    intermediate_size: i32,
    moe_intermediate_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    #[serde(flatten)]
    experts: ExpertCount,
    n_shared_experts: Option<i32>,
    num_experts_per_tok: i32,
    #[serde(default)]
    first_k_dense_replace: usize,
    #[serde(default = "every")]
    moe_layer_freq: usize,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    #[serde(default = "one")]
    routed_scaling_factor: f32,
    norm_topk_prob: Option<bool>,
    #[serde(default)]
    use_qk_norm: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn every() -> usize {
    1
}

fn one() -> f32 {
    1.0
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let shared = self.n_shared_experts.unwrap_or(1);
        Checks::new("glm4_moe")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("n_shared_experts", shared)
            .size("shared experts", self.moe_intermediate_size.saturating_mul(shared))
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .that(self.moe_layer_freq > 0, || "`moe_layer_freq` is 0".to_owned())
            .routing(self.experts.get(), &self.routing())
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn is_deepseek(&self) -> bool {
        self.model_type == "deepseek"
    }

    fn is_dots1(&self) -> bool {
        self.model_type == "dots1"
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn routing(&self) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1)),
            normalize: self.norm_topk_prob.unwrap_or(!self.is_dots1() && !self.is_deepseek()),
            scale: self.routed_scaling_factor,
            ..Routing::new(
                self.num_experts_per_tok,
                if self.is_deepseek() { Scoring::Softmax } else { Scoring::Sigmoid },
            )
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        layer >= self.first_k_dense_replace && layer.is_multiple_of(self.moe_layer_freq)
    }

    /// How many positions a layer sees; `None` for all.
    fn window(&self, layer: usize) -> Option<i32> {
        let types = self.layer_types.as_ref();
        self.sliding_window.filter(|_| types.is_some_and(|types| types[layer] == LayerType::SlidingAttention))
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let experts = if args.is_dots1() { "*.mlp.experts" } else { "*.mlp.switch_mlp" };
    let next = format!("model.layers.{}.*", args.num_hidden_layers);
    let rules = Rules::new()
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .drop(next, "predicts the token after the next")
        .stack_experts("*.mlp.experts", experts);
    if args.tie_word_embeddings { rules.drop("lm_head.*", "tied to the embeddings") } else { rules }
}

/// The model.
pub type Model = Decoder<Block<Attention, Box<dyn FeedForward>>>;

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

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    let normed = args.use_qk_norm || args.is_dots1();
    let norm = |name| {
        let norm = normed.then(|| w.rms_norm(name, head_dim, args.rms_norm_eps)).transpose()?;
        Ok(norm.map(Into::into))
    };
    let part = if args.model_type == "glm4_moe" { 0.5 } else { 1.0 };
    Ok(Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(Rope::new(args.rope.dims(head_dim, part)?, &args.rope, 10_000.0)?),
        window: args.window(layer),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.hidden_size, args.moe_intermediate_size);
    if !args.has_experts(layer) {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let names = MoeNames {
        correction: MoeNames::DEEPSEEK.correction.filter(|_| !args.is_deepseek()),
        experts: if args.is_dots1() { "experts" } else { "switch_mlp" },
        ..MoeNames::DEEPSEEK
    };
    let moe = Moe::new(w, names, args.routing(), dims, [args.experts.get(), hidden])?;
    Ok(Box::new(match args.n_shared_experts {
        Some(count) => moe.with_shared(w, dims, count * hidden)?,
        None => moe,
    }))
}
