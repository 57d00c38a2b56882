//! Phi-3-small: layers that see blocks near them and some far ones, by turns with layers that see all
//! (Microsoft, "Phi-3 Technical Report", 2024).

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::cache::{Cache, LayerCache, Masks, Offset};
use crate::checkpoint::{Rules, Weights};
use crate::error::{Error, Result};
use crate::models::blocks::{
    Attention, AttentionNames, Block, Decoder, FeedForward, LogitsScale, Mixer, Names, Qkv, attend,
    merge_heads,
};
use crate::models::{Checks, LanguageModel};
use crate::nn::activations::clamped_swiglu;
use crate::nn::{Linear, Rope, RopeConfig, RopeScaling};
use crate::{cache::Mask, ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Args {
    hidden_size: i32,
    num_hidden_layers: usize,
    ff_intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    layer_norm_epsilon: f32,
    vocab_size: i32,
    gegelu_limit: f32,
    /// Every so many layers one sees all positions; none if it has no number.
    dense_attention_every_n_layers: Option<usize>,
    blocksparse_block_size: i32,
    blocksparse_num_local_blocks: i32,
    blocksparse_vert_stride: i32,
    blocksparse_homo_head_pattern: bool,
    mup_use_scaling: bool,
    mup_attn_multiplier: f32,
    mup_embedding_multiplier: f32,
    mup_width_multiplier: f32,
    rope_embedding_base: f64,
    rope_position_scale: f64,
    rope_scaling: Option<RopeScaling>,
    max_position_embeddings: i32,
    tie_word_embeddings: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hidden_size: 4096,
            num_hidden_layers: 32,
            ff_intermediate_size: 14_336,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            layer_norm_epsilon: 1e-5,
            vocab_size: 100_352,
            gegelu_limit: 20.0,
            dense_attention_every_n_layers: Some(2),
            blocksparse_block_size: 64,
            blocksparse_num_local_blocks: 16,
            blocksparse_vert_stride: 8,
            blocksparse_homo_head_pattern: false,
            mup_use_scaling: true,
            mup_attn_multiplier: 1.0,
            mup_embedding_multiplier: 10.0,
            mup_width_multiplier: 8.0,
            rope_embedding_base: 1e6,
            rope_position_scale: 1.0,
            rope_scaling: None,
            max_position_embeddings: 8192,
            tie_word_embeddings: true,
        }
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let scale = self.rope_position_scale;
        let factors = [self.mup_attn_multiplier, self.mup_embedding_multiplier, self.mup_width_multiplier];
        Checks::new("phi3small")
            .size("hidden_size", self.hidden_size)
            .size("ff_intermediate_size", self.ff_intermediate_size)
            .size("vocab_size", self.vocab_size)
            .size("max_position_embeddings", self.max_position_embeddings)
            .size("blocksparse_block_size", self.blocksparse_block_size)
            .size("blocksparse_num_local_blocks", self.blocksparse_num_local_blocks)
            .size("blocksparse_vert_stride", self.blocksparse_vert_stride)
            .heads(self.num_attention_heads, self.num_key_value_heads, None, self.hidden_size)
            .eps("layer_norm_epsilon", self.layer_norm_epsilon)
            .that(scale > 0.0 && scale.is_finite(), || format!("`rope_position_scale` is {scale}"))
            .that(self.gegelu_limit > 0.0, || format!("`gegelu_limit` is {}", self.gegelu_limit))
            .that(factors.iter().all(|f| f.is_finite()), || format!("the `mup` multipliers are {factors:?}"))
            .done()
    }

    fn sees_all(&self, layer: usize) -> bool {
        self.dense_attention_every_n_layers.is_some_and(|n| n > 0 && (layer + 1).is_multiple_of(n))
    }

    fn scale(&self, head_dim: i32) -> f32 {
        let head_dim = head_dim as f32;
        if self.mup_use_scaling { self.mup_attn_multiplier / head_dim } else { head_dim.powf(-0.5) }
    }

    fn rope(&self) -> RopeConfig {
        let scaling = self.rope_scaling.clone().map_or_else(
            || RopeScaling {
                r#type: Some("linear".into()),
                factor: Some(1.0 / self.rope_position_scale),
                ..RopeScaling::default()
            },
            |scaling| {
                let context = scaling.original_max_position_embeddings.unwrap_or(1.0);
                let growth = f64::from(self.max_position_embeddings) / context;
                let long = if growth <= 1.0 { 1.0 } else { (1.0 + growth.ln() / context.ln()).sqrt() };
                let given = |magnitude: Option<f64>| magnitude.filter(|&magnitude| magnitude > 0.0);
                RopeScaling {
                    short_mscale: Some(given(scaling.short_mscale).unwrap_or(1.0)),
                    long_mscale: Some(given(scaling.long_mscale).unwrap_or(long)),
                    ..scaling
                }
            },
        );
        RopeConfig { rope_scaling: Some(scaling), ..RopeConfig::default() }
    }

    fn pattern(&self) -> Pattern {
        let (heads, stride) = (self.num_attention_heads, self.blocksparse_vert_stride);
        let slide = if self.blocksparse_homo_head_pattern { 0 } else { (stride / heads).max(1) };
        Pattern {
            size: self.blocksparse_block_size,
            near: self.blocksparse_num_local_blocks,
            stride,
            heads,
            slide,
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    Rules::new().drop("*.rotary_emb.inv_freq", "computed from the config").tied_head(args.tie_word_embeddings)
}

/// Which blocks of positions a position sees: the last `near` ones, its own among them, and of those before
/// every one whose number fits the stride. Each head counts from another one on.
#[derive(Debug, Clone, Copy)]
struct Pattern {
    /// Positions of a block.
    size: i32,
    near: i32,
    stride: i32,
    heads: i32,
    /// By how many blocks a head is ahead of the one before.
    slide: i32,
}

impl Pattern {
    /// Which keys the next `length` positions see, `bool`, `[heads, length, keys]` or `[batch, heads, length,
    /// keys]`, of those that `mask` lets through; `mask` if that is all.
    fn limit(self, mask: Mask, cache: &LayerCache, length: i32) -> Result<Mask> {
        let count = cache.position() + length;
        if count <= self.near.saturating_mul(self.size) {
            return Ok(mask);
        }
        let first = match cache.offset() {
            Offset::All(_) => Offset::All(0),
            Offset::Each(offsets) => Offset::Each((offsets - cache.position())?),
        };
        let block = |offset: &Offset, count, axes: [i32; 2]| {
            let positions = ops::expand_dims(&offset.positions(count)?, axes)?;
            ops::floor_divide(&positions, Array::from(self.size))
        };
        let (queries, keys) = (block(&cache.offset(), length, [-3, -1])?, block(&first, count, [-3, -2])?);
        let heads = ((ops::arange(0, self.heads, 1, Dtype::Int32)? * self.slide)? + 1)?;
        let numbers = (&keys + ops::expand_dims(&heads, [1, 2])?)?;
        let far = ops::equal(&ops::remainder(&numbers, Array::from(self.stride))?, Array::from(0))?;
        let near = ops::less(&(queries - keys)?, Array::from(self.near))?;
        let sees = ops::logical_or(&near, &far)?;
        match mask.to_array(length, count)? {
            Some(mask) => ops::logical_and(&sees, &mask).map(Mask::Array),
            None => Ok(Mask::Array(sees)),
        }
    }
}

/// Attention to some blocks of positions, or to all.
#[derive(Debug)]
struct SparseAttention {
    attention: Attention,
    pattern: Option<Pattern>,
}

parameters!(SparseAttention { attention: "" });

impl Mixer for SparseAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let Some(pattern) = self.pattern else { return self.attention.forward(x, masks, cache) };
        let length = x.dim(1)?;
        let (mask, count) =
            (pattern.limit(masks.of(cache, None)?, cache, length)?, cache.position() + length);
        let (offset, expected) = (cache.offset(), masks.expected());
        let [queries, keys, values] = self.attention.project(x)?;
        let turn = |x: Array| match &self.attention.rope {
            Some(rope) => rope.forward_within(&x, &offset, expected),
            None => Ok(x),
        };
        let (queries, keys) = (turn(queries)?, turn(keys)?);
        let seen = cache.update(&keys, &values)?;
        if seen.quantized.is_none() && seen.keys.dim(2)? != count {
            return Err(Error::unsupported(
                "a cache that forgets",
                "the blocks of Phi-3-small need all positions",
            ));
        }
        let heads = attend(&queries, &seen, self.attention.scale, &mask, None)?;
        self.attention.o_proj.forward(&merge_heads(&heads)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        self.attention.make_cache()
    }
}

