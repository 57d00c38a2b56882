//! Ling 2.5 and 3 (Bailing, hybrid): linear attention with some layers of latent attention between, and
//! experts. In Ling 2.5 the linear attention is lightning attention, in Ling 3 Kimi delta attention, and
//! the latent attention has a gate: the weights say which.

use serde::Deserialize;

use super::kimi_linear::Experts;
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Block, BlockNames, Decoder, DeltaAttention, DeltaSizes, FeedForward, HybridBlock, LatentAttention,
    LatentConfig, LightningAttention, Mixer, Mlp, MlpType, Moe, MoeNames, Names, Routing, Scoring,
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
    num_hidden_layers: usize,
    vocab_size: i32,
    rms_norm_eps: f32,
    #[serde(flatten)]
    experts: Experts,
    score_function: Option<Scoring>,
    #[serde(default)]
    first_k_dense_replace: usize,
    mlp_layer_types: Option<Vec<MlpType>>,
    head_dim: Option<i32>,
    linear_head_dim: Option<i32>,
    linear_num_heads: Option<i32>,
    short_conv_kernel_size: Option<i32>,
    kda_lower_bound: Option<f32>,
    kda_safe_gate: Option<bool>,
    group_norm_size: Option<i32>,
    rope_interleave: Option<bool>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    latent: LatentConfig,
    #[serde(flatten)]
    rope: RopeConfig,
}

const NAMES: Names = Names { embed: "model.word_embeddings", ..Names::LLAMA };
const INPUTS: &[(&str, &str)] = &[("q_proj", "q_conv1d"), ("k_proj", "k_conv1d"), ("v_proj", "v_conv1d")];

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("bailing_hybrid")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("num_shared_experts", self.shared_size().max(1))
            .size("vocab_size", self.vocab_size)
            .latent(&self.latent)
            .delta(self.linear())
            .routing(self.experts.count.get(), &self.routing())
            .layer_types(self.num_hidden_layers, self.mlp_layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    /// Sizes of the linear attention.
    fn linear(&self) -> DeltaSizes {
        let heads = self.linear_num_heads.unwrap_or(self.latent.num_attention_heads);
        let head_dim = self.linear_head_dim.or(self.head_dim);
        DeltaSizes {
            heads,
            head_dim: head_dim.unwrap_or_else(|| self.hidden_size.checked_div(heads).unwrap_or(0)),
            kernel: self.short_conv_kernel_size.unwrap_or(4),
        }
    }

    fn shared_size(&self) -> i32 {
        self.experts
            .shared_size(self.moe_shared_expert_intermediate_size.unwrap_or(self.moe_intermediate_size))
    }

    fn routing(&self) -> Routing {
        self.experts.routing(self.score_function)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let next = format!("model.layers.{{#{}..}}.*", args.num_hidden_layers);
    let ling_2 = Rules::new().rename("*.mlp.gate.weight", "*.mlp.gate.gate_proj.weight");
    let rules = Rules::new()
        .drop(next, "predict further tokens, for speculation")
        .when("*.attention.query_key_value.weight", ling_2)
        .stack("*.mlp.experts.{#}.{}.{}", "*.mlp.switch_mlp.{}.{}")
        .transpose("*_conv1d.weight [_, 1, _]", &[0, 2, 1]);
    args.latent.split_rules(rules)
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    // A head that is there is used, whatever the config says.
    let (layers, tied) = (args.num_hidden_layers, (!args.tie_word_embeddings).then_some(false));
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
    let (dims, eps, sizes) = (args.hidden_size, args.rms_norm_eps, args.linear());
    if w.pp("kv_a_proj_with_mqa").contains("weight") {
        let gated = w.pp("g_proj").contains("weight");
        let rope = RopeConfig { rope_traditional: args.rope_interleave.unwrap_or(true), ..args.rope.clone() };
        let eps = if gated { 1e-6 } else { eps };
        let attention = LatentAttention::named(w, "dense", dims, &args.latent, eps, Some((&rope, 6e6)))?;
        let heads = args.latent.num_attention_heads;
        let gate = gated.then(|| w.linear("g_proj", dims, heads)).transpose()?;
        return Ok(Box::new(LatentAttention { gate, ..attention }));
    }
    if w.contains("A_log") {
        let bound = args.kda_safe_gate.unwrap_or(true).then(|| args.kda_lower_bound.unwrap_or(-5.0));
        return Ok(Box::new(DeltaAttention::new(w, INPUTS, dims, sizes, eps, bound)?));
    }
    let depth = layer as f64 / (args.num_hidden_layers.max(2) - 1) as f64;
    let turning = args.rope.dims(sizes.head_dim, 0.5)?;
    let rope = Rope::new(turning, &RopeConfig { rope_traditional: false, ..args.rope.clone() }, 6e6)?;
    let sizes = [dims, sizes.heads, sizes.head_dim];
    let groups = args.group_norm_size.unwrap_or(1);
    Ok(Box::new(LightningAttention::new(w, sizes, groups, rope, depth, eps)?))
}

fn mlp(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    let sparse = match &args.mlp_layer_types {
        Some(types) => types[layer] == MlpType::Sparse,
        None => layer >= args.first_k_dense_replace,
    };
    if !sparse {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let gate = if w.pp("gate.gate_proj").contains("weight") { "gate.gate_proj" } else { "gate" };
    let correction = w.pp("gate").contains("expert_bias").then_some("gate.expert_bias");
    let names = MoeNames { gate, correction, ..MoeNames::DEEPSEEK };
    let sizes = [args.experts.count.get(), args.moe_intermediate_size];
    let moe = Moe::new(w, names, args.routing(), dims, sizes)?;
    Ok(match args.shared_size() {
        0 => Box::new(moe),
        shared => Box::new(moe.with_shared(w, dims, shared)?),
    })
}
