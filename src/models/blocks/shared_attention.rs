//! Attention whose keys and values may be those of an earlier layer (Brandon et al., "Reducing
//! Transformer Key-Value Cache Size with Cross-Layer Attention", 2024), as in Gemma 3n and Gemma 4.

use super::{LayerType, attend, merge_heads, split_heads};
use crate::array::Array;
use crate::cache::{KeysValues, LayerCache, Mask, Masks, Offset};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{Linear, Norm, RmsNorm, Rope};
use crate::parameters;

/// What a layer has attended to, for those that attend to the same.
#[derive(Debug, Clone)]
pub struct Seen {
    keys_values: KeysValues,
    mask: Mask,
    /// The position of the first query.
    offset: Offset,
}

/// Attention with norms of queries, keys and values, whose scores are not scaled.
#[derive(Debug)]
pub struct SharedAttention {
    q_proj: Linear,
    k_proj: Option<Linear>,
    /// `None` where the values are the keys.
    v_proj: Option<Linear>,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: Option<RmsNorm>,
    v_norm: Norm,
    rope: Rope,
    heads: i32,
    kv_heads: i32,
    window: Option<i32>,
}

parameters!(SharedAttention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm });

impl SharedAttention {
    /// Reads the projections, from `dims` features to `[heads, kv_heads, head_dim]` and back. A layer that
    /// shares the keys and values of another `has_kv` not; its own are read where the checkpoint has them.
    pub fn new(
        w: &Weights,
        dims: i32,
        [heads, kv_heads, head_dim]: [i32; 3],
        eps: f32,
        [has_kv, values_are_keys]: [bool; 2],
        rope: Rope,
        window: Option<i32>,
    ) -> Result<Self> {
        let has_kv = has_kv || w.pp("k_proj").contains("weight");
        let kv = |name, of: bool| of.then(|| w.linear(name, dims, kv_heads * head_dim)).transpose();
        Ok(Self {
            q_proj: w.linear("q_proj", dims, heads * head_dim)?,
            k_proj: kv("k_proj", has_kv)?,
            v_proj: kv("v_proj", has_kv && !values_are_keys)?,
            o_proj: w.linear("o_proj", heads * head_dim, dims)?,
            q_norm: w.rms_norm("q_norm", head_dim, eps)?,
            k_norm: has_kv.then(|| w.rms_norm("k_norm", head_dim, eps)).transpose()?,
            v_norm: Norm::Plain { eps },
            rope,
            heads,
            kv_heads,
            window,
        })
    }

    /// `[batch, length, dims]` to the same shape, with what it has attended to: `shared`, if there is
    /// any, else what `cache` and its own keys and values make.
    pub fn forward(
        &self,
        x: &Array,
        masks: &mut Masks,
        cache: &mut LayerCache,
        shared: Option<Seen>,
    ) -> Result<(Array, Seen)> {
        let seen = match (shared, &self.k_proj, &self.k_norm) {
            (None, Some(k_proj), Some(k_norm)) => {
                let (mask, offset) = (masks.of(cache, self.window)?, cache.offset());
                let keys = split_heads(&k_proj.forward(x)?, self.kv_heads)?;
                let values = match &self.v_proj {
                    Some(v_proj) => split_heads(&v_proj.forward(x)?, self.kv_heads)?,
                    None => keys.clone(),
                };
                let keys = self.rope.forward(&k_norm.forward(&keys)?, &offset)?;
                let keys_values = cache.update(&keys, &self.v_norm.forward(&values)?)?;
                Seen { keys_values, mask, offset }
            }
            (Some(seen), ..) => seen,
            (None, ..) => return Err(crate::Error::argument("attention", "no keys and values to share")),
        };
        let queries = self.q_norm.forward(&split_heads(&self.q_proj.forward(x)?, self.heads)?)?;
        let queries = self.rope.forward(&queries, &seen.offset)?;
        let out = attend(&queries, &seen.keys_values, 1.0, &seen.mask, None)?;
        Ok((self.o_proj.forward(&merge_heads(&out)?)?, seen))
    }

    /// An empty memory for it.
    pub fn make_cache(&self) -> LayerCache {
        LayerCache::window(self.window)
    }
}

/// For each layer the one whose keys and values it attends to: its own, and for the last `shared` ones
/// those of the last layer of its type before them. `None` if there is no such layer.
pub fn sources(types: &[LayerType], shared: usize) -> Option<Vec<usize>> {
    let own = types.len().checked_sub(shared)?;
    let source = |at: usize| match at < own {
        true => Some(at),
        false => types[..own].iter().rposition(|other| *other == types[at]),
    };
    (0..types.len()).map(source).collect()
}
