//! Muse Glimmer: gated attention whose queries and keys have norms without weights, layers with a window
//! and rotary positions between those that have neither.

use serde::Deserialize;

use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::models::blocks::{
    Attention, Decoder, GatedAttention, LayerType, LogitsScale, Mlp, Names, Sandwich, TextConfig, sandwich,
};
use crate::nn::activations::Activation;
use crate::nn::{Norm, Rope, RopeConfig};
use crate::ops;

/// The config.
pub type Args = TextConfig<Text>;

/// That of the language model.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Text {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    vocab_size: i32,
    rms_norm_eps: f32,
    /// Of the norms after the branches.
    post_norm_eps: f32,
    sliding_window: i32,
    qk_scale_factor: f32,
    hidden_activation: Activation,
    layer_types: Option<Vec<LayerType>>,
    /// 0 for a layer without rotary positions.
    layer_rope_theta: Option<Vec<f64>>,
    tie_word_embeddings: Option<bool>,
    final_logit_softcapping: f32,
    output_multiplier: f32,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            hidden_size: 6656,
            num_hidden_layers: 52,
            intermediate_size: 19968,
            num_attention_heads: 32,
            num_key_value_heads: 2,
            head_dim: 128,
            vocab_size: 202_048,
            rms_norm_eps: 1e-5,
            post_norm_eps: 1e-8,
            sliding_window: 2048,
            qk_scale_factor: 3.87,
            hidden_activation: Activation::Silu,
            layer_types: None,
            layer_rope_theta: None,
            tie_word_embeddings: None,
            final_logit_softcapping: 20.0,
            output_multiplier: 1.0 / 26f32.sqrt(),
            rope: RopeConfig::default(),
        }
    }
}

impl TextConfig<Text> {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let args = &self.0;
        let (scale, cap, factor) =
            (args.qk_scale_factor, args.final_logit_softcapping, args.output_multiplier);
        Checks::new("muse_glimmer")
            .size("hidden_size", args.hidden_size)
            .size("intermediate_size", args.intermediate_size)
            .size("vocab_size", args.vocab_size)
            .size("sliding_window", args.sliding_window)
            .size("head_dim", args.head_dim)
            .heads(args.num_attention_heads, args.num_key_value_heads, Some(args.head_dim), args.hidden_size)
            .that(scale.is_finite(), || format!("`qk_scale_factor` is {scale}"))
            .that(cap > 0.0 && cap.is_finite(), || format!("`final_logit_softcapping` is {cap}"))
            .that(factor.is_finite(), || format!("`output_multiplier` is {factor}"))
            .layer_types(args.num_hidden_layers, args.layer_types.as_deref())
            .layer_types(args.num_hidden_layers, args.layer_rope_theta.as_deref())
            .eps("rms_norm_eps", args.rms_norm_eps)
            .eps("post_norm_eps", args.post_norm_eps)
            .done()
    }
}

impl Text {
    /// By default every fourth layer, counted from the last one, sees all positions and turns by none.
    fn is_special(&self, layer: usize) -> bool {
        (self.num_hidden_layers - 1 - layer).is_multiple_of(4)
    }

    fn window(&self, layer: usize) -> Option<i32> {
        let slides = match &self.layer_types {
            Some(types) => types[layer] == LayerType::SlidingAttention,
            None => !self.is_special(layer),
        };
        slides.then_some(self.sliding_window)
    }

    fn has_rope(&self, layer: usize) -> bool {
        self.layer_rope_theta.as_ref().map_or(!self.is_special(layer), |thetas| thetas[layer] != 0.0)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let parts = ["vision_tower", "vision_adapter", "vision_projection"];
    let drop = |rules: Rules, part: &str| {
        let why = "not of the language model";
        rules.drop(format!("{part}.*"), why).drop(format!("model.{part}.*"), why)
    };
    let rules = parts.into_iter().fold(Rules::new(), drop);
    rules
        .rename("language_model.model.*", "model.*")
        .rename("language_model.lm_head.*", "lm_head.*")
        .rename("model.language_model.*", "model.*")
        .drop("*.rotary_emb.inv_freq", "computed from the config")
        .tied_head(args.0.tie_word_embeddings)
}

/// The model.
pub type Model = Decoder<Sandwich<GatedAttention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let args = &args.0;
    let (dims, eps) = (args.hidden_size, args.rms_norm_eps);
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (layers, tied) = (args.num_hidden_layers, args.tie_word_embeddings);
    let model = Decoder::new(w, Names::LLAMA, [args.vocab_size, dims], tied, norm, layers, |i, w| {
        let mixer = attention(args, i, &w.pp("self_attn"))?;
        let mlp = Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_activation)?;
        Sandwich::new(mixer, mlp, sandwich::GEMMA, |name| {
            w.shifted_norm(name, dims, if name.starts_with("post") { args.post_norm_eps } else { eps })
        })
    })?;
    let logits =
        LogitsScale { factor: Some(args.output_multiplier), cap: Some(args.final_logit_softcapping) };
    Ok(Decoder { embed_norm: Some(Norm::Plain { eps }), logits, ..model })
}

fn attention(args: &Text, layer: usize, w: &Weights) -> Result<GatedAttention> {
    let (dims, head_dim) = (args.hidden_size, args.head_dim);
    let norm = Some(Norm::Plain { eps: args.rms_norm_eps });
    let attention = Attention::new(w, dims, args.num_attention_heads, args.num_key_value_heads, head_dim)?;
    let attention = Attention {
        q_norm: norm.clone(),
        k_norm: norm,
        rope: args.has_rope(layer).then(|| Rope::new(head_dim, &args.rope, 500_000.0)).transpose()?,
        scale: attention.scale * args.qk_scale_factor,
        window: args.window(layer),
        ..attention
    };
    GatedAttention::new(w, attention, "gate_proj", dims, false, ops::sigmoid)
}
