//! Attention as most language models have it, and the parts that the others are made of.

use serde::Deserialize;

use super::Mixer;
use crate::array::{Array, Dtype};
use crate::cache::{Appended, KeysValues, LayerCache, Mask, Masks, Offset, QuantizedKeysValues};
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::kernels::{self, Chain, Node, Scores};
use crate::nn::{Linear, Module, Norm, QueryGrowth, Rope, join};
use crate::{fast, ops};

/// What the layers of a config's `layer_types` attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All positions before.
    FullAttention,
    /// The last positions, as many as `sliding_window` says.
    SlidingAttention,
}

/// Where a checkpoint has the parts of an [`Attention`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionNames {
    /// Projection to the queries, or to queries, keys and values at once.
    pub q: &'static str,
    /// To the keys.
    pub k: &'static str,
    /// To the values.
    pub v: &'static str,
    /// From the heads.
    pub o: &'static str,
    /// Norm of the queries.
    pub q_norm: &'static str,
    /// Norm of the keys.
    pub k_norm: &'static str,
}

impl AttentionNames {
    /// Those of Llama and most others.
    pub const LLAMA: Self =
        Self { q: "q_proj", k: "k_proj", v: "v_proj", o: "o_proj", q_norm: "q_norm", k_norm: "k_norm" };

    /// One projection `qkv` to queries, keys and values, and `o` from the heads.
    pub const fn fused(qkv: &'static str, o: &'static str) -> Self {
        Self { q: qkv, o, ..Self::LLAMA }
    }
}

/// The projections to queries, keys and values.
#[derive(Debug)]
pub enum Qkv {
    /// One for each.
    Separate([Linear; 3]),
    /// One for all: all queries, then all keys, then all values.
    Joined(Linear),
    /// One for all: for each key head its queries, its key and its value.
    Grouped(Linear),
}

/// Attention with as many key and value heads as divide the heads (Ainslie et al., "GQA: Training
/// Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023), with norms of the
/// queries and keys of each head, and rotary positions.
#[derive(Debug)]
pub struct Attention {
    /// Where the checkpoint has the parts.
    pub names: AttentionNames,
    /// To queries, keys and values.
    pub qkv: Qkv,
    /// From the heads.
    pub o_proj: Linear,
    /// Between the negative of which and which the projections stay.
    pub clip: Option<f32>,
    /// Of the queries of each head.
    pub q_norm: Option<Norm>,
    /// Of the keys of each head.
    pub k_norm: Option<Norm>,
    /// Whether the norms come after the positions.
    pub norms_after_rope: bool,
    /// The logit of a share of each head's attention that goes nowhere, `[heads]` (Xiao et al., "Efficient
    /// Streaming Language Models with Attention Sinks", 2023), and where the checkpoint has it.
    pub sinks: Option<(&'static str, Array)>,
    /// Whether a norm takes all heads at once, and not each alone (OLMo 2).
    pub norms_all_heads: bool,
    /// Of the values of each head.
    pub v_norm: Option<Norm>,
    /// Where [`soft_cap`] bends the scores.
    pub cap: Option<f32>,
    /// How the queries grow with their position.
    pub growth: Option<QueryGrowth>,
    /// `None` for a layer without rotary positions.
    pub rope: Option<Rope>,
    /// Query heads.
    pub heads: i32,
    /// Key and value heads.
    pub kv_heads: i32,
    /// Features of a head.
    pub head_dim: i32,
    /// Of the scores: by default `head_dim^-1/2`.
    pub scale: f32,
    /// How many positions a query sees; `None` for all.
    pub window: Option<i32>,
    /// Whether its memory keeps all positions even so. This is how prompt caches of models have it whose
    /// windows, or chunks, mlx-lm does not know.
    pub keeps_all: bool,
    /// Of how many positions the chunks are that a query sees its own of (Llama 4); `None` for all.
    pub chunk: Option<i32>,
}

impl Attention {
    /// Reads the projections, from `dims` features to the heads and back. Norms, positions and a window
    /// are the caller's to add.
    pub fn new(w: &Weights, dims: i32, heads: i32, kv_heads: i32, head_dim: i32) -> Result<Self> {
        Self::named(w, AttentionNames::LLAMA, dims, [heads, kv_heads, head_dim])
    }

