//! Attention to a window and to compressed groups of positions that an indexer chooses (DeepSeek-V4.1).

mod compressor;
mod indexer;
mod rounding;

use serde::Deserialize;

use self::compressor::{Compressor, IndexKeys};
use self::indexer::Indexer;
use self::rounding::round_fp8;
use super::{attend, merge_heads, split_heads};
use crate::array::{Array, Dtype};
use crate::cache::{KeysValues, LayerCache, Mask, Masks, Offset};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::models::Checks;
use crate::nn::{Linear, MultiLinear, RmsNorm, Rope};
use crate::{ops, parameters};

/// The sizes of [`CompressedAttention`], as configs have them; DeepSeek's where one is missing.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct CompressedConfig {
    /// Heads.
    pub num_attention_heads: i32,
    /// Features of a head.
    pub head_dim: i32,
    /// Features that the queries are squeezed into.
    pub q_lora_rank: i32,
    /// The last features of a head, which have positions.
    pub qk_rope_head_dim: i32,
    /// Groups of heads that have a projection each.
    pub o_groups: i32,
    /// Features that each of these gives.
    pub o_lora_rank: i32,
    /// Positions of the window.
    pub sliding_window: i32,
    /// Positions of a compressed group, for each layer; 0 for a layer that sees its window alone.
    pub compress_ratios: Vec<i32>,
    /// Layers that compress; those after them see what the last one has made.
    pub kv_source_layer_ids: Vec<usize>,
    /// Layers that choose groups; those after them see what the last one has chosen.
    pub index_source_layer_ids: Vec<usize>,
    /// The layer that limits what those after it choose from.
    pub candidate_source_layer_id: i64,
    /// To so many blocks; 0 for no limit.
    pub candidate_topk_blocks: i32,
    /// Groups of a block.
    pub candidate_block_size: i32,
    /// Heads of an indexer.
    pub index_n_heads: i32,
    /// Features of such a head.
    pub index_head_dim: i32,
    /// Groups that an indexer chooses.
    pub index_topk: i32,
}

impl Default for CompressedConfig {
    fn default() -> Self {
        Self {
            num_attention_heads: 64,
            head_dim: 512,
            q_lora_rank: 1280,
            qk_rope_head_dim: 64,
            o_groups: 8,
            o_lora_rank: 1024,
            sliding_window: 128,
            compress_ratios: Vec::new(),
            kv_source_layer_ids: Vec::new(),
            index_source_layer_ids: Vec::new(),
            candidate_source_layer_id: -1,
            candidate_topk_blocks: 2048,
            candidate_block_size: 8,
            index_n_heads: 32,
            index_head_dim: 128,
            index_topk: 512,
        }
    }
}

impl CompressedConfig {
    /// Positions of a compressed group; 0 if the layer sees its window alone.
    pub fn ratio(&self, layer: usize) -> i32 {
        self.compress_ratios.get(layer).copied().unwrap_or(0)
    }
}

impl Checks {
    /// Sizes of [`CompressedAttention`] in a model of so many features.
    pub fn compressed(self, config: &CompressedConfig, hidden_size: i32) -> Self {
        let (heads, groups) = (config.num_attention_heads, config.o_groups);
        let (head_dim, turning) = (config.head_dim, config.qk_rope_head_dim);
        let index_width = i64::from(config.index_n_heads) * i64::from(config.index_head_dim);
        let compresses = |&layer: &usize| config.ratio(layer) > 0;
        let mut sources = config.kv_source_layer_ids.iter().chain(&config.index_source_layer_ids);
        self.size("q_lora_rank", config.q_lora_rank)
            .size("o_lora_rank", config.o_lora_rank)
            .size("o_groups", groups)
            .size("head_dim", head_dim)
            .size("sliding_window", config.sliding_window)
            .size("candidate_block_size", config.candidate_block_size)
            .size("index_n_heads", config.index_n_heads)
            .size("index_head_dim", config.index_head_dim)
            .size("index_topk", config.index_topk)
            .heads(heads, 1, Some(head_dim), hidden_size)
            .that(heads.checked_rem(groups) == Some(0), || format!("{heads} heads in {groups} groups"))
            .that((1..=1 << 28).contains(&index_width), || format!("an indexer {index_width} wide"))
            .that((1..=head_dim.min(config.index_head_dim)).contains(&turning), || {
                format!("`qk_rope_head_dim` is {turning}")
            })
            .that(config.compress_ratios.iter().all(|ratio| (0..=1 << 16).contains(ratio)), || {
                format!("`compress_ratios` are {:?}", config.compress_ratios)
            })
            .that(sources.all(compresses), || "a source of groups has none".into())
    }
}

