//! Kimi Linear (Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025): Kimi
//! delta attention with some layers of latent attention between, which has no positions, and experts.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Block, Decoder, DeltaAttention, DeltaSizes, ExpertCount, FeedForward, Groups, HybridBlock,
    LatentAttention, LatentConfig, Mixer, Mlp, MlpType, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::nn::activations::Activation;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    moe_intermediate_size: i32,
    num_hidden_layers: usize,
    vocab_size: i32,
    rms_norm_eps: f32,
    #[serde(flatten)]
    experts: Experts,
    moe_router_activation_func: Option<Scoring>,
    #[serde(default)]
    first_k_dense_replace: usize,
    moe_layer_freq: Option<usize>,
    mlp_layer_types: Option<Vec<MlpType>>,
    linear_attn_config: Option<Linear>,
    linear_head_dim: Option<i32>,
    linear_num_heads: Option<i32>,
    linear_conv_kernel_dim: Option<i32>,
    #[serde(default)]
    tie_word_embeddings: bool,
    q_lora_rank: Option<i32>,
    #[serde(flatten)]
    latent: LatentConfig,
}

/// How tokens get to experts, in the two spellings that configs have, sometimes both.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Experts {
    #[serde(flatten)]
    pub(super) count: ExpertCount,
    num_experts_per_token: Option<i32>,
    num_experts_per_tok: Option<i32>,
    num_shared_experts: Option<i32>,
    n_shared_experts: Option<i32>,
    num_expert_group: Option<i32>,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    moe_renormalize: Option<bool>,
    norm_topk_prob: Option<bool>,
    routed_scaling_factor: Option<f32>,
}

impl Experts {
    pub(super) fn routing(&self, scoring: Option<Scoring>) -> Routing {
        let groups = self.num_expert_group.or(self.n_group).unwrap_or(1);
        let top_k = self.num_experts_per_token.or(self.num_experts_per_tok).unwrap_or(1);
        Routing {
            groups: Groups::by_best_two(groups, self.topk_group.unwrap_or(1)),
            normalize: self.moe_renormalize.or(self.norm_topk_prob).unwrap_or(true),
            scale: self.routed_scaling_factor.unwrap_or(1.0),
            ..Routing::new(top_k, scoring.unwrap_or(Scoring::Sigmoid))
        }
    }

    /// Features of the layer for all tokens, if it has `size` for each of its experts; 0 for none.
    pub(super) fn shared_size(&self, size: i32) -> i32 {
        size.saturating_mul(self.num_shared_experts.or(self.n_shared_experts).unwrap_or(0))
    }
}

/// The sizes of the linear attention.
#[derive(Debug, Clone, Deserialize)]
struct Linear {
    num_heads: i32,
    head_dim: i32,
    short_conv_kernel_size: Option<i32>,
}

const INPUTS: &[(&str, &str)] =
    &[("q_proj", "q_conv.conv"), ("k_proj", "k_conv.conv"), ("v_proj", "v_conv.conv")];

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let checks = Checks::new("kimi_linear")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("num_shared_experts", self.shared_size().max(1))
            .size("vocab_size", self.vocab_size)
            .that(self.moe_layer_freq != Some(0), || "`moe_layer_freq` is 0".into())
            .latent(&self.latent())
            .delta(self.linear())
            .layer_types(self.num_hidden_layers, self.mlp_layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps);
        match self.experts.count.get() {
            0 => checks.done(),
            count => checks.routing(count, &self.routing()).done(),
        }
    }

    /// Sizes of the latent attention.
    fn latent(&self) -> LatentConfig {
        LatentConfig { q_lora_rank: self.q_lora_rank, ..self.latent }
    }

    /// Sizes of the linear attention.
    fn linear(&self) -> DeltaSizes {
        let of = self.linear_attn_config.as_ref();
        DeltaSizes {
            heads: of.map(|of| of.num_heads).or(self.linear_num_heads).unwrap_or(32),
            head_dim: of.map(|of| of.head_dim).or(self.linear_head_dim).unwrap_or(128),
            kernel: of.and_then(|of| of.short_conv_kernel_size).or(self.linear_conv_kernel_dim).unwrap_or(4),
        }
    }

    fn shared_size(&self) -> i32 {
        self.experts.shared_size(self.moe_intermediate_size)
    }

    fn routing(&self) -> Routing {
        self.experts.routing(self.moe_router_activation_func)
    }

    fn is_sparse(&self, layer: usize) -> bool {
        match &self.mlp_layer_types {
            Some(types) => types[layer] == MlpType::Sparse,
            None => {
                let frequent = layer.is_multiple_of(self.moe_layer_freq.unwrap_or(1));
                self.experts.count.get() > 0 && layer >= self.first_k_dense_replace && frequent
            }
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new()
        .drop("model.mtp*", "predict further tokens, for speculation")
        .rename("*.block_sparse_moe.gate.e_score_correction_bias", "*.mlp.e_score_correction_bias")
        .stack("*.block_sparse_moe.experts.{#}.w1.{}", "*.mlp.switch_mlp.gate_proj.{}")
        .stack("*.block_sparse_moe.experts.{#}.w2.{}", "*.mlp.switch_mlp.down_proj.{}")
        .stack("*.block_sparse_moe.experts.{#}.w3.{}", "*.mlp.switch_mlp.up_proj.{}")
        .rename("*.block_sparse_moe.*", "*.mlp.*")
        .transpose("*.{}_conv1d.weight [_, 1, _]", &[0, 2, 1])
        .rename("*.{}_conv1d.weight", "*.{}_conv.conv.weight")
        .reshape("*.dt_bias [_, _]", &[-1]);
    args.latent().split_rules(rules)
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, (!args.tie_word_embeddings).then_some(false));
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        Ok(Block::new(
            mixer(args, &w.pp("self_attn"))?,
            mlp(args, i, &w.pp("mlp"))?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn mixer(args: &Args, w: &Weights) -> Result<Box<dyn Mixer>> {
    let dims = args.hidden_size;
    Ok(if w.contains("A_log") {
        Box::new(DeltaAttention::new(w, INPUTS, dims, args.linear(), args.rms_norm_eps, None)?)
    } else {
        Box::new(LatentAttention::new(w, dims, &args.latent(), 1e-6, None)?)
    })
}

fn mlp(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    if !args.is_sparse(layer) {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let names = MoeNames { correction: Some("e_score_correction_bias"), ..MoeNames::DEEPSEEK };
    let sizes = [args.experts.count.get(), args.moe_intermediate_size];
    let moe = Moe::new(w, names, args.routing(), dims, sizes)?;
    Ok(match args.shared_size() {
        0 => Box::new(moe),
        shared => Box::new(moe.with_shared(w, dims, shared)?),
    })
}