    /// As [`new`](Self::new), for a checkpoint with other names.
    pub fn named(w: &Weights, names: AttentionNames, dims: i32, sizes: [i32; 3]) -> Result<Self> {
        let [heads, kv_heads, head_dim] = sizes;
        Self::uneven(w, names, dims, [heads, kv_heads, head_dim, head_dim])
    }

    /// As [`named`](Self::named), with values of another width than the queries and keys, the last of
    /// `sizes`.
    pub fn uneven(w: &Weights, names: AttentionNames, dims: i32, sizes: [i32; 4]) -> Result<Self> {
        let [heads, kv_heads, head_dim, value_dim] = sizes;
        let qkv = Qkv::Separate([
            w.linear(names.q, dims, heads * head_dim)?,
            w.linear(names.k, dims, kv_heads * head_dim)?,
            w.linear(names.v, dims, kv_heads * value_dim)?,
        ]);
        Self::with(w, names, qkv, dims, sizes)
    }

    /// As [`named`](Self::named), for queries, keys and values from one projection, which `qkv` says how
    /// to take apart: [`Qkv::Joined`] or [`Qkv::Grouped`].
    pub fn fused(
        w: &Weights,
        names: AttentionNames,
        qkv: fn(Linear) -> Qkv,
        dims: i32,
        sizes: [i32; 3],
    ) -> Result<Self> {
        let [heads, kv_heads, head_dim] = sizes;
        let qkv = qkv(w.linear(names.q, dims, (heads + 2 * kv_heads) * head_dim)?);
        Self::with(w, names, qkv, dims, [heads, kv_heads, head_dim, head_dim])
    }

    fn with(w: &Weights, names: AttentionNames, qkv: Qkv, dims: i32, sizes: [i32; 4]) -> Result<Self> {
        let [heads, kv_heads, head_dim, value_dim] = sizes;
        Ok(Self {
            names,
            qkv,
            o_proj: w.linear(names.o, heads * value_dim, dims)?,
            clip: None,
            q_norm: None,
            k_norm: None,
            norms_after_rope: false,
            sinks: None,
            norms_all_heads: false,
            v_norm: None,
            cap: None,
            growth: None,
            rope: None,
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
            keeps_all: false,
            chunk: None,
        })
    }

    /// Queries, keys and values, `[batch, heads, length, head_dim]`, with neither norms nor positions.
    pub fn project(&self, x: &Array) -> Result<[Array; 3]> {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let split = |x: Array, heads| {
            split_heads(&self.clip.map_or(Ok(x.clone()), |most| ops::clip(&x, -most..=most))?, heads)
        };
        let project = |proj: &Linear, heads| split(proj.forward(x)?, heads);
        match &self.qkv {
            Qkv::Separate([q, k, v]) => {
                let [q, k, v] = Linear::forward_all([q, k, v], x)?;
                Ok([split(q, heads)?, split(k, kv_heads)?, split(v, kv_heads)?])
            }
            Qkv::Joined(qkv) => {
                let all = project(qkv, heads + 2 * kv_heads)?;
                three(ops::split(&all, [heads, heads + kv_heads], 1)?)
            }
            Qkv::Grouped(qkv) => {
                let groups = heads / kv_heads;
                let all = project(qkv, heads + 2 * kv_heads)?;
                let all = ops::unflatten(&all, 1, &[kv_heads, groups + 2])?;
                let parts = ops::split(&all, [groups, groups + 1], 2)?;
                three(parts.iter().map(|part| ops::flatten(part, 1, 2)).collect::<Result<_>>()?)
            }
        }
    }

    /// Queries or keys of a cache's next tokens, turned by their positions.
    pub fn turn(&self, x: &Array, cache: &LayerCache) -> Result<Array> {
        self.rope.as_ref().map_or(Ok(x.clone()), |rope| rope.forward(x, &cache.offset()))
    }

