//! Attention whose keys and values come from a small latent vector (DeepSeek-AI, "DeepSeek-V2: A
//! Strong, Economical, and Efficient Mixture-of-Experts Language Model", 2024).

use serde::Deserialize;

use super::attention::lowest;
use super::{Mixer, attend, merge_heads, split_heads};
use crate::array::Array;
use crate::cache::{KeysValues, LayerCache, Mask, Masks};
use crate::checkpoint::{Encoding, Rules, Weights};
use crate::error::Result;
use crate::models::Checks;
use crate::nn::{Linear, Module, MultiLinear, QueryGrowth, RmsNorm, Rope, RopeConfig, join};
use crate::{fast, ops};

/// The sizes of a [`LatentAttention`], as configs have them; DeepSeek's where one is missing.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default)]
pub struct LatentConfig {
    /// Heads.
    pub num_attention_heads: i32,
    /// Features that the queries are squeezed into; `None` for queries straight from the input.
    pub q_lora_rank: Option<i32>,
    /// Features of the latent vector.
    pub kv_lora_rank: i32,
    /// Of a query and key of each head, those without positions.
    pub qk_nope_head_dim: i32,
    /// Of a query of each head, and of the one key for all heads, those with rotary positions.
    pub qk_rope_head_dim: i32,
    /// Of a value of each head.
    pub v_head_dim: i32,
}

impl Default for LatentConfig {
    fn default() -> Self {
        let (q_lora_rank, kv_lora_rank, v_head_dim) = (None, 512, 128);
        let (qk_nope_head_dim, qk_rope_head_dim) = (128, 64);
        Self {
            num_attention_heads: 32,
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
        }
    }
}

