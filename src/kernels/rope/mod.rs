//! Rotary position encoding. Angles are computed in `float64`, once for all heads; the rest in `float32`, with one
//! rounding at the end.

use std::sync::Once;

use half::{bf16, f16};

use super::path::{Path, active_of};
use super::product::{Numbers, to_bf16, to_f16};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype, Element};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ffi::op;
use crate::ops;

/// Elements that are worth another thread.
const WORK: usize = 1 << 14;
const NAME: &str = "rope";

/// How dimensions turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub dims: i32,
    pub traditional: bool,
    /// `None` where periods are given.
    pub base: Option<f32>,
    pub scale: f32,
}

/// Turns the first dimensions of `x`; MLX's own where it is not a case for the kernel, errors included.
pub(crate) fn rope(x: &Array, turn: Turn, offset: &Array, periods: Option<&Array>) -> Result<Array> {
    let path = active_of(&[Path::Avx2]);
    let float = matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let last = x.shape().last().copied().unwrap_or(0);
    let shaped = x.ndim() >= 3 && x.size() > 0 && turn.dims > 0 && turn.dims % 2 == 0 && turn.dims <= last;
    let offset_fits = offset.dtype() == Dtype::Int32
        && offset.ndim() <= 1
        && (offset.size() == 1 || x.shape().first().is_some_and(|&b| offset.size() == b as usize));
    let periods_fit = match periods {
        Some(p) => p.shape() == [turn.dims / 2] && p.dtype() == Dtype::Float32 && turn.base.is_none(),
        None => turn.base.is_some(),
    };
    let case = float && shaped && offset_fits && periods_fit;
    if path == Path::Reference || !case || current_device().kind != DeviceKind::Cpu {
        return reference(x, turn, offset, periods);
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    let offset = ops::reshape(offset, &[-1])?;
    Ok(apply(Rope { turn }, [x, &offset].into_iter().chain(periods))?.swap_remove(0))
}

fn reference(x: &Array, turn: Turn, offset: &Array, periods: Option<&Array>) -> Result<Array> {
    let Turn { dims, traditional, base, scale } = turn;
    op!(mlx_fast_rope_dynamic(x, dims, traditional, base, scale, offset, periods))
}

struct Rope {
    turn: Turn,
}

impl Rope {
    /// Sines and cosines, `[sequences, length, dims / 2]`.
    fn angles(&self, offsets: &[i32], length: usize, periods: Option<&[f32]>) -> Vec<[f32; 2]> {
        let half = (self.turn.dims / 2) as usize;
        let base = f64::from(self.turn.base.unwrap_or(1.0));
        let frequency = |i: usize| match periods {
            Some(periods) => 1.0 / f64::from(periods[i]),
            None => base.powf(-(i as f64) / half as f64),
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let mut angles = vec![[0.0; 2]; offsets.len() * length * half];
        pool::for_each_piece(&mut angles, half * 64, |piece, angles| {
            for (i, angles) in angles.chunks_exact_mut(half).enumerate() {
                let row = piece * 64 + i;
                let position = f64::from(offsets[row / length]) + (row % length) as f64;
                for (angle, frequency) in angles.iter_mut().zip(&frequencies) {
                    let (sin, cos) = (position * f64::from(self.turn.scale) * frequency).sin_cos();
                    *angle = [sin as f32, cos as f32];
                }
            }
        });
        angles
    }

    fn fill<T: Element + Send>(
        &self,
        inputs: &[View<'_>],
        out: &mut ViewMut<'_>,
        cast: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let (x, offsets) = (&inputs[0], inputs[1].as_slice::<i32>()?);
        let periods = inputs.get(2).map(View::as_slice::<f32>).transpose()?;
        let (shape, half) = (x.shape(), (self.turn.dims / 2) as usize);
        let [batch, n] = [shape[0], shape[shape.len() - 1]].map(|size| size as usize);
        let length = shape[shape.len() - 2] as usize;
        let angles = self.angles(offsets, length, periods);
        let per_batch = x.size() / n / batch;
        let (numbers, origin) = Numbers::of(x)?;
        let strides: Vec<isize> = x.strides().iter().map(|&s| s as isize).collect();
        let place = |mut row: usize| {
            shape.iter().zip(&strides).rev().skip(1).fold(origin, |at, (&size, &stride)| {
                let index = row % size as usize;
                row /= size as usize;
                at.wrapping_add_signed(index as isize * stride)
            })
        };
        let step = strides[strides.len() - 1];
        let grain = WORK.div_ceil(n);
        pool::for_each_piece(out.as_mut_slice::<T>()?, grain * n, |piece, out| {
            let mut values = vec![0.0f32; n];
            for (i, out) in out.chunks_exact_mut(n).enumerate() {
                let row = piece * grain + i;
                let at = place(row);
                match step {
                    1 => numbers.read(at, &mut values),
                    _ => values.iter_mut().enumerate().for_each(|(i, x)| {
                        *x = numbers.get(at.wrapping_add_signed(i as isize * step));
                    }),
                }
                let sequence = if offsets.len() == 1 { 0 } else { row / per_batch };
                let angles = &angles[(sequence * length + row % length) * half..][..half];
                let turned = |a: f32, b: f32, [sin, cos]: [f32; 2]| (a * cos - b * sin, a * sin + b * cos);
                if self.turn.traditional {
                    for (pair, angle) in values.chunks_exact_mut(2).zip(angles) {
                        (pair[0], pair[1]) = turned(pair[0], pair[1], *angle);
                    }
                } else {
                    let (first, second) = values.split_at_mut(half);
                    for ((a, b), angle) in first.iter_mut().zip(second).zip(angles) {
                        (*a, *b) = turned(*a, *b, *angle);
                    }
                }
                cast(&values, out);
            }
        });
        Ok(())
    }
}

impl CustomKernel for Rope {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let x = inputs.first().ok_or_else(|| Error::argument(NAME, "no inputs"))?;
        Ok(vec![x.clone()])
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
        let [x, offset, periods @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        Ok(vec![reference(x, self.turn, offset, periods.first())?])
    }
}