    /// Queries or keys of a cache's next tokens, with their norm and their positions.
    fn place(&self, x: Array, norm: Option<&Norm>, offset: &Offset, expected: &Offset) -> Result<Array> {
        let turn = |x: Array| {
            self.rope.as_ref().map_or(Ok(x.clone()), |rope| rope.forward_within(&x, offset, expected))
        };
        let normed = |x: Array| match norm {
            Some(norm) if self.norms_all_heads => split_heads(&norm.forward(&merge_heads(&x)?)?, x.dim(1)?),
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        };
        match (&self.rope, norm) {
            _ if self.norms_after_rope => normed(turn(x)?),
            (Some(rope), Some(norm)) if !self.norms_all_heads => {
                rope.forward_normed(&x, norm, offset, expected)
            }
            _ => turn(normed(x)?),
        }
    }

    /// The heads' outputs, `[batch, length, heads * head_dim]`, before the last projection.
    pub fn heads_of(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mask = match self.chunk {
            Some(size) => masks.within_chunks(cache, size)?,
            None => masks.of(cache, self.window)?,
        };
        let [queries, keys, values] = self.project(x)?;
        let (offset, expected) = (cache.offset(), masks.expected());
        let queries = self.place(queries, self.q_norm.as_ref(), &offset, expected)?;
        let keys = self.place(keys, self.k_norm.as_ref(), &offset, expected)?;
        let queries = match &self.growth {
            Some(growth) => growth.grow(&queries, &offset)?,
            None => queries,
        };
        let values = self.v_norm.as_ref().map_or(Ok(values.clone()), |norm| norm.forward(&values))?;
        let seen = cache.update(&keys, &values)?;
        let sinks = self.sinks.as_ref().map(|(_, sinks)| sinks);
        let scores = Scores { scale: self.scale, cap: self.cap, mask: (&mask).into(), sinks };
        merge_heads(&attend_by(&queries, &seen, scores)?)
    }
}

fn three(parts: Vec<Array>) -> Result<[Array; 3]> {
    <[Array; 3]>::try_from(parts).map_err(|_| Error::argument("split", "not three parts"))
}

impl Mixer for Attention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        self.o_proj.forward(&self.heads_of(x, masks, cache)?)
    }

    fn record(
        &self,
        chain: &mut Chain,
        x: Node,
        masks: &mut Masks,
        cache: &LayerCache,
    ) -> Result<Option<(Node, Appended)>> {
        let plain = self.clip.is_none() && self.sinks.is_none() && self.v_norm.is_none();
        let in_order = !self.norms_after_rope && !self.norms_all_heads && self.growth.is_none();
        let (Qkv::Separate([q, k, v]), true, None) = (&self.qkv, plain && in_order, self.chunk) else {
            return Ok(None);
        };
        let &[batch, 1, _] = &chain.spec(x).shape[..] else { return Ok(None) };
        if !matches!(masks.of(cache, self.window)?, Mask::None) {
            return Ok(None);
        }
        let Some([q, k, v]) = Linear::record([q, k, v], chain, x)? else { return Ok(None) };
        let mut heads = |node: Node, heads: i32| {
            let width = chain.spec(node).shape[2];
            chain.reshape(node, &[batch, heads, 1, width / heads])
        };
        let [q, k, v] = [heads(q, self.heads)?, heads(k, self.kv_heads)?, heads(v, self.kv_heads)?];
        let offset = cache.offset();
        let mut place = |node: Node, norm: Option<&Norm>| match (&self.rope, norm) {
            (Some(rope), norm) => rope.record(chain, node, norm, &offset),
            (None, Some(norm)) => norm.record(chain, node),
            (None, None) => Ok(Some(node)),
        };
        let Some(q) = place(q, self.q_norm.as_ref())? else { return Ok(None) };
        let Some(k) = place(k, self.k_norm.as_ref())? else { return Ok(None) };
        let Some(([keys, values], appended)) = cache.record(chain, k, v)? else { return Ok(None) };
        let Some(out) = chain.attention([q, keys, values], self.scale, self.cap)? else { return Ok(None) };
        let width = chain.spec(out).shape[2..].iter().product();
        let out = chain.reshape(out, &[batch, 1, width])?;
        let Some([out]) = Linear::record([&self.o_proj], chain, out)? else { return Ok(None) };
        Ok(Some((out, appended)))
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(match (self.chunk, self.window) {
            _ if self.keeps_all => LayerCache::kv(),
            (Some(size), _) => LayerCache::chunks(size),
            (None, window) => LayerCache::window(window),
        })
    }
}

