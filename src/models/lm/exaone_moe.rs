//! EXAONE MoE: experts chosen as in DeepSeek V3, sliding layers with positions and full ones without.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, Decoder, ExpertCount, FeedForward, Groups, LayerType, Moe, MoeNames, Routing, Scoring,
    Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    moe_intermediate_size: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    num_shared_experts: Option<i32>,
    sliding_window: Option<i32>,
    layer_types: Vec<LayerType>,
    is_moe_layer: Option<Vec<bool>>,
    /// Where `is_moe_layer` is missing.
    #[serde(default = "one")]
    first_k_dense_replace: usize,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    routed_scaling_factor: Option<f32>,
    norm_topk_prob: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn one() -> usize {
    1
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let (layers, shared) = (self.sizes.num_hidden_layers, self.num_shared_experts.unwrap_or(0));
        let moe_layers = self.is_moe_layer.as_ref().map_or(layers, Vec::len);
        self.sizes
            .checks("exaone_moe")
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("num_shared_experts", self.moe_intermediate_size.saturating_mul(shared.max(1)))
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .routing(self.experts.get(), &self.routing())
            .layer_types(layers, Some(&self.layer_types))
            .that(moe_layers == layers, || format!("{moe_layers} `is_moe_layer` for {layers} layers"))
            .done()
    }

    fn routing(&self) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1)),
            normalize: self.norm_topk_prob.unwrap_or(true),
            scale: self.routed_scaling_factor.unwrap_or(2.5),
            ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid)
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        self.is_moe_layer.as_ref().map_or(layer >= self.first_k_dense_replace, |layers| layers[layer])
    }

    /// How many positions a layer sees; `None` for all.
    fn window(&self, layer: usize) -> Option<i32> {
        self.sliding_window.filter(|_| self.layer_types[layer] == LayerType::SlidingAttention)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = args.sizes.rules();
    rules
        .drop("mtp.*", "predicts the tokens after the next")
        .rename("*.mlp.e_score_correction_bias", "*.mlp.gate.e_score_correction_bias")
        .stack_experts("*.mlp.experts", "*.mlp.switch_mlp")
}

/// The model.
pub type Model = Decoder<Block<Attention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    args.sizes.decoder(w, |i, w| {
        args.sizes.block(w, attention(args, i, &w.pp("self_attn"))?, feed_forward(args, i, &w.pp("mlp"))?)
    })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let window = args.window(layer);
    let placed = window.is_some() || !args.layer_types.contains(&LayerType::SlidingAttention);
    let rope = placed.then(|| Rope::new(args.sizes.head_dim(), &args.rope, 1e6)).transpose()?;
    Ok(Attention {
        q_norm: args.sizes.heads_norm(w, "q_norm", 1)?,
        k_norm: args.sizes.heads_norm(w, "k_norm", 1)?,
        rope,
        window,
        ..args.sizes.attention(w)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.sizes.hidden_size, args.moe_intermediate_size);
    if !args.has_experts(layer) {
        return Ok(Box::new(args.sizes.mlp(w)?));
    }
    let moe = Moe::new(w, MoeNames::DEEPSEEK, args.routing(), dims, [args.experts.get(), hidden])?;
    Ok(Box::new(match args.num_shared_experts.unwrap_or(0) {
        ..=0 => moe,
        count => moe.with_shared(w, dims, count * hidden)?,
    }))
}
