//! PLaMo 3: norms on both sides of each branch, whose factors have their own offsets, and windows in all
//! but every so many-th layer.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, AttentionNames, Decoder, DecoderLayer, FeedForward, Mixer, Mlp, Names, Qkv,
};
use crate::models::{Checks, stage};
use crate::nn::activations::Activation;
use crate::nn::{RmsNorm, Rope, RopeConfig};
use crate::parameters;

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
    vocab_size: i32,
    tie_word_embeddings: bool,
    window_size: i32,
    sliding_window: Option<i32>,
    sliding_window_pattern: usize,
    rope_theta: f64,
    rope_local_theta: f64,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 4096,
            num_hidden_layers: 32,
            intermediate_size: 13_312,
            num_attention_heads: 32,
            num_key_value_heads: 4,
            head_dim: 128,
            rms_norm_eps: 1e-6,
            vocab_size: 32_000,
            tie_word_embeddings: true,
            window_size: 2048,
            sliding_window: None,
            sliding_window_pattern: 8,
            rope_theta: 1e6,
            rope_local_theta: 1e4,
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let head_dim = Some(self.head_dim);
        Checks::new("plamo3")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("window_size", self.window())
            .that(self.sliding_window_pattern > 0, || "`sliding_window_pattern` is 0".into())
            .heads(self.num_attention_heads, self.num_key_value_heads, head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .done()
    }

    fn window(&self) -> i32 {
        self.sliding_window.unwrap_or(self.window_size)
    }

    fn sees_all(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.sliding_window_pattern)
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().tied_head(args.tie_word_embeddings)
}

/// A layer with norms on both sides of each branch.
#[derive(Debug)]
pub struct Block<M> {
    mixer: M,
    mlp: Mlp,
    pre_mixer_norm: RmsNorm,
    post_mixer_norm: RmsNorm,
    pre_mlp_norm: RmsNorm,
    post_mlp_norm: RmsNorm,
    /// How many positions the memory has, where this is not the mixer's window.
    window: Option<i32>,
}

parameters!(<M: Mixer> Block<M> { mixer, mlp, pre_mixer_norm, post_mixer_norm, pre_mlp_norm, post_mlp_norm });

impl<M: Mixer> Block<M> {
    /// Reads a layer of `dims` features with `hidden` between the projections of its feed-forward layer.
    pub fn new(w: &Weights, mixer: M, [dims, hidden]: [i32; 2], eps: f32) -> Result<Self> {
        let norm = |name, offset| w.rms_norm(name, dims, eps).map(|norm| norm.shifted(offset));
        Ok(Self {
            mixer,
            mlp: Mlp::fused(&w.pp("mlp"), dims, hidden, Activation::Silu)?,
            pre_mixer_norm: norm("pre_mixer_norm", 1.0)?,
            post_mixer_norm: norm("post_mixer_norm", 0.2)?,
            pre_mlp_norm: norm("pre_mlp_norm", 1.0)?,
            post_mlp_norm: norm("post_mlp_norm", 5f32.powf(-1.5))?,
            window: None,
        })
    }
}

impl<M: Mixer> DecoderLayer for Block<M> {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let normed = self.pre_mixer_norm.forward(x)?;
        let mixed = stage("mixer", || self.mixer.forward(&normed, masks, cache))?;
        let h = (x + self.post_mixer_norm.forward(&mixed)?)?;
        let normed = self.pre_mlp_norm.forward(&h)?;
        let fed = stage("mlp", || self.mlp.forward(&normed))?;
        h + self.post_mlp_norm.forward(&fed)?
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.window.map_or_else(|| self.mixer.make_cache(), |_| Some(LayerCache::window(self.window)))
    }
}

/// The model.
pub type Model = Decoder<Block<Attention>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, head_dim) = (args.hidden_size, args.rms_norm_eps, args.head_dim);
    let names = Names { layers: "model.layers.layers", ..Names::LLAMA };
    let norm = |name: &str| w.shifted_norm(name, dims, eps);
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, |i, w| {
        let at = w.pp("mixer");
        let theta = if args.sees_all(i) { args.rope_theta } else { args.rope_local_theta };
        let window = Some(args.window()).filter(|_| !args.sees_all(i));
        let sizes = [args.num_attention_heads, args.num_key_value_heads, head_dim];
        let attention = AttentionNames::fused("qkv_proj", "o_proj");
        let mixer = Attention {
            q_norm: Some(at.shifted_norm("q_norm", head_dim, eps)?),
            k_norm: Some(at.shifted_norm("k_norm", head_dim, eps)?),
            rope: Some(Rope::new(head_dim, &RopeConfig::default(), theta)?),
            // Positions that come together see one more than the memory keeps.
            window: window.map(|window| window.saturating_add(1)),
            ..Attention::fused(&at, attention, Qkv::Joined, dims, sizes)?
        };
        Ok(Block { window, ..Block::new(w, mixer, [dims, args.intermediate_size], eps)? })
    })
}
