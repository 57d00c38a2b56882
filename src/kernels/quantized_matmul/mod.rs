//! `x @ dequantize(w).T` and `x @ dequantize(w)`, the products of language models; also of matrices that are
//! picked from batches.
//!
//! Everything is computed in `float32`, whatever the dtypes are, so scales of another dtype than `x` are
//! read as they are. Few rows of half precision may be taken as integers, which lose less than rounding to
//! half precision has cost them. Each output is summed in one fixed order, which does not depend on the number of
//! threads, nor on the other rows of `x` as long as they are at most [`FEW`], or more than that.

mod cpu;
mod reference;
mod rows;

use std::sync::Once;

pub(crate) use rows::quantized_rows;

use self::cpu::Batch;
pub(super) use self::cpu::{Matrix, Scales, Weights};
use super::path::{Path, active_of, force};
use super::product::{Lines, Numbers, Side, Sums, picks, product};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ops::{self, Quantization, QuantizationMode};

/// Rows of `x` that meet the codes of the weights. For more, weights are decoded once for all.
const FEW: usize = 12;
/// Rows of `x` that are converted at a time.
const BLOCK: usize = 512;
/// Multiply-adds that are worth another thread.
const WORK: usize = 1 << 18;

/// `x @ dequantize(w)`, or with `transpose` `x @ dequantize(w).T`; MLX's own operation where it is not a case
/// for the kernel, errors included.
pub(crate) fn quantized_matmul(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    transpose: bool,
    how: Quantization,
) -> Result<Array> {
    let path = path_for(x, w, scales, biases, transpose, how);
    let Some(path) = path.filter(|_| w.ndim() == 2 || x.ndim() > 1) else {
        return reference::quantized_matmul(x, w, scales, biases, transpose, how);
    };
    let kernel = QuantizedMatmul { how, path, transpose, picked: w.ndim() > 2 };
    let indices = if kernel.picked { Some(super::matmul::indices([(x, None), (w, None)])?) } else { None };
    let inputs = [x, w, scales].into_iter().chain(biases).chain(indices.iter().flatten());
    Ok(apply(kernel, inputs)?.swap_remove(0))
}

/// The same of picked matrices; indices are below the sizes of the batches.
#[allow(clippy::too_many_arguments)]
pub(crate) fn gather_qmm(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    transpose: bool,
    how: Quantization,
    sorted: bool,
) -> Result<Array> {
    let path = path_for(x, w, scales, biases, transpose, how);
    let Some(path) = path.filter(|_| x.ndim() > 1) else {
        return reference::gather_qmm(x, w, scales, biases, lhs, rhs, transpose, how, sorted);
    };
    let indices = super::matmul::indices([(x, lhs), (w, rhs)])?;
    let inputs = [x, w, scales].into_iter().chain(biases).chain(&indices);
    Ok(apply(QuantizedMatmul { how, path, transpose, picked: true }, inputs)?.swap_remove(0))
}

const NAME: &str = "quantized_matmul";

