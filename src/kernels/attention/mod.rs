//! `softmax(scale * queries keys^T + mask) values`.
//!
//! All queries that share a key head are rows of one product, a tile of them at a time: no more scores exist
//! at once than those of a tile. A few rows, as in generating a token, meet keys and values as they lie, which
//! are then read once. Scores, weights and sums are `float32`.

mod decode;
mod mask;
mod metal;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod reference;
mod source;
mod tiles;

use std::ops::Range;
use std::sync::Once;

use self::mask::Visible;
use self::source::{Coded, Heads, Source};
use super::chain::{Chain, Node, Shaped};
use super::math::{self, Lanes, Loop};
use super::path::{Path, active_of};
use super::product::Numbers;
use super::{CustomKernel, Spec, View, ViewMut, apply, pool, scratch};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::fast::Mask;
use crate::ops::{self, Quantization, QuantizationMode, Quantized};

const NAME: &str = "scaled_dot_product_attention";
/// Numbers of the result that are worth another thread.
const GRAIN: usize = 1 << 15;

/// What becomes of the products of queries and keys.
#[derive(Clone, Copy)]
pub(crate) struct Scores<'a> {
    pub scale: f32,
    /// Where `cap * tanh(score / cap)` bends them.
    pub cap: Option<f32>,
    pub mask: Mask<'a>,
    pub sinks: Option<&'a Array>,
}

/// Attention; MLX's own operations where it is not a case for the kernel, errors included.
pub(crate) fn attention(q: &Array, k: &Array, v: &Array, scores: Scores<'_>) -> Result<Array> {
    let floats = [q, k, v].iter().all(|x| x.dtype() == q.dtype());
    let on_cpu = current_device().kind == DeviceKind::Cpu;
    match path_for(q, k.shape(), v.shape(), &scores, on_cpu) {
        Some(path) if floats => run(path, None, q, &[k, v], k.dim(2)?, scores),
        _ => reference::attention(q, k, v, scores),
    }
}

/// [`attention`] to quantized keys and values, which are decoded as they are needed.
pub(crate) fn quantized_attention(
    q: &Array,
    k: &Quantized,
    v: &Quantized,
    how: Quantization,
    scores: Scores<'_>,
) -> Result<Array> {
    if let (Some(k_biases), Some(v_biases)) = (&k.biases, &v.biases)
        && how.mode == QuantizationMode::Affine
        && how.check(NAME).is_ok()
        && let Some(k_shape) = coded_shape(k, k_biases, how)
        && let Some(v_shape) = coded_shape(v, v_biases, how)
        && let parts = [&k.weight, &k.scales, k_biases, &v.weight, &v.scales, v_biases]
        && let here = (current_device().kind == DeviceKind::Cpu || metal::suits(how, q, &parts))
        && let Some(path) = path_for(q, &k_shape, &v_shape, &scores, here)
    {
        return run(path, Some(how), q, &parts, k_shape[2], scores);
    }
    reference::quantized_attention(q, k, v, how, scores)
}

/// The shape of what is quantized, if the parts fit and are read.
fn coded_shape(x: &Quantized, biases: &Array, how: Quantization) -> Option<[i32; 4]> {
    let &[batch, heads, positions, words] = x.weight.shape() else { return None };
    let dims = i32::try_from(i64::from(words) * 32 / i64::from(how.bits)).ok()?;
    let groups = [batch, heads, positions, dims / how.group_size];
    let float = |x: &Array| matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let fits = x.weight.dtype() == Dtype::Uint32
        && dims % how.group_size == 0
        && [&x.scales, biases].iter().all(|part| part.shape() == groups && float(part));
    fits.then_some([batch, heads, positions, dims])
}

fn run(
    path: Path,
    how: Option<Quantization>,
    q: &Array,
    sources: &[&Array],
    keys: i32,
    scores: Scores<'_>,
) -> Result<Array> {
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    let Scores { scale, cap, mask, sinks } = scores;
    let (mask, causal) = match mask {
        Mask::None => (None, false),
        Mask::Causal => (None, true),
        Mask::Array(mask) => {
            let shape = [q.dim(0)?, q.dim(1)?, q.dim(2)?, keys];
            (Some(ops::broadcast_to(mask, &shape)?), false)
        }
    };
    let kernel = Attention { path, how, scale, cap, causal, masked: mask.is_some() };
    let inputs = [q].into_iter().chain(sources.iter().copied()).chain(&mask).chain(sinks);
    ops::swapaxes(&apply(kernel, inputs)?[0], 1, 2)
}

