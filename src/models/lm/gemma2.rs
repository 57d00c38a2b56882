//! Gemma 2: norms on both sides of each branch, scores and logits that a soft cap bends, and windows in
//! every other layer.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{Attention, Decoder, LayerType, LogitsScale, Mlp, Names, Sandwich, sandwich};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    rms_norm_eps: f32,
    hidden_activation: Option<Activation>,
    vocab_size: i32,
    query_pre_attn_scalar: f32,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    sliding_window: Option<i32>,
    layer_types: Option<Vec<LayerType>>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 2304,
            num_hidden_layers: 26,
            intermediate_size: 9216,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            rms_norm_eps: 1e-6,
            hidden_activation: None,
            vocab_size: 256_000,
            query_pre_attn_scalar: 256.0,
            attn_logit_softcapping: Some(50.0),
            final_logit_softcapping: Some(30.0),
            sliding_window: Some(4096),
            layer_types: None,
            rope: RopeConfig::default(),
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        Checks::new("gemma2")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.num_key_value_heads, Some(self.head_dim), self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .eps("query_pre_attn_scalar", self.query_pre_attn_scalar)
            .eps("attn_logit_softcapping", self.attn_logit_softcapping.unwrap_or(1.0))
            .eps("final_logit_softcapping", self.final_logit_softcapping.unwrap_or(1.0))
            .done()
    }

    /// How many positions a layer sees; `None` for all.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => layer.is_multiple_of(2),
        };
        self.sliding_window.filter(|_| slides)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(_: &Args) -> Rules {
    Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config").tied_head(true)
}

/// The model.
pub type Model = Decoder<Sandwich<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let act = args.hidden_activation.unwrap_or(Activation::GeluTanh);
    let norm = |name: &str| w.shifted_norm(name, dims, eps);
    let layers = args.num_hidden_layers;
    let model = Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], Some(true), norm, layers, |i, w| {
        let mlp = Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, act)?;
        let norm = |name: &str| w.shifted_norm(name, dims, eps);
        Sandwich::new(attention(args, i, &w.pp("self_attn"))?, mlp, sandwich::GEMMA, norm)
    })?;
    let logits = LogitsScale { cap: args.final_logit_softcapping, ..LogitsScale::default() };
    Ok(Decoder { embed_scale: Some((dims as f32).sqrt()), logits, ..model })
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<Attention> {
    let (heads, kv_heads, head_dim) = (args.num_attention_heads, args.num_key_value_heads, args.head_dim);
    Ok(Attention {
        rope: Some(Rope::new(head_dim, &args.rope, 10_000.0)?),
        scale: args.query_pre_attn_scalar.powf(-0.5),
        cap: args.attn_logit_softcapping,
        window: args.window(layer),
        keeps_all: true,
        ..Attention::new(w, args.hidden_size, heads, kv_heads, head_dim)?
    })
}