/// The path of such a product, unless MLX's own is to be taken.
fn path_for(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    transpose: bool,
    how: Quantization,
) -> Option<Path> {
    let path = active_of(&[Path::Avx2, Path::Avx512, Path::Amx]);
    let on_cpu = current_device().kind == DeviceKind::Cpu;
    if path == Path::Reference || !on_cpu || !suits(x, w, scales, biases, transpose, how) {
        return None;
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    Some(path)
}

/// Whether these are what the kernel computes: shapes that fit, and dtypes that it reads.
fn suits(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    transpose: bool,
    how: Quantization,
) -> bool {
    let codes = w.shape().last().map(|&words| i64::from(words) * 32 / i64::from(how.bits));
    let inner = if transpose { codes } else { w.shape().iter().nth_back(1).map(|&rows| i64::from(rows)) };
    floats_fit(scales, biases, how)
        && is_float(x)
        && w.dtype() == Dtype::Uint32
        && w.ndim() >= 2
        && x.shape().last().map(|&k| i64::from(k)) == inner
}

fn is_float(a: &Array) -> bool {
    matches!(a.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
}

/// Whether scales and biases are those of the mode.
fn floats_fit(scales: &Array, biases: Option<&Array>, how: Quantization) -> bool {
    match (how.mode, biases) {
        (QuantizationMode::Affine, Some(biases)) => is_float(scales) && is_float(biases),
        (QuantizationMode::Affine, None) | (_, Some(_)) => false,
        (_, None) => scales.dtype() == Dtype::Uint8,
    }
}

/// `x @ (w * scales).T` with codes of [`ternary_matmul`](super::ternary_matmul): affine ones, whose scales and
/// biases follow from the one scale.
pub(super) fn product_of_ternary(
    path: Path,
    bits: i32,
    [x, w, scales]: [&View<'_>; 3],
    out: &mut ViewMut<'_>,
) -> Result<()> {
    let (&[n, _], &[.., k], &[_, groups]) = (w.shape(), x.shape(), scales.shape()) else { return Ok(()) };
    let [n, k, groups] = [n, k, groups].map(|size| size as usize);
    if x.size() == 0 || n == 0 || groups == 0 {
        return Ok(());
    }
    let size = k / groups;
    let group_size = [128, 64, 32].into_iter().find(|group| size.is_multiple_of(*group)).unwrap_or(32);
    let mut stored = vec![0.0; n * groups];
    let (numbers, origin) = Numbers::of(scales)?;
    numbers.read(origin, &mut stored);
    let step = if bits == 1 { 2.0 } else { 1.0 };
    let spread = |factor: f32| -> Vec<f32> {
        stored.iter().flat_map(|scale| std::iter::repeat_n(scale * factor, size / group_size)).collect()
    };
    let (scales, biases) = (spread(step), spread(-1.0));
    let how = Quantization::affine(group_size as i32, bits);
    let codes = bytemuck::cast_slice(w.as_slice::<u32>()?);
    let (scales, biases) = (Scales::Float32(&scales), Some(Scales::Float32(&biases)));
    let w = Matrix { w: Weights { codes, scales, biases, how, n, k }, path };
    let all: Vec<_> = (0..x.size() / k).map(|row| [row, row]).collect();
    QuantizedMatmul { how, path, transpose: true, picked: false }.rows(w, x, &all, out)
}

struct QuantizedMatmul {
    how: Quantization,
    path: Path,
    transpose: bool,
    /// Whether indices follow, of matrices of `x` and `w`.
    picked: bool,
}

impl QuantizedMatmul {
    /// Scales, perhaps biases, and the indices if there are any.
    fn split<'a, T>(&self, rest: &'a [T]) -> (&'a [T], &'a [T]) {
        rest.split_at(rest.len() - if self.picked { 2.min(rest.len()) } else { 0 })
    }

    /// Rows of `x`, and the rows of the result that they give with matrix `w`.
    fn rows(&self, w: Matrix<'_>, x: &View<'_>, pairs: &[[usize; 2]], out: &mut ViewMut<'_>) -> Result<()> {
        let (k, n) = if self.transpose { (w.w.k, w.w.n) } else { (w.w.n, w.w.k) };
        let digits = digits(out.dtype());
        for pairs in pairs.chunks(BLOCK) {
            let mut values = vec![0.0; pairs.len() * k];
            let (numbers, origin) = Numbers::of(x)?;
            values
                .chunks_exact_mut(k)
                .zip(pairs)
                .for_each(|(row, pair)| numbers.read(origin + pair[0] * k, row));
            let powers = moderate(&mut values, k);
            let plain = powers.iter().all(|&p| p == 1.0);
            // What AMX leaves of the weights is enough for a result in half precision only.
            let single = out.dtype() == Dtype::Float32;
            let path = if single { self.path.min(Path::Avx512) } else { self.path };
            let mut result = Ok(());
            let mut store = |sums: &Sums| {
                let finish = |m: usize, _: usize, row: &mut [f32]| {
                    if !plain {
                        row.iter_mut().for_each(|sum| *sum /= powers[m]);
                    }
                };
                let in_order = pairs.windows(2).all(|pair| pair[0][1] + 1 == pair[1][1]);
                let stored = if in_order {
                    sums.store(out, pairs[0][1] * n, n, finish)
                } else {
                    sums.scatter(out, n, finish, |m| pairs[m][1])
                };
                if result.is_ok() {
                    result = stored;
                }
            };
            if self.transpose && pairs.len() <= FEW {
                store(&self.few(&w.w, &values, digits));
            } else {
                let lines = Rows { values: &values, k, dtype: x.dtype() };
                let x = Side { lines: &lines, count: pairs.len(), across: false };
                let w = Side { lines: &w, count: n, across: !self.transpose };
                product(path, x, w, k, &mut store);
            }
            result?;
        }
        Ok(())
    }

    /// The products of a few rows of `x` with the codes of the weights.
    fn few(&self, w: &Weights<'_>, x: &[f32], digits: Option<u32>) -> Sums {
        let (n, k, count) = (w.n, w.k, x.len() / w.k);
        let mut values = vec![0.0; n * count];
        // A multiple of four rows of weights, which the fast path takes at a time.
        let grain = (WORK / (k * count)).max(1).next_multiple_of(4);
        match self.path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => cpu::avx2::product(w, x, &mut values, grain, digits),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => cpu::avx512::product(w, x, &mut values, grain),
            _ => cpu::portable::product(w, x, &mut values, grain),
        }
        Sums { values, width: count, few: 0..n, many: count, turned: true }
    }
}

/// Rows of `x` as `float32`, and of which dtype they were.
struct Rows<'a> {
    values: &'a [f32],
    k: usize,
    dtype: Dtype,
}

impl Lines for Rows<'_> {
    fn read(&self, line: usize, start: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[line * self.k + start..][..out.len()]);
    }

    fn parts(&self) -> usize {
        match self.dtype {
            Dtype::Bfloat16 => 1,
            Dtype::Float16 => 2,
            _ => 3,
        }
    }
}

