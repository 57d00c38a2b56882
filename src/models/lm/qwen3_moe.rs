//! Qwen3 MoE: Qwen3 with experts. Qwen2 MoE has no norms of queries and keys, and a shared expert beside
//! the others. Mellum has sliding layers, OLMoE norms over all heads at once.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, Block, Decoder, ExpertCount, FeedForward, LayerType, MlpType, Moe, MoeNames, Routing, Scoring,
    Sizes,
};
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    experts: ExpertCount,
    num_experts_per_tok: i32,
    /// By default `intermediate_size`.
    moe_intermediate_size: Option<i32>,
    shared_expert_intermediate_size: Option<i32>,
    norm_topk_prob: Option<bool>,
    #[serde(default = "one")]
    decoder_sparse_step: usize,
    #[serde(default)]
    mlp_only_layers: Option<Vec<usize>>,
    mlp_layer_types: Option<Vec<MlpType>>,
    clip_qkv: Option<f32>,
    layer_types: Option<Vec<LayerType>>,
    sliding_window: Option<i32>,
    use_sliding_window: Option<bool>,
    #[serde(default = "max_window_layers")]
    max_window_layers: usize,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn one() -> usize {
    1
}

fn max_window_layers() -> usize {
    28
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let step = self.decoder_sparse_step;
        self.sizes
            .checks("qwen3_moe")
            .size("moe_intermediate_size", self.expert_size())
            .size("shared_expert_intermediate_size", self.shared_expert_intermediate_size.unwrap_or(1))
            .size("sliding_window", self.sliding_window().unwrap_or(1))
            .routing(self.experts.get(), &self.routing())
            .that(self.clip_qkv.is_none(), || "`clip_qkv` is not supported".to_owned())
            .layer_types(self.sizes.num_hidden_layers, self.mlp_layer_types.as_deref())
            .that(step > 0, || format!("`decoder_sparse_step` is {step}"))
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .done()
    }

    /// Features of the model.
    pub(super) fn dims(&self) -> i32 {
        self.sizes.hidden_size
    }

    /// Features of an expert.
    pub(super) fn expert_size(&self) -> i32 {
        self.moe_intermediate_size.unwrap_or(self.sizes.intermediate_size)
    }

    fn is(&self, family: &str) -> bool {
        self.model_type.starts_with(family)
    }

    fn routing(&self) -> Routing {
        let normalize = self.is("qwen3_vl") || self.norm_topk_prob.unwrap_or(self.is("mellum"));
        Routing { normalize, ..Routing::new(self.num_experts_per_tok, Scoring::Softmax) }
    }

    fn has_experts(&self, layer: usize) -> bool {
        if let Some(types) = &self.mlp_layer_types {
            return types[layer] == MlpType::Sparse;
        }
        let dense = self.mlp_only_layers.as_ref().is_some_and(|layers| layers.contains(&layer));
        !dense && (layer + 1).is_multiple_of(self.decoder_sparse_step)
    }

    fn sliding_window(&self) -> Option<i32> {
        self.sliding_window.filter(|_| self.use_sliding_window.unwrap_or(self.is("mellum")))
    }

    /// How many positions a layer sees; `None` for all. Without `layer_types`, all layers of Qwen3 slide,
    /// and every second of the first ones of Qwen2.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => self.is("qwen3") || (layer.is_multiple_of(2) && layer < self.max_window_layers),
        };
        self.sliding_window().filter(|_| slides)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes.rules().stack_experts("*.mlp.experts", "*.mlp.switch_mlp")
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
    let (sizes, all_heads) = (&args.sizes, args.is("olmoe"));
    let norm = |name, heads| match args.is("qwen2") {
        true => Ok(None),
        false => sizes.heads_norm(w, name, if all_heads { heads } else { 1 }),
    };
    let window = args.window(layer);
    let rope =
        if args.is("mellum") && window.is_some() { args.rope.sliding(10_000.0) } else { args.rope.full() };
    Ok(Attention {
        q_norm: norm("q_norm", sizes.num_attention_heads)?,
        k_norm: norm("k_norm", sizes.kv_heads())?,
        norms_all_heads: all_heads,
        rope: Some(Rope::new(sizes.head_dim(), &rope, 10_000.0)?),
        window,
        keeps_all: !args.is("mellum"),
        ..sizes.attention(w)?
    })
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let dims = args.sizes.hidden_size;
    if !args.has_experts(layer) {
        return Ok(Box::new(args.sizes.mlp(w)?));
    }
    let experts = [args.experts.get(), args.expert_size()];
    let moe = Moe::new(w, MoeNames::PLAIN, args.routing(), dims, experts)?;
    Ok(Box::new(moe.with_shared(w, dims, args.shared_expert_intermediate_size)?))
}
