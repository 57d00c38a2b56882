//! Gear: Gemma's layers, some of which mix positions by gated convolutions of keys and values.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, CausalConv, Decoder, LogitsScale, Mixer, Mlp, Names, Sandwich, Sizes, sandwich, unpadded,
};
use crate::nn::activations::Activation;
use crate::nn::{Linear, Norm, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    /// By default all layers see all positions.
    layer_types: Option<Vec<LayerType>>,
    #[serde(default = "gelu")]
    hidden_activation: Activation,
    query_pre_attn_scalar: Option<f32>,
    #[serde(default = "window")]
    sliding_window: i32,
    #[serde(rename = "conv_L_cache", default = "kernel")]
    conv_kernel: i32,
    #[serde(default = "local_base")]
    rope_local_base_freq: f64,
    final_logit_softcapping: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    #[serde(default)]
    use_bidirectional_attention: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    FullAttention,
    SlidingAttention,
    ConvMixer,
}

fn gelu() -> Activation {
    Activation::GeluTanh
}

fn window() -> i32 {
    512
}

fn kernel() -> i32 {
    3
}

fn local_base() -> f64 {
    10_000.0
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        self.sizes
            .checks("gear")
            .size("sliding_window", self.sliding_window)
            .size("conv_L_cache", self.conv_kernel)
            .layer_types(self.sizes.num_hidden_layers, self.layer_types.as_deref())
            .that(!self.use_bidirectional_attention, || "attention is bidirectional".to_owned())
            .eps("query_pre_attn_scalar", self.query_pre_attn_scalar.unwrap_or(1.0))
            .done()
    }

    fn layer_type(&self, layer: usize) -> LayerType {
        self.layer_types.as_ref().map_or(LayerType::FullAttention, |types| types[layer])
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    args.sizes
        .tied()
        .rules()
        .drop("*embed_scale", "computed from the config")
        .transpose("*_conv.weight [_, 1, _]", &[0, 2, 1])
}

/// The model.
pub type Model = Decoder<Sandwich<Box<dyn Mixer>, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.sizes.tied();
    let (dims, hidden) = (sizes.hidden_size, sizes.intermediate_size);
    let model = sizes.named_decoder(w, Names::LLAMA, Sizes::shifted_norm, |i, w| {
        let (name, mixer): (_, Box<dyn Mixer>) = match args.layer_type(i) {
            LayerType::ConvMixer => ("local_mixer", Box::new(GatedConv::new(args, &w.pp("local_mixer"))?)),
            _ => ("self_attn", Box::new(attention(args, i, &w.pp("self_attn"))?)),
        };
        let mlp = Mlp::new(&w.pp("mlp"), dims, hidden, args.hidden_activation)?;
        let norm = |name: &str| sizes.shifted_norm(w, name);
        Ok(Sandwich::new(mixer, mlp, sandwich::GEMMA, norm)?.mixed_by(name))
    })?;
    let logits =
        LogitsScale { cap: args.final_logit_softcapping.filter(|&cap| cap != 0.0), ..LogitsScale::default() };
    Ok(Decoder { embed_scale: Some((dims as f32).sqrt()), logits, ..model })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (sizes, head_dim) = (&args.sizes, args.sizes.head_dim());
    let norm = |name| Ok(Some(w.shifted_norm(name, head_dim, sizes.rms_norm_eps)?));
    let slides = args.layer_type(layer) == LayerType::SlidingAttention;
    let local = RopeConfig { rope_theta: Some(args.rope_local_base_freq), ..RopeConfig::default() };
    Ok(Attention {
        q_norm: norm("q_norm")?,
        k_norm: norm("k_norm")?,
        rope: Some(Rope::new(head_dim, if slides { &local } else { &args.rope }, 1e6)?),
        scale: args.query_pre_attn_scalar.unwrap_or(head_dim as f32).powf(-0.5),
        cap: args.attn_logit_softcapping.filter(|&cap| cap != 0.0),
        window: slides.then_some(args.sliding_window),
        ..sizes.attention(w)?
    })
}

/// `sigmoid(q conv(k)) conv(v)` of each feature, with the convolutions over the last positions.
#[derive(Debug)]
struct GatedConv {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Norm,
    k_norm: Norm,
    key_conv: CausalConv,
    value_conv: CausalConv,
    heads: i32,
    kv_heads: i32,
}

parameters!(GatedConv { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, key_conv, value_conv });

impl GatedConv {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, [heads, kv_heads, head_dim]) = (args.sizes.hidden_size, args.sizes.heads());
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let norm = |name| w.shifted_norm(name, head_dim, args.sizes.rms_norm_eps);
        Ok(Self {
            q_proj: w.linear("q_proj", dims, width)?,
            k_proj: w.linear("k_proj", dims, kv_width)?,
            v_proj: w.linear("v_proj", dims, kv_width)?,
            o_proj: w.linear("o_proj", width, dims)?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            key_conv: w.causal_conv("key_conv", kv_width, args.conv_kernel)?,
            value_conv: w.causal_conv("value_conv", kv_width, args.conv_kernel)?,
            heads,
            kv_heads,
        })
    }

    /// Key and value heads repeated for the query heads that share them.
    fn expand(&self, x: &Array) -> Result<Array> {
        let heads = ops::unflatten(x, -1, &[self.kv_heads, -1])?;
        ops::flatten(&ops::repeat(&heads, self.heads / self.kv_heads, -2)?, -2, -1)
    }
}

impl Mixer for GatedConv {
    fn forward(&self, x: &Array, _: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let x = unpadded(x, cache)?;
        let normed = |proj: &Linear, norm: &Norm, heads| {
            let heads = ops::unflatten(&proj.forward(&x)?, -1, &[heads, -1])?;
            ops::flatten(&norm.forward(&heads)?, -2, -1)
        };
        let queries = normed(&self.q_proj, &self.q_norm, self.heads)?;
        let keys = normed(&self.k_proj, &self.k_norm, self.kv_heads)?;
        let keys = self.key_conv.forward(&keys, cache, 0)?;
        let values = self.value_conv.forward(&self.v_proj.forward(&x)?, cache, 1)?;
        cache.advance(x.dim(1)?);
        let gate = ops::sigmoid(&(queries * self.expand(&keys)?)?)?;
        self.o_proj.forward(&(gate * self.expand(&values)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(2))
    }
}
