//! Attention whose heads are gated.

use super::{Mixer, attend, merge_heads, split_heads};
use crate::array::{Array, Index::Ellipsis};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{Linear, RmsNorm, Rope};
use crate::{ops, parameters};

/// Attention with norms of queries and keys, whose heads are multiplied by the sigmoid of a gate; one
/// projection gives each head its query and its gate (Qiu et al., "Gated Attention for Large Language
/// Models", 2025).
#[derive(Debug)]
pub struct QueryGatedAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    rope: Rope,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
}

parameters!(QueryGatedAttention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm });

impl QueryGatedAttention {
    /// Reads the weights of a layer with `dims` features; `sizes` are heads, key and value heads, and the
    /// features of a head.
    pub fn new(w: &Weights, dims: i32, sizes: [i32; 3], eps: f32, rope: Rope) -> Result<Self> {
        let [heads, kv_heads, head_dim] = sizes;
        Ok(Self {
            q_proj: w.linear("q_proj", dims, 2 * heads * head_dim)?,
            k_proj: w.linear("k_proj", dims, kv_heads * head_dim)?,
            v_proj: w.linear("v_proj", dims, kv_heads * head_dim)?,
            o_proj: w.linear("o_proj", heads * head_dim, dims)?,
            q_norm: w.rms_norm("q_norm", head_dim, eps)?,
            k_norm: w.rms_norm("k_norm", head_dim, eps)?,
            rope,
            heads,
            kv_heads,
            head_dim,
        })
    }
}

impl Mixer for QueryGatedAttention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mask = masks.of(cache, None)?;
        let both = split_heads(&self.q_proj.forward(x)?, self.heads)?;
        let queries = self.q_norm.forward(&both.index((Ellipsis, ..self.head_dim))?)?;
        let gate = merge_heads(&both.index((Ellipsis, self.head_dim..))?)?;
        let keys = self.k_norm.forward(&split_heads(&self.k_proj.forward(x)?, self.kv_heads)?)?;
        let values = split_heads(&self.v_proj.forward(x)?, self.kv_heads)?;
        let offset = cache.offset();
        let queries = self.rope.forward(&queries, &offset)?;
        let seen = cache.update(&self.rope.forward(&keys, &offset)?, &values)?;
        let scale = (self.head_dim as f32).powf(-0.5);
        let out = merge_heads(&attend(&queries, &seen, scale, &mask, None)?)?;
        self.o_proj.forward(&(out * ops::sigmoid(&gate)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::kv())
    }
}