/// What the attention of layers leaves for those after them.
#[derive(Debug, Default)]
pub struct SharedGroups {
    /// Compressed groups, `[batch, groups, head_dim]`.
    groups: Option<Array>,
    /// Their keys for indexers, `[batch, groups, index_head_dim]`.
    index: Option<Array>,
    /// Which of them may be chosen, `bool` `[batch, length, groups]`.
    candidates: Option<Array>,
    /// Which of them were, `bool` `[batch, length, groups]`, and for a single position the numbers of some,
    /// `[batch, count]`, that have all of these among them.
    chosen: Option<(Array, Option<Array>)>,
}

/// Attention to a window and to the groups that were chosen, with one key, which is the value too, for all
/// heads.
#[derive(Debug)]
pub struct CompressedAttention {
    q_a_proj: Linear,
    q_a_norm: RmsNorm,
    q_b_proj: Linear,
    kv_proj: Linear,
    kv_norm: RmsNorm,
    /// For each group of heads one.
    o_a_proj: MultiLinear,
    o_b_proj: Linear,
    sinks: Array,
    compressor: Option<Compressor>,
    indexer: Option<Indexer>,
    rope: LastDims,
    heads: i32,
    o_groups: i32,
    scale: f32,
    window: i32,
    /// Whether it sees groups.
    sees_groups: bool,
}

parameters!(CompressedAttention {
    q_a_proj,
    q_a_norm,
    q_b_proj,
    kv_proj,
    kv_norm,
    o_a_proj,
    o_b_proj,
    sinks,
    compressor,
    indexer
});

impl CompressedAttention {
    /// Reads what the layer of this number has, from `dims` features and back; `rope` turns `qk_rope_head_dim`
    /// features, `eps` is that of the norms.
    pub fn new(
        w: &Weights,
        dims: i32,
        config: &CompressedConfig,
        layer: usize,
        rope: Rope,
        eps: f32,
    ) -> Result<Self> {
        let (heads, head_dim) = (config.num_attention_heads, config.head_dim);
        let (rank, groups, inner) = (config.q_lora_rank, config.o_groups, config.o_lora_rank);
        let compresses = config.kv_source_layer_ids.contains(&layer);
        let rope = LastDims { rope, dims: config.qk_rope_head_dim };
        let compressor =
            || Compressor::new(&w.pp("compressor"), [dims, head_dim], config.ratio(layer), &rope, eps);
        let indexer = || {
            let w = w.pp("indexer");
            let keys = || IndexKeys::new(&w, [head_dim, config.index_head_dim], eps);
            Indexer::new(&w, dims, config, layer, compresses.then(keys).transpose()?, &rope)
        };
        Ok(Self {
            q_a_proj: w.linear("q_a_proj", dims, rank)?,
            q_a_norm: w.rms_norm("q_a_norm", rank, eps)?,
            q_b_proj: w.linear("q_b_proj", rank, heads * head_dim)?,
            kv_proj: w.linear("kv_proj", dims, head_dim)?,
            kv_norm: w.rms_norm("kv_norm", head_dim, eps)?,
            o_a_proj: w.multi_linear("o_a_proj", groups, heads * head_dim / groups, inner)?,
            o_b_proj: w.linear("o_b_proj", groups.saturating_mul(inner), dims)?,
            sinks: w.get_shaped("sinks", &[heads])?,
            compressor: compresses.then(compressor).transpose()?,
            indexer: config.index_source_layer_ids.contains(&layer).then(indexer).transpose()?,
            rope,
            heads,
            o_groups: groups,
            scale: (head_dim as f32).powf(-0.5),
            window: config.sliding_window,
            sees_groups: config.ratio(layer) > 0,
        })
    }

    /// An empty cache.
    pub fn make_cache(&self) -> LayerCache {
        let window = LayerCache::window(Some(self.window));
        if self.compressor.is_none() {
            window
        } else {
            LayerCache::List(vec![window, LayerCache::states(Compressor::STATES)])
        }
    }

