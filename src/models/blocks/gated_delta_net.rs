//! The linear attention of Qwen3-Next.

use std::ops::Range;

use super::linear_attention::{Sequence, gated_delta, gated_norm, log_decay, unit_length};
use super::{CausalConv, Mixer, unpadded};
use crate::array::{Array, Index::Ellipsis};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::models::Checks;
use crate::nn::{Linear, Module, RmsNorm, join};
use crate::{ops, parameters};

/// The sizes of a [`GatedDeltaNet`].
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaSizes {
    /// Heads of queries and keys.
    pub key_heads: i32,
    /// Heads of values: a multiple.
    pub heads: i32,
    /// Features of a query or key.
    pub key_dim: i32,
    /// Features of a value.
    pub value_dim: i32,
    /// Positions that the convolution sees.
    pub kernel: i32,
}

impl GatedDeltaSizes {
    /// Fails for sizes that no layer has.
    pub fn check(self, checks: Checks) -> Checks {
        let sizes = [self.key_heads, self.heads, self.key_dim, self.value_dim, self.kernel];
        let wrong = || format!("linear attention with the sizes {self:?}");
        let small = |a: i32, b: i32| a.checked_mul(b).is_some_and(|size| size <= 1 << 26);
        checks
            .that(sizes.iter().all(|size| (1..=1 << 20).contains(size)), wrong)
            .that(small(self.key_heads, self.key_dim) && small(self.heads, self.value_dim), wrong)
            .that(self.heads.checked_rem(self.key_heads) == Some(0), wrong)
    }

    /// Features of all keys.
    pub fn keys(self) -> i32 {
        self.key_heads * self.key_dim
    }

    /// Features of all values.
    pub fn values(self) -> i32 {
        self.heads * self.value_dim
    }
}

/// The projections of a [`GatedDeltaNet`].
#[derive(Debug)]
enum Projections {
    /// For each key head its query, key, values and gates, and its betas and decays.
    Grouped([Linear; 2]),
    /// Queries, keys and values; gates; betas; decays.
    Separate([Linear; 4]),
}

const GROUPED: [&str; 2] = ["in_proj_qkvz", "in_proj_ba"];
const SEPARATE: [&str; 4] = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"];

impl Module for Projections {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        let (names, layers): (&[_], &[_]) = match self {
            Projections::Grouped(layers) => (&GROUPED, layers),
            Projections::Separate(layers) => (&SEPARATE, layers),
        };
        names.iter().zip(layers).for_each(|(name, layer): (_, &Linear)| layer.visit(&join(path, name), f));
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        let (names, layers): (&[_], &mut [_]) = match self {
            Projections::Grouped(layers) => (&GROUPED, layers),
            Projections::Separate(layers) => (&SEPARATE, layers),
        };
        names
            .iter()
            .zip(layers)
            .for_each(|(name, layer): (_, &mut Linear)| layer.visit_mut(&join(path, name), f));
    }
}

/// The mixer of Qwen3-Next: a convolution of queries, keys and values, [`gated_delta`], and a gate.
#[derive(Debug)]
pub struct GatedDeltaNet {
    projections: Projections,
    conv1d: CausalConv,
    dt_bias: Array,
    a_log: Array,
    norm: RmsNorm,
    out_proj: Linear,
    sizes: GatedDeltaSizes,
}

parameters!(GatedDeltaNet { projections: "", conv1d, dt_bias, a_log: "A_log", norm, out_proj });

impl GatedDeltaNet {
    /// Reads the weights of a layer with `dims` features.
    pub fn new(w: &Weights, dims: i32, sizes: GatedDeltaSizes, eps: f32) -> Result<Self> {
        let (keys, values, heads) = (sizes.keys(), sizes.values(), sizes.heads);
        let projections = if w.pp(GROUPED[0]).contains("weight") {
            let [qkvz, ba] = GROUPED;
            Projections::Grouped([w.linear(qkvz, dims, 2 * (keys + values))?, w.linear(ba, dims, 2 * heads)?])
        } else {
            let [qkv, z, b, a] = SEPARATE;
            Projections::Separate([
                w.linear(qkv, dims, 2 * keys + values)?,
                w.linear(z, dims, values)?,
                w.linear(b, dims, heads)?,
                w.linear(a, dims, heads)?,
            ])
        };
        Ok(Self {
            projections,
            conv1d: w.causal_conv("conv1d", 2 * keys + values, sizes.kernel)?,
            dt_bias: w.get_shaped("dt_bias", &[heads])?,
            a_log: w.get_shaped("A_log", &[heads])?,
            norm: w.rms_norm("norm", sizes.value_dim, eps)?,
            out_proj: w.linear("out_proj", values, dims)?,
            sizes,
        })
    }

    /// Queries, keys and values side by side, gates, betas and decays, `[batch, length, ...]`.
    fn project(&self, x: &Array) -> Result<[Array; 4]> {
        let GatedDeltaSizes { key_heads, heads, key_dim, value_dim, .. } = self.sizes;
        match &self.projections {
            Projections::Separate([qkv, z, b, a]) => {
                Ok([qkv.forward(x)?, z.forward(x)?, b.forward(x)?, a.forward(x)?])
            }
            Projections::Grouped([qkvz, ba]) => {
                let shared = heads / key_heads;
                let grouped = |x: &Array| ops::unflatten(x, -1, &[key_heads, -1]);
                let part = |x: &Array, range: Range<i32>| ops::flatten(&x.index((Ellipsis, range))?, -2, -1);
                let (all, ba) = (grouped(&qkvz.forward(x)?)?, grouped(&ba.forward(x)?)?);
                let (values, gates) = (2 * key_dim, 2 * key_dim + shared * value_dim);
                let q = part(&all, 0..key_dim)?;
                let k = part(&all, key_dim..values)?;
                let v = part(&all, values..gates)?;
                let z = part(&all, gates..gates + shared * value_dim)?;
                let qkv = ops::concatenate([&q, &k, &v], -1)?;
                Ok([qkv, z, part(&ba, 0..shared)?, part(&ba, shared..2 * shared)?])
            }
        }
    }
}

impl Mixer for GatedDeltaNet {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let GatedDeltaSizes { key_heads, heads, key_dim, value_dim, .. } = self.sizes;
        let [qkv, z, b, a] = self.project(x)?;
        let qkv = self.conv1d.forward_silu(&qkv, cache, 0)?;
        let part = |range: Range<i32>, heads: i32, dims: i32| {
            ops::unflatten(&qkv.index((Ellipsis, range))?, -1, &[heads, dims])
        };
        let keys = self.sizes.keys();
        let q = unit_length(&part(0..keys, key_heads, key_dim)?)?;
        let k = unit_length(&part(keys..2 * keys, key_heads, key_dim)?)?;
        let v = part(2 * keys..2 * keys + self.sizes.values(), heads, value_dim)?;
        let decay = unpadded(&log_decay(&a, &self.a_log, &self.dt_bias)?, cache)?;
        let beta = unpadded(&ops::sigmoid(&b)?, cache)?;
        let q = (q * (key_dim as f32).powf(-0.5))?;
        let state = cache.state(1);
        let sequence = Sequence { queries: &q, keys: &k, values: &v, log_decay: &decay, state };
        let (out, state) = gated_delta(&sequence, &beta)?;
        cache.set_state(1, state)?;
        cache.advance(x.dim(1)?);
        let out = gated_norm(&self.norm, &out, &ops::unflatten(&z, -1, &[heads, value_dim])?)?;
        self.out_proj.forward(&ops::flatten(&out, -2, -1)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(2))
    }
}
