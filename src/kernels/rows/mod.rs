//! Norms and softmax over the last axis, in `float32`, with one rounding at the end.

mod reference;

use std::sync::Once;

use half::{bf16, f16};

use super::path::{Path, active_of};
use super::product::{Numbers, to_bf16, to_f16};
use super::{CustomKernel, Spec, View, ViewMut, apply, math, pool};
use crate::array::{Array, Dtype, Element};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};

/// Elements that are worth another thread.
const WORK: usize = 1 << 14;

/// `x / sqrt(mean(x^2) + eps) * weight`; MLX's own where it is not a case for the kernel, errors included.
pub(crate) fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    match path_for(x, &[weight]) {
        Some(path) => run(Rows { path, op: Op::RmsNorm { eps } }, x, [weight, None]),
        None => reference::rms_norm(x, weight, eps),
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias`; MLX's own where it is not a case for the kernel, errors
/// included.
pub(crate) fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f32) -> Result<Array> {
    match path_for(x, &[weight, bias]) {
        Some(path) => {
            let op = Op::LayerNorm { eps, weight: weight.is_some(), bias: bias.is_some() };
            run(Rows { path, op }, x, [weight, bias])
        }
        None => reference::layer_norm(x, weight, bias, eps),
    }
}

/// `e^x / sum(e^x)` over the last axis, or `None` where it is not a case for the kernel.
pub(crate) fn softmax(x: &Array) -> Option<Result<Array>> {
    path_for(x, &[]).map(|path| run(Rows { path, op: Op::Softmax }, x, [None, None]))
}

fn run(kernel: Rows, x: &Array, more: [Option<&Array>; 2]) -> Result<Array> {
    Ok(apply(kernel, [x].into_iter().chain(more.into_iter().flatten()))?.swap_remove(0))
}

/// The path for rows of `x`, unless MLX's own is to be taken.
fn path_for(x: &Array, more: &[Option<&Array>]) -> Option<Path> {
    let path = active_of(&[Path::Avx2]);
    let float = |x: &Array| matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let fits = |y: &Array| y.ndim() == 1 && float(y) && y.shape().last() == x.shape().last();
    let case = float(x) && x.size() > 0 && x.ndim() > 0 && more.iter().flatten().all(|y| fits(y));
    if path == Path::Reference || !case || current_device().kind != DeviceKind::Cpu {
        return None;
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = "rows", %path, threads = pool::threads(), "first use"));
    Some(path)
}

#[derive(Clone, Copy)]
enum Op {
    RmsNorm { eps: f32 },
    LayerNorm { eps: f32, weight: bool, bias: bool },
    Softmax,
}

struct Rows {
    path: Path,
    op: Op,
}

impl Rows {
    /// Weight and bias, of what follows `x`.
    fn parts<'a, T>(&self, more: &'a [T]) -> [Option<&'a T>; 2] {
        match self.op {
            Op::LayerNorm { weight: false, bias: true, .. } => [None, more.first()],
            _ => [more.first(), more.get(1)],
        }
    }

    /// A row in place.
    fn apply(&self, row: &mut [f32], [weight, bias]: [&[f32]; 2]) {
        let count = row.len() as f32;
        match self.op {
            Op::RmsNorm { eps } => {
                let factor = 1.0 / (math::sum(row, |x| x * x) / count + eps).sqrt();
                row.iter_mut().for_each(|x| *x *= factor);
            }
            Op::LayerNorm { eps, .. } => {
                let mean = math::sum(row, |x| x) / count;
                row.iter_mut().for_each(|x| *x -= mean);
                let factor = 1.0 / (math::sum(row, |x| x * x) / count + eps).sqrt();
                row.iter_mut().for_each(|x| *x *= factor);
            }
            Op::Softmax => {
                let max = math::maximum(row);
                let factor = 1.0 / math::exp_sum(self.path, row, max);
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
        row.iter_mut().zip(weight).for_each(|(x, weight)| *x *= weight);
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }

    fn fill<T: Element + Send>(
        &self,
        inputs: &[View<'_>],
        out: &mut ViewMut<'_>,
        cast: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let x = &inputs[0];
        let n = x.shape().last().map_or(1, |&n| n as usize);
        let (numbers, origin) = Numbers::of(x)?;
        let mut vectors = [Vec::new(), Vec::new()];
        for (vector, part) in vectors.iter_mut().zip(self.parts(&inputs[1..])) {
            let Some(part) = part else { continue };
            let (numbers, origin) = Numbers::of(part)?;
            vector.resize(n, 0.0);
            numbers.read(origin, vector);
        }
        // Rows lie together, whatever the strides between them.
        let strides: Vec<isize> = x.strides().iter().map(|&s| s as isize).collect();
        let place = |mut row: usize| {
            let outer = x.shape().iter().zip(&strides).rev().skip(1);
            outer.fold(origin, |at, (&size, &stride)| {
                let index = row % size as usize;
                row /= size as usize;
                at.wrapping_add_signed(index as isize * stride)
            })
        };
        let step = strides.last().copied().filter(|_| n > 1).unwrap_or(1);
        let grain = WORK.div_ceil(n);
        pool::for_each_piece(out.as_mut_slice::<T>()?, grain * n, |piece, out| {
            let mut row = vec![0.0; n];
            for (i, out) in out.chunks_exact_mut(n).enumerate() {
                let at = place(piece * grain + i);
                match step {
                    1 => numbers.read(at, &mut row),
                    _ => row.iter_mut().enumerate().for_each(|(i, x)| {
                        *x = numbers.get(at.wrapping_add_signed(i as isize * step));
                    }),
                }
                self.apply(&mut row, [&vectors[0], &vectors[1]]);
                cast(&row, out);
            }
        });
        Ok(())
    }
}

impl CustomKernel for Rows {
    fn name(&self) -> &str {
        match self.op {
            Op::RmsNorm { .. } => "rms_norm",
            Op::LayerNorm { .. } => "layer_norm",
            Op::Softmax => "softmax",
        }
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        // As in MLX, a bias alone is cast to what `x` is.
        let counted = if matches!(self.op, Op::LayerNorm { weight: false, .. }) { 1 } else { inputs.len() };
        let dtypes = inputs.iter().take(counted).map(|spec| spec.dtype);
        let dtype = dtypes.reduce(|a, b| if a == b { a } else { Dtype::Float32 });
        let (Some(x), Some(dtype)) = (inputs.first(), dtype) else {
            return Err(Error::argument("rows", "no inputs"));
        };
        Ok(vec![Spec { shape: x.shape.clone(), dtype }])
    }

    fn takes_strided(&self, index: usize) -> bool {
        index == 0
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let out = &mut outputs[0];
        match out.dtype() {
            Dtype::Float16 => self.fill::<f16>(inputs, out, to_f16),
            Dtype::Bfloat16 => self.fill::<bf16>(inputs, out, to_bf16),
            _ => self.fill::<f32>(inputs, out, |row, out| out.copy_from_slice(row)),
        }
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, more @ ..] = inputs else {
            return Err(Error::argument("rows", "no inputs"));
        };
        let [weight, bias] = self.parts(more);
        let y = match self.op {
            Op::RmsNorm { eps } => reference::rms_norm(x, weight, eps),
            Op::LayerNorm { eps, .. } => reference::layer_norm(x, weight, bias, eps),
            Op::Softmax => reference::softmax(x),
        };
        y.map(|y| vec![y])
    }
}
