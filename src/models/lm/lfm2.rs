//! LFM2: short gated convolutions with a few layers of attention, with or without experts.

use serde::Deserialize;

use crate::array::{Array, Index::Ellipsis};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, AttentionNames, BlockNames, CausalConv, Decoder, FeedForward, HybridBlock, Mixer, MixerType,
    Mlp, MlpNames, Moe, MoeNames, Names, Routing, Scoring,
};
use crate::nn::activations::Activation;
use crate::nn::{Linear, Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    norm_eps: f32,
    #[serde(rename = "conv_L_cache")]
    kernel: i32,
    block_multiple_of: Option<i32>,
    block_ffn_dim_multiplier: Option<f64>,
    #[serde(default)]
    block_auto_adjust_ff_dim: bool,
    block_ff_dim: Option<i32>,
    intermediate_size: Option<i32>,
    moe_intermediate_size: Option<i32>,
    #[serde(default)]
    num_experts: i32,
    #[serde(default)]
    num_experts_per_tok: i32,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default)]
    use_expert_bias: bool,
    #[serde(default)]
    num_dense_layers: usize,
    #[serde(default = "one")]
    routed_scaling_factor: f32,
    full_attn_idxs: Option<Vec<usize>>,
    layer_types: Option<Vec<MixerType>>,
    vocab_size: i32,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn one() -> f32 {
    1.0
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let attends = self.full_attn_idxs.is_some() || self.layer_types.is_some();
        let checks = Checks::new("lfm2")
            .size("hidden_size", self.hidden_size)
            .size("vocab_size", self.vocab_size)
            .size("conv_L_cache", self.kernel)
            .size("intermediate_size", self.block_ff_dim.or(self.intermediate_size).unwrap_or(0))
            .size("block_multiple_of", self.block_multiple_of.unwrap_or(1))
            .size("the width of feed-forward layers", self.feed_forward_width())
            .heads(self.num_attention_heads, self.kv_heads(), None, self.hidden_size)
            .that(attends, || "neither `layer_types` nor `full_attn_idxs`".into())
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("norm_eps", self.norm_eps);
        match self.num_experts {
            0 => checks.done(),
            experts => {
                let width = self.moe_intermediate_size.unwrap_or(0);
                checks.routing(experts, &self.routing()).size("moe_intermediate_size", width).done()
            }
        }
    }

    fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The width of the dense feed-forward layers.
    fn feed_forward_width(&self) -> i32 {
        let width = self.block_ff_dim.or(self.intermediate_size).unwrap_or(0);
        if !self.block_auto_adjust_ff_dim || self.num_experts > 0 {
            return width;
        }
        let width = f64::from((f64::from(width) * 2.0 / 3.0) as i32);
        let width = (self.block_ffn_dim_multiplier.unwrap_or(1.0) * width) as i32;
        let multiple = self.block_multiple_of.unwrap_or(256).max(1);
        width.saturating_add(multiple - 1) / multiple * multiple
    }

    fn routing(&self) -> Routing {
        Routing {
            normalize: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
            ..Routing::new(self.num_experts_per_tok, Scoring::Sigmoid)
        }
    }

    fn attends(&self, layer: usize) -> bool {
        match (&self.layer_types, &self.full_attn_idxs) {
            (Some(types), _) => types[layer] == MixerType::Attention,
            (None, layers) => layers.as_ref().is_some_and(|layers| layers.contains(&layer)),
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().transpose("*.conv.conv.weight [_, 1, _]", &[0, 2, 1]);
    let rules = match args.num_experts {
        0 => rules,
        _ => rules
            .rename("*.w1.{}", "*.gate_proj.{}")
            .rename("*.w2.{}", "*.down_proj.{}")
            .rename("*.w3.{}", "*.up_proj.{}")
            .stack_experts("*.feed_forward.experts", "*.feed_forward.switch_mlp")
            .split(
                "*.experts.gate_up_proj",
                &["*.switch_mlp.gate_proj.weight", "*.switch_mlp.up_proj.weight"],
                -2,
                &[],
            )
            .rename("*.experts.down_proj", "*.switch_mlp.down_proj.weight"),
    };
    rules.tied_head(args.tie_word_embeddings)
}

/// A convolution between two gates (Hasani et al., "Liquid Foundation Models 2", 2025).
#[derive(Debug)]
pub struct ShortConv {
    in_proj: Linear,
    conv: CausalConv,
    out_proj: Linear,
    dims: i32,
}

parameters!(ShortConv { in_proj, conv, out_proj });

impl Mixer for ShortConv {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let all = self.in_proj.forward(x)?;
        let part = |i: i32| all.index((Ellipsis, i * self.dims..(i + 1) * self.dims));
        let mixed = self.conv.forward(&(part(0)? * part(2)?)?, cache, 0)?;
        cache.advance(x.dim(1)?);
        self.out_proj.forward(&(part(1)? * mixed)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(1))
    }
}

