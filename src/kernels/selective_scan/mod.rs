//! The recurrence of the first Mamba: a vector for each channel as state.

mod cpu;
mod reference;

use std::sync::Once;

use self::cpu::{CHANNELS, Part, STEPS};
use super::lanes::{self, Lane, lanes};
use super::math;
use super::path::Path;
use super::product::{Dense, Lines, Numbers};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};

pub use self::reference::diagonal_scan;

const NAME: &str = "selective_scan";
/// Elements of a state, times positions, that are worth another thread.
const WORK: usize = 1 << 14;

/// The selective scan (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
/// 2023), for each channel and position in order, in `float32`:
///
/// ```text
/// state <- state * exp(dt a) + dt x b
/// output = state . c
/// ```
///
/// `x` and `dt` are `[batch, length, channels]`, `a` is `[channels, state]`, `b` and `c` are `[batch, length,
/// state]`. Returns the outputs, `[batch, length, channels]`, and the last state, `[batch, channels,
/// state]`. Without a `state`, the sequence starts from zeros.
pub fn selective_scan(
    x: &Array,
    dt: &Array,
    a: &Array,
    [b, c]: [&Array; 2],
    state: Option<&Array>,
) -> Result<(Array, Array)> {
    let inputs: Vec<&Array> = [x, dt, a, b, c].into_iter().chain(state).collect();
    let float = |x: &&Array| matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let shapes: Vec<&[i32]> = inputs.iter().map(|x| x.shape()).collect();
    static FIRST_USE: Once = Once::new();
    let fits = inputs.iter().all(float) && Sizes::of(&shapes).is_some();
    let Some(path) = lanes::path_for(NAME, &FIRST_USE).filter(|_| fits) else {
        return reference::selective_scan(x, dt, a, [b, c], state);
    };
    let mut outputs = apply(SelectiveScan { path }, inputs)?;
    let state = outputs.swap_remove(1);
    Ok((outputs.swap_remove(0), state))
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    length: usize,
    channels: usize,
    dims: usize,
}

impl Sizes {
    /// The sizes that these inputs have, if they fit together.
    fn of(shapes: &[&[i32]]) -> Option<Self> {
        let (&[x, dt, a, b, c], state) = shapes.split_first_chunk::<5>()?;
        let (&[batch, length, channels], &[_, dims]) = (x, a) else { return None };
        let fits = dt == x
            && a[0] == channels
            && b == [batch, length, dims]
            && c == b
            && matches!(state, [] | [_])
            && state.iter().all(|&shape| shape == [batch, channels, dims]);
        let [batch, length, channels, dims] = [batch, length, channels, dims].map(|size| size as usize);
        fits.then_some(Self { batch, length, channels, dims })
    }
}

struct SelectiveScan {
    path: Path,
}

/// What some channels of a batch compute: their last states, and their outputs at each position.
struct Block<'a> {
    state: &'a mut [f32],
    outputs: Vec<&'a mut [f32]>,
}

/// The last two axes of an input, of which the others have these indices.
fn lines<'a>(view: &View<'a>, batch: Option<usize>) -> Result<Dense<'a>> {
    let (numbers, origin) = Numbers::of(view)?;
    let &[ref rest @ .., line, step] = view.strides() else {
        return Err(Error::argument(NAME, format!("an input of shape {:?}", view.shape())));
    };
    let offset = batch.zip(rest.first()).map_or(0, |(index, &stride)| index as isize * stride as isize);
    let origin = origin.wrapping_add_signed(offset);
    Ok(Dense { numbers, origin, line: line as isize, step: step as isize })
}

