//! Nanbeige 4: Llama whose layers are gone through several times.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{Cache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Attention, Block, Decoder, DecoderLayer, Mlp, Sizes};
use crate::models::{LanguageModel, stage};
use crate::nn::{Rope, RopeConfig};
use crate::parameters;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
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
        self.sizes
            .checks("nanbeige")
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
    args.sizes.rules()
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
    let sizes = &args.sizes;
    let rope = Rope::new(sizes.head_dim(), &args.rope, 10_000.0)?;
    let decoder = sizes.decoder(w, |_, w| {
        let attention = Attention { rope: Some(rope.clone()), ..sizes.attention(&w.pp("self_attn"))? };
        sizes.block(w, attention, sizes.mlp(&w.pp("mlp"))?)
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