impl LatentConfig {
    /// Features of a query of each head.
    pub fn q_head_dim(&self) -> i32 {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Cuts `kv_b_proj`, which has keys and values of each head, into the two matrices that a
    /// [`LatentAttention`] of the kind [`Heads::Absorbed`] has: `embed_q`, the keys' transposed, and
    /// `unembed_out`. Where `kv_b_proj` is quantized, `embed_q` is so along its other axis.
    pub fn split_rules(&self, rules: Rules) -> Rules {
        let (keys, values) = (self.qk_nope_head_dim, self.v_head_dim);
        rules
            .reshape("*.kv_b_proj.{}", &[self.num_attention_heads, keys.saturating_add(values), -1])
            .split("*.kv_b_proj.{}", &["*.kv_b_keys.{}", "*.unembed_out.{}"], 1, &[keys, values])
            .decode(
                &["*.kv_b_keys.weight", "*.kv_b_keys.scales", "*.kv_b_keys.biases"],
                &["*.embed_q.weight", "*.embed_q.scales", "*.embed_q.biases"],
                Encoding::Transposed { columns: self.kv_lora_rank },
            )
            .transpose("*.kv_b_keys.weight", &[0, 2, 1])
            .rename("*.kv_b_keys.{}", "*.embed_q.{}")
    }
}

impl Checks {
    /// Sizes of a [`LatentAttention`].
    pub fn latent(self, config: &LatentConfig) -> Self {
        let head_dims = [config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim];
        let head_dims: i64 = head_dims.into_iter().map(i64::from).sum();
        let width = i64::from(config.num_attention_heads).saturating_mul(head_dims);
        self.size("num_attention_heads", config.num_attention_heads)
            .size("q_lora_rank", config.q_lora_rank.unwrap_or(1))
            .size("kv_lora_rank", config.kv_lora_rank)
            .size("qk_nope_head_dim", config.qk_nope_head_dim)
            .size("qk_rope_head_dim", config.qk_rope_head_dim)
            .size("v_head_dim", config.v_head_dim)
            .that((1..=1 << 28).contains(&width), || format!("{config:?} is too wide"))
    }
}

/// How the heads get their queries.
#[derive(Debug)]
pub enum Queries {
    /// From the input.
    Straight(Linear),
    /// From a few features of it.
    Squeezed {
        /// To the few.
        a: Linear,
        /// Of these.
        norm: RmsNorm,
        /// To the heads.
        b: Linear,
    },
}

/// How the heads get their keys and values from the latent vector.
#[derive(Debug)]
pub enum Heads {
    /// By two matrices for each head; the cache has latent vectors. A single new position is turned into
    /// their space instead of all of them into its own.
    Absorbed {
        /// `[heads, kv_lora_rank, qk_nope_head_dim]`: queries to the space of latent vectors.
        embed_q: MultiLinear,
        /// `[heads, v_head_dim, kv_lora_rank]`: latent vectors to values.
        unembed_out: MultiLinear,
    },
    /// By one projection to the keys and values of all heads, which the cache has.
    Expanded(Linear),
}

/// Attention to latent vectors.
#[derive(Debug)]
pub struct LatentAttention {
    /// To the queries.
    pub queries: Queries,
    /// To the latent vector, and to the part of the key that has positions.
    pub kv_a_proj: Linear,
    /// Of the latent vector.
    pub kv_a_norm: RmsNorm,
    /// From latent vectors to the heads.
    pub heads: Heads,
    /// From the heads, and where the checkpoint has it.
    pub out: (&'static str, Linear),
    /// To the logits of how much of each head, or of each of its features, goes on: `g_proj`.
    pub gate: Option<Linear>,
    /// `None` if nothing has positions.
    pub rope: Option<Rope>,
    /// Of the scores.
    pub scale: f32,
    /// Factors of the queries and of the latent vector.
    pub lora_scales: [Option<f32>; 2],
    /// By how much the queries grow with their position.
    pub growth: Option<QueryGrowth>,
    /// The sizes.
    pub config: LatentConfig,
}

impl LatentAttention {
    /// Reads the projections, from `dims` features to the heads and back, with [`Heads::Absorbed`] unless
    /// the checkpoint has `kv_b_proj`; `eps` is that of the norms, `rope` `None` for no positions.
    pub fn new(
        w: &Weights,
        dims: i32,
        config: &LatentConfig,
        eps: f32,
        rope: Option<(&RopeConfig, f64)>,
    ) -> Result<Self> {
        Self::named(w, "o_proj", dims, config, eps, rope)
    }

    /// As [`new`](Self::new), with another name of the projection from the heads.
    pub fn named(
        w: &Weights,
        out: &'static str,
        dims: i32,
        config: &LatentConfig,
        eps: f32,
        rope: Option<(&RopeConfig, f64)>,
    ) -> Result<Self> {
        let &LatentConfig { num_attention_heads: heads, kv_lora_rank: latent, v_head_dim, .. } = config;
        let (nope, positioned) = (config.qk_nope_head_dim, config.qk_rope_head_dim);
        let queries = match config.q_lora_rank {
            None => Queries::Straight(w.linear("q_proj", dims, heads * config.q_head_dim())?),
            Some(rank) => Queries::Squeezed {
                a: w.linear("q_a_proj", dims, rank)?,
                norm: w.rms_norm("q_a_layernorm", rank, eps)?,
                b: w.linear("q_b_proj", rank, heads * config.q_head_dim())?,
            },
        };
        let expanded = w.pp("kv_b_proj").contains("weight");
        let magnitude = rope.map_or(Ok(1.0), |(rope, _)| rope.score_magnitude())?;
        Ok(Self {
            queries,
            kv_a_proj: w.linear("kv_a_proj_with_mqa", dims, latent + positioned)?,
            kv_a_norm: w.rms_norm("kv_a_layernorm", latent, eps)?,
            heads: if expanded {
                Heads::Expanded(w.linear("kv_b_proj", latent, heads * (nope + v_head_dim))?)
            } else {
                Heads::Absorbed {
                    embed_q: w.multi_linear("embed_q", heads, nope, latent)?,
                    unembed_out: w.multi_linear("unembed_out", heads, latent, v_head_dim)?,
                }
            },
            out: (out, w.linear(out, heads * v_head_dim, dims)?),
            gate: None,
            rope: rope.map(|(rope, theta)| Rope::new(positioned, rope, theta)).transpose()?,
            scale: (config.q_head_dim() as f32).powf(-0.5) * magnitude,
            lora_scales: [None, None],
            growth: None,
            config: *config,
        })
    }

