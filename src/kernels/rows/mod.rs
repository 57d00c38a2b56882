//! Norms and softmax over the last axis, in `float32`, with one rounding at the end.

mod metal;
mod reference;

use std::sync::Once;

use half::{bf16, f16};

use super::chain::{Chain, Node, Shaped};
use super::math::{self, Lanes, Loop, Number};
use super::path::Path;
use super::{CustomKernel, Spec, View, ViewMut, add, apply, pool};
use crate::array::{Array, Dtype};
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

/// `x + y`, and its [`rms_norm`].
pub(crate) fn add_rms_norm(x: &Array, y: &Array, weight: &Array, eps: f32) -> Result<[Array; 2]> {
    let alike = y.shape() == x.shape() && y.dtype() == x.dtype() && weight.dtype() == x.dtype();
    match path_with(x, &[Some(weight)], super::metal::or_cpu()) {
        Some(path) if alike => {
            let outputs = apply(Rows { path, op: Op::AddRmsNorm { eps } }, [x, weight, y])?;
            crate::ops::exactly(outputs)
        }
        _ => {
            let sum = (x + y)?;
            let normed = reference::rms_norm(&sum, Some(weight), eps)?;
            Ok([sum, normed])
        }
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

impl Chain {
    /// [`rms_norm`], or `None` where it is not a case for the kernel.
    pub(crate) fn rms_norm(&mut self, x: Node, weight: &Array, eps: f32) -> Result<Option<Node>> {
        let Some(path) = path_for(self.spec(x), &[Some(weight)]) else { return Ok(None) };
        let weight = self.constant(weight);
        let outputs = self.push(Rows { path, op: Op::RmsNorm { eps } }, [x, weight])?;
        Ok(outputs.first().copied())
    }

    /// [`add_rms_norm`], or `None` where it is not a case for the kernel.
    pub(crate) fn add_rms_norm(
        &mut self,
        x: Node,
        y: Node,
        weight: &Array,
        eps: f32,
    ) -> Result<Option<[Node; 2]>> {
        let (x_spec, y_spec) = (self.spec(x), self.spec(y));
        let alike = y_spec == x_spec && weight.dtype() == x_spec.dtype;
        let Some(path) = path_for(x_spec, &[Some(weight)]).filter(|_| alike) else { return Ok(None) };
        let weight = self.constant(weight);
        let outputs = self.push(Rows { path, op: Op::AddRmsNorm { eps } }, [x, weight, y])?;
        Ok(outputs[..].try_into().ok())
    }
}

fn run(kernel: Rows, x: &Array, more: [Option<&Array>; 2]) -> Result<Array> {
    Ok(apply(kernel, [x].into_iter().chain(more.into_iter().flatten()))?.swap_remove(0))
}

/// The path for rows of `x`, unless MLX's own is to be taken, as on a GPU.
fn path_for(x: &impl Shaped, more: &[Option<&Array>]) -> Option<Path> {
    path_with(x, more, current_device().kind == DeviceKind::Cpu)
}

/// The same where the kernel has an implementation for the device, or not.
fn path_with(x: &impl Shaped, more: &[Option<&Array>], here: bool) -> Option<Path> {
    let path = math::path();
    let float = |dtype| matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let fits = |y: &Array| y.ndim() == 1 && float(y.dtype()) && y.shape().last() == x.shape().last();
    let case = float(x.dtype()) && x.size() > 0 && x.ndim() > 0 && more.iter().flatten().all(|y| fits(y));
    if path == Path::Reference || !case || !here {
        return None;
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = "rows", %path, threads = pool::threads(), "first use"));
    Some(path)
}

#[derive(Clone, Copy)]
enum Op {
    RmsNorm {
        eps: f32,
    },
    /// The weight comes second, and what is added third.
    AddRmsNorm {
        eps: f32,
    },
    LayerNorm {
        eps: f32,
        weight: bool,
        bias: bool,
    },
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
            Op::AddRmsNorm { .. } => [more.first(), None],
            _ => [more.first(), more.get(1)],
        }
    }

    fn fill<I: Number, O: Number>(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let rows = inputs[0].rows::<I>()?;
        let n = rows.len();
        // Weight and bias, with room for a whole vector at the end.
        let mut vectors = [1.0, 0.0].map(|fill| vec![fill; n + math::WIDEST]);
        for (vector, part) in vectors.iter_mut().zip(self.parts(&inputs[1..])) {
            let Some(part) = part else { continue };
            let (numbers, origin) = super::product::Numbers::of(part)?;
            numbers.read(origin, &mut vector[..n]);
        }
        let [weight, bias] = &vectors;
        let grain = pool::share(inputs[0].size(), WORK).div_ceil(n);
        let path = self.path;
        if let Op::AddRmsNorm { eps } = self.op {
            let (added, [sums, out]) = (inputs[2].rows::<I>()?, outputs) else {
                return Err(Error::argument("rows", "not two outputs"));
            };
            let (sums, out) = (sums.as_mut_slice::<I>()?, out.as_mut_slice::<I>()?);
            pool::for_each_piece_of_two(sums, out, grain * n, |piece, sums, out| {
                let mut rooms = [Vec::new(), Vec::new()];
                for (i, (sum, out)) in sums.chunks_exact_mut(n).zip(out.chunks_exact_mut(n)).enumerate() {
                    let [a, b] = &mut rooms;
                    let (x, y) = (rows.get(piece * grain + i, a), added.get(piece * grain + i, b));
                    math::run(path, add::Row { x, y, sum });
                    math::run(path, RmsNorm { x: sum, weight, eps, out, next: &[] });
                }
            });
            return Ok(());
        }
        pool::for_each_piece(outputs[0].as_mut_slice::<O>()?, grain * n, |piece, out| {
            let (mut room, mut scratch) = (Vec::new(), Vec::new());
            let last = out.len() / n - 1;
            for (i, out) in out.chunks_exact_mut(n).enumerate() {
                let row = piece * grain + i;
                let x = rows.get(row, &mut room);
                let next = if i < last { rows.lying(row + 1).unwrap_or_default() } else { &[] };
                match self.op {
                    Op::RmsNorm { eps } | Op::AddRmsNorm { eps } => {
                        math::run(path, RmsNorm { x, weight, eps, out, next });
                    }
                    Op::LayerNorm { eps, .. } => {
                        math::run(path, LayerNorm { x, weight, bias, eps, out, next });
                    }
                    Op::Softmax => {
                        scratch.resize(n, 0.0);
                        math::run(path, Softmax { x, scratch: &mut scratch, out, next });
                    }
                }
            }
        });
        Ok(())
    }
}

