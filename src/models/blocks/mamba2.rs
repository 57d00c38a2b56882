//! The mixer of Mamba-2.

use std::ops::Range;

use super::linear_attention::{Sequence, linear_attention};
use super::{CausalConv, Mixer, unpadded};
use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::models::Checks;
use crate::nn::Linear;
use crate::nn::activations::{silu, softplus};
use crate::{fast, ops, parameters};

/// The sizes of a [`Mamba2`].
#[derive(Debug, Clone, Copy)]
pub struct Mamba2Sizes {
    /// Heads.
    pub heads: i32,
    /// Features of a head.
    pub head_dim: i32,
    /// Groups of neighbouring heads that share what they write with and read with.
    pub groups: i32,
    /// Features of a state.
    pub state: i32,
    /// Positions that the convolution sees.
    pub kernel: i32,
}

impl Mamba2Sizes {
    /// Fails for sizes that no layer has.
    pub fn check(self, checks: Checks) -> Checks {
        let Self { heads, head_dim, groups, state, kernel } = self;
        let wrong = || format!("a Mamba-2 layer with the sizes {self:?}");
        let small = |a: i32, b: i32| a.checked_mul(b).is_some_and(|size| size <= 1 << 26);
        checks
            .that(
                [heads, head_dim, groups, state, kernel].iter().all(|size| (1..=1 << 20).contains(size)),
                wrong,
            )
            .that(
                small(heads, head_dim) && small(groups, state) && heads.checked_rem(groups) == Some(0),
                wrong,
            )
    }

    /// Features of all heads.
    pub fn width(self) -> i32 {
        self.heads * self.head_dim
    }
}

/// Root-mean-square normalisation of groups of neighbouring features.
#[derive(Debug, Clone)]
pub struct GroupedRmsNorm {
    weight: Array,
    groups: i32,
    eps: f32,
}

parameters!(GroupedRmsNorm { weight });

impl GroupedRmsNorm {
    /// `[..., dims]` to the same shape.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let grouped = fast::rms_norm(&ops::unflatten(x, -1, &[self.groups, -1])?, None, self.eps)?;
        ops::flatten(&grouped, -2, -1)? * &self.weight
    }
}

/// The recurrence of the heads of Mamba-2, each with a rate of decay, a bias of its time steps, and a part
/// of the input that goes by.
#[derive(Debug)]
pub struct StateHeads {
    dt_bias: Array,
    a_log: Array,
    d: Array,
    /// The least and the greatest time step.
    pub time_step: [f32; 2],
}

parameters!(StateHeads { dt_bias, a_log: "A_log", d: "D" });

impl StateHeads {
    /// Reads the weights of so many heads, without limits of the time steps.
    pub fn new(w: &Weights, heads: i32) -> Result<Self> {
        Ok(Self {
            dt_bias: w.get_shaped("dt_bias", &[heads])?,
            a_log: w.get_shaped("A_log", &[heads])?,
            d: w.get_shaped("D", &[heads])?,
            time_step: [0.0, f32::INFINITY],
        })
    }

    /// From `values`, `[batch, length, heads, head_dim]`, time steps before their bias, `[batch, length,
    /// heads]`, and the `keys` and `queries` that states are written and read with, `[batch, length, groups,
    /// state]`, to `[batch, length, heads * head_dim]` in `float32`, continuing state number 1 of the cache.
    pub fn forward(
        &self,
        values: &Array,
        dt: &Array,
        [keys, queries]: [&Array; 2],
        cache: &mut LayerCache,
    ) -> Result<Array> {
        let dt = ops::astype(dt, Dtype::Float32)?;
        let dt = ops::clip(&softplus(&(dt + &self.dt_bias)?)?, self.time_step[0]..=self.time_step[1])?;
        let dt = unpadded(&dt, cache)?;
        let rate = ops::negative(&ops::exp(&ops::astype(&self.a_log, Dtype::Float32)?)?)?;
        let steps = (values * ops::expand_dims(&dt, -1)?)?;
        let log_decay = (dt * rate)?;
        let state = cache.state(1);
        let (out, next) =
            linear_attention(&Sequence { queries, keys, values: &steps, log_decay: &log_decay, state })?;
        cache.set_state(1, next)?;
        cache.advance(values.dim(1)?);
        ops::flatten(&(out + (values * ops::expand_dims(&self.d, -1)?)?)?, -2, -1)
    }
}

