//! The mixer of the first Mamba.

use serde::Deserialize;

use super::{CausalConv, Mixer, selective_scan, unpadded};
use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::models::Checks;
use crate::nn::activations::{silu, softplus};
use crate::nn::{Linear, Norm};
use crate::{ops, parameters};

/// The rank of the time steps in a config: a number, or `"auto"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum TimeStepRank {
    /// The rank.
    Rank(i32),
    /// A sixteenth of the width.
    Auto(String),
}

impl TimeStepRank {
    /// The rank in a model of so many features.
    pub fn of(&self, dims: i32) -> i32 {
        match self {
            TimeStepRank::Rank(rank) => *rank,
            TimeStepRank::Auto(_) => dims.saturating_add(15) / 16,
        }
    }
}

/// The sizes of a [`Mamba`].
#[derive(Debug, Clone, Copy)]
pub struct MambaSizes {
    /// Channels.
    pub width: i32,
    /// Features of a channel's state.
    pub state: i32,
    /// Positions that the convolution sees.
    pub kernel: i32,
    /// Rank of the time steps.
    pub rank: i32,
}

impl MambaSizes {
    /// Fails for sizes that no layer has.
    pub fn check(self, checks: Checks) -> Checks {
        let Self { width, state, kernel, rank } = self;
        checks.that([width, state, kernel, rank].iter().all(|size| (1..=1 << 24).contains(size)), || {
            format!("a Mamba layer with the sizes {self:?}")
        })
    }
}

/// The state-space layer of Mamba (Gu and Dao, 2023): a convolution, a [`selective_scan`] and a gate.
#[derive(Debug)]
pub struct Mamba {
    in_proj: Linear,
    conv1d: CausalConv,
    x_proj: Linear,
    dt_proj: Linear,
    a_log: Array,
    d: Array,
    out_proj: Linear,
    /// Of the time steps before their projection.
    pub dt_layernorm: Option<Norm>,
    /// Of what the state is written with.
    pub b_layernorm: Option<Norm>,
    /// Of what the state is read with.
    pub c_layernorm: Option<Norm>,
    sizes: MambaSizes,
}

parameters!(Mamba {
    in_proj,
    conv1d,
    x_proj,
    dt_proj,
    a_log: "A_log",
    d: "D",
    out_proj,
    dt_layernorm,
    b_layernorm,
    c_layernorm
});

impl Mamba {
    /// Reads the weights of a layer with `dims` features, without norms.
    pub fn new(w: &Weights, dims: i32, sizes: MambaSizes) -> Result<Self> {
        let MambaSizes { width, state, kernel, rank } = sizes;
        Ok(Self {
            in_proj: w.linear("in_proj", dims, 2 * width)?,
            conv1d: w.causal_conv("conv1d", width, kernel)?,
            x_proj: w.linear("x_proj", width, rank + 2 * state)?,
            dt_proj: w.linear("dt_proj", rank, width)?,
            a_log: w.get_shaped("A_log", &[width, state])?,
            d: w.get_shaped("D", &[width])?,
            out_proj: w.linear("out_proj", width, dims)?,
            dt_layernorm: None,
            b_layernorm: None,
            c_layernorm: None,
            sizes,
        })
    }

    /// With norms of time steps, `B` and `C`, in this order.
    pub fn with_norms(self, [dt, b, c]: [Norm; 3]) -> Self {
        Self { dt_layernorm: Some(dt), b_layernorm: Some(b), c_layernorm: Some(c), ..self }
    }
}

impl Mixer for Mamba {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let MambaSizes { width, state, rank, .. } = self.sizes;
        let both = self.in_proj.forward(x)?;
        let mixed = self.conv1d.forward_silu(&both.index((Ellipsis, ..width))?, cache, 0)?;
        let parts = ops::split(&self.x_proj.forward(&mixed)?, [rank, rank + state], -1)?;
        let norm =
            |norm: &Option<Norm>, x: &Array| norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(x));
        let dt = self.dt_proj.forward(&norm(&self.dt_layernorm, &parts[0])?)?;
        let dt = unpadded(&softplus(&ops::astype(&dt, Dtype::Float32)?)?, cache)?;
        let (b, c) = (norm(&self.b_layernorm, &parts[1])?, norm(&self.c_layernorm, &parts[2])?);
        let a = ops::negative(&ops::exp(&ops::astype(&self.a_log, Dtype::Float32)?)?)?;
        let (out, next) = selective_scan(&mixed, &dt, &a, [&b, &c], cache.state(1))?;
        cache.set_state(1, next)?;
        cache.advance(x.dim(1)?);
        let out = ops::astype(&(out + (mixed * &self.d)?)?, x.dtype())?;
        self.out_proj.forward(&(out * silu(&both.index((Ellipsis, width..))?)?)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(2))
    }
}