impl CustomKernel for QuantizedMatmul {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [x, w, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (floats, indices) = self.split(rest);
        let (&[.., rows, words], [batch @ .., _]) = (&w.shape[..], &x.shape[..]) else {
            return Err(Error::argument(NAME, "operands without rows"));
        };
        let columns = (i64::from(words) * 32 / i64::from(self.how.bits)) as i32;
        let n = if self.transpose { rows } else { columns };
        let mut shape = batch.to_vec();
        if let [left, _] = indices {
            shape = left.shape.iter().chain(batch.last()).copied().collect();
        }
        shape.push(n);
        let floats = floats.iter().map(|s| s.dtype).filter(|d| d.is_floating());
        // Of the dtypes at hand, any two that differ promote to float32.
        let dtype = floats.fold(x.dtype, |d, other| if d == other { d } else { Dtype::Float32 });
        Ok(vec![Spec { shape, dtype }])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (x, rest, out) = (&inputs[0], &inputs[2..], &mut outputs[0]);
        let (parts, indices) = self.split(rest);
        let weights = Batch::new(&inputs[1], &parts[0], parts.get(1), self.how)?;
        let [rows, columns] = weights.sizes();
        if x.size() == 0 || rows == 0 || columns == 0 || out.shape().contains(&0) {
            return Ok(());
        }
        let matrix = |index| Matrix { w: weights.matrix(index), path: self.path };
        let &[ref batch @ .., k] = x.shape() else { return Ok(()) };
        let [left, right] = indices else {
            let all: Vec<_> = (0..x.size() / k as usize).map(|row| [row, row]).collect();
            return self.rows(matrix(0), x, &all, out);
        };
        let m = batch.last().map_or(1, |&m| m as usize);
        let all = picks(NAME, left, right, [x.size() / (m * k as usize), weights.count])?;
        for same in all.chunk_by(|a, b| a.right == b.right) {
            let rows = same.iter().flat_map(|pick| (0..m).map(|i| [pick.left * m + i, pick.out * m + i]));
            self.rows(matrix(same[0].right), x, &rows.collect::<Vec<_>>(), out)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, w, scales, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (biases, indices) = self.split(rest);
        let y = match indices {
            [lhs, rhs] => {
                let (lhs, rhs) = (Some(lhs), Some(rhs));
                let Self { transpose, how, .. } = *self;
                reference::gather_qmm(x, w, scales, biases.first(), lhs, rhs, transpose, how, false)
            }
            _ => reference::quantized_matmul(x, w, scales, biases.first(), self.transpose, self.how),
        };
        y.map(|y| vec![y])
    }

    /// Of `x`: the product of the cotangent with the same weights, turned.
    fn vjp(&self, inputs: &[Array], cotangents: &[Array], argnums: &[i32]) -> Result<Option<Vec<Array>>> {
        let ([x, w, scales, rest @ ..], [dy], [0]) = (inputs, cotangents, argnums) else { return Ok(None) };
        let (biases, indices) = self.split(rest);
        let (biases, turned, how) = (biases.first(), !self.transpose, self.how);
        let dx = force(self.path, || match (indices, x.shape()) {
            ([left, right], &[ref batch @ .., m, k]) => {
                let picked = gather_qmm(dy, w, scales, biases, None, Some(right), turned, how, false)?;
                // A matrix that was picked several times gets the sum.
                let row = m.checked_mul(k).ok_or_else(|| Error::argument(NAME, "matrices are too large"))?;
                let (picked, left) = (ops::reshape(&picked, &[-1, row])?, ops::reshape(left, &[-1, 1])?);
                let left = ops::broadcast_to(&left, picked.shape())?;
                let none = ops::zeros(&[batch.iter().product(), row], picked.dtype())?;
                ops::reshape(&ops::scatter_add_axis(&none, &left, &picked, 0)?, x.shape())
            }
            _ => quantized_matmul(dy, w, scales, biases, turned, how),
        })??;
        Ok(Some(vec![ops::astype(&dx, x.dtype())?]))
    }
}

/// Bits of a number of half precision. If a result has it, so have all operands.
fn digits(dtype: Dtype) -> Option<u32> {
    match dtype {
        Dtype::Bfloat16 => Some(8),
        Dtype::Float16 => Some(11),
        _ => None,
    }
}

/// Multiplies each row whose largest element is very large or very small by a power of two, so that
/// nothing on the way to the result overflows or underflows which the result doesn't. Returns the powers.
fn moderate(x: &mut [f32], k: usize) -> Vec<f32> {
    const FAR: f32 = (1u64 << 60) as f32;
    const POWER: f32 = 16.0 * FAR;
    let power = |row: &[f32]| match row.iter().fold(0.0f32, |max, x| max.max(x.abs())) {
        max if max > 0.0 && max < 1.0 / FAR => POWER,
        max if max > FAR && max.is_finite() => 1.0 / POWER,
        _ => 1.0,
    };
    let powers: Vec<f32> = x.chunks_exact(k).map(power).collect();
    for (m, power) in powers.iter().enumerate().filter(|&(_, &power)| power != 1.0) {
        x[m * k..][..k].iter_mut().for_each(|x| *x *= power);
    }
    powers
}
