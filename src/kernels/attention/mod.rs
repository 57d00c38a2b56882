//! `softmax(scale * queries keys^T + mask) values`.
//!
//! All queries that share a key head are rows of one product, a tile of them at a time: no more scores exist
//! at once than those of a tile. A few rows, as in generating a token, meet keys and values as they lie, which
//! are then read once. Scores, weights and sums are `float32`.

mod decode;
mod mask;
mod reference;
mod tiles;

use std::sync::Once;

use self::mask::Visible;
use super::path::{Path, active_of};
use super::product::{Dense, Numbers};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::fast::Mask;
use crate::ops;

const NAME: &str = "scaled_dot_product_attention";

/// Attention; MLX's own operation where it is not a case for the kernel, errors included.
pub(crate) fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    mask: Mask<'_>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let path = active_of(&[Path::Avx2]);
    let on_cpu = current_device().kind == DeviceKind::Cpu;
    if path == Path::Reference || !on_cpu || !suits(q, k, v, mask, sinks) {
        return reference::attention(q, k, v, scale, mask, sinks);
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    let (mask, causal) = match mask {
        Mask::None => (None, false),
        Mask::Causal => (None, true),
        Mask::Array(mask) => {
            let shape = [q.dim(0)?, q.dim(1)?, q.dim(2)?, k.dim(2)?];
            (Some(ops::broadcast_to(mask, &shape)?), false)
        }
    };
    let kernel = Attention { path, scale, causal, masked: mask.is_some() };
    let inputs = [q, k, v].into_iter().chain(&mask).chain(sinks);
    Ok(apply(kernel, inputs)?.swap_remove(0))
}

/// Whether shapes fit and dtypes are read.
fn suits(q: &Array, k: &Array, v: &Array, mask: Mask<'_>, sinks: Option<&Array>) -> bool {
    let (&[b, heads, length, dims], &[kb, kv_heads, keys, k_dims], &[vb, v_heads, v_keys, _]) =
        (q.shape(), k.shape(), v.shape())
    else {
        return false;
    };
    let dtype = q.dtype();
    let fits = [kb, vb] == [b, b] && v_heads == kv_heads && (v_keys, k_dims) == (keys, dims);
    let float = matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let mask_fits = |mask: &Array| {
        let shape = [b, heads, length, keys];
        let tail = shape.iter().rev().zip(mask.shape().iter().rev());
        let read = matches!(mask.dtype(), Dtype::Bool) || mask.dtype() == dtype;
        mask.ndim() <= 4 && tail.into_iter().all(|(&size, &own)| own == 1 || own == size) && read
    };
    let mask = match mask {
        Mask::Array(mask) => mask_fits(mask),
        _ => true,
    };
    let sinks = sinks.is_none_or(|sinks| sinks.shape() == [heads] && sinks.dtype() == dtype);
    let any_empty = [q, k, v].iter().any(|x| x.size() == 0);
    fits && float
        && !any_empty
        && heads % kv_heads == 0
        && k.dtype() == dtype
        && v.dtype() == dtype
        && mask
        && sinks
}

struct Attention {
    path: Path,
    scale: f32,
    causal: bool,
    masked: bool,
}

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    kv_heads: usize,
    /// Query heads that share a key head.
    group: usize,
    length: usize,
    keys: usize,
    dims: usize,
    value_dims: usize,
}

/// Memory, where the elements of a head begin and how far its positions and dimensions are apart.
#[derive(Clone, Copy)]
struct Heads<'a> {
    numbers: Numbers<'a>,
    origin: usize,
    strides: [isize; 4],
}

impl<'a> Heads<'a> {
    fn new(view: &View<'a>) -> Result<Self> {
        let (numbers, origin) = Numbers::of(view)?;
        let strides: Vec<isize> = view.strides().iter().map(|&s| s as isize).collect();
        let strides = strides.try_into().map_err(|_| Error::argument(NAME, "not four dimensions"))?;
        Ok(Self { numbers, origin, strides })
    }

    /// Where position `i` of a head begins.
    fn at(&self, batch: usize, head: usize, i: usize) -> usize {
        let [b, h, l, _] = self.strides;
        self.origin.wrapping_add_signed(batch as isize * b + head as isize * h + i as isize * l)
    }

    fn step(&self) -> isize {
        self.strides[3]
    }

    /// The positions of a head.
    fn lines(&self, batch: usize, head: usize) -> Dense<'a> {
        let (origin, [.., line, step]) = (self.at(batch, head, 0), self.strides);
        Dense { numbers: self.numbers, origin, line, step }
    }

    /// The numbers of a position.
    fn read(&self, at: usize, out: &mut [f32]) {
        match self.step() {
            1 => self.numbers.read(at, out),
            step => out.iter_mut().enumerate().for_each(|(i, out)| {
                *out = self.numbers.get(at.wrapping_add_signed(i as isize * step));
            }),
        }
    }
}

/// All that a head group needs to be computed.
struct Call<'a> {
    path: Path,
    scale: f32,
    sizes: Sizes,
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    visible: Visible<'a>,
    sinks: Option<Numbers<'a>>,
    first_sink: usize,
}