impl Module for Attention {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        let names = &self.names;
        match &self.qkv {
            Qkv::Separate([q, k, v]) => {
                q.visit(&join(path, names.q), f);
                k.visit(&join(path, names.k), f);
                v.visit(&join(path, names.v), f);
            }
            Qkv::Joined(qkv) | Qkv::Grouped(qkv) => qkv.visit(&join(path, names.q), f),
        }
        self.o_proj.visit(&join(path, names.o), f);
        self.q_norm.visit(&join(path, names.q_norm), f);
        self.k_norm.visit(&join(path, names.k_norm), f);
        if let Some((name, sinks)) = &self.sinks {
            sinks.visit(&join(path, name), f);
        }
        self.v_norm.visit(&join(path, "v_norm"), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        let names = self.names;
        match &mut self.qkv {
            Qkv::Separate([q, k, v]) => {
                q.visit_mut(&join(path, names.q), f);
                k.visit_mut(&join(path, names.k), f);
                v.visit_mut(&join(path, names.v), f);
            }
            Qkv::Joined(qkv) | Qkv::Grouped(qkv) => qkv.visit_mut(&join(path, names.q), f),
        }
        self.o_proj.visit_mut(&join(path, names.o), f);
        self.q_norm.visit_mut(&join(path, names.q_norm), f);
        self.k_norm.visit_mut(&join(path, names.k_norm), f);
        if let Some((name, sinks)) = &mut self.sinks {
            sinks.visit_mut(&join(path, name), f);
        }
        self.v_norm.visit_mut(&join(path, "v_norm"), f);
    }
}

/// `[batch, length, heads * dims]` to `[batch, heads, length, dims]`.
pub fn split_heads(x: &Array, heads: i32) -> Result<Array> {
    let &[batch, length, width] = x.shape() else {
        return Err(Error::argument("split_heads", format!("shape {:?} has not three axes", x.shape())));
    };
    if heads <= 0 || width % heads != 0 {
        return Err(Error::argument("split_heads", format!("{width} features in {heads} heads")));
    }
    // One position needs no turning.
    if length == 1 {
        return ops::reshape(x, &[batch, heads, 1, width / heads]);
    }
    ops::transpose(&ops::reshape(x, &[batch, length, heads, width / heads])?, [0, 2, 1, 3])
}

/// `[batch, heads, length, dims]` to `[batch, length, heads * dims]`.
pub fn merge_heads(x: &Array) -> Result<Array> {
    let &[batch, heads, length, dims] = x.shape() else {
        return Err(Error::argument("merge_heads", format!("shape {:?} has not four axes", x.shape())));
    };
    let turned = if length == 1 { x } else { &ops::transpose(x, [0, 2, 1, 3])? };
    ops::reshape(turned, &[batch, length, heads * dims])
}

/// Attention of `queries`, `[batch, heads, length, dims]`, to what the cache has; see
/// [`fast::scaled_dot_product_attention`].
pub fn attend(
    queries: &Array,
    seen: &KeysValues,
    scale: f32,
    mask: &Mask,
    sinks: Option<&Array>,
) -> Result<Array> {
    attend_by(queries, seen, Scores { scale, cap: None, mask: mask.into(), sinks })
}

/// [`attend`], with a cap of the scores where there is one.
fn attend_by(queries: &Array, seen: &KeysValues, scores: Scores<'_>) -> Result<Array> {
    match &seen.quantized {
        Some(QuantizedKeysValues { keys, values, how }) => {
            kernels::quantized_attention(queries, keys, values, *how, scores)
        }
        None if scores.cap.is_some() => kernels::attention(queries, &seen.keys, &seen.values, scores),
        None => {
            let Scores { scale, mask, sinks, .. } = scores;
            fast::scaled_dot_product_attention(queries, &seen.keys, &seen.values, scale, mask, sinks)
        }
    }
}

/// The lowest finite number: a row of scores that sees nothing gets no NaN.
pub(super) fn lowest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float16 => half::f16::MIN.to_f64(),
        Dtype::Bfloat16 => half::bf16::MIN.to_f64(),
        _ => f64::from(f32::MIN),
    }
}

/// `cap * tanh(scores / cap)`: scores that stay between `-cap` and `cap` (Gemma 2).
pub fn soft_cap(scores: &Array, cap: f32) -> Result<Array> {
    ops::tanh(&(scores / cap)?)? * cap
}
