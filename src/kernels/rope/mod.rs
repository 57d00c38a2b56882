//! Rotary position encoding, after a norm or none. Angles are computed in `float64`, once for all heads; the rest in
//! `float32`, with one rounding at the end.

mod metal;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Once;

use half::{bf16, f16};

use super::chain::{Chain, Node, Nodes, Shaped};
use super::math::{self, Lanes, Loop, Number};
use super::path::Path;
use super::product::strips;
use super::view::Line;
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ffi::op;
use crate::ops;

/// Elements that are worth another thread.
const WORK: usize = 1 << 14;
/// Rows between the one that turns and the one that is fetched.
const AHEAD: usize = 8;
/// Positions from which on threads take all heads of some of them, and how many at most.
const LONG: usize = 64;
const NAME: &str = "rope";

/// How dimensions turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Turn {
    pub dims: i32,
    pub traditional: bool,
    /// `None` where periods are given.
    pub base: Option<f32>,
    pub scale: f32,
}

/// Turns the first dimensions of `x`; MLX's own where it is not a case for the kernel, errors included.
pub(crate) fn rope(x: &Array, turn: Turn, offset: &Array, periods: Option<&Array>) -> Result<Array> {
    let on_cpu = current_device().kind == DeviceKind::Cpu;
    match path_for(x, turn, offset, periods, on_cpu) {
        Some(path) => run(Rope { path, turn, eps: None }, x, offset, None, periods),
        None => reference(x, turn, offset, periods),
    }
}

/// [`rope`] of the [`rms_norm`](super::rms_norm) of `x`.
pub(crate) fn rms_norm_rope(
    x: &Array,
    weight: &Array,
    eps: f32,
    turn: Turn,
    offset: &Array,
    periods: Option<&Array>,
) -> Result<Array> {
    let fits = norm_fits(x, weight);
    match path_for(x, turn, offset, periods, super::metal::or_cpu()) {
        Some(path) if fits => run(Rope { path, turn, eps: Some(eps) }, x, offset, Some(weight), periods),
        _ => rope(&super::rms_norm(x, Some(weight), eps)?, turn, offset, periods),
    }
}

/// Whether this is the weight of a norm of `x`.
fn norm_fits(x: &impl Shaped, weight: &Array) -> bool {
    weight.ndim() == 1 && weight.shape().last() == x.shape().last() && weight.dtype() == x.dtype()
}

impl Chain {
    /// [`rope`], or with a norm's weight and what is added to the mean square [`rms_norm_rope`]; `None` where it is not a case
    /// for the kernel.
    pub(crate) fn rope(
        &mut self,
        x: Node,
        norm: Option<(&Array, f32)>,
        turn: Turn,
        offset: Node,
        periods: Option<&Array>,
    ) -> Result<Option<Node>> {
        let spec = self.spec(x);
        let fits = norm.is_none_or(|(weight, _)| norm_fits(spec, weight));
        let on_cpu = current_device().kind == DeviceKind::Cpu;
        let path = path_for(spec, turn, self.spec(offset), periods, on_cpu);
        let Some(path) = path.filter(|_| fits) else { return Ok(None) };
        let kernel = Rope { path, turn, eps: norm.map(|(_, eps)| eps) };
        let rest = norm.map(|(weight, _)| weight).into_iter().chain(periods);
        let inputs: Nodes = [x, offset].into_iter().chain(rest.map(|array| self.constant(array))).collect();
        Ok(self.push(kernel, inputs)?.first().copied())
    }
}

