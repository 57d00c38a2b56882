//! Nanbeige 4: Llama whose layers are gone through several times.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{Cache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, DecoderLayer, Mlp, Names};
use crate::models::{Checks, LanguageModel, stage};
use crate::nn::activations::Activation;
use crate::nn::{Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: Option<i32>,
    rms_norm_eps: f32,
    vocab_size: i32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    tie_word_embeddings: bool,
    num_loops: Option<usize>,
    /// One for each time but the first.
    loop_loss_weights: Option<Vec<f64>>,
    #[serde(default)]
    skip_loop_final_norm: bool,
    #[serde(default)]
    enable_double_loop_split: bool,
    #[serde(default)]
    loop_share_kv: bool,
    #[serde(default)]
    enable_depth_attention: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let unknown = self.enable_double_loop_split || self.loop_share_kv || self.enable_depth_attention;
        Checks::new("nanbeige")
            .size("hidden_size", self.hidden_size)
            .size("intermediate_size", self.intermediate_size)
            .size("vocab_size", self.vocab_size)
            .heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim, self.hidden_size)
            .eps("rms_norm_eps", self.rms_norm_eps)
            .that((1..=64).contains(&self.loops()), || format!("{} times through the layers", self.loops()))
            .that(!unknown, || {
                "`enable_double_loop_split`, `loop_share_kv` and `enable_depth_attention` are not supported"
                    .into()
            })
            .done()
    }

    fn loops(&self) -> usize {
        match self.loop_loss_weights.as_deref() {
            Some(weights) if !weights.is_empty() => weights.len() + 1,
            _ => self.num_loops.unwrap_or(1),
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let rules = Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config");
    if args.tie_word_embeddings { rules.drop("lm_head.*", "tied to the embeddings") } else { rules }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder<Block<Attention, Mlp>>,
    loops: usize,
    /// Whether only the last time ends with the norm.
    norm_last: bool,
}

parameters!(Model { decoder: "" });

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.rms_norm_eps, args.num_attention_heads);
    let head_dim = args.head_dim.unwrap_or(dims / heads);
    let rope = Rope::new(head_dim, &args.rope, 10_000.0)?;
    let norm = |name: &str| Ok(w.rms_norm(name, dims, eps)?.into());
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    let decoder = Decoder::new(w, Names::LLAMA, sizes, tied, norm, args.num_hidden_layers, |_, w| {
        let attention = Attention::new(&w.pp("self_attn"), dims, heads, args.num_key_value_heads, head_dim)?;
        Ok(Block::new(
            Attention { rope: Some(rope.clone()), ..attention },
            Mlp::new(&w.pp("mlp"), dims, args.intermediate_size, args.hidden_act)?,
            w.rms_norm("input_layernorm", dims, eps)?,
            w.rms_norm("post_attention_layernorm", dims, eps)?,
        ))
    })?;
    Ok(Model { decoder, loops: args.loops(), norm_last: args.skip_loop_final_norm })
}

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.decoder.embed(tokens)
    }

    fn forward_embeddings(&self, embeddings: &Array, _tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let layers = &self.decoder.layers;
        let mut h = embeddings.clone();
        let mut masks = Masks::new(h.dim(1)?);
        for (i, cache) in cache.layers_mut(self.loops * layers.len())?.iter_mut().enumerate() {
            let layer = i % layers.len();
            h = stage(format_args!("layers.{i}"), || layers[layer].forward(&h, &mut masks, cache))?;
            let last = i + 1 == self.loops * layers.len();
            if layer + 1 == layers.len() && (last || !self.norm_last) {
                h = stage("norm", || self.decoder.norm.forward(&h))?;
            }
        }
        self.decoder.head(&h)
    }

    /// Each time through the layers has its own memories.
    fn make_cache(&self) -> Cache {
        let layers = || self.decoder.layers.iter().filter_map(DecoderLayer::make_cache);
        Cache::new((0..self.loops).flat_map(|_| layers()))
    }

    fn num_layers(&self) -> usize {
        self.decoder.num_layers()
    }

    fn vocab_size(&self) -> i32 {
        self.decoder.vocab_size
    }
}
