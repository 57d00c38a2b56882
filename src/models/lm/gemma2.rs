//! Gemma 2: norms on both sides of each branch, scores and logits that a soft cap bends, and windows in
//! every other layer.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Decoder, LayerType, LogitsScale, Mlp, Names, Sandwich, sandwich, tied_by_default,
};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    base: Base,
    #[serde(default = "vocab_size")]
    vocab_size: i32,
    #[serde(default = "attention_cap")]
    attn_logit_softcapping: Option<f32>,
    #[serde(default = "logits_cap")]
    final_logit_softcapping: Option<f32>,
    tie_word_embeddings: Option<bool>,
}

fn vocab_size() -> i32 {
    256_000
}

fn attention_cap() -> Option<f32> {
    Some(50.0)
}

fn logits_cap() -> Option<f32> {
    Some(30.0)
}

/// What Gemma 3 has too.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Base {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    pub(super) head_dim: i32,
    pub(super) rms_norm_eps: f32,
    hidden_activation: Option<Activation>,
    query_pre_attn_scalar: f32,
    pub(super) sliding_window: Option<i32>,
    pub(super) layer_types: Option<Vec<LayerType>>,
    #[serde(flatten)]
    pub(super) rope: RopeConfig,
}

impl Default for Base {
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
            query_pre_attn_scalar: 256.0,
            sliding_window: Some(4096),
            layer_types: None,
            rope: RopeConfig::default(),
        }
    }
}

impl Base {
    /// What must hold; the config of `op` may have more to check.
    pub(super) fn checks(&self, op: &'static str, vocab_size: i32, caps: [Option<f32>; 2]) -> Checks {
        Checks::new(op)
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", vocab_size)
            .size("sliding_window", self.sliding_window.unwrap_or(1))
            .heads(self.num_attention_heads, self.num_key_value_heads, Some(self.head_dim), self.hidden_size)
            .layer_types(self.num_hidden_layers, self.layer_types.as_deref())
            .eps("rms_norm_eps", self.rms_norm_eps)
            .eps("query_pre_attn_scalar", self.query_pre_attn_scalar)
            .eps("attn_logit_softcapping", caps[0].unwrap_or(1.0))
            .eps("final_logit_softcapping", caps[1].unwrap_or(1.0))
    }

    /// Attention without positions.
    pub(super) fn attention(&self, w: &Weights) -> Result<Attention> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let attention = Attention::new(w, self.hidden_size, heads, kv_heads, self.head_dim)?;
        Ok(Attention { scale: self.query_pre_attn_scalar.powf(-0.5), ..attention })
    }

    /// The model, the attention of its layers by `attention`.
    pub(super) fn model(
        &self,
        w: &Weights,
        vocab_size: i32,
        tied: Option<bool>,
        cap: Option<f32>,
        attention: impl Fn(usize, &Weights) -> Result<Attention>,
    ) -> Result<Model> {
        let (dims, eps, layers) = (self.hidden_size, self.rms_norm_eps, self.num_hidden_layers);
        let act = self.hidden_activation.unwrap_or(Activation::GeluTanh);
        let norm = |name: &str| w.shifted_norm(name, dims, eps);
        let model = Decoder::new(w, Names::LLAMA, [vocab_size, dims], tied, norm, layers, |i, w| {
            let mlp = Mlp::new(&w.pp("mlp"), dims, self.intermediate_size, act)?;
            let norm = |name: &str| w.shifted_norm(name, dims, eps);
            Sandwich::new(attention(i, &w.pp("self_attn"))?, mlp, sandwich::GEMMA, norm)
        })?;
        let logits = LogitsScale { cap, ..LogitsScale::default() };
        Ok(Decoder { embed_scale: Some((dims as f32).sqrt()), logits, ..model })
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let caps = [self.attn_logit_softcapping, self.final_logit_softcapping];
        self.base.checks("gemma2", self.vocab_size, caps).done()
    }

    /// How many positions a layer sees; `None` for all.
    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.base.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => layer.is_multiple_of(2),
        };
        self.base.sliding_window.filter(|_| slides)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    rules.tied_head(tied_by_default(args.tie_word_embeddings))
}

/// The model.
pub type Model = Decoder<Sandwich<Attention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let rope = Rope::new(args.base.head_dim, &args.base.rope, 10_000.0)?;
    let tied = tied_by_default(args.tie_word_embeddings);
    args.base.model(w, args.vocab_size, tied, args.final_logit_softcapping, |i, w| {
        Ok(Attention {
            rope: Some(rope.clone()),
            cap: args.attn_logit_softcapping,
            window: args.window(i),
            keeps_all: true,
            ..args.base.attention(w)?
        })
    })
}