    /// What the queries are made of: the input, or a few features of it.
    pub fn squeeze(&self, x: &Array) -> Result<Array> {
        match &self.queries {
            Queries::Straight(_) => Ok(x.clone()),
            Queries::Squeezed { a, norm, .. } => norm.forward(&a.forward(x)?),
        }
    }

    /// Queries without and with positions, `[batch, heads, length, head_dim]`, of a cache's next tokens,
    /// from what [`squeeze`](Self::squeeze) gives.
    pub fn queries(&self, squeezed: &Array, masks: &Masks, cache: &LayerCache) -> Result<[Array; 2]> {
        let (Queries::Straight(proj) | Queries::Squeezed { b: proj, .. }) = &self.queries;
        let mut q = split_heads(&proj.forward(squeezed)?, self.config.num_attention_heads)?;
        if let Some(scale) = self.lora_scales[0] {
            q = (q * scale)?;
        }
        let [mut nope, positioned] = halves(&q, self.config.qk_nope_head_dim)?;
        let mut positioned = self.turn(positioned, masks, cache)?;
        if let Some(growth) = &self.growth {
            let factors = growth.factors(&cache.offset(), q.dim(2)?, q.dtype())?;
            (nope, positioned) = ((nope * &factors)?, (positioned * &factors)?);
        }
        Ok([nope, positioned])
    }

    fn turn(&self, x: Array, masks: &Masks, cache: &LayerCache) -> Result<Array> {
        let turn = |rope: &Rope| rope.forward_within(&x, &cache.offset(), masks.expected());
        self.rope.as_ref().map_or(Ok(x.clone()), turn)
    }

    /// What new positions can be seen by, with all before them: latent vectors and the part of the key that
    /// has positions, `[batch, 1, length, dims]`; or the keys and values of all heads.
    pub fn remember(&self, x: &Array, masks: &Masks, cache: &mut LayerCache) -> Result<KeysValues> {
        let [latent, positioned] = halves(&self.kv_a_proj.forward(x)?, self.config.kv_lora_rank)?;
        let mut latent = self.kv_a_norm.forward(&latent)?;
        if let Some(scale) = self.lora_scales[1] {
            latent = (latent * scale)?;
        }
        let positioned = self.turn(ops::expand_dims(&positioned, 1)?, masks, cache)?;
        match &self.heads {
            Heads::Absorbed { .. } => cache.update(&ops::expand_dims(&latent, 1)?, &positioned),
            Heads::Expanded(proj) => {
                let heads = self.config.num_attention_heads;
                let both = split_heads(&proj.forward(&latent)?, heads)?;
                let [keys, values] = halves(&both, self.config.qk_nope_head_dim)?;
                let positioned = ops::repeat(&positioned, heads, 1)?;
                cache.update(&ops::concatenate([&keys, &positioned], -1)?, &values)
            }
        }
    }

