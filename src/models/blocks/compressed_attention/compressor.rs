//! One key, which is the value too, for each group of positions.

use std::ops::Range;

use super::rounding::round_fp4;
use super::{LastDims, SharedGroups};
use crate::array::{Array, Dtype};
use crate::cache::{LayerCache, Offset};
use crate::checkpoint::Weights;
use crate::error::Result;
use crate::nn::{Linear, RmsNorm};
use crate::ops::PadMode;
use crate::{ops, parameters};

/// Makes one key of each group of positions: a mean weighted by gates.
#[derive(Debug)]
pub(super) struct Compressor {
    kv_proj: Linear,
    /// For groups of more than one.
    gate_proj: Option<Linear>,
    kv_norm: RmsNorm,
    rope: LastDims,
    ratio: i32,
    head_dim: i32,
}

parameters!(Compressor { kv_proj, gate_proj, kv_norm });

/// The states of a [`Compressor`]: the last positions before they are pooled, and their gates, as many as an
/// open group can have; the groups; their keys for indexers.
const OPEN: usize = 0;
const GATES: usize = 1;
const GROUPS: usize = 2;
const INDEX: usize = 3;

impl Compressor {
    /// So many states it has: see [`OPEN`] and those after it.
    pub(super) const STATES: usize = 4;

    pub(super) fn new(
        w: &Weights,
        [dims, head_dim]: [i32; 2],
        ratio: i32,
        rope: &LastDims,
        eps: f32,
    ) -> Result<Self> {
        Ok(Self {
            kv_proj: w.linear("kv_proj", dims, head_dim)?,
            gate_proj: (ratio > 1).then(|| w.linear("gate_proj", dims, head_dim)).transpose()?,
            kv_norm: w.rms_norm("kv_norm", head_dim, eps)?,
            rope: rope.striding(ratio),
            ratio,
            head_dim,
        })
    }

    /// Adds the groups that the positions of `x` complete, and their keys for indexers.
    pub(super) fn add(
        &self,
        x: &Array,
        offset: &Offset,
        index_keys: Option<&IndexKeys>,
        shared: &mut SharedGroups,
        cache: &mut LayerCache,
    ) -> Result<()> {
        let (rows, length) = (self.rows(x, cache)?, x.dim(1)?);
        let (mut groups, mut index) = (Vec::new(), Vec::new());
        for (batch, position) in spans(offset, x.dim(0)?)? {
            // Positions before the beginning of a sequence are padding.
            let (skipped, position) = ((-position).clamp(0, length), position.max(0));
            let first = position / self.ratio;
            let latent = self.pool(&rows, &batch, skipped, position % self.ratio)?;
            let latent = latent.map(|latent| {
                let latent = ops::astype(&latent, x.dtype())?;
                ops::expand_dims(&self.kv_norm.forward(&latent)?, 1)
            });
            let latent = latent.transpose()?;
            let turn = |x: &Array| self.rope.forward(x, &Offset::All(first));
            let add = |at: usize, dims: i32, new: Option<Array>| {
                let old = cache.state(at).filter(|_| first > 0);
                let old = old.map(|old| old.index((batch.clone(), ..first))).transpose()?;
                match (old, new.map(|new| ops::squeeze(&new, 1)).transpose()?) {
                    (Some(old), Some(new)) => ops::concatenate([&old, &new], 1),
                    (Some(part), None) | (None, Some(part)) => Ok(part),
                    (None, None) => ops::zeros(&[batch.end - batch.start, 0, dims], x.dtype()),
                }
            };
            let new = latent.as_ref().map(|latent| round_fp4(&turn(latent)?, 16, true)).transpose()?;
            groups.push(add(GROUPS, self.head_dim, new)?);
            if let Some(keys) = index_keys {
                let key = |latent: &Array| {
                    let key = keys.k_norm.forward(&keys.k_proj.forward(latent)?)?;
                    round_fp4(&turn(&key)?, 32, false)
                };
                index.push(add(INDEX, keys.head_dim, latent.as_ref().map(key).transpose()?)?);
            }
        }
        let (groups, index) = (level(groups)?, level(index)?);
        for (at, state) in [(GROUPS, &groups), (INDEX, &index)] {
            if let Some(state) = state {
                cache.set_state(at, state.clone())?;
            }
        }
        cache.advance(length);
        shared.groups = groups;
        if index_keys.is_some() {
            shared.index = index;
        }
        Ok(())
    }