/// The path, unless MLX's own is to be taken: `here` says whether there is an implementation for the device.
fn path_for(
    x: &impl Shaped,
    turn: Turn,
    offset: &impl Shaped,
    periods: Option<&Array>,
    here: bool,
) -> Option<Path> {
    let path = math::path();
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
    if path == Path::Reference || !case || !here {
        return None;
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    Some(path)
}

fn run(
    kernel: Rope,
    x: &Array,
    offset: &Array,
    weight: Option<&Array>,
    periods: Option<&Array>,
) -> Result<Array> {
    Ok(apply(kernel, [x, offset].into_iter().chain(weight).chain(periods))?.swap_remove(0))
}

fn reference(x: &Array, turn: Turn, offset: &Array, periods: Option<&Array>) -> Result<Array> {
    let Turn { dims, traditional, base, scale } = turn;
    op!(mlx_fast_rope_dynamic(x, dims, traditional, base, scale, offset, periods))
}

thread_local! {
    /// The angles that this thread computed last, unless they are very many, and of what: those of a token or a prompt are the
    /// same in all layers.
    static LAST: RefCell<Option<(Places, Rc<[f32]>)>> = const { RefCell::new(None) };
}

/// What angles are of.
#[derive(PartialEq)]
struct Places {
    turn: Turn,
    offsets: Vec<i32>,
    length: usize,
    periods: Option<Vec<f32>>,
}

/// Angles that are worth keeping, at most.
const KEPT: usize = 1 << 19;

struct Rope {
    path: Path,
    turn: Turn,
    /// Of the norm, whose weight then comes third.
    eps: Option<f32>,
}

impl Rope {
    /// [`angles`](Self::angles), or those of last time.
    fn known_angles(
        &self,
        offsets: &[i32],
        length: usize,
        width: usize,
        periods: Option<&[f32]>,
    ) -> Rc<[f32]> {
        let angles = || self.angles(offsets, length, width, periods).into();
        if offsets.len() * length * 2 * width > KEPT {
            return angles();
        }
        let periods = periods.map(<[f32]>::to_vec);
        let places = Places { turn: self.turn, offsets: offsets.to_vec(), length, periods };
        LAST.with_borrow_mut(|last| match last {
            Some((of, angles)) if *of == places => angles.clone(),
            _ => last.insert((places, angles())).1.clone(),
        })
    }

    /// Cosines and sines, `[sequences, length, 2, width]`: of pair `i` at `i`, or at `2 i` and `2 i + 1` with the
    /// first sine negative in the traditional order, and room for a whole vector behind each.
    fn angles(&self, offsets: &[i32], length: usize, width: usize, periods: Option<&[f32]>) -> Vec<f32> {
        let half = (self.turn.dims / 2) as usize;
        let base = f64::from(self.turn.base.unwrap_or(1.0));
        let frequency = |i: usize| match periods {
            Some(periods) => 1.0 / f64::from(periods[i]),
            None => base.powf(-(i as f64) / half as f64),
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let mut angles = vec![0.0; offsets.len() * length * 2 * width];
        pool::for_each_piece(&mut angles, 2 * width * 64, |piece, angles| {
            for (i, angles) in angles.chunks_exact_mut(2 * width).enumerate() {
                let row = piece * 64 + i;
                let position = f64::from(offsets[row / length]) + (row % length) as f64;
                let (cosines, sines) = angles.split_at_mut(width);
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = (position * f64::from(self.turn.scale) * frequency).sin_cos();
                    let (sin, cos) = (sin as f32, cos as f32);
                    if self.turn.traditional {
                        cosines[2 * i..][..2].fill(cos);
                        sines[2 * i..][..2].copy_from_slice(&[-sin, sin]);
                    } else {
                        (cosines[i], sines[i]) = (cos, sin);
                    }
                }
            }
        });
        angles
    }

    fn fill<T: Number>(&self, inputs: &[View<'_>], out: &mut ViewMut<'_>) -> Result<()> {
        let (x, offsets, rest) = (&inputs[0], inputs[1].as_slice::<i32>()?, &inputs[2..]);
        let (weight, periods) = rest.split_at(usize::from(self.eps.is_some()).min(rest.len()));
        let periods = periods.first().map(View::as_slice::<f32>).transpose()?;
        let rows = x.rows::<T>()?;
        let (shape, n, dims) = (x.shape(), rows.len(), self.turn.dims as usize);
        let weight = match weight.first() {
            Some(weight) => {
                weight.as_slice::<T>()?.iter().map(|w| w.number()).chain([0.0; math::WIDEST]).collect()
            }
            None => Vec::new(),
        };
        let length = shape[shape.len() - 2] as usize;
        let width = math::WIDEST + if self.turn.traditional { dims } else { dims / 2 };
        let angles = self.known_angles(offsets, length, width, periods);
        let angles = &angles[..];
        let per_batch = x.size() / n / shape[0] as usize;
        let how = How {
            norm: self.eps.map(|eps| (&weight[..], eps)),
            width,
            dims,
            traditional: self.turn.traditional,
        };
        let of_row = |row: usize| {
            let sequence = if offsets.len() == 1 { 0 } else { row / per_batch };
            &angles[(sequence * length + row % length) * 2 * width..]
        };
        let out = out.as_mut_slice::<T>()?;
        if length < LONG || !rows.are_together() {
            let grain = WORK.div_ceil(n);
            pool::for_each_piece(out, grain * n, |piece, out| {
                let mut room = Vec::new();
                for (i, out) in out.chunks_exact_mut(n).enumerate() {
                    let row = piece * grain + i;
                    let x = Line::one(rows.get(row, &mut room));
                    math::run(self.path, Positions { how, x, next: None, angles: of_row(row), out });
                }
            });
            return Ok(());
        }
        // The same positions of all heads, so that their angles stay near.
        let heads = x.size() / n / length;
        let strip = (pool::share(x.size(), WORK) / (heads * n)).clamp(1, LONG);
        pool::for_each_piece(&mut strips(out, length * n, strip * n), 1, |_, strips| {
            for strip in strips {
                let first = strip.columns().start / n;
                for head in 0..heads {
                    let row = head * length + first;
                    let (x, next) = (rows.line(row), (head + 1 < heads).then(|| rows.line(row + length)));
                    let (angles, out) = (of_row(row), strip.row(head));
                    math::run(self.path, Positions { how, x, next, angles, out });
                }
            }
        });
        Ok(())
    }
}

/// How rows turn, and what they are multiplied with before.
#[derive(Clone, Copy)]
struct How<'a> {
    norm: Option<(&'a [f32], f32)>,
    /// Of cosines and of sines.
    width: usize,
    /// How many numbers of a row turn, from the first.
    dims: usize,
    traditional: bool,
}

/// Rows of positions that follow each other, as their angles do.
struct Positions<'a, T> {
    how: How<'a>,
    x: Line<'a, T>,
    /// Rows that come after these, if any: they may be far apart, so that they are brought near meanwhile.
    next: Option<Line<'a, T>>,
    angles: &'a [f32],
    out: &'a mut [T],
}

impl<T: Number> Loop for Positions<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { how: How { norm, width, dims, traditional }, x, next, angles, out } = self;
        let n = x.row(0).len();
        let count = out.len() / n;
        for ((i, out), angles) in out.chunks_exact_mut(n).enumerate().zip(angles.chunks_exact(2 * width)) {
            match (i + AHEAD).checked_sub(count) {
                None => math::fetch(x.row(i + AHEAD)),
                Some(beyond) => {
                    if let Some(next) = next.filter(|_| beyond < count) {
                        math::fetch(next.row(beyond));
                    }
                }
            }
            let (turning, staying) = x.row(i).split_at(dims);
            let norm = norm.map(|(weight, eps)| (weight, L::splat(math::rms_factor::<L, T>(x.row(i), eps))));
            let (cosines, sines) = angles.split_at(width);
            let (out, rest) = out.split_at_mut(dims);
            if traditional {
                math::map(turning, out, |i, x: L| {
                    let x = normed(norm, i, x);
                    x.mul_add(L::load(&cosines[i..]), x.swap_pairs().mul(L::load(&sines[i..])))
                });
            } else {
                let half = dims / 2;
                let (first, second) = turning.split_at(half);
                let (low, high) = out.split_at_mut(half);
                math::zip_to_two(first, second, low, high, |i, a: L, b: L| {
                    let (a, b) = (normed(norm, i, a), normed(norm, half + i, b));
                    let (cos, sin) = (L::load(&cosines[i..]), L::load(&sines[i..]));
                    (a.mul(cos).sub(b.mul(sin)), a.mul_add(sin, b.mul(cos)))
                });
            }
            math::map(staying, rest, |i, x: L| normed(norm, dims + i, x));
        }
    }
}