    /// Attention of [`queries`](Self::queries) to what [`remember`](Self::remember) gives; `x` is the
    /// input, `[batch, length, dims]`, as is the output.
    pub fn attend(&self, x: &Array, q: &[Array; 2], seen: &KeysValues, mask: &Mask) -> Result<Array> {
        let [nope, positioned] = q;
        let out = match &self.heads {
            Heads::Expanded(_) => {
                attend(&ops::concatenate([nope, positioned], -1)?, seen, self.scale, mask, None)?
            }
            Heads::Absorbed { embed_q, unembed_out } => {
                let (latent, length) = (&seen.keys, nope.dim(2)?);
                let keys = ops::swapaxes(&seen.values, -1, -2)?;
                let mut scores = ops::matmul(&(positioned * self.scale)?, &keys)?;
                if let Some(mask) = mask.to_array(length, latent.dim(2)?)? {
                    scores = ops::where_(&mask, &scores, lowest(scores.dtype()))?;
                }
                let attend = |queries: &Array, keys: &Array, values: &Array| {
                    fast::scaled_dot_product_attention(queries, keys, values, self.scale, Some(&scores), None)
                };
                if length == 1 {
                    unembed_out.forward(&attend(&embed_q.forward(nope)?, latent, latent)?)?
                } else {
                    attend(nope, &embed_q.back(latent)?, &unembed_out.forward(latent)?)?
                }
            }
        };
        let mut out = merge_heads(&out)?;
        if let Some(gate) = &self.gate {
            let heads = [self.config.num_attention_heads, -1];
            let gate = ops::unflatten(&ops::sigmoid(&gate.forward(x)?)?, -1, &heads)?;
            out = ops::flatten(&(ops::unflatten(&out, -1, &heads)? * gate)?, -2, -1)?;
        }
        self.out.1.forward(&out)
    }
}

/// The first `count` features of the last axis, and the others.
fn halves(x: &Array, count: i32) -> Result<[Array; 2]> {
    let mut parts = ops::split(x, [count], -1)?;
    let rest = parts.swap_remove(1);
    Ok([parts.swap_remove(0), rest])
}

impl Mixer for LatentAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mask = masks.of(cache, None)?;
        let queries = self.queries(&self.squeeze(x)?, masks, cache)?;
        let seen = self.remember(x, masks, cache)?;
        self.attend(x, &queries, &seen, &mask)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::kv())
    }
}

impl Module for LatentAttention {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        match &self.queries {
            Queries::Straight(proj) => proj.visit(&join(path, "q_proj"), f),
            Queries::Squeezed { a, norm, b } => {
                a.visit(&join(path, "q_a_proj"), f);
                norm.visit(&join(path, "q_a_layernorm"), f);
                b.visit(&join(path, "q_b_proj"), f);
            }
        }
        self.kv_a_proj.visit(&join(path, "kv_a_proj_with_mqa"), f);
        self.kv_a_norm.visit(&join(path, "kv_a_layernorm"), f);
        match &self.heads {
            Heads::Expanded(proj) => proj.visit(&join(path, "kv_b_proj"), f),
            Heads::Absorbed { embed_q, unembed_out } => {
                embed_q.visit(&join(path, "embed_q"), f);
                unembed_out.visit(&join(path, "unembed_out"), f);
            }
        }
        self.gate.visit(&join(path, "g_proj"), f);
        self.out.1.visit(&join(path, self.out.0), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        match &mut self.queries {
            Queries::Straight(proj) => proj.visit_mut(&join(path, "q_proj"), f),
            Queries::Squeezed { a, norm, b } => {
                a.visit_mut(&join(path, "q_a_proj"), f);
                norm.visit_mut(&join(path, "q_a_layernorm"), f);
                b.visit_mut(&join(path, "q_b_proj"), f);
            }
        }
        self.kv_a_proj.visit_mut(&join(path, "kv_a_proj_with_mqa"), f);
        self.kv_a_norm.visit_mut(&join(path, "kv_a_layernorm"), f);
        match &mut self.heads {
            Heads::Expanded(proj) => proj.visit_mut(&join(path, "kv_b_proj"), f),
            Heads::Absorbed { embed_q, unembed_out } => {
                embed_q.visit_mut(&join(path, "embed_q"), f);
                unembed_out.visit_mut(&join(path, "unembed_out"), f);
            }
        }
        self.gate.visit_mut(&join(path, "g_proj"), f);
        self.out.1.visit_mut(&join(path, self.out.0), f);
    }
}