    /// What is pooled, and its gates, `[batch, ratio - 1 + length, head_dim]`: the last positions, and the new
    /// ones.
    fn rows(&self, x: &Array, cache: &mut LayerCache) -> Result<(Array, Option<Array>)> {
        let Some(gate_proj) = &self.gate_proj else { return Ok((self.kv_proj.forward(x)?, None)) };
        let (kept, wide) = (self.ratio - 1, ops::astype(x, Dtype::Float32)?);
        let mut rows = |at: usize, new: Array| {
            let rows = match cache.state(at) {
                Some(old) => ops::concatenate([old, &new], 1)?,
                None => ops::pad(&new, &[(0, 0), (kept, 0), (0, 0)], PadMode::Constant, 0.0)?,
            };
            let last = rows.index((.., rows.dim(1)? - kept..))?;
            cache.set_state(at, ops::contiguous(&last, false)?)?;
            Ok(rows)
        };
        Ok((rows(OPEN, self.kv_proj.forward(&wide)?)?, Some(rows(GATES, gate_proj.forward(&wide)?)?)))
    }

    /// The groups that are complete, `[sequences, groups, head_dim]`, of those sequences of the batch whose
    /// first new positions, so many, are `skipped`, and whose open group has `open` positions; `None` if none
    /// are.
    fn pool(
        &self,
        (kv, gates): &(Array, Option<Array>),
        batch: &Range<i32>,
        skipped: i32,
        open: i32,
    ) -> Result<Option<Array>> {
        let start = self.ratio - 1 + skipped - open;
        let full = (kv.dim(1)? - start) / self.ratio;
        if full == 0 {
            return Ok(None);
        }
        let Some(gates) = gates else { return kv.index((batch.clone(), start..)).map(Some) };
        let grouped = |x: &Array| {
            let x = x.index((batch.clone(), start..start + full * self.ratio))?;
            ops::unflatten(&x, 1, &[full, self.ratio])
        };
        ops::sum(&(grouped(kv)? * ops::softmax(&grouped(gates)?, 2, true)?)?, 2, false).map(Some)
    }
}

/// To the keys that groups are chosen by.
#[derive(Debug)]
pub(super) struct IndexKeys {
    k_proj: Linear,
    k_norm: RmsNorm,
    head_dim: i32,
}

parameters!(IndexKeys { k_proj, k_norm });

impl IndexKeys {
    pub(super) fn new(w: &Weights, [dims, head_dim]: [i32; 2], eps: f32) -> Result<Self> {
        Ok(Self {
            k_proj: w.linear("k_proj", dims, head_dim)?,
            k_norm: w.rms_norm("k_norm", head_dim, eps)?,
            head_dim,
        })
    }
}

/// The sequences of a batch that are at one position, and that.
fn spans(offset: &Offset, batch: i32) -> Result<Vec<(Range<i32>, i32)>> {
    match offset {
        Offset::All(position) => Ok(vec![(0..batch, *position)]),
        Offset::Each(positions) => {
            Ok((0..batch).zip(positions.to_vec::<i32>()?).map(|(row, at)| (row..row + 1, at)).collect())
        }
    }
}

/// One array of parts of a batch, `[sequences, groups, dims]`, which get zeros behind them; `None` if there are
/// no groups.
fn level(parts: Vec<Array>) -> Result<Option<Array>> {
    let lengths = parts.iter().map(|part| part.dim(1)).collect::<Result<Vec<i32>>>()?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return Ok(None);
    }
    let fill = |(part, length): (&Array, i32)| {
        ops::pad(part, &[(0, 0), (0, longest - length), (0, 0)], PadMode::Constant, 0.0)
    };
    let parts = parts.iter().zip(lengths).map(fill).collect::<Result<Vec<Array>>>()?;
    ops::concatenate(&parts, 0).map(Some)
}