impl Chain {
    /// [`attention`] to all keys, as `[batch, length, heads, value_dims]`; `None` where it is not a case for the kernel.
    pub(crate) fn attention(
        &mut self,
        [q, k, v]: [Node; 3],
        scale: f32,
        cap: Option<f32>,
    ) -> Result<Option<Node>> {
        let [q_spec, k_spec, v_spec] = [q, k, v].map(|node| self.spec(node));
        let floats = [k_spec, v_spec].iter().all(|spec| spec.dtype == q_spec.dtype);
        let scores = Scores { scale, cap, mask: Mask::None, sinks: None };
        let on_cpu = current_device().kind == DeviceKind::Cpu;
        let path = path_for(q_spec, &k_spec.shape, &v_spec.shape, &scores, on_cpu);
        let Some(path) = path.filter(|_| floats) else { return Ok(None) };
        let kernel = Attention { path, how: None, scale, cap, causal: false, masked: false };
        Ok(self.push(kernel, [q, k, v])?.first().copied())
    }
}

/// The path, if shapes fit and dtypes are read: `here` says whether there is an implementation for the device.
fn path_for(q: &impl Shaped, k: &[i32], v: &[i32], scores: &Scores<'_>, here: bool) -> Option<Path> {
    let path = active_of(&[Path::Avx2, Path::Avx512, Path::Avx512Bf16]);
    let (&[b, heads, length, dims], &[kb, kv_heads, keys, k_dims], &[vb, v_heads, v_keys, value_dims]) =
        (q.shape(), k, v)
    else {
        return None;
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
    let mask = match scores.mask {
        Mask::Array(mask) => mask_fits(mask),
        _ => true,
    };
    let sinks = scores.sinks.is_none_or(|sinks| sinks.shape() == [heads] && sinks.dtype() == dtype);
    let some = [b, heads, kv_heads, length, keys, dims, value_dims].iter().all(|&size| size > 0);
    let case = here && fits && float && some && heads % kv_heads == 0 && mask && sinks;
    (case && path != Path::Reference).then_some(path)
}

/// Its result is `[batch, length, heads, value_dims]`: rows of all heads together, as the next product takes them.
struct Attention {
    path: Path,
    /// For quantized keys and values.
    how: Option<Quantization>,
    scale: f32,
    cap: Option<f32>,
    causal: bool,
    masked: bool,
}

impl Attention {
    /// The query, keys and values in their parts, the mask and the sinks.
    #[allow(clippy::type_complexity)]
    fn split<'a, T>(&self, inputs: &'a [T]) -> Result<(&'a T, [&'a [T]; 2], Option<&'a T>, Option<&'a T>)> {
        let parts = if self.how.is_some() { 3 } else { 1 };
        match inputs {
            [q, rest @ ..] if rest.len() >= 2 * parts => {
                let (k, rest) = rest.split_at(parts);
                let (v, rest) = rest.split_at(parts);
                let (mask, sinks) = rest.split_at(usize::from(self.masked).min(rest.len()));
                Ok((q, [k, v], mask.first(), sinks.first()))
            }
            _ => Err(Error::argument(NAME, format!("{} inputs", inputs.len()))),
        }
    }

    fn source<'a>(&self, parts: &[View<'a>]) -> Result<Source<'a>> {
        match (self.how, parts) {
            (Some(how), [codes, scales, biases]) => {
                Coded::new([codes, scales, biases], how, self.path).map(Source::Coded)
            }
            (_, [view, ..]) => Heads::new(view).map(Source::Plain),
            _ => Err(Error::argument(NAME, "no inputs")),
        }
    }
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

/// Positions of a head: position `i` begins at `origin + i * line`.
#[derive(Clone, Copy)]
struct Block<'a> {
    numbers: Numbers<'a>,
    origin: usize,
    line: isize,
}

