//! A convolution over the last positions of each channel.

use crate::array::Array;
use crate::cache::LayerCache;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::kernels::causal_conv;
use crate::{ops, parameters};

/// A depthwise convolution that ends at the position it is for: output `t` is
/// `sum_i weight[i] x[t - kernel + 1 + i] + bias`, for each channel alone. The cache has the last
/// `kernel - 1` inputs.
#[derive(Debug, Clone)]
pub struct CausalConv {
    /// `[channels, kernel, 1]`.
    pub weight: Array,
    /// `[channels]`.
    pub bias: Option<Array>,
}

parameters!(CausalConv { weight, bias });

impl CausalConv {
    /// `[batch, length, channels]` to the same shape, continuing state number `slot` of the cache.
    /// Padding counts as zeros.
    pub fn forward(&self, x: &Array, cache: &mut LayerCache, slot: usize) -> Result<Array> {
        self.run(x, cache, slot, false)
    }

    /// [`silu`](crate::nn::activations::silu) of what [`forward`](Self::forward) gives.
    pub fn forward_silu(&self, x: &Array, cache: &mut LayerCache, slot: usize) -> Result<Array> {
        self.run(x, cache, slot, true)
    }

    fn run(&self, x: &Array, cache: &mut LayerCache, slot: usize, silu: bool) -> Result<Array> {
        let x = unpadded(x, cache)?;
        let (out, state) = causal_conv(&x, &self.weight, self.bias.as_ref(), cache.state(slot), silu)?;
        cache.set_state(slot, state)?;
        Ok(out)
    }
}

/// `x`, `[batch, length, ...]`, with zeros at the positions that are padding.
pub fn unpadded(x: &Array, cache: &LayerCache) -> Result<Array> {
    let Some(mask) = cache.padding(x.dim(1)?)? else { return Ok(x.clone()) };
    let axes: Vec<i32> = (2..x.ndim() as i32).collect();
    ops::where_(&ops::expand_dims(&mask, axes.as_slice())?, x, 0)
}

impl Weights {
    /// The depthwise convolution `name` of so many channels.
    pub fn causal_conv(&self, name: &str, channels: i32, kernel: i32) -> Result<CausalConv> {
        let w = self.pp(name);
        let bias = w.contains("bias").then(|| w.get_shaped("bias", &[channels])).transpose()?;
        Ok(CausalConv { weight: w.get_shaped("weight", &[channels, kernel, 1])?, bias })
    }
}
