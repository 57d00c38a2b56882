//! Ling 2 linear (Bailing MoE, linear): Ling with lightning attention in most layers.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, ExpertCount, FeedForward, Groups, HybridBlock,
    LightningAttention, Mixer, Mlp, Moe, MoeNames, Names, Qkv, Routing, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    moe_intermediate_size: i32,
    moe_shared_expert_intermediate_size: Option<i32>,
    moe_router_enable_shared_expert: Option<bool>,
    #[serde(flatten)]
    experts: ExpertCount,
    num_shared_experts: i32,
    num_experts_per_tok: i32,
    norm_topk_prob: bool,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    routed_scaling_factor: Option<f32>,
    #[serde(default)]
    score_function: Scoring,
    #[serde(default)]
    first_k_dense_replace: usize,
    layer_group_size: usize,
    group_norm_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    num_hidden_layers: usize,
    rms_norm_eps: f32,
    vocab_size: i32,
    #[serde(default)]
    norm_head: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

const NAMES: Names = Names { embed: "model.word_embeddings", ..Names::LLAMA };

const ATTENTION: AttentionNames = AttentionNames {
    q_norm: "query_layernorm",
    k_norm: "key_layernorm",
    ..AttentionNames::fused("query_key_value", "dense")
};

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("bailing_moe_linear")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("num_shared_experts", self.shared_size().unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, None, self.hidden_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .that(self.layer_group_size > 0, || "`layer_group_size` is 0".into())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn shared_size(&self) -> Option<i32> {
        let shared = self.num_shared_experts > 0 && self.moe_router_enable_shared_expert.unwrap_or(true);
        let size = self.moe_shared_expert_intermediate_size.filter(|&size| size != 0);
        shared.then(|| size.unwrap_or(self.moe_intermediate_size).saturating_mul(self.num_shared_experts))
    }

    fn routing(&self) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.n_group.unwrap_or(1), self.topk_group.unwrap_or(4)),
            normalize: self.norm_topk_prob && self.num_experts_per_tok > 1,
            scale: self.routed_scaling_factor.unwrap_or(1.0),
            ..Routing::new(self.num_experts_per_tok, self.score_function)
        }
    }

    /// Whether a layer has full attention: the last of each group, and those after the last whole one.
    fn is_global(&self, layer: usize) -> bool {
        let group = self.layer_group_size;
        (layer + 1).is_multiple_of(group) || layer >= self.num_hidden_layers / group * group
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new()
        .rename("*.mlp.gate.weight", "*.mlp.gate.gate_proj.weight")
        .rename("*.mlp.gate.bias", "*.mlp.gate.gate_proj.bias")
        .stack("*.mlp.experts.{#}.{}.{}", "*.mlp.switch_mlp.{}.{}");
    if args.tie_word_embeddings {
        rules.drop("lm_head.*", "tied to the embeddings")
    } else if args.norm_head {
        // A quantized head has been normed before.
        rules.normalize(&format!("lm_head.weight [_, {}]", args.hidden_size), 0)
    } else {
        rules
    }
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, Some(args.tie_word_embeddings));
    let names = BlockNames { mixer: "attention", ..BlockNames::LLAMA };
    Decoder::new(w, NAMES, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        let block = Block::new(
            mixer(args, i, &w.pp(names.mixer))?,
            mlp(args, i, &w.pp(names.mlp))?,
            w.rms_norm(names.norm1, dims, eps)?,
            w.rms_norm(names.norm2, dims, eps)?,
        );
        Ok(Block { names, ..block })
    })
}

fn mixer(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn Mixer>> {
    let (dims, heads, eps) = (args.hidden_size, args.num_attention_heads, args.rms_norm_eps);
    let head_dim = dims / heads;
    let rope = |head_dim: i32| Rope::new(args.rope.dims(head_dim, 1.0)?, &args.rope, 10_000.0);
    if !args.is_global(layer) {
        let depth = layer.saturating_sub(1) as f64 / (args.num_hidden_layers.max(2) - 1) as f64;
        let (sizes, rope) = ([dims, heads, head_dim], rope(head_dim)?);
        return Ok(Box::new(LightningAttention::new(w, sizes, args.group_norm_size, rope, depth, eps)?));
    }
    let head_dim = args.head_dim.unwrap_or(head_dim);
    let norm = |name: &str| {
        let norm = w.pp(name).contains("weight").then(|| w.rms_norm(name, head_dim, eps)).transpose()?;
        Ok(norm.map(Into::into))
    };
    Ok(Box::new(Attention {
        q_norm: norm(ATTENTION.q_norm)?,
        k_norm: norm(ATTENTION.k_norm)?,
        rope: Some(rope(head_dim)?),
        ..Attention::fused(w, ATTENTION, Qkv::Joined, dims, [heads, args.num_key_value_heads, head_dim])?
    }))
}

fn mlp(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    if layer < args.first_k_dense_replace {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let correction = w.pp("gate").contains("expert_bias").then_some("gate.expert_bias");
    let names = MoeNames { gate: "gate.gate_proj", correction, ..MoeNames::DEEPSEEK };
    let sizes = [args.experts.get(), args.moe_intermediate_size];
    let moe = Moe::new(w, names, args.routing(), dims, sizes)?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_size())?))
}
