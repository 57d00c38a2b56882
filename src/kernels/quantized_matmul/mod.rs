//! `x @ dequantize(w).T`, the product of language models.
//!
//! Everything is computed in `float32`, whatever the dtypes are, so scales of another dtype than `x` are
//! read as they are. Each output is summed in one fixed order: it depends neither on the number of threads
//! nor on the other rows of `x`.

mod cpu;
mod reference;

use std::borrow::Cow;
use std::sync::Once;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use self::cpu::Weights;
use super::path::{Path, active};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ops::{Quantization, QuantizationMode};

/// Rows of `x` that share one pass over the weights.
const TILE: usize = 16;
/// Multiply-adds that are worth another thread.
const WORK: usize = 1 << 18;

/// `x @ dequantize(w).T`, or MLX's own operation where it is not a case for the kernel, errors included.
pub(crate) fn quantized_matmul(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    transpose: bool,
    how: Quantization,
) -> Result<Array> {
    let path = active();
    let on_cpu = current_device().kind == DeviceKind::Cpu;
    if path == Path::Reference || !transpose || !on_cpu || !suits(x, w, scales, biases, how) {
        return reference::quantized_matmul(x, w, scales, biases, transpose, how);
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    let inputs = [x, w, scales].into_iter().chain(biases);
    Ok(apply(QuantizedMatmul { how, path }, inputs)?.swap_remove(0))
}

const NAME: &str = "quantized_matmul";

/// Whether these are what the kernel computes: one matrix, and dtypes that it reads.
fn suits(x: &Array, w: &Array, scales: &Array, biases: Option<&Array>, how: Quantization) -> bool {
    let floats = |a: &Array| matches!(a.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let of_mode = match (how.mode, biases) {
        (QuantizationMode::Affine, Some(biases)) => floats(scales) && floats(biases),
        (QuantizationMode::Affine, None) | (_, Some(_)) => false,
        (_, None) => scales.dtype() == Dtype::Uint8,
    };
    let codes = w.shape().last().map(|&words| i64::from(words) * 32 / i64::from(how.bits));
    of_mode
        && floats(x)
        && w.dtype() == Dtype::Uint32
        && w.ndim() == 2
        && x.shape().last().map(|&k| i64::from(k)) == codes
}

struct QuantizedMatmul {
    how: Quantization,
    path: Path,
}

impl CustomKernel for QuantizedMatmul {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [x, w, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let mut shape = x.shape.clone();
        if let (Some(last), Some(&n)) = (shape.last_mut(), w.shape.first()) {
            *last = n;
        }
        let floats = rest.iter().map(|s| s.dtype).filter(|d| d.is_floating());
        // Of the dtypes at hand, any two that differ promote to float32.
        let dtype = floats.fold(x.dtype, |d, other| if d == other { d } else { Dtype::Float32 });
        Ok(vec![Spec { shape, dtype }])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (x, out) = (&inputs[0], &mut outputs[0]);
        let weights = Weights::new(&inputs[1], &inputs[2], inputs.get(3), self.how)?;
        let (n, k) = (weights.n, weights.k);
        if x.size() == 0 || n == 0 {
            return Ok(());
        }
        let rows = x.size() / k;
        let mut columns = Vec::new();
        for start in (0..rows).step_by(TILE) {
            let count = TILE.min(rows - start);
            let mut x = floats(x, start * k..(start + count) * k)?;
            let powers = moderate(&mut x, k);
            columns.resize(n * count, 0.0);
            // A multiple of four rows of weights, which the fast path takes at a time.
            let grain = (WORK / (k * count)).max(1).next_multiple_of(4);
            match self.path {
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => cpu::avx2::product(&weights, &x, &mut columns, grain),
                _ => cpu::portable::product(&weights, &x, &mut columns, grain),
            }
            if powers.iter().any(|&p| p != 1.0) {
                for sums in columns.chunks_exact_mut(count) {
                    sums.iter_mut().zip(&powers).for_each(|(sum, power)| *sum /= power);
                }
            }
            store(out, start * n, n, &columns)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, w, scales, biases @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        reference::quantized_matmul(x, w, scales, biases.first(), true, self.how).map(|y| vec![y])
    }
}

/// Part of a view as `float32`.
fn floats<'a>(x: &View<'a>, range: std::ops::Range<usize>) -> Result<Cow<'a, [f32]>> {
    Ok(match x.dtype() {
        Dtype::Float16 => Cow::Owned(x.as_slice::<f16>()?[range].to_f32_vec()),
        Dtype::Bfloat16 => Cow::Owned(x.as_slice::<bf16>()?[range].to_f32_vec()),
        _ => Cow::Borrowed(&x.as_slice::<f32>()?[range]),
    })
}

/// Multiplies each row whose largest element is very large or very small by a power of two, so that
/// nothing on the way to the result overflows or underflows which the result doesn't. Returns the powers.
fn moderate(x: &mut Cow<'_, [f32]>, k: usize) -> Vec<f32> {
    const FAR: f32 = (1u64 << 60) as f32;
    const POWER: f32 = 16.0 * FAR;
    let power = |row: &[f32]| match row.iter().fold(0.0f32, |max, x| max.max(x.abs())) {
        max if max > 0.0 && max < 1.0 / FAR => POWER,
        max if max > FAR && max.is_finite() => 1.0 / POWER,
        _ => 1.0,
    };
    let powers: Vec<f32> = x.chunks_exact(k).map(power).collect();
    for (m, power) in powers.iter().enumerate().filter(|&(_, &power)| power != 1.0) {
        x.to_mut()[m * k..][..k].iter_mut().for_each(|x| *x *= power);
    }
    powers
}

/// Puts `columns`, `[n, count]`, into rows of `out` from element `start`.
fn store(out: &mut ViewMut<'_>, start: usize, n: usize, columns: &[f32]) -> Result<()> {
    fn turn<T>(out: &mut [T], n: usize, columns: &[f32], cast: impl Fn(f32) -> T) {
        let count = columns.len() / n;
        for (m, row) in out.chunks_exact_mut(n).take(count).enumerate() {
            for (y, &value) in row.iter_mut().zip(columns[m..].iter().step_by(count)) {
                *y = cast(value);
            }
        }
    }
    match out.dtype() {
        Dtype::Float16 => turn(&mut out.as_mut_slice()?[start..], n, columns, f16::from_f32),
        Dtype::Bfloat16 => turn(&mut out.as_mut_slice()?[start..], n, columns, bf16::from_f32),
        _ => turn(&mut out.as_mut_slice()?[start..], n, columns, |v| v),
    }
    Ok(())
}
