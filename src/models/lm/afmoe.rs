//! AFMoE (Trinity): gated attention, norms on both sides of each branch, experts with a shared one; layers
//! that see all positions have none.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Decoder, ExpertCount, FeedForward, GatedAttention, Groups, LayerType, Moe, MoeNames, Routing,
    Sandwich, Scoring, Sizes,
};
use crate::nn::{Rope, RopeConfig};
use crate::ops;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    layer_types: Option<Vec<LayerType>>,
    /// Every so many layers one sees all positions, where there are no `layer_types`.
    global_attn_every_n_layers: Option<usize>,
    moe_intermediate_size: i32,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    num_shared_experts: Option<i32>,
    num_dense_layers: usize,
    route_norm: Option<bool>,
    route_scale: Option<f32>,
    score_func: Option<Scoring>,
    n_group: Option<i32>,
    topk_group: Option<i32>,
    sliding_window: Option<i32>,
    #[serde(default)]
    mup_enabled: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

const NORMS: [&str; 4] =
    ["input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"];

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let slides =
            self.layer_types.as_ref().is_none_or(|types| types.contains(&LayerType::SlidingAttention));
        self.sizes()
            .checks("afmoe")
            .size("moe_intermediate_size", self.moe_intermediate_size)
            .size("num_shared_experts", self.shared_size().unwrap_or(1))
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .that(self.sliding_window.is_some() || !slides, || "`sliding_window` is missing".to_owned())
            .routing(self.experts.get(), &self.routing())
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .done()
    }

    fn sizes(&self) -> Sizes {
        Sizes { head_dim: self.sizes.head_dim.or(Some(64)), ..self.sizes.clone() }
    }

    fn shared_size(&self) -> Option<i32> {
        let count = self.num_shared_experts.unwrap_or(1);
        (count > 0).then(|| count.saturating_mul(self.moe_intermediate_size))
    }

    fn routing(&self) -> Routing {
        Routing {
            groups: Groups::by_best_two(self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1)),
            normalize: self.route_norm.unwrap_or(true),
            scale: self.route_scale.unwrap_or(1.0),
            ..Routing::new(self.num_experts_per_tok, self.score_func.unwrap_or(Scoring::Sigmoid))
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules().stack_experts("*.mlp.experts", "*.mlp.experts")
}

/// The model.
pub type Model = Decoder<Sandwich<GatedAttention, Box<dyn FeedForward>>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.sizes();
    let model = sizes.decoder(w, |i, w| {
        let mixer = attention(args, sizes, i, &w.pp("self_attn"))?;
        Sandwich::new(mixer, feed_forward(args, i, &w.pp("mlp"))?, NORMS, |name| sizes.norm(w, name))
    })?;
    Ok(Decoder { embed_scale: args.mup_enabled.then(|| (sizes.hidden_size as f32).sqrt()), ..model })
}

fn attention(args: &Args, sizes: &Sizes, layer: usize, w: &Weights) -> Result<GatedAttention> {
    let slides = match &args.layer_types {
        Some(types) => types[layer] == LayerType::SlidingAttention,
        None => !(layer + 1).is_multiple_of(args.global_attn_every_n_layers.unwrap_or(4)),
    };
    let attention = Attention {
        q_norm: sizes.heads_norm(w, "q_norm", 1)?,
        k_norm: sizes.heads_norm(w, "k_norm", 1)?,
        rope: slides.then(|| Rope::new(sizes.head_dim(), &args.rope, 10_000.0)).transpose()?,
        window: args.sliding_window.filter(|_| slides),
        ..sizes.attention(w)?
    };
    GatedAttention::new(w, attention, "gate_proj", sizes.hidden_size, false, ops::sigmoid)
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.sizes.hidden_size;
    if layer < args.num_dense_layers {
        return Ok(Box::new(args.sizes.mlp(w)?));
    }
    let names = MoeNames {
        gate: "router.gate",
        correction: Some("expert_bias"),
        experts: "experts",
        shared: "shared_experts",
    };
    let moe = Moe::new(w, names, args.routing(), dims, [args.experts.get(), args.moe_intermediate_size])?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_size())?))
}
