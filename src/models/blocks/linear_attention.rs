//! Linear attention: a state of fixed size for each head, which decays, and may be corrected.

use crate::array::{Array, Dtype, Index::Ellipsis};
use crate::error::{Error, Result};
use crate::nn::RmsNorm;
use crate::nn::activations::{silu, softplus};
use crate::ops::PadMode;
use crate::{fast, ops};

/// Positions that are worked on at once.
const CHUNK: i32 = 64;
/// The same where each dimension of a key decays on its own: this takes numbers for each pair of
/// positions and dimension.
const CHUNK_OF_DIMS: i32 = 16;
/// Positions of which such numbers are in memory at once.
const SEGMENT_OF_DIMS: i32 = 256;

/// What [`linear_attention`] and [`gated_delta`] work on.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// `[batch, length, key_heads, key_dim]`.
    pub queries: &'a Array,
    /// `[batch, length, key_heads, key_dim]`.
    pub keys: &'a Array,
    /// `[batch, length, heads, value_dim]`, where neighbouring heads share a key head.
    pub values: &'a Array,
    /// `[batch, length, heads]`, or `[batch, length, heads, key_dim]` where each dimension of a key decays
    /// on its own. 0 or less.
    pub log_decay: &'a Array,
    /// The state of each head before the sequence, `[batch, heads, value_dim, key_dim]`; zeros without.
    pub state: Option<&'a Array>,
}

/// Linear attention with decay, for each head and position in order, in `float32`:
///
/// ```text
/// state <- state * exp(log_decay) + value key^T
/// output = state query
/// ```
///
/// This is also the recurrence of Mamba-2, with `C`, `B` and `dt x` for queries, keys and values. Returns
/// the outputs, `[batch, length, heads, value_dim]` in the dtype of the queries, and the last state,
/// `[batch, heads, value_dim, key_dim]`.
///
/// Several positions go in chunks, by products of matrices (Dao and Gu, "Transformers are SSMs", 2024).
pub fn linear_attention(sequence: &Sequence) -> Result<(Array, Array)> {
    recurrence(sequence, None)
}

/// The gated delta rule (Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024; with
/// a decay for each dimension, Kimi Team, "Kimi Linear", 2025), which corrects what the state has for a key:
///
/// ```text
/// state <- state * exp(log_decay)
/// state <- state + beta (value - state key) key^T
/// output = state query
/// ```
///
/// with `beta` `[batch, length, heads]`; otherwise as [`linear_attention`]. Inside a chunk, all corrections
/// solve a triangular system at once (Yang et al., "Parallelizing Linear Transformers with the Delta Rule
/// over Sequence Length", 2024).
pub fn gated_delta(sequence: &Sequence, beta: &Array) -> Result<(Array, Array)> {
    recurrence(sequence, Some(beta))
}

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

fn recurrence(sequence: &Sequence, beta: Option<&Array>) -> Result<(Array, Array)> {
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
pub(super) fn decayed_products(a: &Array, b: &Array, since: &Array, diagonal: i32) -> Result<Array> {
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
pub(super) fn inverse(lower: &Array) -> Result<Array> {
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

/// `-exp(a_log) softplus(x + dt_bias)`, in `float32`: how much the state of a head decays.
pub fn log_decay(x: &Array, a_log: &Array, dt_bias: &Array) -> Result<Array> {
    let rate = ops::negative(&ops::exp(&ops::astype(a_log, Dtype::Float32)?)?)?;
    rate * softplus(&(ops::astype(x, Dtype::Float32)? + dt_bias)?)?
}

/// `x / |x|` over the last axis.
pub fn unit_length(x: &Array) -> Result<Array> {
    const EPS: f32 = 1e-6;
    let dims = x.dim(-1)? as f32;
    fast::rms_norm(x, None, EPS / dims)? * dims.powf(-0.5)
}

/// `norm(x) silu(gate)`, with the product in `float32`.
pub fn gated_norm(norm: &RmsNorm, x: &Array, gate: &Array) -> Result<Array> {
    let float = |x: &Array| ops::astype(x, Dtype::Float32);
    ops::astype(&(float(&norm.forward(x)?)? * silu(&float(gate)?)?)?, x.dtype())
}