impl Call<'_> {
    /// The batch and query head of a row of a pair of batch and key head, and its position.
    fn row(&self, pair: usize, row: usize) -> [usize; 3] {
        let Sizes { kv_heads, group, length, .. } = self.sizes;
        [pair / kv_heads, pair % kv_heads * group + row / length, row % length]
    }

    /// The query of a row, scaled.
    fn query(&self, pair: usize, row: usize, out: &mut [f32]) {
        let [batch, head, i] = self.row(pair, row);
        self.q.read(self.q.at(batch, head, i), out);
        out.iter_mut().for_each(|q| *q *= self.scale);
    }

    /// Makes weights of the scores of a row with the keys from `first` on. They add up to one with the sink's.
    fn weigh(&self, pair: usize, row: usize, first: usize, scores: &mut [f32]) {
        let [batch, head, i] = self.row(pair, row);
        self.visible.apply(batch, head, i, first, scores);
        let sink = self.sinks.map(|sinks| sinks.get(self.first_sink + head));
        let max = super::math::maximum(scores);
        let max = sink.map_or(max, |sink| if max.is_nan() { max } else { max.max(sink) });
        let sum = super::math::exp_sum(self.path, scores, max) + sink.map_or(0.0, |sink| (sink - max).exp());
        scores.iter_mut().for_each(|weight| *weight /= sum);
    }
}

impl CustomKernel for Attention {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [q, _, v, ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let mut shape = q.shape.clone();
        if let (Some(last), Some(&dims)) = (shape.last_mut(), v.shape.last()) {
            *last = dims;
        }
        Ok(vec![Spec { shape, dtype: q.dtype }])
    }

    fn takes_strided(&self, index: usize) -> bool {
        index < 3 + usize::from(self.masked)
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (q, k, v, out) = (&inputs[0], &inputs[1], &inputs[2], &mut outputs[0]);
        let (&[batch, heads, length, dims], &[_, kv_heads, keys, _], &[.., value_dims]) =
            (q.shape(), k.shape(), v.shape())
        else {
            return Err(Error::argument(NAME, "not four dimensions"));
        };
        let [length, dims, keys, value_dims] = [length, dims, keys, value_dims].map(|size| size as usize);
        let group = (heads / kv_heads.max(1)) as usize;
        let sizes = Sizes { kv_heads: kv_heads as usize, group, length, keys, dims, value_dims };
        let visible = match self.masked {
            true => Visible::array(&inputs[3], sizes.keys)?,
            false if self.causal => Visible::Causal { before: keys as isize - length as isize },
            false => Visible::All,
        };
        let sinks = inputs.get(3 + usize::from(self.masked)).map(Numbers::of).transpose()?;
        let call = Call {
            path: self.path,
            scale: self.scale,
            sizes,
            q: Heads::new(q)?,
            k: Heads::new(k)?,
            v: Heads::new(v)?,
            visible,
            sinks: sinks.map(|(numbers, _)| numbers),
            first_sink: sinks.map_or(0, |(_, first)| first),
        };
        let pairs = batch as usize * sizes.kv_heads;
        match out.dtype() {
            Dtype::Float16 => call.fill(pairs, out.as_mut_slice()?, super::product::to_f16),
            Dtype::Bfloat16 => call.fill(pairs, out.as_mut_slice()?, super::product::to_bf16),
            _ => call.fill(pairs, out.as_mut_slice()?, |row, out| out.copy_from_slice(row)),
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [q, k, v, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (mask, sinks) = rest.split_at(usize::from(self.masked).min(rest.len()));
        let mask = match mask.first() {
            Some(mask) => Mask::Array(mask),
            None if self.causal => Mask::Causal,
            None => Mask::None,
        };
        Ok(vec![reference::attention(q, k, v, self.scale, mask, sinks.first())?])
    }
}

impl Call<'_> {
    /// Computes `out`, `[pairs, group * length, value_dims]`.
    fn fill<T: Send>(&self, pairs: usize, out: &mut [T], cast: impl Fn(&[f32], &mut [T]) + Sync) {
        let Sizes { group, length, value_dims, .. } = self.sizes;
        let rows = group * length;
        if decode::suits(self, rows) {
            let values = decode::attention(self, pairs, rows);
            return cast(&values, out);
        }
        // Whole tiles, and enough pieces for every thread.
        let pieces = (2 * pool::threads()).div_ceil(pairs).max(1);
        let share = rows.div_ceil(pieces).next_multiple_of(tiles::ROWS);
        let mut parts: Vec<(usize, usize, &mut [T])> = Vec::new();
        for (pair, out) in out.chunks_exact_mut(rows * value_dims).enumerate() {
            for (i, out) in out.chunks_mut(share * value_dims).enumerate() {
                parts.push((pair, i * share, out));
            }
        }
        pool::for_each_piece(&mut parts, 1, |_, parts| {
            for (pair, first, out) in parts {
                tiles::attention(self, *pair, *first, out, &cast);
            }
        });
    }
}
