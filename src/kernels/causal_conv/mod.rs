//! A convolution over the last positions of each channel, perhaps with an activation.
//!
//! Computed in `float32` and rounded once.

mod cpu;
mod reference;

use std::sync::Once;

use half::{bf16, f16};

use self::cpu::{LANES_AT_ONCE, Part};
use super::lanes::{self, LANES, lanes};
use super::math;
use super::path::Path;
use super::product::{Dense, Lines, Numbers, to_bf16, to_f16};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype, Element};
use crate::error::{Error, Result};

const NAME: &str = "causal_conv";
/// Channels that are worked on at once.
const CHANNELS: usize = LANES_AT_ONCE * LANES;
/// Positions that are in the nearest cache at once.
const STEPS: usize = 32;
/// Outputs that are worth another thread.
const WORK: usize = 1 << 13;

/// Output `t` is `sum_i weight[i] x[t - kernel + 1 + i] + bias`, for each channel alone, and with `silu` the
/// activation of this.
///
/// `x` is `[batch, length, channels]`, `weight` `[channels, kernel, 1]`, `bias` `[channels]`, and `state`, the
/// inputs before, `[batch, kernel - 1, channels]`; zeros without. Returns the outputs, and the last `kernel -
/// 1` inputs. Fails for shapes that do not fit.
pub(crate) fn causal_conv(
    x: &Array,
    weight: &Array,
    bias: Option<&Array>,
    state: Option<&Array>,
    silu: bool,
) -> Result<(Array, Array)> {
    let inputs: Vec<&Array> = [x, weight].into_iter().chain(bias).chain(state).collect();
    let float = |x: &&Array| matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let shapes: Vec<&[i32]> = inputs.iter().map(|x| x.shape()).collect();
    static FIRST_USE: Once = Once::new();
    let fits = inputs.iter().all(float) && Sizes::of(&shapes, bias.is_some()).is_some();
    let Some(path) = lanes::path_for(NAME, &FIRST_USE).filter(|_| fits) else {
        return reference::causal_conv(x, weight, bias, state, silu);
    };
    let mut outputs = apply(CausalConv { path, has_bias: bias.is_some(), silu }, inputs)?;
    let state = outputs.swap_remove(1);
    Ok((outputs.swap_remove(0), state))
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    length: usize,
    channels: usize,
    kernel: usize,
}

impl Sizes {
    /// The sizes that these inputs have, if they fit together.
    fn of(shapes: &[&[i32]], has_bias: bool) -> Option<Self> {
        let (&[x, weight], rest) = shapes.split_first_chunk::<2>()?;
        let (bias, state) = rest.split_at_checked(usize::from(has_bias))?;
        let (&[batch, length, channels], &[_, kernel, 1]) = (x, weight) else { return None };
        let fits = weight[0] == channels
            && kernel > 0
            && bias.iter().all(|&shape| shape == [channels])
            && matches!(state, [] | [_])
            && state.iter().all(|&shape| shape == [batch, kernel - 1, channels]);
        let [batch, length, channels, kernel] = [batch, length, channels, kernel].map(|size| size as usize);
        fits.then_some(Self { batch, length, channels, kernel })
    }
}

/// What floating dtypes promote to: any two that differ to `float32`.
fn promoted<'a>(mut specs: impl Iterator<Item = &'a Spec>) -> Dtype {
    let first = specs.next().map_or(Dtype::Float32, |spec| spec.dtype);
    specs.fold(first, |dtype, spec| if spec.dtype == dtype { dtype } else { Dtype::Float32 })
}

struct CausalConv {
    path: Path,
    has_bias: bool,
    silu: bool,
}

/// The inputs before a sequence and those in it.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    before: Option<Dense<'a>>,
    x: Dense<'a>,
    /// How many come before.
    count: usize,
}

impl Inputs<'_> {
    /// Some channels of input number `at`.
    fn read(&self, at: usize, first: usize, out: &mut [f32]) {
        match (at.checked_sub(self.count), self.before) {
            (Some(t), _) => self.x.read(t, first, out),
            (None, Some(before)) => before.read(at, first, out),
            (None, None) => out.fill(0.0),
        }
    }
}

/// Rows of an array of one to three axes, of which the first may be the batch.
fn rows<'a>(view: &View<'a>, batch: usize) -> Result<Dense<'a>> {
    let (numbers, origin) = Numbers::of(view)?;
    let strides = view.strides();
    let stride = |axis: usize| strides.get(axis).map_or(0, |&s| s as isize);
    let origin = origin.wrapping_add_signed(batch as isize * stride(0));
    Ok(Dense { numbers, origin, line: stride(1), step: stride(2) })
}

