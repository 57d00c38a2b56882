//! Kimi Delta Attention (Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025).

use super::linear_attention::{Sequence, gated_delta, log_decay, unit_length};
use super::{CausalConv, Mixer, unpadded};
use crate::array::{Array, Dtype};
use crate::cache::{LayerCache, Masks};
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::models::Checks;
use crate::nn::{Linear, Module, RmsNorm, join};
use crate::ops;

/// The sizes of a [`DeltaAttention`].
#[derive(Debug, Clone, Copy)]
pub struct DeltaSizes {
    /// Heads.
    pub heads: i32,
    /// Features of a head.
    pub head_dim: i32,
    /// Positions that a convolution sees.
    pub kernel: i32,
}

impl Checks {
    /// Sizes of a [`DeltaAttention`].
    pub fn delta(self, sizes: DeltaSizes) -> Self {
        let width = i64::from(sizes.heads) * i64::from(sizes.head_dim);
        self.size("num_heads", sizes.heads)
            .size("head_dim", sizes.head_dim)
            .that((1..=1 << 12).contains(&sizes.kernel), || format!("a convolution over {}", sizes.kernel))
            .that((1..=1 << 26).contains(&width), || format!("linear attention {width} wide"))
    }
}

/// Where a checkpoint has projections to queries, keys and values, each with its convolution: three of
/// them, or one for all.
pub type Inputs = &'static [(&'static str, &'static str)];

