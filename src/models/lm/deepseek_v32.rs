//! DeepSeek-V3.2 (DeepSeek-AI, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models",
//! 2025): DeepSeek-V3 whose queries see the positions alone that an indexer has chosen for them. GLM-5 is
//! built as it is, and may use one choice in several layers.

use serde::Deserialize;

use super::deepseek_v3::{self, Layer};
use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::cache::{LayerCache, Mask, Masks};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::blocks::{Decoder, LatentAttention, Mixer, MoeNames, Scoring, split_heads};
use crate::nn::{LayerNorm, Linear, Rope, RopeConfig};
use crate::{ops, parameters};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    model_type: String,
    index_head_dim: i32,
    index_n_heads: i32,
    index_topk: i32,
    indexer_rope_interleave: Option<bool>,
    indexer_types: Option<Vec<Indexing>>,
    #[serde(flatten)]
    base: deepseek_v3::Args,
}

/// Where the positions that a layer sees come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Indexing {
    /// From an indexer of its own.
    Full,
    /// From the last layer that has one.
    Shared,
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        let latent = &self.base.latent;
        let width = i64::from(self.index_n_heads) * i64::from(self.index_head_dim);
        let first = self.indexer_types.as_ref().and_then(|types| types.first());
        self.base
            .checks("deepseek_v32", &self.base.experts.routing(Scoring::Sigmoid))
            .size("index_head_dim", self.index_head_dim)
            .size("index_n_heads", self.index_n_heads)
            .size("index_topk", self.index_topk)
            .that((1..=1 << 28).contains(&width), || format!("an indexer {width} wide"))
            .that(latent.qk_rope_head_dim <= self.index_head_dim, || {
                format!(
                    "{} of {} dimensions of the indexer turn",
                    latent.qk_rope_head_dim, self.index_head_dim
                )
            })
            .that(latent.q_lora_rank.is_some(), || "`q_lora_rank` is missing".into())
            .layer_types(self.base.num_hidden_layers, self.indexer_types.as_deref())
            .that(first != Some(&Indexing::Shared), || "the first layer has no indexer".into())
            .done()
    }

    fn shares(&self, layer: usize) -> bool {
        self.indexer_types.as_ref().is_some_and(|types| types.get(layer) == Some(&Indexing::Shared))
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let layers = args.indexer_types.iter().flatten().enumerate();
    let shared = layers.filter(|(_, kind)| **kind == Indexing::Shared);
    shared.fold(deepseek_v3::rules(&args.base), |rules, (layer, _)| {
        rules.drop(format!("*.layers.{layer}.self_attn.indexer.*"), "the layer uses the choice of another")
    })
}

/// The model.
pub type Model = Decoder<Layer<SparseAttention>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let routing = args.base.experts.routing(Scoring::Sigmoid);
    args.base.decoder(w, MoeNames::DEEPSEEK, routing, |i, w| {
        let indexer = (!args.shares(i)).then(|| Indexer::new(args, &w.pp("indexer"))).transpose()?;
        Ok(SparseAttention { attention: args.base.attention(w, 1e-6, 10_000.0)?, indexer })
    })
}

/// Latent attention to chosen positions.
#[derive(Debug)]
pub struct SparseAttention {
    attention: LatentAttention,
    /// `None` for a layer that uses the choice of the last one that has it.
    indexer: Option<Indexer>,
}

parameters!(SparseAttention { attention: "", indexer });

impl Mixer for SparseAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let attention = &self.attention;
        let mut mask = masks.of(cache.part(0)?, None)?;
        let squeezed = attention.squeeze(x)?;
        let queries = attention.queries(&squeezed, masks, cache.part(0)?)?;
        let mut seen = attention.remember(x, masks, cache.part(0)?)?;
        if let Some(indexer) = &self.indexer {
            masks.chosen = indexer.choose(x, &squeezed, &mask, cache.part(1)?)?;
        }
        if let Some(chosen) = &masks.chosen {
            let (length, keys) = (x.dim(1)?, seen.keys.dim(2)?);
            let visible = mask.to_array(length, keys)?;
            if length == 1 {
                let rows = ops::swapaxes(chosen, -1, -2)?;
                let pick = |x: &Array| {
                    let shape = [rows.dim(0)?, 1, rows.dim(2)?, x.dim(-1)?];
                    ops::take_along_axis(x, &ops::broadcast_to(&rows, &shape)?, 2)
                };
                (seen.keys, seen.values) = (pick(&seen.keys)?, pick(&seen.values)?);
                let visible = visible.map(|mask| take_last(&mask, chosen)).transpose()?;
                mask = visible.map_or(Mask::None, Mask::Array);
            } else {
                let shape = [chosen.dim(0)?, 1, length, keys];
                let none = ops::zeros(&shape, Dtype::Bool)?;
                let some = ops::put_along_axis(&none, chosen, &Array::from(true), -1)?;
                let visible = visible.map_or(Ok(some.clone()), |mask| ops::logical_and(&some, &mask))?;
                mask = Mask::Array(visible);
            }
        }
        attention.attend(x, &queries, &seen, &mask)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        let parts = if self.indexer.is_some() { 2 } else { 1 };
        Some(LayerCache::List(vec![LayerCache::kv(); parts]))
    }
}