/// The feed-forward layer; gates and what they gate are neighbours.
#[derive(Debug)]
struct GegeluMlp {
    up_proj: Linear,
    down_proj: Linear,
    limit: f32,
}

parameters!(GegeluMlp { up_proj, down_proj });

impl FeedForward for GegeluMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let both = ops::unflatten(&self.up_proj.forward(x)?, -1, &[-1, 2])?;
        let [gate, up] = ops::exactly(ops::split(&both, 2, -1)?)?;
        let hidden = clamped_swiglu(&ops::squeeze(&gate, -1)?, &ops::squeeze(&up, -1)?, 1.702, self.limit)?;
        self.down_proj.forward(&hidden)
    }
}

/// The model. Its vocabulary has ids that stand for nothing.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder<Block<SparseAttention, GegeluMlp>>,
    /// `bool`, `[vocab_size]`: true for those ids.
    unused: Option<Array>,
}

parameters!(Model { decoder: "" });

impl LanguageModel for Model {
    fn embed(&self, tokens: &Array) -> Result<Array> {
        self.decoder.embed(tokens)
    }
    fn forward_embeddings(&self, embeddings: &Array, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let logits = self.decoder.forward_embeddings(embeddings, tokens, cache)?;
        let Some(unused) = &self.unused else { return Ok(logits) };
        ops::where_(unused, f64::NEG_INFINITY, &logits)
    }
    fn make_cache(&self) -> Cache {
        self.decoder.make_cache()
    }
    fn num_layers(&self) -> usize {
        self.decoder.num_layers()
    }
    fn vocab_size(&self) -> i32 {
        self.decoder.vocab_size()
    }
}