/// The model.
pub type Model = Decoder<HybridBlock>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.norm_eps, args.num_attention_heads);
    let head_dim = dims / heads;
    let rope = Rope::new(head_dim, &args.rope, 1_000_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let layer = |i, w: &Weights| {
        let (mixer, name): (Box<dyn Mixer>, _) = if args.attends(i) {
            let w = w.pp("self_attn");
            let names = AttentionNames {
                o: "out_proj",
                q_norm: "q_layernorm",
                k_norm: "k_layernorm",
                ..AttentionNames::LLAMA
            };
            let attention = Attention {
                q_norm: Some(w.rms_norm(names.q_norm, head_dim, eps)?.into()),
                k_norm: Some(w.rms_norm(names.k_norm, head_dim, eps)?.into()),
                rope: Some(rope.clone()),
                ..Attention::named(&w, names, dims, [heads, args.kv_heads(), head_dim])?
            };
            (Box::new(attention), "self_attn")
        } else {
            let w = w.pp("conv");
            let conv = ShortConv {
                in_proj: w.linear("in_proj", dims, 3 * dims)?,
                conv: w.causal_conv("conv", dims, args.kernel)?,
                out_proj: w.linear("out_proj", dims, dims)?,
                dims,
            };
            (Box::new(conv), "conv")
        };
        let names =
            BlockNames { mixer: name, mlp: "feed_forward", norm1: "operator_norm", norm2: "ffn_norm" };
        let (norm1, norm2) = (w.rms_norm(names.norm1, dims, eps)?, w.rms_norm(names.norm2, dims, eps)?);
        let mlp = feed_forward(args, i, &w.pp(names.mlp))?;
        Ok(HybridBlock { names, ..HybridBlock::new(mixer, mlp, norm1, norm2) })
    };
    let names = Names { norm: "model.embedding_norm", ..Names::LLAMA };
    let sizes = [args.vocab_size, dims];
    Decoder::new(w, names, sizes, args.tie_word_embeddings, norm, args.num_hidden_layers, layer)
}

fn feed_forward(args: &Args, layer: usize, w: &Weights) -> Result<Box<dyn FeedForward>> {
    let (dims, hidden) = (args.hidden_size, args.feed_forward_width());
    if args.num_experts == 0 {
        let names = MlpNames { gate: "w1", up: "w3", down: "w2" };
        return Ok(Box::new(Mlp::named(w, names, dims, hidden, Activation::Silu)?));
    }
    if layer < args.num_dense_layers {
        return Ok(Box::new(Mlp::new(w, dims, hidden, Activation::Silu)?));
    }
    let correction = args.use_expert_bias.then_some("expert_bias");
    let experts = [args.num_experts, args.moe_intermediate_size.unwrap_or(0)];
    Ok(Box::new(Moe::new(w, MoeNames { correction, ..MoeNames::PLAIN }, args.routing(), dims, experts)?))
}
