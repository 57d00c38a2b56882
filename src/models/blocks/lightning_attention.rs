//! Lightning attention (Qin et al., "Lightning Attention-2", 2024): linear attention whose heads decay at
//! speeds of their own, which never change.

use super::linear_attention::{Sequence, linear_attention};
use super::{Mixer, unpadded};
use crate::array::Array;
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::nn::{Linear, RmsNorm, Rope};
use crate::{fast, ops, parameters};

/// Linear attention with norms, positions and a gate, as Ling 2.5 has it.
#[derive(Debug)]
pub struct LightningAttention {
    /// To queries, keys and values.
    pub query_key_value: Linear,
    /// From the heads.
    pub dense: Linear,
    /// To the logits of the gate.
    pub g_proj: Linear,
    /// Weight of the norm of the outputs.
    pub g_norm: Array,
    /// Of the queries of each head.
    pub query_layernorm: Option<RmsNorm>,
    /// Of the keys of each head.
    pub key_layernorm: Option<RmsNorm>,
    rope: Rope,
    log_decay: Array,
    heads: i32,
    head_dim: i32,
    groups: i32,
    eps: f32,
}

parameters!(LightningAttention {
    query_key_value,
    dense,
    g_proj,
    g_norm: "g_norm.weight",
    query_layernorm,
    key_layernorm,
});

impl LightningAttention {
    /// Reads the weights of a layer of `[dims, heads, head_dim]`, whose outputs are normed in `groups`.
    /// `depth` is how far up the layer is, from 0 to 1: those on top decay least.
    pub fn new(
        w: &Weights,
        [dims, heads, head_dim]: [i32; 3],
        groups: i32,
        rope: Rope,
        depth: f64,
        eps: f32,
    ) -> Result<Self> {
        let width = heads * head_dim;
        let norm =
            |name: &str| w.pp(name).contains("weight").then(|| w.rms_norm(name, head_dim, eps)).transpose();
        let slopes: Vec<f32> =
            slopes(heads as u32).map(|slope| (-slope * (1.0 - depth + 1e-5)) as f32).collect();
        if groups <= 0 || width % groups != 0 {
            return Err(Error::argument(
                "lightning_attention",
                format!("{width} features in {groups} groups"),
            ));
        }
        Ok(Self {
            query_key_value: w.linear("query_key_value", dims, 3 * width)?,
            dense: w.linear("dense", width, dims)?,
            g_proj: w.linear("g_proj", dims, width)?,
            g_norm: w.pp("g_norm").get_shaped("weight", &[width])?,
            query_layernorm: norm("query_layernorm")?,
            key_layernorm: norm("key_layernorm")?,
            rope,
            log_decay: Array::from_slice(&slopes, &[heads])?,
            heads,
            head_dim,
            groups,
            eps,
        })
    }

    /// Queries or keys, `[batch, length, heads, head_dim]`, with their norm and their positions.
    fn place(&self, x: &Array, norm: Option<&RmsNorm>, cache: &LayerCache) -> Result<Array> {
        let x = norm.map_or(Ok(x.clone()), |norm| norm.forward(x))?;
        ops::swapaxes(&self.rope.forward(&ops::swapaxes(&x, 1, 2)?, &cache.offset())?, 1, 2)
    }
}

/// The slopes of ALiBi (Press et al., "Train Short, Test Long", 2021): powers of two, and where their
/// number is not one, every other of the next.
fn slopes(heads: u32) -> impl Iterator<Item = f64> {
    let whole = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let slope = |count: u32, i: u32| (-8.0 * f64::from(i + 1) / f64::from(count)).exp2();
    let rest = (0..heads - whole).map(move |i| slope(2 * whole, 2 * i));
    (0..whole).map(move |i| slope(whole, i)).chain(rest)
}

impl Mixer for LightningAttention {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let (batch, length) = (x.dim(0)?, x.dim(1)?);
        let all = ops::unflatten(&self.query_key_value.forward(x)?, -1, &[3, self.heads, self.head_dim])?;
        let part = |i: i32| all.index((.., .., i));
        let q = self.place(&part(0)?, self.query_layernorm.as_ref(), cache)?;
        let k = unpadded(&self.place(&part(1)?, self.key_layernorm.as_ref(), cache)?, cache)?;
        let q = (q * (self.head_dim as f32).powf(-0.5))?;
        let log_decay = ops::broadcast_to(&self.log_decay, &[batch, length, self.heads])?;
        let log_decay = unpadded(&log_decay, cache)?;
        // The cache has states with the axis of keys first.
        let state = cache.state(0).map(|state| ops::swapaxes(state, -1, -2)).transpose()?;
        let (keys, values) = (&k, &part(2)?);
        let sequence = Sequence { queries: &q, keys, values, log_decay: &log_decay, state: state.as_ref() };
        let (out, state) = linear_attention(&sequence)?;
        cache.set_state(0, ops::swapaxes(&state, -1, -2)?)?;
        cache.advance(length);
        let out = ops::unflatten(&ops::flatten(&out, -2, -1)?, -1, &[self.groups, -1])?;
        let out = (ops::flatten(&fast::rms_norm(&out, None, self.eps)?, -2, -1)? * &self.g_norm)?;
        self.dense.forward(&(out * ops::sigmoid(&self.g_proj.forward(x)?)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(1))
    }
}
