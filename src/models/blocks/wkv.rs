//! The recurrence of RWKV-7.

use super::linear_attention::{decayed_products, inverse};
use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::error::{Error, Result};
use crate::ops::{self, PadMode};

/// Positions that are worked on at once, and those whose numbers are in memory at once.
const CHUNK: i32 = 16;
const SEGMENT: i32 = 256;

/// The generalised delta rule (Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", 2025),
/// for each head and position in order, in `float32`:
///
/// ```text
/// state <- state * exp(log_decay) + (state a) b^T + value key^T
/// output = state query
/// ```
///
/// `inputs` are queries, decays, keys, values, `a` and `b`, all `[batch, length, heads, dims]`. Returns the
/// outputs, of the same shape, and the last state, `[batch, heads, dims, dims]`. Without a `state`, the
/// sequence starts from zeros. Chunks are those of the gated delta rule.
pub fn wkv(inputs: [&Array; 6], state: Option<&Array>) -> Result<(Array, Array)> {
    let &[batch, length, heads, dims] = inputs[0].shape() else {
        return Err(Error::argument("wkv", format!("shape {:?} has not four axes", inputs[0].shape())));
    };
    let by_head = |x: &Array| ops::transpose(&ops::astype(x, Dtype::Float32)?, [0, 2, 1, 3]);
    let all = inputs.into_iter().map(by_head).collect::<Result<Vec<_>>>()?;
    let mut state = match state {
        Some(state) => ops::astype(state, Dtype::Float32)?,
        None => ops::zeros(&[batch, heads, dims, dims], Dtype::Float32)?,
    };
    let mut outputs = Vec::new();
    for start in (0..length).step_by(SEGMENT as usize) {
        let part = |x: &Array| x.index((.., .., start..length.min(start + SEGMENT)));
        let part = all.iter().map(part).collect::<Result<Vec<_>>>()?;
        let (out, next) = if length == 1 { step(&part, &state)? } else { chunks(&part, state)? };
        outputs.push(out);
        state = next;
    }
    let out = ops::transpose(&ops::concatenate(&outputs, 2)?, [0, 2, 1, 3])?;
    Ok((ops::astype(&out, inputs[0].dtype())?, state))
}

/// One position.
fn step(all: &[Array], state: &Array) -> Result<(Array, Array)> {
    let column = |x: &Array| ops::swapaxes(x, -1, -2);
    let found = (ops::matmul(state, &column(&all[4])?)? * &all[5])?;
    let state = (((state * ops::exp(&all[1])?)? + found)? + (column(&all[3])? * &all[2])?)?;
    Ok((column(&ops::matmul(&state, &column(&all[0])?)?)?, state))
}

/// `CHUNK` positions at a time.
fn chunks(all: &[Array], mut state: Array) -> Result<(Array, Array)> {
    let length = all[0].dim(2)?;
    let count = (length + CHUNK - 1) / CHUNK;
    // Zeros behind the end change nothing: they add nothing, and do not decay.
    let behind = [(0, 0), (0, 0), (0, count * CHUNK - length), (0, 0)];
    let cut =
        |i: usize| ops::unflatten(&ops::pad(&all[i], &behind, PadMode::Constant, 0)?, 2, &[count, CHUNK]);
    let (q, log_decay, k, v, a, b) = (cut(0)?, cut(1)?, cut(2)?, cut(3)?, cut(4)?, cut(5)?);
    let since = ops::cumsum(&log_decay, 3, false, true)?;
    let (decayed, end) = (ops::exp(&since)?, since.index((Ellipsis, -1.., ..))?);
    // `a` meets the state before it decays.
    let a = (a * ops::exp(&ops::negative(&log_decay)?)?)?;
    // What `a` finds in a chunk is `new + old state^T`, with the state that it starts from.
    let solve = inverse(&ops::negative(&decayed_products(&a, &b, &since, -1)?)?)?;
    let new = ops::matmul(&solve, &ops::matmul(&decayed_products(&a, &k, &since, -1)?, &v)?)?;
    let old = ops::matmul(&solve, &(a * &decayed)?)?;
    let (of_found, of_values) = (decayed_products(&q, &b, &since, 0)?, decayed_products(&q, &k, &since, 0)?);
    let own = ops::matmul(&of_values, &v)?;
    let q = (q * decayed)?;
    let rest = ops::exp(&(&end - &since)?)?;
    let (b, k, end) = ((b * &rest)?, (k * rest)?, ops::exp(&end)?);
    let transposed = |x: &Array| ops::swapaxes(x, -1, -2);
    let written = ops::matmul(&transposed(&v)?, &k)?;
    let mut outputs = Vec::new();
    for i in 0..count {
        let at = |x: &Array| x.index((.., .., i));
        let before = transposed(&state)?;
        let found = (at(&new)? + ops::matmul(&at(&old)?, &before)?)?;
        let out = (ops::matmul(&at(&q)?, &before)? + ops::matmul(&at(&of_found)?, &found)?)?;
        outputs.push((out + at(&own)?)?);
        let found = ops::matmul(&transposed(&found)?, &at(&b)?)?;
        state = (((state * at(&end)?)? + found)? + at(&written)?)?;
    }
    Ok((ops::concatenate(&outputs, 2)?.index((.., .., ..length))?, state))
}