/// All that a head group needs to be computed.
struct Call<'a> {
    path: Path,
    scale: f32,
    cap: Option<f32>,
    sizes: Sizes,
    q: Heads<'a>,
    k: Source<'a>,
    v: Source<'a>,
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

    /// From the first to the last key that any of the rows sees.
    fn seen(&self, pair: usize, rows: Range<usize>) -> Range<usize> {
        let keys = self.sizes.keys;
        let seen = rows.map(|row| self.visible.range(keys, self.row(pair, row)));
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..keys)
    }

    /// The query of a row, scaled.
    fn query(&self, pair: usize, row: usize, out: &mut [f32]) {
        let [batch, head, i] = self.row(pair, row);
        self.q.read(self.q.at([batch, head], i), out);
        out.iter_mut().for_each(|q| *q *= self.scale);
    }

    /// Makes weights of the scores of a row with the keys from `first` on. They add up to one with the sink's.
    fn weigh(&self, pair: usize, row: usize, first: usize, scores: &mut [f32]) {
        self.look(pair, row, first, scores);
        math::run(self.path, Weigh { scores, sink: self.sink(pair, row) });
    }

    /// The same of some of the keys, whose weights add up to one without the others and the sink: zeros where the row
    /// sees none. Returns their largest score, and the sum of the exponentials less that.
    fn weigh_piece(&self, pair: usize, row: usize, first: usize, scores: &mut [f32]) -> [f32; 2] {
        self.look(pair, row, first, scores);
        if scores.iter().all(|&score| score == f32::NEG_INFINITY) {
            scores.fill(0.0);
            return [f32::NEG_INFINITY, 0.0];
        }
        math::run(self.path, Weigh { scores, sink: f32::NEG_INFINITY })
    }

    /// Whether pairs of `bfloat16` are multiplied.
    #[cfg(target_arch = "x86_64")]
    fn takes_pairs(&self) -> bool {
        let halves = |source: &Source<'_>| match source {
            Source::Plain(heads) => matches!(heads.numbers, Numbers::Bfloat16(_)),
            Source::Coded(_) => false,
        };
        self.path >= Path::Avx512Bf16 && [&self.k, &self.v].into_iter().all(halves)
    }

    /// Caps and masks scores with the keys from `first` on.
    fn look(&self, pair: usize, row: usize, first: usize, scores: &mut [f32]) {
        if let Some(cap) = self.cap {
            math::run(self.path, Cap { scores, cap });
        }
        self.visible.apply(self.row(pair, row), first, scores);
    }

    /// The score of a row's sink; minus infinity for none.
    fn sink(&self, pair: usize, row: usize) -> f32 {
        let [_, head, _] = self.row(pair, row);
        self.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks.get(self.first_sink + head))
    }
}

struct Cap<'a> {
    scores: &'a mut [f32],
    cap: f32,
}

impl Loop for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (cap, inverse) = (L::splat(self.cap), L::splat(1.0 / self.cap));
        math::map_in_place(self.scores, |score: L| score.mul(inverse).tanh().mul(cap));
    }
}

struct Weigh<'a> {
    scores: &'a mut [f32],
    sink: f32,
}

impl Loop for Weigh<'_> {
    /// The largest, and the sum of the exponentials less that.
    type Output = [f32; 2];

    #[inline(always)]
    fn run<L: Lanes>(self) -> [f32; 2] {
        let max = math::maximum::<L, f32>(self.scores).max(self.sink);
        let shift = L::splat(max);
        math::map_in_place(self.scores, |score: L| score.sub(shift).exp());
        let mut sum = math::sum::<L, f32>(self.scores, |weight| weight);
        if self.sink != f32::NEG_INFINITY {
            sum += (self.sink - max).exp();
        }
        let factor = L::splat(1.0 / sum);
        math::map_in_place(self.scores, |weight: L| weight.mul(factor));
        [max, sum]
    }
}

