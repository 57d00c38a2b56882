//! Choosing from the last axis: the largest, the `k` largest, what samplers keep, and a draw.
//!
//! Numbers are compared as they are, and equals by where they are, so what is chosen is what MLX chooses;
//! sums are taken in `float64` over parts in `float32`.

mod cpu;
mod reference;

use std::sync::Once;

use half::{bf16, f16};

use super::lanes;
use super::path::Path;
use super::product::{Numbers, to_bf16, to_f16};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype, Element};
use crate::error::{Error, Result};
use crate::random;

const NAME: &str = "select";
/// Elements that are worth another thread.
const WORK: usize = 1 << 15;
/// Rows that are shorter are MLX's.
const SHORT: i32 = 64;

/// Where the largest is along the last axis, as `uint32`: the first of equals. A NaN is passed over, unless
/// it comes first: then it is the answer.
pub(crate) fn argmax(x: &Array, keepdims: bool) -> Result<Array> {
    run(Op::ArgMax { keepdims }, &[x])
}

/// `ln(sum(e^x))` along the last axis.
pub(crate) fn logsumexp(x: &Array, keepdims: bool) -> Result<Array> {
    run(Op::LogSumExp { keepdims }, &[x])
}

/// Where the `count` largest along the last axis are, as `uint32`, the largest first; of equals the earlier
/// one, and NaN last. Fails if there are fewer.
pub(crate) fn top(x: &Array, count: i32) -> Result<Array> {
    let length = x.dim(-1)?;
    if !(0..=length).contains(&count) {
        return Err(Error::argument(NAME, format!("{count} of {length}")));
    }
    run(Op::Top { count }, &[x])
}

/// Nucleus sampling (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020): of log
/// probabilities along the last axis, those become minus infinity that come after more likely ones which make
/// up `p` of all.
pub(crate) fn keep_top_p(logprobs: &Array, p: f32) -> Result<Array> {
    run(Op::KeepTopP { p }, &[logprobs])
}

/// All but the `count` largest along the last axis become minus infinity, as [`top`] has them. `count` is
/// less than there are, and 1 or more.
pub(crate) fn keep_top_k(logprobs: &Array, count: i32) -> Result<Array> {
    run(Op::KeepTopK { count }, &[logprobs])
}

/// One index for each row of `logits`, `[rows, length]`, drawn as MLX does it: for one row by the inverse of
/// the distribution function, but for the rounding of its sums; for more by the largest of `logits` with
/// noise of Gumbel.
pub(crate) fn categorical(logits: &Array, key: &Array) -> Result<Array> {
    if logits.ndim() != 2 || logits.dim(0)? != 1 || path_for(Op::Draw, logits).is_none() {
        return random::categorical(logits, -1, Some(key));
    }
    let u = random::uniform(0.0, 1.0, &[1], Dtype::Float32, Some(key))?;
    run(Op::Draw, &[logits, &u])
}

fn run(op: Op, inputs: &[&Array]) -> Result<Array> {
    match path_for(op, inputs[0]) {
        Some(path) => Ok(apply(Select { op, path }, inputs.iter().copied())?.swap_remove(0)),
        None => op.reference(inputs[0], inputs.get(1).copied()),
    }
}

/// The path for rows of `x`, unless the reference is to be taken.
fn path_for(op: Op, x: &Array) -> Option<Path> {
    let float = matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let long = x.shape().last().is_some_and(|&n| n >= SHORT || matches!(op, Op::Draw) && n > 0);
    static FIRST_USE: Once = Once::new();
    if float && long && x.size() > 0 { lanes::path_for(NAME, &FIRST_USE) } else { None }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    ArgMax {
        keepdims: bool,
    },
    LogSumExp {
        keepdims: bool,
    },
    Top {
        count: i32,
    },
    KeepTopP {
        p: f32,
    },
    KeepTopK {
        count: i32,
    },
    /// From one row, with a number between 0 and 1.
    Draw,
}

impl Op {
    fn reference(self, x: &Array, u: Option<&Array>) -> Result<Array> {
        match (self, u) {
            (Op::ArgMax { keepdims }, _) => reference::argmax(x, keepdims),
            (Op::LogSumExp { keepdims }, _) => reference::logsumexp(x, keepdims),
            (Op::Top { count }, _) => reference::top(x, count),
            (Op::KeepTopP { p }, _) => reference::keep_top_p(x, p),
            (Op::KeepTopK { count }, _) => reference::keep_top_k(x, count),
            (Op::Draw, Some(u)) => reference::draw(x, u),
            (Op::Draw, None) => Err(Error::argument(NAME, "no number to draw by")),
        }
    }
}

struct Select {
    op: Op,
    path: Path,
}

/// Rows along the last axis.
struct Rows<'a> {
    numbers: Numbers<'a>,
    origins: Vec<usize>,
    step: isize,
    length: usize,
}