/// Layers one after the other, and where the checkpoint has them.
#[derive(Debug)]
struct Chain(Vec<(&'static str, Linear)>);

impl Chain {
    /// `squeezed` from `dims` to `few` and on to `width` if the checkpoint has them, else `straight`.
    fn new(
        w: &Weights,
        squeezed: [&'static str; 2],
        straight: &'static str,
        sizes: [i32; 3],
    ) -> Result<Self> {
        let [dims, few, width] = sizes;
        let [a, b] = squeezed;
        Ok(Self(if w.pp(a).contains("weight") {
            vec![(a, w.linear(a, dims, few)?), (b, w.linear(b, few, width)?)]
        } else {
            vec![(straight, w.linear(straight, dims, width)?)]
        }))
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        self.0.iter().try_fold(x.clone(), |x, (_, layer)| layer.forward(&x))
    }
}

impl Module for Chain {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        self.0.iter().for_each(|(name, layer)| layer.visit(&join(path, name), f));
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        self.0.iter_mut().for_each(|(name, layer)| layer.visit_mut(&join(path, name), f));
    }
}

/// The gated delta rule with a decay for each dimension of a key, behind short convolutions.
#[derive(Debug)]
pub struct DeltaAttention {
    names: Inputs,
    inputs: Vec<(Linear, CausalConv)>,
    /// To the decays.
    forget: Chain,
    /// To the logits of the outputs' gate.
    gate: Chain,
    b_proj: Linear,
    a_log: Array,
    dt_bias: Array,
    o_norm: RmsNorm,
    o_proj: Linear,
    sizes: DeltaSizes,
    /// Of the logarithm of a decay; without, there is none.
    lower_bound: Option<f32>,
}

impl DeltaAttention {
    /// Reads the weights of a layer with `dims` features.
    pub fn new(
        w: &Weights,
        names: Inputs,
        dims: i32,
        sizes: DeltaSizes,
        eps: f32,
        lower_bound: Option<f32>,
    ) -> Result<Self> {
        let DeltaSizes { heads, head_dim, kernel } = sizes;
        let width = heads * head_dim;
        let each = 3 * width / names.len() as i32;
        let input = |(proj, conv): &(&str, &str)| {
            Ok((w.linear(proj, dims, each)?, w.causal_conv(conv, each, kernel)?))
        };
        let sized = |name: &str, size: i32| {
            let array = w.get(name)?;
            if array.size() == size as usize {
                return Ok(array);
            }
            let (name, shape) = (w.full(name), array.shape());
            Err(Error::invalid(w.file(), format!("weight `{name}` is {shape:?}, not of {size} elements")))
        };
        Ok(Self {
            inputs: names.iter().map(input).collect::<Result<_>>()?,
            names,
            forget: Chain::new(w, ["f_a_proj", "f_b_proj"], "f_proj", [dims, head_dim, width])?,
            gate: Chain::new(w, ["g_a_proj", "g_b_proj"], "g_proj", [dims, head_dim, width])?,
            b_proj: w.linear("b_proj", dims, heads)?,
            a_log: sized("A_log", heads)?,
            dt_bias: sized("dt_bias", width)?,
            o_norm: w.rms_norm("o_norm", head_dim, eps)?,
            o_proj: w.linear("o_proj", width, dims)?,
            sizes,
            lower_bound,
        })
    }

    /// The logarithm of how much each dimension of the state keeps, `[batch, length, heads, head_dim]`.
    fn log_decay(&self, x: &Array) -> Result<Array> {
        let DeltaSizes { heads, head_dim, .. } = self.sizes;
        let x = ops::unflatten(&self.forget.forward(x)?, -1, &[heads, head_dim])?;
        let a_log = ops::reshape(&self.a_log, &[heads, 1])?;
        let dt_bias = ops::reshape(&self.dt_bias, &[heads, head_dim])?;
        let Some(bound) = self.lower_bound else { return log_decay(&x, &a_log, &dt_bias) };
        let rate = ops::exp(&ops::astype(&a_log, Dtype::Float32)?)?;
        ops::sigmoid(&(rate * (ops::astype(&x, Dtype::Float32)? + dt_bias)?)?)? * bound
    }
}

impl Mixer for DeltaAttention {
    fn forward(&self, x: &Array, _masks: &mut Masks, cache: &mut LayerCache) -> Result<Array> {
        let DeltaSizes { heads, head_dim, .. } = self.sizes;
        let mixed = |(slot, (proj, conv)): (usize, &(Linear, CausalConv))| {
            conv.forward_silu(&proj.forward(x)?, cache, slot)
        };
        let mixed: Vec<Array> = self.inputs.iter().enumerate().map(mixed).collect::<Result<_>>()?;
        let mixed = ops::unflatten(&ops::concatenate(&mixed, -1)?, -1, &[3, heads, head_dim])?;
        let part = |i: i32| mixed.index((.., .., i));
        let q = (unit_length(&part(0)?)? * (head_dim as f32).powf(-0.5))?;
        let (k, v) = (unit_length(&part(1)?)?, part(2)?);
        let log_decay = unpadded(&self.log_decay(x)?, cache)?;
        let beta = unpadded(&ops::sigmoid(&self.b_proj.forward(x)?)?, cache)?;
        let slot = self.inputs.len();
        let state = cache.state(slot);
        let sequence = Sequence { queries: &q, keys: &k, values: &v, log_decay: &log_decay, state };
        let (out, state) = gated_delta(&sequence, &beta)?;
        cache.set_state(slot, state)?;
        cache.advance(x.dim(1)?);
        let gate = ops::unflatten(&ops::sigmoid(&self.gate.forward(x)?)?, -1, &[heads, head_dim])?;
        self.o_proj.forward(&ops::flatten(&(self.o_norm.forward(&out)? * gate)?, -2, -1)?)
    }

    fn make_cache(&self) -> Option<LayerCache> {
        Some(LayerCache::states(self.inputs.len() + 1))
    }
}

impl Module for DeltaAttention {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        for ((proj_name, conv_name), (proj, conv)) in self.names.iter().zip(&self.inputs) {
            proj.visit(&join(path, proj_name), f);
            conv.visit(&join(path, conv_name), f);
        }
        self.forget.visit(path, f);
        self.gate.visit(path, f);
        self.b_proj.visit(&join(path, "b_proj"), f);
        self.a_log.visit(&join(path, "A_log"), f);
        self.dt_bias.visit(&join(path, "dt_bias"), f);
        self.o_norm.visit(&join(path, "o_norm"), f);
        self.o_proj.visit(&join(path, "o_proj"), f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        for ((proj_name, conv_name), (proj, conv)) in self.names.iter().zip(&mut self.inputs) {
            proj.visit_mut(&join(path, proj_name), f);
            conv.visit_mut(&join(path, conv_name), f);
        }
        self.forget.visit_mut(path, f);
        self.gate.visit_mut(path, f);
        self.b_proj.visit_mut(&join(path, "b_proj"), f);
        self.a_log.visit_mut(&join(path, "A_log"), f);
        self.dt_bias.visit_mut(&join(path, "dt_bias"), f);
        self.o_norm.visit_mut(&join(path, "o_norm"), f);
        self.o_proj.visit_mut(&join(path, "o_proj"), f);
    }
}
