//! Qwen3-Next: three layers of gated delta nets for each of gated attention, and experts.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    BlockNames, Decoder, FeedForward, GatedDeltaNet, GatedDeltaSizes, HybridBlock, Mixer, MixerType, Mlp,
    Moe, MoeNames, Names, QueryGatedAttention, Routing, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config. The defaults are those of Qwen3.5, whose language model is built in the same way.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(default)]
    model_type: String,
    hidden_size: i32,
    num_hidden_layers: usize,
    #[serde(default)]
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    linear_num_value_heads: i32,
    linear_num_key_heads: i32,
    linear_key_head_dim: i32,
    linear_value_head_dim: i32,
    linear_conv_kernel_dim: i32,
    #[serde(default)]
    num_experts: i32,
    #[serde(default)]
    num_experts_per_tok: i32,
    #[serde(default)]
    moe_intermediate_size: i32,
    #[serde(default)]
    shared_expert_intermediate_size: i32,
    #[serde(default = "one")]
    decoder_sparse_step: usize,
    mlp_only_layers: Option<Vec<usize>>,
    #[serde(default = "yes")]
    norm_topk_prob: bool,
    rms_norm_eps: f32,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    layer_types: Option<Vec<MixerType>>,
    #[serde(default = "four")]
    full_attention_interval: usize,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn one() -> usize {
    1
}

fn four() -> usize {
    4
}

fn yes() -> bool {
    true
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let checks = Checks::new("qwen3_next")
            .size("hidden_size", self.hidden_size)
            .size("vocab_size", self.vocab_size)
            .size("full_attention_interval", self.full_attention_interval.min(1 << 30) as i32)
            .size("decoder_sparse_step", self.decoder_sparse_step.min(1 << 30) as i32)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps);
        let checks = self.linear().check(checks);
        match self.num_experts {
            0 => checks.size("intermediate_size", self.intermediate_size).done(),
            experts => checks
                .routing(experts, &self.routing())
                .size("moe_intermediate_size", self.moe_intermediate_size)
                .size("shared_expert_intermediate_size", self.shared_expert_intermediate_size)
                .done(),
        }
    }

    fn linear(&self) -> GatedDeltaSizes {
        GatedDeltaSizes {
            key_heads: self.linear_num_key_heads,
            heads: self.linear_num_value_heads,
            key_dim: self.linear_key_head_dim,
            value_dim: self.linear_value_head_dim,
            kernel: self.linear_conv_kernel_dim,
        }
    }

    /// Qwen3.5 has experts in all layers, whose weights sum to 1, whatever its config says.
    fn is_qwen3_5(&self) -> bool {
        self.model_type.starts_with("qwen3_5")
    }

    fn routing(&self) -> Routing {
        let normalize = self.norm_topk_prob || self.is_qwen3_5();
        Routing { normalize, ..Routing::new(self.num_experts_per_tok, Scoring::Softmax) }
    }

    fn attends(&self, layer: usize) -> bool {
        match &self.layer_types {
            Some(types) => types[layer] == MixerType::Attention,
            None => (layer + 1).is_multiple_of(self.full_attention_interval),
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        let dense = self.mlp_only_layers.as_ref().is_some_and(|layers| layers.contains(&layer));
        let sparse = !dense && (layer + 1).is_multiple_of(self.decoder_sparse_step);
        self.num_experts > 0 && (sparse || self.is_qwen3_5())
    }
}

/// How the names of a checkpoint become the model's. The published ones keep `weight - 1` of most norms.
pub fn rules(args: &Args) -> Rules {
    let norms = ["*.input_layernorm", "*.post_attention_layernorm", "*model.norm", "*.q_norm", "*.k_norm"];
    let published =
        norms.iter().fold(Rules::new(), |rules, norm| rules.add(&format!("{norm}.weight [_]"), 1.0));
    Rules::new()
        .drop("*mtp.*", "predicts further tokens, which generation does not use")
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .when("*.conv1d.weight [_, 1, _]", published.transpose("*.conv1d.weight [_, 1, _]", &[0, 2, 1]))
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp")
        .split(
            "*.experts.gate_up_proj",
            &["*.switch_mlp.gate_proj.weight", "*.switch_mlp.up_proj.weight"],
            -2,
            &[],
        )
        .rename("*.experts.down_proj", "*.switch_mlp.down_proj.weight")
        .tied_head(args.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let head_dim = args.head_dim.unwrap_or(dims / args.num_attention_heads);
    let rope = Rope::new(args.rope.dims(head_dim, 0.25)?, &args.rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |i, w: &Weights| {
        let (mixer, name): (Box<dyn Mixer>, _) = if args.attends(i) {
            let sizes = [args.num_attention_heads, args.num_key_value_heads, head_dim];
            let w = w.pp("self_attn");
            (Box::new(QueryGatedAttention::new(&w, dims, sizes, eps, rope.clone())?), "self_attn")
        } else {
            (Box::new(GatedDeltaNet::new(&w.pp("linear_attn"), dims, args.linear(), eps)?), "linear_attn")
        };
        let (norm1, norm2) =
            (w.rms_norm("input_layernorm", dims, eps)?, w.rms_norm("post_attention_layernorm", dims, eps)?);
        let block = HybridBlock::new(mixer, feed_forward(args, i, &w.pp("mlp"))?, norm1, norm2);
        Ok(HybridBlock { names: BlockNames { mixer: name, ..BlockNames::LLAMA }, ..block })
    };
    let sizes = [args.vocab_size, dims];
    Decoder::new(w, Names::LLAMA, sizes, args.tie_word_embeddings, norm, args.num_hidden_layers, layer)
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    if !args.has_experts(layer) {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let experts = [args.num_experts, args.moe_intermediate_size];
    let moe = Moe::new(w, MoeNames::PLAIN, args.routing(), dims, experts)?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_expert_intermediate_size)?))
}
