//! Which groups a query sees.

use super::compressor::IndexKeys;
use super::rounding::round_fp4;
use super::{CompressedConfig, LastDims, SharedGroups};
use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::cache::Offset;
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::models::blocks::{split_heads, top_k};
use crate::nn::Linear;
use crate::ops::PadMode;
use crate::{ops, parameters};

/// Chooses the groups that a query sees: those with the largest sums over heads of rectified products.
#[derive(Debug)]
pub(super) struct Indexer {
    q_b_proj: Linear,
    weights_proj: Linear,
    /// Of a layer that compresses.
    keys: Option<IndexKeys>,
    rope: LastDims,
    ratio: i32,
    heads: i32,
    head_dim: i32,
    count: i32,
    /// How many blocks of how many groups this layer leaves for those after it.
    leaves: Option<[i32; 2]>,
}

parameters!(Indexer { q_b_proj, weights_proj, keys: "" });

impl Indexer {
    pub(super) fn new(
        w: &Weights,
        dims: i32,
        config: &CompressedConfig,
        layer: usize,
        keys: Option<IndexKeys>,
        rope: &LastDims,
    ) -> Result<Self> {
        let (heads, head_dim) = (config.index_n_heads, config.index_head_dim);
        let leaves = i64::try_from(layer).is_ok_and(|layer| layer == config.candidate_source_layer_id);
        let blocks = [config.candidate_topk_blocks, config.candidate_block_size];
        Ok(Self {
            q_b_proj: w.linear("q_b_proj", config.q_lora_rank, heads * head_dim)?,
            weights_proj: w.linear("weights_proj", dims, heads)?,
            keys,
            rope: rope.clone(),
            ratio: config.ratio(layer),
            heads,
            head_dim,
            count: config.index_topk,
            leaves: Some(blocks).filter(|[count, _]| leaves && *count > 0),
        })
    }

    /// To the keys that it chooses by, if it has them itself.
    pub(super) fn keys(&self) -> Option<&IndexKeys> {
        self.keys.as_ref()
    }

    /// For each position of `x`, whose queries are made of what is `squeezed`.
    pub(super) fn choose(
        &self,
        x: &Array,
        squeezed: &Array,
        offset: &Offset,
        shared: &mut SharedGroups,
    ) -> Result<()> {
        let Some(keys) = &shared.index else {
            shared.chosen = None;
            return Ok(());
        };
        let (length, groups) = (x.dim(1)?, keys.dim(1)?);
        let queries = split_heads(&self.q_b_proj.forward(squeezed)?, self.heads)?;
        let queries = round_fp4(&self.rope.forward(&queries, offset)?, 32, false)?;
        let wide = |x: &Array| ops::astype(x, Dtype::Float32);
        let keys = ops::swapaxes(&ops::expand_dims(&wide(keys)?, 1)?, -1, -2)?;
        let products = ops::maximum(&ops::matmul(&wide(&queries)?, &keys)?, 0)?;
        let products = (products * (self.head_dim as f32).powf(-0.5))?;
        let weights = (wide(&self.weights_proj.forward(x)?)? * (self.heads as f32).powf(-0.5))?;
        let weights = ops::expand_dims(&ops::swapaxes(&weights, -1, -2)?, -1)?;
        let scores = ops::sum(&(products * weights)?, 1, false)?;
        // A position sees the groups that end with it or before.
        let ends = (offset.positions(length)? + 1)?;
        let closed = ops::expand_dims(&ops::floor_divide(&ends, Array::from(self.ratio))?, -1)?;
        let visible = ops::less(&ops::arange(0, groups, 1, Dtype::Int32)?, &closed)?;
        let mut scores = ops::where_(&visible, &scores, f32::NEG_INFINITY)?;
        if let Some(blocks) = self.leaves {
            shared.candidates = Some(candidates(&scores, &closed, blocks)?);
        } else if let Some(candidates) = &shared.candidates {
            scores = ops::where_(candidates, &scores, f32::NEG_INFINITY)?;
        }
        let mut sees = ops::greater(&scores, f32::NEG_INFINITY)?;
        let mut rows = None;
        if groups > self.count {
            let best = ops::stop_gradient(&top_k(&scores, self.count)?)?;
            let some = ops::put_along_axis(&ops::zeros_like(&sees)?, &best, &Array::from(true), -1)?;
            sees = ops::logical_and(&sees, &some)?;
            rows = (length == 1).then(|| ops::squeeze(&best, 1)).transpose()?;
        }
        shared.chosen = Some((sees, rows));
        Ok(())
    }
}

/// The groups of the blocks with the best scores `[batch, length, groups]`, `bool` of the same shape, of which
/// `closed`, `[length, 1]` or `[batch, length, 1]`, are there. The newest block is among them: it is not full yet.
fn candidates(scores: &Array, closed: &Array, [count, size]: [i32; 2]) -> Result<Array> {
    let groups = scores.dim(-1)?;
    let size = size.min(groups.max(1));
    let blocks = (groups + size - 1) / size;
    let widths = [(0, 0), (0, 0), (0, blocks * size - groups)];
    let padded = ops::pad(scores, &widths, PadMode::Constant, f32::NEG_INFINITY)?;
    let best = ops::max(&ops::unflatten(&padded, -1, &[blocks, size])?, -1, false)?;
    let newest = ops::floor_divide(&(closed - 1)?, Array::from(size))?;
    let is_newest = ops::equal(&ops::arange(0, blocks, 1, Dtype::Int32)?, &newest)?;
    let best = ops::where_(&is_newest, f32::INFINITY, &best)?;
    let mut kept = ops::greater(&best, f32::NEG_INFINITY)?;
    if count < blocks {
        let chosen = ops::stop_gradient(&top_k(&best, count)?)?;
        let some = ops::put_along_axis(&ops::zeros_like(&kept)?, &chosen, &Array::from(true), -1)?;
        kept = ops::logical_and(&kept, &some)?;
    }
    ops::repeat(&kept, size, -1)?.index((Ellipsis, ..groups))
}
