//! Klear: each token says how much the experts and the shared layer count.

use serde::Deserialize;

use crate::array::{Array, Index::Ellipsis};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Block, Decoder, ExpertCount, FeedForward, Mlp, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Linear, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    decoder_sparse_step: usize,
    n_shared_experts: i32,
    moe_intermediate_size: i32,
    rms_norm_eps: f32,
    vocab_size: i32,
    norm_topk_prob: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let step = self.decoder_sparse_step;
        Checks::new("Klear")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("n_shared_experts", self.moe_intermediate_size.saturating_mul(self.n_shared_experts))
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, None, self.hidden_size)
            .routing(self.experts.get(), &self.routing())
            .that(step > 0, || format!("`decoder_sparse_step` is {step}"))
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn routing(&self) -> Routing {
        let normalize = self.norm_topk_prob;
        Routing { normalize, ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid) }
    }

    fn has_experts(&self, layer: usize) -> bool {
        !self.mlp_only_layers.contains(&layer) && (layer + 1).is_multiple_of(self.decoder_sparse_step)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new().stack_experts("*.mlp.experts", "*.mlp.experts")
}

/// The model.
pub type Model = Decoder<Block<Attention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layers = args.num_hidden_layers;
    Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], Some(false), norm, layers, |i, w| {
        Ok(Block::new(
            attention(args, &w.pp("self_attn"))?,
            feed_forward(args, i, &w.pp("mlp"))?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    let (dims, heads) = (args.hidden_size, args.num_attention_heads);
    let head_dim = dims / heads;
    let norm = |name| Ok(Some(w.rms_norm(name, head_dim, args.rms_norm_eps)?.into()));
    Ok(Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(Rope::new(head_dim, &args.rope, 10_000.0)?),
        ..Attention::new(w, dims, heads, args.num_key_value_heads, head_dim)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.hidden_size, args.moe_intermediate_size);
    if !args.has_experts(layer) {
        return Ok(Box::new(Mlp::new(w, dims, args.intermediate_size, Activation::Silu)?));
    }
    let names = MoeNames { correction: Some("expert_bias"), experts: "experts", ..MoeNames::PLAIN };
    let shared = args.n_shared_experts * hidden;
    Ok(Box::new(Mixed {
        routed: Moe::new(w, names, args.routing(), dims, [args.experts.get(), hidden])?,
        shared_experts: Mlp::new(&w.pp("shared_experts"), dims, shared, Activation::Silu)?,
        coefficient: w.linear("coefficient", dims, 2)?,
    }))
}

/// Experts and a shared layer, in shares that a softmax gives.
#[derive(Debug)]
struct Mixed {
    routed: Moe,
    shared_experts: Mlp,
    coefficient: Linear,
}

parameters!(Mixed { routed: "", shared_experts, coefficient });

impl FeedForward for Mixed {
    fn forward(&self, x: &Array) -> Result<Array> {
        let shares = ops::softmax(&self.coefficient.forward(x)?, -1, true)?;
        let routed = self.routed.forward(x)? * shares.index((Ellipsis, ..1))?;
        routed? + (self.shared_experts.forward(x)? * shares.index((Ellipsis, 1..))?)?
    }
}
