//! Attention as most language models have it, and the parts that the others are made of.

use serde::Deserialize;

use super::Mixer;
use crate::array::{Array, Dtype};
use crate::cache::{KeysValues, LayerCache, Mask, Masks};
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::nn::{Linear, Norm, Rope};
use crate::{fast, ops, parameters};

/// What the layers of a config's `layer_types` attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All positions before.
    FullAttention,
    /// The last positions, as many as `sliding_window` says.
    SlidingAttention,
}

/// Attention with as many key and value heads as divide the heads (Ainslie et al., "GQA", 2023), with
/// norms of the queries and keys where the checkpoint has them, and rotary positions.
#[derive(Debug)]
pub struct Attention {
    /// To the queries.
    pub q_proj: Linear,
    /// To the keys.
    pub k_proj: Linear,
    /// To the values.
    pub v_proj: Linear,
    /// From the heads.
    pub o_proj: Linear,
    /// Of the queries of each head, before they turn.
    pub q_norm: Option<Norm>,
    /// Of the keys of each head, before they turn.
    pub k_norm: Option<Norm>,
    /// `None` for a layer without positions.
    pub rope: Option<Rope>,
    /// Query heads.
    pub heads: i32,
    /// Key and value heads.
    pub kv_heads: i32,
    /// Of the scores: by default `head_dim^-1/2`.
    pub scale: f32,
    /// How many positions a query sees; `None` for all.
    pub window: Option<i32>,
}

parameters!(Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm });

impl Attention {
    /// Reads the projections, from `dims` features to the heads and back. Norms, positions and a window
    /// are the caller's to add.
    pub fn new(w: &Weights, dims: i32, heads: i32, kv_heads: i32, head_dim: i32) -> Result<Self> {
        Ok(Self {
            q_proj: w.linear("q_proj", dims, heads * head_dim)?,
            k_proj: w.linear("k_proj", dims, kv_heads * head_dim)?,
            v_proj: w.linear("v_proj", dims, kv_heads * head_dim)?,
            o_proj: w.linear("o_proj", heads * head_dim, dims)?,
            q_norm: None,
            k_norm: None,
            rope: None,
            heads,
            kv_heads,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
        })
    }

    fn heads(
        &self,
        x: &Array,
        proj: &Linear,
        norm: Option<&Norm>,
        heads: i32,
        cache: &LayerCache,
    ) -> Result<Array> {
        let x = split_heads(&proj.forward(x)?, heads)?;
        let x = norm.map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
        self.rope.as_ref().map_or(Ok(x.clone()), |rope| rope.forward(&x, &cache.offset()))
    }
}

impl Mixer for Attention {
    fn forward(&self, x: &Array, masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let mask = masks.of(cache, self.window)?;
        let queries = self.heads(x, &self.q_proj, self.q_norm.as_ref(), self.heads, cache)?;
        let keys = self.heads(x, &self.k_proj, self.k_norm.as_ref(), self.kv_heads, cache)?;
        let values = split_heads(&self.v_proj.forward(x)?, self.kv_heads)?;
        let seen = cache.update(&keys, &values)?;
        self.o_proj.forward(&merge_heads(&attend(&queries, &seen, self.scale, &mask, None)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::window(self.window))
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
    ops::transpose(&ops::reshape(x, &[batch, length, heads, width / heads])?, [0, 2, 1, 3])
}

/// `[batch, heads, length, dims]` to `[batch, length, heads * dims]`.
pub fn merge_heads(x: &Array) -> Result<Array> {
    let &[batch, heads, length, dims] = x.shape() else {
        return Err(Error::argument("merge_heads", format!("shape {:?} has not four axes", x.shape())));
    };
    ops::reshape(&ops::transpose(x, [0, 2, 1, 3])?, &[batch, length, heads * dims])
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
    fast::scaled_dot_product_attention(queries, &seen.keys, &seen.values, scale, mask, sinks)
}

/// [`attend`] with `adjust` between the scores, `[batch, kv_heads, heads / kv_heads, length,
/// key_length]`, and the mask: for a soft cap, or biases.
pub fn attend_adjusted(
    queries: &Array,
    seen: &KeysValues,
    scale: f32,
    mask: &Mask,
    adjust: impl FnOnce(Array) -> Result<Array>,
) -> Result<Array> {
    let (&[batch, heads, length, dims], &[_, kv_heads, key_length, _]) = (queries.shape(), seen.keys.shape())
    else {
        let (lhs, rhs) = (queries.shape().to_vec(), seen.keys.shape().to_vec());
        return Err(Error::Shape { op: "attend", lhs, rhs });
    };
    let groups = heads.checked_div(kv_heads).unwrap_or(0);
    let queries = ops::reshape(&(queries * scale)?, &[batch, kv_heads, groups, length, dims])?;
    let keys = ops::swapaxes(&ops::expand_dims(&seen.keys, 2)?, -1, -2)?;
    let mut scores = adjust(ops::matmul(&queries, &keys)?)?;
    if let Some(mask) = mask.to_array(length, key_length)? {
        // Before the axis of heads, if it has one.
        let mask = if mask.ndim() > 2 { ops::expand_dims(&mask, -3)? } else { mask };
        scores = ops::where_(&mask, &scores, lowest(scores.dtype()))?;
    }
    let weights = ops::softmax(&scores, -1, true)?;
    let out = ops::matmul(&weights, &ops::expand_dims(&seen.values, 2)?)?;
    let dims = out.dim(-1)?;
    ops::reshape(&out, &[batch, heads, length, dims])
}

/// The lowest finite number: a row of scores that sees nothing gets no NaN.
fn lowest(dtype: Dtype) -> f64 {
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