/// The entries of `mask`, `[..., keys]`, that `chosen`, `[batch, 1, 1, count]`, names.
fn take_last(mask: &Array, chosen: &Array) -> Result<Array> {
    let shape = [chosen.dim(0)?, 1, 1, mask.dim(-1)?];
    ops::take_along_axis(&ops::broadcast_to(mask, &shape)?, chosen, -1)
}

/// Chooses the positions that a query sees: those with the largest sums over heads of rectified products,
/// each head weighted by the query's position.
#[derive(Debug)]
struct Indexer {
    wq_b: Linear,
    wk: Linear,
    k_norm: LayerNorm,
    weights_proj: Linear,
    rope: Rope,
    heads: i32,
    /// Of the weights of heads.
    scale: f32,
    count: i32,
}

parameters!(Indexer { wq_b, wk, k_norm, weights_proj });

impl Indexer {
    fn new(args: &Args, w: &Weights) -> Result<Self> {
        let (dims, heads, head_dim) = (args.base.hidden_size, args.index_n_heads, args.index_head_dim);
        let rank = args.base.latent.q_lora_rank.unwrap_or(dims);
        let rope_traditional = args.indexer_rope_interleave.unwrap_or(args.model_type == "glm_moe_dsa");
        let rope = RopeConfig { rope_traditional, ..args.base.rope.clone() };
        Ok(Self {
            wq_b: w.linear("wq_b", rank, heads * head_dim)?,
            wk: w.linear("wk", dims, head_dim)?,
            k_norm: w.layer_norm("k_norm", head_dim, 1e-6)?,
            weights_proj: w.linear("weights_proj", dims, heads)?,
            rope: Rope::new(args.base.latent.qk_rope_head_dim, &rope, 10_000.0)?,
            heads,
            scale: (heads as f32 * head_dim as f32).powf(-0.5),
            count: args.index_topk,
        })
    }

    /// The positions of each query, integers `[batch, 1, length, count]` in no order, from the input and
    /// what the queries are made of; `None` if there are no more than `count`.
    fn choose(
        &self,
        x: &Array,
        squeezed: &Array,
        mask: &Mask,
        cache: &mut LayerCache,
    ) -> Result<Option<Array>> {
        let offset = cache.offset();
        let queries = self.rope.forward(&split_heads(&self.wq_b.forward(squeezed)?, self.heads)?, &offset)?;
        let keys = ops::expand_dims(&self.k_norm.forward(&self.wk.forward(x)?)?, 1)?;
        let keys = self.rope.forward(&keys, &offset)?;
        let keys = cache.update(&keys, &keys)?.keys;
        let (length, seen) = (x.dim(1)?, keys.dim(2)?);
        if seen <= self.count {
            return Ok(None);
        }
        let products = ops::maximum(&ops::matmul(&queries, &ops::swapaxes(&keys, -1, -2)?)?, 0)?;
        let weights = (self.weights_proj.forward(x)? * self.scale)?;
        let weights = ops::expand_dims(&ops::swapaxes(&weights, -1, -2)?, -1)?;
        let mut scores = ops::sum(&(products * weights)?, 1, true)?;
        if let Some(mask) = mask.to_array(length, seen)? {
            scores = ops::where_(&mask, &scores, f32::NEG_INFINITY)?;
        }
        let order = ops::stop_gradient(&ops::argpartition(&scores, seen - self.count, -1)?)?;
        Ok(Some(order.index((Ellipsis, seen - self.count..))?))
    }
}