impl CustomKernel for Attention {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (q, [_, v], ..) = self.split(inputs)?;
        let mut shape = q.shape.clone();
        if let (Some(last), Some(&dims)) = (shape.last_mut(), v[0].shape.last()) {
            *last = self.how.map_or(dims, |how| (i64::from(dims) * 32 / i64::from(how.bits)) as i32);
        }
        shape.swap(1, 2);
        Ok(vec![Spec { shape, dtype: q.dtype }])
    }

    fn takes_strided(&self, index: usize) -> bool {
        let sources = if self.how.is_some() { 6 } else { 2 };
        index < 1 + sources + usize::from(self.masked)
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        // Codes are read as streams of bits.
        let scattered = |(i, view): (usize, &View<'_>)| {
            (self.how.is_some() && (1..7).contains(&i) && !view.is_together_within()).then(|| view.gathered())
        };
        let gathered: Vec<_> = inputs.iter().enumerate().map(scattered).collect();
        let inputs = inputs.iter().zip(&gathered);
        let inputs: Vec<View<'_>> =
            inputs.map(|(view, copy)| copy.as_ref().map_or(*view, |copy| copy.view(view))).collect();
        let (q, [k, v], mask, sinks) = self.split(&inputs)?;
        let (&[batch, heads, length, dims], &[_, kv_heads, keys, _]) = (q.shape(), k[0].shape()) else {
            return Err(Error::argument(NAME, "not four dimensions"));
        };
        let out = &mut outputs[0];
        let value_dims = out.shape().last().map_or(0, |&dims| dims as usize);
        let [length, dims, keys] = [length, dims, keys].map(|size| size as usize);
        let group = (heads / kv_heads.max(1)) as usize;
        let sizes = Sizes { kv_heads: kv_heads as usize, group, length, keys, dims, value_dims };
        let visible = match mask {
            Some(mask) => Visible::array(mask)?,
            None if self.causal => Visible::Causal { before: keys as isize - length as isize },
            None => Visible::All,
        };
        let sinks = sinks.map(Numbers::of).transpose()?;
        let call = Call {
            path: self.path,
            scale: self.scale,
            cap: self.cap,
            sizes,
            q: Heads::new(q)?,
            k: self.source(k)?,
            v: self.source(v)?,
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

    fn metal(&self, inputs: &[Array]) -> Option<Result<Vec<Array>>> {
        let how = self.how?;
        let [q, parts @ ..] = inputs else { return None };
        let parts: [&Array; 6] = parts.first_chunk::<6>()?.each_ref();
        metal::suits(how, q, &parts).then(|| {
            let out = metal::attention(self, how, inputs)?;
            out.iter().map(|out| ops::swapaxes(out, 1, 2)).collect()
        })
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let (q, [k, v], mask, sinks) = self.split(inputs)?;
        let mask = match mask {
            Some(mask) => Mask::Array(mask),
            None if self.causal => Mask::Causal,
            None => Mask::None,
        };
        let scores = Scores { scale: self.scale, cap: self.cap, mask, sinks };
        let quantized = |parts: &[Array]| Quantized {
            weight: parts[0].clone(),
            scales: parts[1].clone(),
            biases: Some(parts[2].clone()),
        };
        let out = match self.how {
            Some(how) => reference::quantized_attention(q, &quantized(k), &quantized(v), how, scores)?,
            None => reference::attention(q, &k[0], &v[0], scores)?,
        };
        Ok(vec![ops::swapaxes(&out, 1, 2)?])
    }
}

impl Call<'_> {
    /// Computes `out`, `[batch, length, heads, value_dims]`.
    fn fill<T: Send>(&self, pairs: usize, out: &mut [T], cast: impl Fn(&[f32], &mut [T]) + Sync) {
        let Sizes { kv_heads, group, length, value_dims, .. } = self.sizes;
        let rows = group * length;
        // `[pairs, group * length, value_dims]`.
        let mut sums = scratch::take(pairs * rows * value_dims);
        if decode::suits(self, rows) {
            decode::attention(self, pairs, rows, &mut sums);
        } else {
            // Whole tiles, and enough pieces for every thread.
            let pieces = (2 * pool::threads()).div_ceil(pairs).max(1);
            let share = rows.div_ceil(pieces).next_multiple_of(2 * tiles::ROWS);
            let mut parts: Vec<(usize, usize, &mut [f32])> = Vec::new();
            for (pair, sums) in sums.chunks_exact_mut(rows * value_dims).enumerate() {
                for (i, sums) in sums.chunks_mut(share * value_dims).enumerate() {
                    parts.push((pair, i * share, sums));
                }
            }
            pool::for_each_piece(&mut parts, 1, |_, parts| {
                for (pair, first, sums) in parts {
                    #[cfg(target_arch = "x86_64")]
                    if self.takes_pairs() && pairs::attention(self, *pair, *first, sums) {
                        continue;
                    }
                    tiles::attention(self, *pair, *first, sums);
                }
            });
        }
        let heads = kv_heads * group;
        let grain = GRAIN.div_ceil(heads * value_dims);
        pool::for_each_piece(out, grain * heads * value_dims, |piece, out| {
            for (i, out) in out.chunks_exact_mut(heads * value_dims).enumerate() {
                let [batch, position] = [(piece * grain + i) / length, (piece * grain + i) % length];
                for (head, out) in out.chunks_exact_mut(value_dims).enumerate() {
                    let row = (batch * heads + head) * length + position;
                    cast(&sums[row * value_dims..][..value_dims], out);
                }
            }
        });
    }
}