impl CausalConv {
    fn inputs<'a>(&self, inputs: &[View<'a>], sizes: Sizes, batch: usize) -> Result<Inputs<'a>> {
        let before = inputs.get(2 + usize::from(self.has_bias));
        let before = before.map(|state| rows(state, batch)).transpose()?;
        Ok(Inputs { before, x: rows(&inputs[0], batch)?, count: sizes.kernel - 1 })
    }

    fn fill<T: Element + Send>(
        &self,
        sizes: Sizes,
        inputs: &[View<'_>],
        out: &mut ViewMut<'_>,
        cast: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let Sizes { batch, length, channels, kernel } = sizes;
        let all = (0..batch).map(|b| self.inputs(inputs, sizes, b)).collect::<Result<Vec<_>>>()?;
        let weights = &inputs[1];
        let (numbers, origin) = Numbers::of(weights)?;
        let [line, step] = [0, 1].map(|axis| weights.strides()[axis] as isize);
        let (weights, packed) = (Dense { numbers, origin, line, step }, step == 1 && line == kernel as isize);
        let bias = inputs.get(2).filter(|_| self.has_bias);
        let bias = bias.map(|bias| {
            let (numbers, origin) = Numbers::of(bias)?;
            Ok::<_, Error>(Dense { numbers, origin, line: 0, step: bias.strides()[0] as isize })
        });
        let bias = bias.transpose()?;
        let grain = WORK.div_ceil(channels).min(length);
        let out = out.as_mut_slice::<T>()?.chunks_exact_mut(length * channels).enumerate();
        let mut pieces: Vec<_> = out
            .flat_map(|(batch, out)| {
                let parts = out.chunks_mut(grain * channels).enumerate();
                parts.map(move |(i, out)| (batch, i * grain, out))
            })
            .collect();
        pool::for_each_piece(&mut pieces, 1, |_, piece| {
            let (batch, first_row, out) = &mut piece[0];
            let (inputs, steps) = (all[*batch], out.len() / channels);
            let mut part = Part::new(kernel, steps.min(STEPS), self.silu);
            let mut taps = vec![0.0; kernel * CHANNELS];
            for first in (0..channels).step_by(CHANNELS) {
                let count = CHANNELS.min(channels - first);
                part.width = lanes(count);
                let taps = &mut taps[..count * kernel];
                if packed {
                    weights.numbers.read(weights.origin + first * kernel, taps);
                } else {
                    taps.chunks_exact_mut(kernel)
                        .enumerate()
                        .for_each(|(c, taps)| weights.read(first + c, 0, taps));
                }
                for (c, taps) in taps.chunks_exact(kernel).enumerate() {
                    taps.iter().zip(&mut part.weights).for_each(|(tap, w)| w[c / LANES][c % LANES] = *tap);
                }
                if let Some(bias) = bias {
                    bias.read(0, first, &mut part.bias.as_flattened_mut()[..count]);
                }
                for start in (0..steps).step_by(STEPS) {
                    part.count = STEPS.min(steps - start);
                    for (i, row) in part.inputs.iter_mut().take(part.count + kernel - 1).enumerate() {
                        inputs.read(*first_row + start + i, first, &mut row.as_flattened_mut()[..count]);
                    }
                    math::run(self.path, &mut part);
                    let rows = out.chunks_exact_mut(channels).skip(start);
                    for (out, result) in rows.zip(&part.outputs).take(part.count) {
                        cast(&result.as_flattened()[..count], &mut out[first..first + count]);
                    }
                }
            }
        });
        Ok(())
    }

    /// The last inputs.
    fn remember<T: Element + Send>(
        &self,
        sizes: Sizes,
        inputs: &[View<'_>],
        state: &mut ViewMut<'_>,
        cast: impl Fn(&[f32], &mut [T]),
    ) -> Result<()> {
        let Sizes { length, channels, kernel, .. } = sizes;
        let mut row = vec![0.0; channels];
        let states = state.as_mut_slice::<T>()?.chunks_exact_mut(channels * (kernel - 1).max(1));
        for (batch, state) in states.enumerate() {
            let inputs = self.inputs(inputs, sizes, batch)?;
            for (i, out) in state.chunks_exact_mut(channels).enumerate() {
                inputs.read(length + i, 0, &mut row);
                cast(&row, out);
            }
        }
        Ok(())
    }
}

impl CustomKernel for CausalConv {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let shapes: Vec<&[i32]> = inputs.iter().map(|spec| &spec.shape[..]).collect();
        if Sizes::of(&shapes, self.has_bias).is_none() {
            return Err(Error::argument(NAME, format!("inputs of shapes {shapes:?}")));
        }
        let state = [shapes[0][0], shapes[1][1] - 1, shapes[0][2]];
        let before = inputs.get(2 + usize::from(self.has_bias));
        Ok(vec![
            Spec::new(shapes[0], promoted(inputs.iter())),
            Spec::new(&state, promoted(inputs[..1].iter().chain(before))),
        ])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let shapes: Vec<&[i32]> = inputs.iter().map(|view| view.shape()).collect();
        let (Some(sizes), [out, state]) = (Sizes::of(&shapes, self.has_bias), outputs) else {
            return Err(Error::argument(NAME, format!("inputs of shapes {shapes:?}")));
        };
        if sizes.batch * sizes.channels == 0 {
            return Ok(());
        }
        if sizes.length > 0 {
            match out.dtype() {
                Dtype::Float16 => self.fill::<f16>(sizes, inputs, out, to_f16)?,
                Dtype::Bfloat16 => self.fill::<bf16>(sizes, inputs, out, to_bf16)?,
                _ => self.fill::<f32>(sizes, inputs, out, |x, out| out.copy_from_slice(x))?,
            }
        }
        match state.dtype() {
            Dtype::Float16 => self.remember::<f16>(sizes, inputs, state, to_f16),
            Dtype::Bfloat16 => self.remember::<bf16>(sizes, inputs, state, to_bf16),
            _ => self.remember::<f32>(sizes, inputs, state, |x, out| out.copy_from_slice(x)),
        }
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, weight, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (bias, state) = rest.split_at(usize::from(self.has_bias).min(rest.len()));
        let (out, state) = reference::causal_conv(x, weight, bias.first(), state.first(), self.silu)?;
        Ok(vec![out, state])
    }

    fn takes_strided(&self, _: usize) -> bool {
        true
    }
}