/// The state-space layer of Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024): a convolution, a
/// recurrence, a gate and a norm.
#[derive(Debug)]
pub struct Mamba2 {
    in_proj: Linear,
    conv1d: CausalConv,
    heads: StateHeads,
    norm: Option<GroupedRmsNorm>,
    out_proj: Linear,
    sizes: Mamba2Sizes,
    norm_before_gate: bool,
}

parameters!(Mamba2 { in_proj, conv1d, heads: "", norm, out_proj });

impl Mamba2 {
    /// Reads the weights of a layer with `dims` features. The norm, where the checkpoint has one, is of
    /// `norm_groups`.
    pub fn new(w: &Weights, dims: i32, sizes: Mamba2Sizes, norm_groups: i32, eps: f32) -> Result<Self> {
        let width = sizes.width();
        let conv = width + 2 * sizes.groups * sizes.state;
        let norm = |weight| GroupedRmsNorm { weight, groups: norm_groups, eps };
        let norm_weight = w.pp("norm");
        let norm_weight = norm_weight.contains("weight").then(|| norm_weight.get_shaped("weight", &[width]));
        Ok(Self {
            in_proj: w.linear("in_proj", dims, width + conv + sizes.heads)?,
            conv1d: w.causal_conv("conv1d", conv, sizes.kernel)?,
            heads: StateHeads::new(w, sizes.heads)?,
            norm: norm_weight.transpose()?.map(norm),
            out_proj: w.linear("out_proj", width, dims)?,
            sizes,
            norm_before_gate: false,
        })
    }

    /// With time steps from the first to the second of these.
    pub fn with_time_step(self, limits: Option<[f32; 2]>) -> Self {
        let time_step = limits.unwrap_or(self.heads.time_step);
        Self { heads: StateHeads { time_step, ..self.heads }, ..self }
    }

    /// With the norm before or after the gate.
    pub fn with_norm_before_gate(self, norm_before_gate: bool) -> Self {
        Self { norm_before_gate, ..self }
    }

    fn gated(&self, x: &Array, gate: &Array) -> Result<Array> {
        let gate = silu(&ops::astype(gate, Dtype::Float32)?)?;
        match &self.norm {
            Some(norm) if self.norm_before_gate => norm.forward(x)? * gate,
            Some(norm) => norm.forward(&(x * gate)?),
            None => x * gate,
        }
    }
}

impl Mixer for Mamba2 {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let Mamba2Sizes { heads, head_dim, groups, state, .. } = self.sizes;
        let (width, shared) = (self.sizes.width(), groups * state);
        let projected = self.in_proj.forward(x)?;
        let part = |x: &Array, range: Range<i32>| x.index((Ellipsis, range));
        let conv_end = 2 * width + 2 * shared;
        let mixed = self.conv1d.forward_silu(&part(&projected, width..conv_end)?, cache, 0)?;
        let by_head = |range, heads, dims| ops::unflatten(&part(&mixed, range)?, -1, &[heads, dims]);
        let values = by_head(0..width, heads, head_dim)?;
        let keys = by_head(width..width + shared, groups, state)?;
        let queries = by_head(width + shared..width + 2 * shared, groups, state)?;
        let dt = part(&projected, conv_end..conv_end + heads)?;
        let out = self.heads.forward(&values, &dt, [&keys, &queries], cache)?;
        let out = self.gated(&out, &part(&projected, 0..width)?)?;
        self.out_proj.forward(&ops::astype(&out, x.dtype())?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(2))
    }
}