/// The numbers from `i` on of a row, times the factor of the row and their weights.
#[inline(always)]
fn normed<L: Lanes>(norm: Option<(&[f32], L)>, i: usize, x: L) -> L {
    match norm {
        Some((weight, factor)) => x.mul(factor).mul(L::load(&weight[i..])),
        None => x,
    }
}

impl CustomKernel for Rope {
    fn name(&self) -> &str {
        if self.eps.is_some() { "rms_norm_rope" } else { NAME }
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let x = inputs.first().ok_or_else(|| Error::argument(NAME, "no inputs"))?;
        Ok(vec![x.clone()])
    }

    fn takes_strided(&self, index: usize) -> bool {
        index == 0
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let out = &mut outputs[0];
        match out.dtype() {
            Dtype::Float16 => self.fill::<f16>(inputs, out),
            Dtype::Bfloat16 => self.fill::<bf16>(inputs, out),
            _ => self.fill::<f32>(inputs, out),
        }
    }

    fn metal(&self, inputs: &[Array]) -> Option<Result<Vec<Array>>> {
        let (eps, [x, offset, weight, periods @ ..]) = (self.eps?, inputs) else { return None };
        let shader =
            |offset: Array| metal::rms_norm_rope(x, weight, eps, self.turn, &offset, periods.first());
        Some(ops::reshape(offset, &[-1]).and_then(shader))
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, offset, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (weight, periods) = rest.split_at(usize::from(self.eps.is_some()).min(rest.len()));
        let weight = weight.first();
        let x = match self.eps {
            Some(eps) => op!(mlx_fast_rms_norm(x, weight, eps))?,
            None => x.clone(),
        };
        Ok(vec![reference(&x, self.turn, offset, periods.first())?])
    }
}
