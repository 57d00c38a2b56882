//! Ling (Bailing MoE): fused attention, experts chosen by softmax or as in DeepSeek V3.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, Block, BlockNames, Decoder, ExpertCount, FeedForward, Groups, Moe, MoeNames,
    Names, Routing, Scoring, Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    pub(super) sizes: Sizes,
    moe_intermediate_size: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    num_shared_experts: i32,
    norm_topk_prob: bool,
    num_experts_per_tok: i32,
    #[serde(default)]
    first_k_dense_replace: usize,
    #[serde(default)]
    norm_head: bool,
    #[serde(default)]
    use_qk_norm: bool,
    rotary_dim: Option<i32>,
    #[serde(default)]
    moe_router_enable_expert_bias: bool,
    routed_scaling_factor: Option<f32>,
    #[serde(default)]
    score_function: Scoring,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    moe_shared_expert_intermediate_size: Option<i32>,
    moe_router_enable_shared_expert: Option<bool>,
    #[serde(flatten)]
    pub(super) rope: RopeConfig,
}

/// Where a checkpoint has the parts of the model.
pub(super) const NAMES: Names = Names { embed: "model.word_embeddings", ..Names::LLAMA };

/// Of a layer.
pub(super) const BLOCK: BlockNames = BlockNames { mixer: "attention", ..BlockNames::LLAMA };

/// Of its attention.
pub(super) const ATTENTION: AttentionNames = AttentionNames {
    q_norm: "query_layernorm",
    k_norm: "key_layernorm",
    ..AttentionNames::fused("query_key_value", "dense")
};

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.checks("bailing_moe").done()
    }

    /// What must hold; the config of `op` may have more to check.
    pub(super) fn checks(&self, op: &'static str) -> Checks {
        self.sizes
            .checks(op)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("num_shared_experts", self.shared_size().unwrap_or(1))
            .routing(self.experts.get(), &self.routing())
    }

    fn shared_size(&self) -> Option<i32> {
        let size = self.moe_shared_expert_intermediate_size.filter(|&size| size != 0);
        let shared = self.num_shared_experts > 0 && self.moe_router_enable_shared_expert.unwrap_or(true);
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
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let next = format!("model.layers.{}.*", args.sizes.num_hidden_layers);
    let rules = args
        .sizes
        .rules()
        .drop(next, "predicts the token after the next")
        .rename("*.mlp.gate.weight", "*.mlp.gate.gate_proj.weight")
        .rename("*.mlp.gate.bias", "*.mlp.gate.gate_proj.bias")
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp");
    if args.norm_head && args.sizes.tie_word_embeddings != Some(true) {
        // A quantized head has been normed before.
        rules.normalize(&format!("lm_head.weight [_, {}]", args.sizes.hidden_size), 0)
    } else {
        rules
    }
}

/// The model.
pub type Model = Decoder<Block<Attention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    args.sizes.named_decoder(w, NAMES, Sizes::norm, |i, w| {
        let biased = args.moe_router_enable_expert_bias;
        let mlp = args.feed_forward(i, &w.pp(BLOCK.mlp), biased)?;
        args.sizes.named_block(w, BLOCK, attention(args, &w.pp(BLOCK.mixer))?, mlp)
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let norm = |name| if args.use_qk_norm { args.sizes.heads_norm(w, name, 1) } else { Ok(None) };
    let turning = args.rotary_dim.map_or_else(|| args.rope.dims(args.sizes.head_dim(), 1.0), Ok)?;
    Ok(Attention {
        q_norm: norm(ATTENTION.q_norm)?,
        k_norm: norm(ATTENTION.k_norm)?,
        rope: Some(Rope::new(turning, &args.rope, 10_000.0)?),
        ..args.sizes.joined_attention(w, ATTENTION)?
    })
}

impl Args {
    /// The feed-forward layer of a layer; if it has experts, `biased` says whether their choice is corrected.
    pub(super) fn feed_forward(
        &self,
        layer: usize,
        w: &Weights,
        biased: bool,
    ) -> Result<Box<dyn FeedForward>> {
        if layer < self.first_k_dense_replace {
            return Ok(Box::new(self.sizes.mlp(w)?));
        }
        let correction = biased.then_some("gate.expert_bias");
        let names = MoeNames { gate: "gate.gate_proj", correction, ..MoeNames::DEEPSEEK };
        let (dims, experts) = (self.sizes.hidden_size, [self.experts.get(), self.moe_intermediate_size]);
        let moe = Moe::new(w, names, self.routing(), dims, experts)?;
        Ok(Box::new(moe.with_shared(w, dims, self.shared_size())?))
    }
}
