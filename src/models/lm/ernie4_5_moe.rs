//! ERNIE 4.5 with experts: softmax scores with a correction for the choice, some layers dense.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, Decoder, FeedForward, Mlp, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: Option<i32>,
    num_hidden_layers: usize,
    rms_norm_eps: f32,
    vocab_size: i32,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(alias = "num_experts")]
    moe_num_experts: i32,
    #[serde(alias = "num_experts_per_tok", default = "one")]
    moe_k: i32,
    moe_intermediate_size: Option<i32>,
    moe_num_shared_experts: Option<i32>,
    moe_layer_start_index: Option<Bounds>,
    moe_layer_end_index: Option<Bounds>,
    #[serde(default = "one")]
    moe_layer_interval: i32,
    #[serde(default)]
    moe_gate_act: Scoring,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn yes() -> bool {
    true
}

fn one() -> i32 {
    1
}

/// A layer, or one for text and one for images.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Bounds {
    One(i64),
    Each(Vec<i64>),
}

impl Bounds {
    fn all(&self) -> &[i64] {
        match self {
            Bounds::One(layer) => std::slice::from_ref(layer),
            Bounds::Each(layers) => layers,
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let interval = self.moe_layer_interval;
        Checks::new("ernie4_5_moe")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.expert_size())
            .size("moe_num_shared_experts", self.shared_size().unwrap_or(1))
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.kv_heads(), self.head_dim, self.hidden_size)
            .routing(self.moe_num_experts, &self.routing())
            .that(interval > 0, || format!("`moe_layer_interval` is {interval}"))
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn expert_size(&self) -> i32 {
        self.moe_intermediate_size.filter(|&size| size != 0).unwrap_or(self.intermediate_size)
    }

    fn shared_size(&self) -> Option<i32> {
        let count = self.moe_num_shared_experts.filter(|&count| count != 0)?;
        Some(count.saturating_mul(self.expert_size()))
    }

    fn routing(&self) -> Routing {
        Routing { normalize: true, ..Routing::new(self.moe_k, self.moe_gate_act) }
    }

    fn has_experts(&self, layer: usize) -> bool {
        let bound = |bounds: &Option<Bounds>| bounds.as_ref().map(Bounds::all).unwrap_or_default().to_vec();
        let start = bound(&self.moe_layer_start_index).into_iter().min().unwrap_or(0);
        // -1 stands for the last layer.
        let end = bound(&self.moe_layer_end_index).into_iter().max().filter(|&end| end != -1);
        let layer = layer as i64;
        (layer + 1) % i64::from(self.moe_layer_interval) == 0
            && layer >= start
            && end.is_none_or(|end| layer <= end)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new()
        .drop("*.mtp_*", "predicts the tokens after the next")
        .reshape("*.mlp.moe_statics.e_score_correction_bias", &[-1])
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp");
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
            attention(args, &w.pp("self_attn"))?,
            feed_forward(args, i, &w.pp("mlp"))?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.kv_heads(), args.head_dim());
    let rope = RopeConfig { rope_traditional: true, ..args.rope.clone() };
    Ok(Attention {
        rope: Some(Rope::new(head_dim, &rope, 500_000.0)?),
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.hidden_size;
    if !args.has_experts(layer) {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    // Checkpoints that mlx-lm has converted lack the correction.
    let correction = "moe_statics.e_score_correction_bias";
    let names = MoeNames { correction: w.contains(correction).then_some(correction), ..MoeNames::DEEPSEEK };
    let moe = Moe::new(w, names, args.routing(), dims, [args.moe_num_experts, args.expert_size()])?;
    Ok(Box::new(match args.shared_size() {
        Some(hidden) => moe.with_shared(w, dims, hidden)?,
        None => moe,
    }))
}