impl<'a> Rows<'a> {
    fn of(view: &View<'a>) -> Result<Self> {
        let (numbers, origin) = Numbers::of(view)?;
        let (Some((&length, shape)), Some((&step, strides))) =
            (view.shape().split_last(), view.strides().split_last())
        else {
            return Err(Error::argument(NAME, "a scalar"));
        };
        let mut origins = vec![origin];
        for (&size, &stride) in shape.iter().zip(strides) {
            let along = |&origin: &usize| {
                (0..size as isize).map(move |i| origin.wrapping_add_signed(i * stride as isize))
            };
            origins = origins.iter().flat_map(along).collect();
        }
        Ok(Self { numbers, origins, step: step as isize, length: length as usize })
    }

    /// Row number `row`; in `room`, if it does not lie as it is to be.
    fn get<'r>(&'r self, row: usize, room: &'r mut Vec<f32>) -> &'r [f32] {
        let origin = self.origins[row];
        if let (Numbers::Float32(all), 1) = (self.numbers, self.step) {
            return &all[origin..origin + self.length];
        }
        room.resize(self.length, 0.0);
        if self.step == 1 {
            self.numbers.read(origin, room);
        } else {
            let at = |i: usize| origin.wrapping_add_signed(i as isize * self.step);
            room.iter_mut().enumerate().for_each(|(i, x)| *x = self.numbers.get(at(i)));
        }
        room
    }

    /// Calls `work` with each row and its `size` elements of `out`.
    fn for_each<T: Send>(&self, out: &mut [T], size: usize, work: impl Fn(&[f32], &mut [T]) + Sync) {
        if size == 0 {
            return;
        }
        let grain = WORK.div_ceil(self.length);
        pool::for_each_piece(out, grain * size, |piece, out| {
            let mut room = Vec::new();
            for (i, out) in out.chunks_exact_mut(size).enumerate() {
                work(self.get(piece * grain + i, &mut room), out);
            }
        });
    }
}

impl Select {
    /// What is as the rows are, but in part minus infinity; or one number for each.
    fn numbers<T: Element + Send>(
        &self,
        rows: &Rows<'_>,
        out: &mut ViewMut<'_>,
        cast: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let (out, none) = (out.as_mut_slice::<T>()?, f32::NEG_INFINITY);
        match self.op {
            Op::LogSumExp { .. } => {
                rows.for_each(out, 1, |row, out| cast(&[cpu::logsumexp(self.path, row)], out));
            }
            Op::KeepTopP { p } => rows.for_each(out, rows.length, |row, out| {
                let Some(least) = cpu::top_p(self.path, row, p) else { return cast(row, out) };
                cast(&row.iter().map(|&x| if x < least { none } else { x }).collect::<Vec<_>>(), out);
            }),
            Op::KeepTopK { count } => rows.for_each(out, rows.length, |row, out| {
                let mut kept = vec![none; row.len()];
                cpu::top(row, count as usize).into_iter().for_each(|at| kept[at] = row[at]);
                cast(&kept, out);
            }),
            Op::ArgMax { .. } | Op::Top { .. } | Op::Draw => {}
        }
        Ok(())
    }
}

impl CustomKernel for Select {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let Some(Spec { shape, dtype }) = inputs.first().filter(|x| !x.shape.is_empty()) else {
            return Err(Error::argument(NAME, "nothing to choose from"));
        };
        let outer = &shape[..shape.len() - 1];
        let with = |last: Option<i32>| outer.iter().copied().chain(last).collect();
        let (shape, dtype) = match self.op {
            Op::ArgMax { keepdims } => (with(keepdims.then_some(1)), Dtype::Uint32),
            Op::LogSumExp { keepdims } => (with(keepdims.then_some(1)), *dtype),
            Op::Top { count } => (with(Some(count)), Dtype::Uint32),
            Op::KeepTopP { .. } | Op::KeepTopK { .. } => (shape.clone(), *dtype),
            Op::Draw => (smallvec::smallvec![1], Dtype::Uint32),
        };
        Ok(vec![Spec { shape, dtype }])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (rows, out) = (Rows::of(&inputs[0])?, &mut outputs[0]);
        match (self.op, out.dtype()) {
            (Op::ArgMax { .. }, _) => {
                rows.for_each(out.as_mut_slice::<u32>()?, 1, |row, out| out[0] = cpu::argmax(row) as u32);
            }
            (Op::Top { count }, _) => {
                rows.for_each(out.as_mut_slice::<u32>()?, count as usize, |row, out| {
                    let top = cpu::top(row, out.len());
                    out.iter_mut().zip(top).for_each(|(out, at)| *out = at as u32);
                });
            }
            (Op::Draw, _) => {
                let (numbers, origin) = Numbers::of(&inputs[1])?;
                let u = numbers.get(origin);
                rows.for_each(out.as_mut_slice::<u32>()?, 1, |row, out| {
                    out[0] = cpu::draw(self.path, row, u) as u32;
                });
            }
            (_, Dtype::Float16) => self.numbers::<f16>(&rows, out, to_f16)?,
            (_, Dtype::Bfloat16) => self.numbers::<bf16>(&rows, out, to_bf16)?,
            _ => self.numbers::<f32>(&rows, out, |x, out| out.copy_from_slice(x))?,
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, rest @ ..] = inputs else { return Err(Error::argument(NAME, "no inputs")) };
        Ok(vec![self.op.reference(x, rest.first())?])
    }

    fn takes_strided(&self, _: usize) -> bool {
        true
    }
}
