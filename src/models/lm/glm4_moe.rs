//! DeepSeek MoE, and GLM-4.5, Solar Open and dots.llm1: its attention with experts chosen as in V3.

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
    model_type: String,
    #[serde(flatten)]
    sizes: Sizes,
    moe_intermediate_size: i32,
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
        self.sizes
            .checks("glm4_moe")
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("n_shared_experts", self.shared_size().unwrap_or(1))
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .that(self.moe_layer_freq > 0, || "`moe_layer_freq` is 0".to_owned())
            .routing(self.experts.get(), &self.routing())
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .done()
    }

    fn is_deepseek(&self) -> bool {
        self.model_type == "deepseek"
    }

    fn is_dots1(&self) -> bool {
        self.model_type == "dots1"
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

    fn shared_size(&self) -> Option<i32> {
        let count = self.n_shared_experts.filter(|&count| count != 0)?;
        Some(self.moe_intermediate_size.saturating_mul(count))
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
    let next = format!("model.layers.{}.*", args.sizes.num_hidden_layers);
    let rules = args.sizes.rules();
    rules.drop(next, "predicts the token after the next").stack_experts("*.mlp.experts", experts)
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
    let normed = args.use_qk_norm || args.is_dots1();
    let norm = |name| if normed { args.sizes.heads_norm(w, name, 1) } else { Ok(None) };
    let part = if args.model_type == "glm4_moe" { 0.5 } else { 1.0 };
    Ok(Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(Rope::new(args.rope.dims(args.sizes.head_dim(), part)?, &args.rope, 10_000.0)?),
        window: args.window(layer),
        keeps_all: true,
        ..args.sizes.attention(w)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.sizes.hidden_size, args.moe_intermediate_size);
    if !args.has_experts(layer) {
        return Ok(Box::new(args.sizes.mlp(w)?));
    }
    let names = MoeNames {
        correction: MoeNames::DEEPSEEK.correction.filter(|_| !args.is_deepseek()),
        experts: if args.is_dots1() { "experts" } else { "switch_mlp" },
        ..MoeNames::DEEPSEEK
    };
    let moe = Moe::new(w, names, args.routing(), dims, [args.experts.get(), hidden])?;
    // With none of them, mlx-lm gives DeepSeek MoE one as wide as layers without experts.
    let full = args.n_shared_experts == Some(0)
        && w.pp(names.shared).tensors().any(|tensor| !tensor.shape.contains(&0));
    let hidden = args.shared_size().or(full.then_some(args.sizes.intermediate_size));
    Ok(Box::new(moe.with_shared(w, dims, hidden)?))
}