/// The ids of `cl100k_base` that Phi-3-small does not use, from this one on.
const FIRST_UNUSED: i32 = 100_256;

fn unused(vocab_size: i32) -> Result<Option<Array>> {
    if vocab_size <= FIRST_UNUSED {
        return Ok(None);
    }
    let ids = ops::arange(0, vocab_size, 1, Dtype::Int32)?;
    let mut unused = ops::logical_and(&ops::greater_equal(&ids, FIRST_UNUSED)?, &ops::less(&ids, 100_352)?)?;
    for used in [100_257, 100_261, 100_262, 100_263, 100_266] {
        unused = ops::logical_and(&unused, &ops::not_equal(&ids, used)?)?;
    }
    unused.eval()?;
    Ok(Some(unused))
}

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let (dims, eps, heads) = (args.hidden_size, args.layer_norm_epsilon, args.num_attention_heads);
    let head_dim = dims / heads;
    let rope = Rope::new(head_dim, &args.rope(), args.rope_embedding_base)?;
    let names = Names { norm: "model.final_layernorm", ..Names::LLAMA };
    let norm = |name: &str| Ok(w.layer_norm(name, dims, eps)?.into());
    let (sizes, tied) = ([args.vocab_size, dims], Some(args.tie_word_embeddings));
    let decoder = Decoder::new(w, names, sizes, tied, norm, args.num_hidden_layers, |i, w| {
        let (names, sizes) =
            (AttentionNames::fused("query_key_value", "dense"), [heads, args.num_key_value_heads, head_dim]);
        let attention = Attention {
            rope: Some(rope.clone()),
            scale: args.scale(head_dim),
            ..Attention::fused(&w.pp("self_attn"), names, Qkv::Grouped, dims, sizes)?
        };
        let pattern = (!args.sees_all(i)).then(|| args.pattern());
        let (at, hidden) = (w.pp("mlp"), args.ff_intermediate_size);
        let mlp = GegeluMlp {
            up_proj: at.linear("up_proj", dims, 2 * hidden)?,
            down_proj: at.linear("down_proj", hidden, dims)?,
            limit: args.gegelu_limit,
        };
        Ok(Block::new(
            SparseAttention { attention, pattern },
            mlp,
            w.layer_norm("input_layernorm", dims, eps)?,
            w.layer_norm("post_attention_layernorm", dims, eps)?,
        ))
    })?;
    let (embeddings, width) = (args.mup_embedding_multiplier, args.mup_width_multiplier);
    let decoder = Decoder {
        embed_scale: (embeddings > 0.0).then_some(embeddings),
        logits: LogitsScale { factor: (width != 0.0).then(|| 1.0 / width), cap: None },
        ..decoder
    };
    Ok(Model { decoder, unused: unused(args.vocab_size)? })
}