struct RmsNorm<'a, I, O> {
    x: &'a [I],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [O],
    /// The row that comes next, which is brought near meanwhile.
    next: &'a [I],
}

impl<I: Number, O: Number> Loop for RmsNorm<'_, I, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let factor = L::splat(math::rms_factor::<L, I>(self.x, self.eps));
        math::map(self.x, self.out, |i, x: L| {
            math::fetch_at(self.next, i);
            x.mul(factor).mul(L::load(&self.weight[i..]))
        });
    }
}

struct LayerNorm<'a, I, O> {
    x: &'a [I],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [O],
    /// The row that comes next, which is brought near meanwhile.
    next: &'a [I],
}

impl<I: Number, O: Number> Loop for LayerNorm<'_, I, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let count = self.x.len() as f32;
        let mean = L::splat(math::sum::<L, I>(self.x, |x| x) / count);
        let squares = math::sum::<L, I>(self.x, |x| x.sub(mean).mul(x.sub(mean)));
        let factor = L::splat(1.0 / (squares / count + self.eps).sqrt());
        math::map(self.x, self.out, |i, x: L| {
            math::fetch_at(self.next, i);
            let (weight, bias) = (L::load(&self.weight[i..]), L::load(&self.bias[i..]));
            x.sub(mean).mul(factor).mul_add(weight, bias)
        });
    }
}

struct Softmax<'a, I, O> {
    x: &'a [I],
    scratch: &'a mut [f32],
    out: &'a mut [O],
    /// The row that comes next, which is brought near meanwhile.
    next: &'a [I],
}

impl<I: Number, O: Number> Loop for Softmax<'_, I, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let max = math::maximum::<L, I>(self.x);
        let sum = math::exp_sum::<L, I>(self.x, max, self.scratch, |i| math::fetch_at(self.next, i));
        let factor = L::splat(1.0 / sum);
        math::map(self.scratch, self.out, |_, e: L| e.mul(factor));
    }
}

impl CustomKernel for Rows {
    fn name(&self) -> &str {
        match self.op {
            Op::RmsNorm { .. } => "rms_norm",
            Op::AddRmsNorm { .. } => "add_rms_norm",
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
        let count = if matches!(self.op, Op::AddRmsNorm { .. }) { 2 } else { 1 };
        Ok(vec![Spec { shape: x.shape.clone(), dtype }; count])
    }

    fn takes_strided(&self, index: usize) -> bool {
        index == 0 || index == 2 && matches!(self.op, Op::AddRmsNorm { .. })
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        match (inputs[0].dtype(), outputs[0].dtype()) {
            (Dtype::Float16, Dtype::Float16) => self.fill::<f16, f16>(inputs, outputs),
            (Dtype::Float16, _) => self.fill::<f16, f32>(inputs, outputs),
            (Dtype::Bfloat16, Dtype::Bfloat16) => self.fill::<bf16, bf16>(inputs, outputs),
            (Dtype::Bfloat16, _) => self.fill::<bf16, f32>(inputs, outputs),
            _ => self.fill::<f32, f32>(inputs, outputs),
        }
    }

    fn metal(&self, inputs: &[Array]) -> Option<Result<Vec<Array>>> {
        match (self.op, inputs) {
            (Op::AddRmsNorm { eps }, [x, weight, y]) => Some(metal::add_rms_norm(x, y, weight, eps)),
            _ => None,
        }
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, more @ ..] = inputs else {
            return Err(Error::argument("rows", "no inputs"));
        };
        let [weight, bias] = self.parts(more);
        let y = match self.op {
            Op::RmsNorm { eps } => reference::rms_norm(x, weight, eps),
            Op::AddRmsNorm { eps } => {
                let added = more.get(1).ok_or_else(|| Error::argument("rows", "nothing to add"))?;
                let sum = (x + added)?;
                let normed = reference::rms_norm(&sum, weight, eps)?;
                return Ok(vec![sum, normed]);
            }
            Op::LayerNorm { eps, .. } => reference::layer_norm(x, weight, bias, eps),
            Op::Softmax => reference::softmax(x),
        };
        y.map(|y| vec![y])
    }
}