impl SelectiveScan {
    /// Channels from `first` on of one batch.
    fn block(
        &self,
        sizes: Sizes,
        inputs: &[View<'_>],
        batch: usize,
        first: usize,
        Block { state, outputs }: &mut Block<'_>,
    ) -> Result<()> {
        let Sizes { length, dims, .. } = sizes;
        let (width, channels) = (lanes(dims), state.len() / dims);
        let rows = |from: Dense<'_>, start: usize, count: usize, out: &mut [Lane]| {
            for (i, out) in out.chunks_exact_mut(width).take(count).enumerate() {
                from.read(start + i, 0, &mut out.as_flattened_mut()[..dims]);
            }
        };
        let mut part = Part::new(width, STEPS.min(length));
        rows(lines(&inputs[2], None)?, first, channels, &mut part.a);
        if let Some(initial) = inputs.get(5) {
            rows(lines(initial, Some(batch))?, first, channels, &mut part.state);
        }
        let [x, dt, b, c] = [0, 1, 3, 4].map(|i| lines(&inputs[i], Some(batch)));
        let (x, dt, b, c) = (x?, dt?, b?, c?);
        for start in (0..length).step_by(STEPS) {
            let count = STEPS.min(length - start);
            for t in 0..count {
                x.read(start + t, first, &mut part.x[t][..channels]);
                dt.read(start + t, first, &mut part.dt[t][..channels]);
            }
            rows(b, start, count, &mut part.b);
            rows(c, start, count, &mut part.c);
            (part.channels, part.count) = (channels, count);
            math::run(self.path, &mut part);
            for (out, result) in outputs[start..].iter_mut().zip(&part.outputs).take(count) {
                out.copy_from_slice(&result[..channels]);
            }
        }
        for (state, lanes) in state.chunks_exact_mut(dims).zip(part.state.chunks_exact(width)) {
            state.copy_from_slice(&lanes.as_flattened()[..dims]);
        }
        Ok(())
    }
}

impl CustomKernel for SelectiveScan {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let shapes: Vec<&[i32]> = inputs.iter().map(|spec| &spec.shape[..]).collect();
        if Sizes::of(&shapes).is_none() {
            return Err(Error::argument(NAME, format!("inputs of shapes {shapes:?}")));
        }
        let state = [shapes[0][0], shapes[0][2], shapes[2][1]];
        Ok([shapes[0], &state].map(|shape| Spec::new(shape, Dtype::Float32)).to_vec())
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let shapes: Vec<&[i32]> = inputs.iter().map(|view| view.shape()).collect();
        let (Some(sizes), [out, state]) = (Sizes::of(&shapes), outputs) else {
            return Err(Error::argument(NAME, format!("inputs of shapes {shapes:?}")));
        };
        let Sizes { batch, length, channels, dims } = sizes;
        // Without a state there is nothing to read, and the outputs are zeros as they are.
        if batch * channels * dims == 0 {
            return Ok(());
        }
        let states = state.as_mut_slice::<f32>()?.chunks_exact_mut(channels * dims);
        let states = states.flat_map(|states| states.chunks_mut(CHANNELS * dims));
        let mut all: Vec<Block> = states.map(|state| Block { state, outputs: Vec::new() }).collect();
        let blocks = channels.div_ceil(CHANNELS);
        for (i, row) in out.as_mut_slice::<f32>()?.chunks_exact_mut(channels).enumerate() {
            for (j, out) in row.chunks_mut(CHANNELS).enumerate() {
                all[i / length * blocks + j].outputs.push(out);
            }
        }
        let grain = WORK.div_ceil(length.max(1) * CHANNELS * dims);
        let failed = parking_lot::Mutex::new(None);
        pool::for_each_piece(&mut all, grain, |piece, part| {
            for (i, block) in part.iter_mut().enumerate() {
                let at = piece * grain + i;
                let done = self.block(sizes, inputs, at / blocks, at % blocks * CHANNELS, block);
                if let Err(error) = done {
                    *failed.lock() = Some(error);
                }
            }
        });
        failed.into_inner().map_or(Ok(()), Err)
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, dt, a, b, c, state @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (out, state) = reference::selective_scan(x, dt, a, [b, c], state.first())?;
        Ok(vec![out, state])
    }

    fn takes_strided(&self, _: usize) -> bool {
        true
    }
}
