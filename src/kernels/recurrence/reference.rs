//! The recurrences in operations of MLX, several positions at once.

use super::Sequence;
use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::error::{Error, Result};
use crate::ops::{self, PadMode};

/// Positions that are worked on at once.
const CHUNK: i32 = 64;
/// The same where each dimension of a key decays on its own: this takes numbers for each pair of
/// positions and dimension.
const CHUNK_OF_DIMS: i32 = 16;
/// Positions of which such numbers are in memory at once.
const SEGMENT_OF_DIMS: i32 = 256;

/// A [`Sequence`] in `float32` and by head, `[batch, heads, length, ...]`.
struct ByHead {
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Option<Array>,
}

impl ByHead {
    /// `f` of each array.
    fn map(&self, f: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        let beta = self.beta.as_ref().map(&f).transpose()?;
        Ok(Self { q: f(&self.q)?, k: f(&self.k)?, v: f(&self.v)?, log_decay: f(&self.log_decay)?, beta })
    }
}

/// Both recurrences of a [`Sequence`], in chunks (Yang et al., "Parallelizing Linear Transformers with the
/// Delta Rule over Sequence Length", 2024): inside a chunk, all corrections solve a triangular system at once.
pub(super) fn recurrence(sequence: &Sequence, beta: Option<&Array>) -> Result<(Array, Array)> {
    let &Sequence { queries, keys, values, log_decay, state } = sequence;
    let (&[batch, length, key_heads, key_dim], &[_, _, heads, value_dim]) = (keys.shape(), values.shape())
    else {
        let (lhs, rhs) = (keys.shape().to_vec(), values.shape().to_vec());
        return Err(Error::Shape { op: "linear_attention", lhs, rhs });
    };
    let shared = heads.checked_div(key_heads).unwrap_or(0);
    let by_head = |x: &Array| ops::transpose(&ops::astype(x, Dtype::Float32)?, [0, 2, 1, 3]);
    let for_all = |x: Array| if shared == 1 { Ok(x) } else { ops::repeat(&x, shared, 1) };
    let with_axis = |x: &Array| if x.ndim() == 4 { Ok(x.clone()) } else { ops::expand_dims(x, -1) };
    let all = ByHead {
        q: for_all(by_head(queries)?)?,
        k: for_all(by_head(keys)?)?,
        v: by_head(values)?,
        log_decay: by_head(&with_axis(log_decay)?)?,
        beta: beta.map(|beta| by_head(&with_axis(beta)?)).transpose()?,
    };
    let state = match state {
        Some(state) => ops::astype(state, Dtype::Float32)?,
        None => ops::zeros(&[batch, heads, value_dim, key_dim], Dtype::Float32)?,
    };
    let (out, state) = match (length, log_decay.ndim()) {
        (0, _) => (all.v, state),
        (1, _) => step(&all, &state)?,
        (_, 4) => segments(&all, state)?,
        _ => chunks(&all, state, CHUNK)?,
    };
    Ok((ops::astype(&ops::transpose(&out, [0, 2, 1, 3])?, queries.dtype())?, state))
}

/// One position.
fn step(ByHead { q, k, v, log_decay, beta }: &ByHead, state: &Array) -> Result<(Array, Array)> {
    let column = |x: &Array| ops::swapaxes(x, -1, -2);
    let state = (state * ops::exp(log_decay)?)?;
    let added = match beta {
        Some(beta) => ((column(v)? - ops::matmul(&state, &column(k)?)?)? * beta)?,
        None => column(v)?,
    };
    let state = (state + (added * k)?)?;
    Ok((column(&ops::matmul(&state, &column(q)?)?)?, state))
}

/// [`chunks`] with a decay for each dimension, with no more in memory than `SEGMENT_OF_DIMS` says.
fn segments(all: &ByHead, mut state: Array) -> Result<(Array, Array)> {
    let (length, mut outputs) = (all.q.dim(2)?, Vec::new());
    for start in (0..length).step_by(SEGMENT_OF_DIMS as usize) {
        let segment = all.map(|x| x.index((.., .., start..length.min(start + SEGMENT_OF_DIMS))))?;
        let (out, next) = chunks(&segment, state, CHUNK_OF_DIMS)?;
        outputs.push(out);
        state = next;
    }
    Ok((ops::concatenate(&outputs, 2)?, state))
}

