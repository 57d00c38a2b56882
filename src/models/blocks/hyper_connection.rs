//! Residual streams that mix (Xie et al., "mHC: Manifold-Constrained Hyper-Connections", 2025).

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::models::Checks;
use crate::{fast, ops, parameters};

/// The streams of a model, as configs have them; DeepSeek's where one is missing.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default)]
pub struct HyperConfig {
    /// Streams.
    pub hc_mult: i32,
    /// Rounds in which rows and columns of a mixture are made to sum to 1.
    pub hc_sinkhorn_iters: usize,
    /// Added to what is read and to mixtures.
    pub hc_eps: f32,
}

impl Default for HyperConfig {
    fn default() -> Self {
        Self { hc_mult: 4, hc_sinkhorn_iters: 20, hc_eps: 1e-6 }
    }
}

impl Checks {
    /// Settings of [`HyperConnection`]s.
    pub fn hyper(self, config: &HyperConfig) -> Self {
        let (streams, rounds) = (config.hc_mult, config.hc_sinkhorn_iters);
        self.that((1..=64).contains(&streams), || format!("`hc_mult` is {streams}"))
            .that((1..=1000).contains(&rounds), || format!("`hc_sinkhorn_iters` is {rounds}"))
            .eps("hc_eps", config.hc_eps)
    }
}

/// The sum of the streams, `[batch, length, streams, dims]`, weighted by `reads`, `[..., streams]`.
pub fn collapse(streams: &Array, reads: &Array) -> Result<Array> {
    let weighted = (ops::expand_dims(reads, -1)? * ops::astype(streams, Dtype::Float32)?)?;
    ops::astype(&ops::sum(&weighted, 2, false)?, streams.dtype())
}

/// How much of each stream is read, how much is added to each, and how they mix, all by the streams
/// themselves. The mixture is almost doubly stochastic (Sinkhorn and Knopp, 1967).
#[derive(Debug)]
pub struct HyperConnection {
    r#fn: Array,
    base: Array,
    scale: Array,
    streams: i32,
    iterations: usize,
    eps: f32,
    norm_eps: f32,
}

parameters!(HyperConnection { r#fn: "fn", base, scale });

/// What a [`HyperConnection`] gives for some streams.
#[derive(Debug)]
pub struct Connection {
    /// How much of each stream is read, `[batch, length, streams]`: see [`collapse`].
    pub reads: Array,
    /// How much is added to each, `[batch, length, streams]`.
    adds: Array,
    /// `[batch, length, streams, streams]`, from the streams to themselves.
    mixes: Array,
}

impl HyperConnection {
    /// Reads `fn`, `base` and `scale`, for streams of `dims` features; `norm_eps` is that of the streams' norm.
    pub fn new(w: &Weights, dims: i32, config: &HyperConfig, norm_eps: f32) -> Result<Self> {
        let (streams, mixes) = (config.hc_mult, (2 + config.hc_mult) * config.hc_mult);
        let width = streams.saturating_mul(dims);
        Ok(Self {
            r#fn: w.get_shaped("fn", &[mixes, width])?,
            base: w.get_shaped("base", &[mixes])?,
            scale: w.get_shaped("scale", &[3])?,
            streams,
            iterations: config.hc_sinkhorn_iters,
            eps: config.hc_eps,
            norm_eps,
        })
    }

    /// Of the streams, `[batch, length, streams, dims]`.
    pub fn forward(&self, streams: &Array) -> Result<Connection> {
        let n = self.streams;
        let flat = ops::astype(&ops::flatten(streams, -2, -1)?, Dtype::Float32)?;
        let flat = fast::rms_norm(&flat, None, self.norm_eps)?;
        let parts = |x: &Array| ops::exactly::<3>(ops::split(x, [n, 2 * n], -1)?);
        let (mix, base) =
            (parts(&ops::matmul(&flat, &ops::swapaxes(&self.r#fn, 0, 1)?)?)?, parts(&self.base)?);
        let part = |i: usize| (&mix[i] * self.scale.index(i as i32)?)? + &base[i];
        let mixes = ops::softmax(&ops::unflatten(&part(2)?, -1, &[n, n])?, -1, true)?;
        Ok(Connection {
            reads: (ops::sigmoid(&part(0)?)? + self.eps)?,
            adds: (ops::sigmoid(&part(1)?)? * 2.0)?,
            mixes: self.balance((mixes + self.eps)?)?,
        })
    }

    /// Columns that sum to 1, then by turns rows and columns.
    fn balance(&self, mut mixes: Array) -> Result<Array> {
        for turn in 0..2 * self.iterations - 1 {
            let axis = if turn % 2 == 0 { -2 } else { -1 };
            mixes = (&mixes / (ops::sum(&mixes, axis, true)? + self.eps)?)?;
        }
        Ok(mixes)
    }
}

impl Connection {
    /// The streams with what a branch gives, `[batch, length, dims]`.
    pub fn expand(&self, x: &Array, streams: &Array) -> Result<Array> {
        let mixed =
            ops::matmul(&ops::swapaxes(&self.mixes, -1, -2)?, &ops::astype(streams, Dtype::Float32)?)?;
        let added = (ops::expand_dims(&self.adds, -1)? * ops::expand_dims(x, -2)?)?;
        ops::astype(&(added + mixed)?, streams.dtype())
    }
}
