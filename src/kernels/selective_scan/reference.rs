//! The recurrence of the first Mamba in operations of MLX.

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops::{self, PadMode};

/// Positions whose states are in memory at once.
const SEGMENT: i32 = 256;
/// Positions of a chunk: all chunks of a segment go through theirs in step.
const CHUNK: i32 = 16;

pub(super) fn selective_scan(
    x: &Array,
    dt: &Array,
    a: &Array,
    [b, c]: [&Array; 2],
    state: Option<&Array>,
) -> Result<(Array, Array)> {
    let (&[batch, length, channels], &[_, dims]) = (x.shape(), a.shape()) else {
        return Err(Error::Shape { op: "selective_scan", lhs: x.shape().to_vec(), rhs: a.shape().to_vec() });
    };
    let float = |x: &Array| ops::astype(x, Dtype::Float32);
    let [x, dt, a, b, c] = [float(x)?, float(dt)?, float(a)?, float(b)?, float(c)?];
    let x = (x * &dt)?;
    let mut state = match state {
        Some(state) => float(state)?,
        None => ops::zeros(&[batch, channels, dims], Dtype::Float32)?,
    };
    if length == 0 {
        return Ok((x, state));
    }
    if length == 1 {
        let decay = ops::exp(&(ops::reshape(&dt, &[batch, channels, 1])? * &a)?)?;
        let state = ((state * decay)? + (ops::reshape(&x, &[batch, channels, 1])? * &b)?)?;
        let out = ops::matmul(&state, &ops::swapaxes(&c, 1, 2)?)?;
        return Ok((ops::reshape(&out, &[batch, 1, channels])?, state));
    }
    let mut outputs = Vec::new();
    for start in (0..length).step_by(SEGMENT as usize) {
        let part = |x: &Array| x.index((.., start..length.min(start + SEGMENT)));
        let (out, next) = segment(&part(&x)?, &part(&dt)?, &a, [&part(&b)?, &part(&c)?], &state)?;
        outputs.push(out);
        state = next;
    }
    Ok((ops::concatenate(&outputs, 1)?, state))
}

/// At most `SEGMENT` positions; `x` is multiplied by `dt`.
fn segment(x: &Array, dt: &Array, a: &Array, [b, c]: [&Array; 2], state: &Array) -> Result<(Array, Array)> {
    let column = |x: &Array| ops::expand_dims(x, -1);
    let added = (column(x)? * ops::expand_dims(b, -2)?)?;
    let (states, last) = diagonal_scan(&(column(dt)? * a)?, &added, state)?;
    Ok((ops::squeeze(&ops::matmul(&states, &column(c)?)?, -1)?, last))
}

/// For each position in order, `state <- state * exp(log_decay) + added`, element by element. All are
/// `float32`: `log_decay` (0 or less) and `added` `[batch, length, ...]`, `state` `[batch, ...]`. Returns all
/// states, `[batch, length, ...]`, and the last one.
pub fn diagonal_scan(log_decay: &Array, added: &Array, state: &Array) -> Result<(Array, Array)> {
    let length = added.dim(1)?;
    if length == 1 {
        let states = (added + (ops::exp(log_decay)? * ops::expand_dims(state, 1)?)?)?;
        let last = ops::squeeze(&states, 1)?;
        return Ok((states, last));
    }
    let count = (length + CHUNK - 1) / CHUNK;
    // Zeros behind the end change nothing: they add nothing, and do not decay.
    let mut behind = vec![(0, 0); added.ndim()];
    behind[1].1 = count * CHUNK - length;
    let cut = |x: &Array| ops::unflatten(&ops::pad(x, &behind, PadMode::Constant, 0)?, 1, &[count, CHUNK]);
    let (log_decay, added) = (cut(log_decay)?, cut(added)?);
    let decay = ops::exp(&log_decay)?;
    // The states of all chunks as if each began with zeros.
    let at = |x: &Array, t: i32| x.index((.., .., t));
    let mut alone = vec![at(&added, 0)?];
    for t in 1..CHUNK {
        let before = &alone[alone.len() - 1];
        alone.push(((before * at(&decay, t)?)? + at(&added, t)?)?);
    }
    let alone = ops::stack(&alone, 2)?;
    // What is left of the state that a chunk begins with.
    let left = ops::exp(&ops::cumsum(&log_decay, 2, false, true)?)?;
    let (last, kept) = (at(&alone, -1)?, at(&left, -1)?);
    let (mut state, mut starts) = (state.clone(), Vec::new());
    for i in 0..count {
        starts.push(state.clone());
        state = ((state * kept.index((.., i))?)? + last.index((.., i))?)?;
    }
    let starts = ops::expand_dims(&ops::stack(&starts, 1)?, 2)?;
    let states = ops::flatten(&(alone + (left * starts)?)?, 1, 2)?;
    Ok((states.index((.., ..length))?, state))
}
