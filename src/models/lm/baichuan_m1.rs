//! Baichuan M1: short convolutions of keys and values, layers with a window that may have other heads, and
//! a head of unit rows.

use serde::Deserialize;

use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{
    Attention, AttentionNames, Block, Decoder, Mixer, Mlp, Qkv, Sizes, attend, merge_heads, unpadded,
};
use crate::nn::{Module, Rope, RopeConfig, join};
use crate::ops;

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    #[serde(flatten)]
    sizes: Sizes,
    sliding_window: i32,
    sliding_window_layers: Vec<usize>,
    conv_window: i32,
    /// Of the layers with a window; by default as of the others.
    num_swa_attention_heads: Option<i32>,
    /// Of the layers with a window; by default as of the others.
    num_swa_key_value_heads: Option<i32>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let ([heads, kv_heads], taps) = (self.heads(true), self.conv_window);
        self.sizes
            .checks("baichuan_m1")
            .size("sliding_window", self.sliding_window)
            .heads(heads, kv_heads, None, self.sizes.hidden_size)
            .that(taps == 2, || format!("`conv_window` is {taps}: only 2 is supported"))
            .done()
    }

    /// Heads, and those of keys and values.
    fn heads(&self, slides: bool) -> [i32; 2] {
        let own = |count: Option<i32>| count.filter(|&count| slides && count != 0);
        [
            own(self.num_swa_attention_heads).unwrap_or(self.sizes.num_attention_heads),
            own(self.num_swa_key_value_heads).unwrap_or(self.sizes.kv_heads()),
        ]
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    match args.sizes.tie_word_embeddings {
        Some(true) => args.sizes.rules(),
        // Quantized rows are shorter, and normalized before.
        _ => args.sizes.rules().normalize(&format!("lm_head.weight [_, {}]", args.sizes.hidden_size), -1),
    }
}

/// The model.
pub type Model = Decoder<Block<ConvAttention, Mlp>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let sizes = &args.sizes;
    sizes.decoder(w, |i, w| sizes.block(w, attention(args, i, &w.pp("self_attn"))?, sizes.mlp(&w.pp("mlp"))?))
}

fn attention(args: &Args, layer: usize, w: &Weights) -> Result<ConvAttention> {
    let slides = args.sliding_window_layers.contains(&layer);
    let ([heads, kv_heads], dims) = (args.heads(slides), args.sizes.hidden_size);
    let (head_dim, names) = (dims / heads, AttentionNames::fused("W_pack", "o_proj"));
    let taps = |name| w.get_shaped(name, &[1, 1, kv_heads, 1, args.conv_window]);
    Ok(ConvAttention {
        conv_k: taps("conv_k")?,
        conv_v: taps("conv_v")?,
        attention: Attention {
            rope: Some(Rope::new(head_dim, &args.rope, 10_000.0)?),
            window: slides.then_some(args.sliding_window),
            ..Attention::fused(w, names, Qkv::Joined, dims, [heads, kv_heads, head_dim])?
        },
    })
}

/// Attention to keys and values that are sums of those of a position and of the one before, with weights
/// for each head: `[1, 1, kv_heads, 1, 2]`.
#[derive(Debug)]
pub struct ConvAttention {
    attention: Attention,
    conv_k: Array,
    conv_v: Array,
}

/// `weights[0] x[t - 1] + weights[1] x[t]` of `x`, `[batch, kv_heads, length, dims]`, continuing state
/// number `slot` of the cache, which has the last position.
fn convolve(x: &Array, weights: &Array, cache: &mut LayerCache, slot: usize) -> Result<Array> {
    let &[batch, heads, length, dims] = x.shape() else {
        let (lhs, rhs) = (x.shape().to_vec(), weights.shape().to_vec());
        return Err(crate::Error::Shape { op: "convolve", lhs, rhs });
    };
    let before = match cache.state(slot) {
        Some(state) => state.clone(),
        None => ops::zeros(&[batch, heads, 1, dims], x.dtype())?,
    };
    let all = ops::concatenate([&before, x], 2)?;
    cache.set_state(slot, all.index((.., .., length.., ..))?)?;
    let [first, second] = ops::exactly(ops::split(&ops::reshape(weights, &[heads, 2, 1])?, 2, 1)?)?;
    (all.index((.., .., ..length, ..))? * first)? + (x * second)?
}

impl Mixer for ConvAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let Self { attention, conv_k, conv_v } = self;
        let states = cache.part(0)?;
        // The projection has no bias, so padding has keys and values of zeros.
        let [queries, keys, values] = attention.project(&unpadded(x, states)?)?;
        let keys = convolve(&keys, conv_k, states, 0)?;
        let values = convolve(&values, conv_v, states, 1)?;
        states.advance(x.dim(1)?);
        let cache = cache.part(1)?;
        let mask = masks.of(cache, attention.window)?;
        let (queries, keys) = (attention.turn(&queries, cache)?, attention.turn(&keys, cache)?);
        let out = attend(&queries, &cache.update(&keys, &values)?, attention.scale, &mask, None)?;
        attention.o_proj.forward(&merge_heads(&out)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::List(vec![LayerCache::states(2), LayerCache::window(self.attention.window)]))
    }
}

impl Module for ConvAttention {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.attention.visit(path, f);
        self.conv_k.visit(&join(path, "conv_k"), f);
        self.conv_v.visit(&join(path, "conv_v"), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.attention.visit_mut(path, f);
        self.conv_k.visit_mut(&join(path, "conv_k"), f);
        self.conv_v.visit_mut(&join(path, "conv_v"), f);
    }
}