    /// Of new positions, `[batch, length, dims]`, as is the output.
    pub fn forward(
        &self,
        x: &Array,
        shared: &mut SharedGroups,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<Array> {
        let (length, offset) = (x.dim(1)?, cache.offset());
        let squeezed = self.q_a_norm.forward(&self.q_a_proj.forward(x)?)?;
        let queries = split_heads(&self.q_b_proj.forward(&squeezed)?, self.heads)?;
        let queries = self.rope.forward(&queries, &offset)?;
        let own = ops::expand_dims(&self.kv_norm.forward(&self.kv_proj.forward(x)?)?, 1)?;
        let own = round_fp8(&self.rope.forward(&own, &offset)?)?;
        if let Some(compressor) = &self.compressor {
            let index_keys = self.indexer.as_ref().and_then(Indexer::keys);
            compressor.add(x, &offset, index_keys, shared, cache.part(1)?)?;
        }
        if let Some(indexer) = &self.indexer {
            indexer.choose(x, &squeezed, &offset, shared)?;
        }
        let window = if let LayerCache::List(_) = cache { cache.part(0)? } else { cache };
        let mask = masks.of(window, Some(self.window))?;
        let mut keys = window.update(&own, &own)?.keys;
        let mut mask = mask.to_array(length, keys.dim(2)?)?;
        if let (true, Some(groups), Some((sees, rows))) = (self.sees_groups, &shared.groups, &shared.chosen) {
            let (mut groups, mut sees) = (groups.clone(), sees.clone());
            if let Some(rows) = rows {
                groups = ops::take_along_axis(&groups, &ops::expand_dims(rows, -1)?, 1)?;
                sees = ops::take_along_axis(&sees, &ops::expand_dims(rows, 1)?, -1)?;
            }
            let shape = [x.dim(0)?, 1, length, keys.dim(2)?];
            let near = match mask {
                Some(mask) => ops::broadcast_to(&mask, &shape)?,
                None => ops::ones(&shape, Dtype::Bool)?,
            };
            mask = Some(ops::concatenate([&near, &ops::expand_dims(&sees, 1)?], -1)?);
            keys = ops::concatenate([&keys, &ops::expand_dims(&groups, 1)?], 2)?;
        }
        // Scores are large: they are computed in `float32`.
        let wide = |x: &Array| ops::astype(x, Dtype::Float32);
        let keys = wide(&keys)?;
        let seen = KeysValues { values: keys.clone(), keys, quantized: None };
        let mask = mask.map_or(Mask::None, Mask::Array);
        let heads = attend(&wide(&queries)?, &seen, self.scale, &mask, Some(&wide(&self.sinks)?))?;
        let heads = self.rope.back(&ops::astype(&heads, x.dtype())?, &offset)?;
        let groups = ops::unflatten(&merge_heads(&heads)?, -1, &[self.o_groups, -1])?;
        let groups = self.o_a_proj.forward(&ops::swapaxes(&groups, 1, 2)?)?;
        self.o_b_proj.forward(&merge_heads(&groups)?)
    }
}

/// Turns the last dimensions of heads by their positions, in `float32`.
#[derive(Debug, Clone)]
struct LastDims {
    rope: Rope,
    dims: i32,
}

impl LastDims {
    /// Whose positions are so many apart.
    fn striding(&self, ratio: i32) -> Self {
        Self { rope: self.rope.clone().striding(ratio as f32), dims: self.dims }
    }

    /// `[batch, heads, length, dims]` to the same shape.
    fn forward(&self, x: &Array, offset: &Offset) -> Result<Array> {
        self.turn(&self.rope, x, offset)
    }

    /// Undoes [`forward`](Self::forward).
    fn back(&self, x: &Array, offset: &Offset) -> Result<Array> {
        self.turn(&self.rope.clone().backwards()?, x, offset)
    }

    fn turn(&self, rope: &Rope, x: &Array, offset: &Offset) -> Result<Array> {
        let [still, turning] = ops::exactly(ops::split(x, [x.dim(-1)? - self.dims], -1)?)?;
        let turned = rope.forward(&ops::astype(&turning, Dtype::Float32)?, offset)?;
        ops::concatenate([&still, &ops::astype(&turned, x.dtype())?], -1)
    }
}