/// `size` positions at a time, which is a power of two.
fn chunks(all: &ByHead, mut state: Array, size: i32) -> Result<(Array, Array)> {
    let length = all.q.dim(2)?;
    let size = size.min((length as u32).next_power_of_two() as i32);
    let count = (length + size - 1) / size;
    // Zeros behind the end change nothing: they add nothing, and do not decay.
    let behind = [(0, 0), (0, 0), (0, count * size - length), (0, 0)];
    let cut = |x: &Array| ops::unflatten(&ops::pad(x, &behind, PadMode::Constant, 0)?, 2, &[count, size]);
    let ByHead { q, k, v, log_decay, beta } = all.map(cut)?;
    let since = ops::cumsum(&log_decay, 3, false, true)?;
    let (decayed, end) = (ops::exp(&since)?, since.index((Ellipsis, -1.., ..))?);
    // What a chunk adds are `new - old state^T` times the keys, with the state that it starts from.
    let (new, old) = match &beta {
        Some(beta) => {
            let solve = inverse(&(decayed_products(&k, &k, &since, -1)? * beta)?)?;
            let old = ops::matmul(&solve, &((&k * &decayed)? * beta)?)?;
            (ops::matmul(&solve, &(v * beta)?)?, Some(old))
        }
        None => (v, None),
    };
    let within = decayed_products(&q, &k, &since, 0)?;
    let q = (q * decayed)?;
    let k = (k * ops::exp(&(&end - since)?)?)?;
    let end = ops::exp(&end)?;
    let mut outputs = Vec::new();
    for i in 0..count {
        let at = |x: &Array| x.index((.., .., i));
        let before = ops::swapaxes(&state, -1, -2)?;
        let mut added = at(&new)?;
        if let Some(old) = &old {
            added = (added - ops::matmul(&at(old)?, &before)?)?;
        }
        outputs.push((ops::matmul(&at(&q)?, &before)? + ops::matmul(&at(&within)?, &added)?)?);
        state = ((state * at(&end)?)? + ops::matmul(&ops::swapaxes(&added, -1, -2)?, &at(&k)?)?)?;
    }
    Ok((ops::concatenate(&outputs, 2)?.index((.., .., ..length))?, state))
}

/// `a_i . (exp(since_i - since_j) b_j)` for `j <= i + diagonal`, and else 0: `[..., size, size]`.
fn decayed_products(a: &Array, b: &Array, since: &Array, diagonal: i32) -> Result<Array> {
    let size = since.dim(-2)?;
    let earlier = ops::tri(size, size, diagonal, Dtype::Bool)?;
    let [row, column] = [-2, -3].map(|axis| move |x: &Array| ops::expand_dims(x, axis));
    let decay = |gap: &Array, earlier: &Array| ops::exp(&ops::where_(earlier, gap, f32::NEG_INFINITY)?);
    if since.dim(-1)? == 1 {
        let gap = (since - ops::swapaxes(since, -1, -2)?)?;
        return ops::matmul(a, &ops::swapaxes(b, -1, -2)?)? * decay(&gap, &earlier)?;
    }
    let decay = decay(&(row(since)? - column(since)?)?, &ops::expand_dims(&earlier, -1)?)?;
    // A product of matrices sums without another array of this size.
    let weighted = ops::matmul(&(decay * column(b)?)?, &ops::expand_dims(a, -1)?)?;
    ops::squeeze(&weighted, -1)
}

/// `(1 + lower)^-1`, where `lower` is `[..., n, n]` with a power of two `n`, and 0 on and above the
/// diagonal: the inverses of both diagonal halves give the rest.
fn inverse(lower: &Array) -> Result<Array> {
    let n = lower.dim(-1)?;
    if n == 1 {
        return ops::ones_like(lower);
    }
    let half = n / 2;
    let part = |rows: std::ops::Range<i32>, columns| lower.index((Ellipsis, rows, columns));
    let diagonal = ops::stack([&part(0..half, 0..half)?, &part(half..n, half..n)?], 0)?;
    let inverses = inverse(&diagonal)?;
    let (first, second) = (inverses.index(0)?, inverses.index(1)?);
    let between = ops::negative(&ops::matmul(&ops::matmul(&second, &part(half..n, 0..half)?)?, &first)?)?;
    let top = ops::concatenate([&first, &ops::zeros_like(&first)?], -1)?;
    ops::concatenate([&top, &ops::concatenate([&between, &second], -1)?], -2)
}

/// In chunks as [`recurrence`].
pub(super) fn wkv(inputs: [&Array; 6], state: Option<&Array>) -> Result<(Array, Array)> {
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
    if length == 0 {
        return Ok((inputs[0].clone(), state));
    }
    for start in (0..length).step_by(SEGMENT_OF_DIMS as usize) {
        let part = |x: &Array| x.index((.., .., start..length.min(start + SEGMENT_OF_DIMS)));
        let part = all.iter().map(part).collect::<Result<Vec<_>>>()?;
        let (out, next) = if length == 1 { wkv_step(&part, &state)? } else { wkv_chunks(&part, state)? };
        outputs.push(out);
        state = next;
    }
    let out = ops::transpose(&ops::concatenate(&outputs, 2)?, [0, 2, 1, 3])?;
    Ok((ops::astype(&out, inputs[0].dtype())?, state))
}

/// One position.
fn wkv_step(all: &[Array], state: &Array) -> Result<(Array, Array)> {
    let column = |x: &Array| ops::swapaxes(x, -1, -2);
    let found = (ops::matmul(state, &column(&all[4])?)? * &all[5])?;
    let state = (((state * ops::exp(&all[1])?)? + found)? + (column(&all[3])? * &all[2])?)?;
    Ok((column(&ops::matmul(&state, &column(&all[0])?)?)?, state))
}

/// `CHUNK_OF_DIMS` positions at a time.
fn wkv_chunks(all: &[Array], mut state: Array) -> Result<(Array, Array)> {
    let length = all[0].dim(2)?;
    let count = (length + CHUNK_OF_DIMS - 1) / CHUNK_OF_DIMS;
    // Zeros behind the end change nothing: they add nothing, and do not decay.
    let behind = [(0, 0), (0, 0), (0, count * CHUNK_OF_DIMS - length), (0, 0)];
    let cut = |i: usize| {
        ops::unflatten(&ops::pad(&all[i], &behind, PadMode::Constant, 0)?, 2, &[count, CHUNK_OF_DIMS])
    };
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
