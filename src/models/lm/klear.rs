//! Klear: each token says how much the experts and the shared layer count.

use serde::Deserialize;

use crate::array::{Array, Index::Ellipsis};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, Decoder, ExpertCount, FeedForward, Mlp, Moe, MoeNames, Routing, Scoring, Sizes,
};
use crate::nn::activations::Activation;
use crate::nn::{Linear, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    decoder_sparse_step: usize,
    n_shared_experts: i32,
    moe_intermediate_size: i32,
    norm_topk_prob: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let step = self.decoder_sparse_step;
        self.sizes
            .checks("Klear")
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("n_shared_experts", self.moe_intermediate_size.saturating_mul(self.n_shared_experts))
            .routing(self.experts.get(), &self.routing())
            .that(step > 0, || format!("`decoder_sparse_step` is {step}"))
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
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules().stack_experts("*.mlp.experts", "*.mlp.experts")
}

/// The model.
pub type Model = Decoder<Block<Attention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    args.sizes.decoder(w, |i, w| {
        args.sizes.block(w, attention(args, &w.pp("self_attn"))?, feed_forward(args, i, &w.pp("mlp"))?)
    })
}

fn attention(args: &Args, w: &Weights) -> Result<Attention> {
    Ok(Attention {
        q_norm: args.sizes.heads_norm(w, "q_norm", 1)?,
        k_norm: args.sizes.heads_norm(w, "k_norm", 1)?,
        rope: Some(Rope::new(args.sizes.head_dim(), &args.rope, 10_000.0)?),
        ..args.sizes.attention(w)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.sizes.hidden_size, args.moe_intermediate_size);
    if !args.has_experts(layer) {
        return Ok(Box::new(args.sizes.mlp(w)?));
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
