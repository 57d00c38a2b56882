//! Gated units, `act(gate) * x`, in `float32`, with one rounding at the end.

mod metal;

use std::sync::Once;

use half::{bf16, f16};

use super::chain::{Chain, Node, Shaped};
use super::math::{self, Lanes, Loop, Number};
use super::path::Path;
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops;

/// Elements that a thread takes at a time.
const PIECE: usize = 1 << 14;
const NAME: &str = "gated";

/// The sigmoid linear unit and what else is `gate` times the sigmoid of `slope * gate + cubic * gate^3`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    slope: f64,
    cubic: f64,
}

/// 2 sqrt(2 / pi): half a `tanh` and a half are the sigmoid of twice the number.
const TANH: f64 = 1.595_769_121_605_730_9;

impl Unit {
    pub const SILU: Self = Self { slope: 1.0, cubic: 0.0 };
    pub const GELU_TANH: Self = Self { slope: TANH, cubic: TANH * 0.044_715 };
    pub const GELU_SIGMOID: Self = Self { slope: 1.702, cubic: 0.0 };
}

/// `unit(gate) * x`, or `None` where it is not a case for the kernel.
pub(crate) fn gated(unit: Unit, gate: &Array, x: &Array) -> Option<Result<Array>> {
    let path = path_for(gate, x)?;
    Some(apply(Gated { path, unit }, [gate, x]).map(|mut outputs| outputs.swap_remove(0)))
}

impl Chain {
    /// [`gated`].
    pub(crate) fn gated(&mut self, unit: Unit, gate: Node, x: Node) -> Result<Option<Node>> {
        let Some(path) = path_for(self.spec(gate), self.spec(x)) else { return Ok(None) };
        Ok(self.push(Gated { path, unit }, [gate, x])?.first().copied())
    }
}

fn path_for<T: Shaped>(gate: &T, x: &T) -> Option<Path> {
    let path = math::path();
    let float = matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let alike = gate.shape() == x.shape() && gate.dtype() == x.dtype() && x.size() > 0 && x.ndim() > 0;
    if path == Path::Reference || !float || !alike || !super::metal::or_cpu() {
        return None;
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    Some(path)
}

struct Gated {
    path: Path,
    unit: Unit,
}

impl Gated {
    fn fill<T: Number>(&self, inputs: &[View<'_>], out: &mut ViewMut<'_>) -> Result<()> {
        let (gate, x) = (inputs[0].rows::<T>()?, inputs[1].rows::<T>()?);
        let (n, unit) = (gate.len(), self.unit);
        let grain = PIECE.div_ceil(n);
        pool::for_each_piece(out.as_mut_slice::<T>()?, grain * n, |piece, out| {
            let mut rooms = [Vec::new(), Vec::new()];
            for (i, out) in out.chunks_exact_mut(n).enumerate() {
                let [a, b] = &mut rooms;
                let (gate, x) = (gate.get(piece * grain + i, a), x.get(piece * grain + i, b));
                math::run(self.path, Row { gate, x, unit, out });
            }
        });
        Ok(())
    }
}

struct Row<'a, T> {
    gate: &'a [T],
    x: &'a [T],
    unit: Unit,
    out: &'a mut [T],
}

impl<T: Number> Loop for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (slope, one) = (L::splat(-self.unit.slope as f32), L::splat(1.0));
        let cubic = L::splat(-self.unit.cubic as f32);
        if self.unit.cubic == 0.0 {
            math::zip(self.gate, self.x, self.out, |g: L, x| g.div(g.mul(slope).exp().add(one)).mul(x));
        } else {
            math::zip(self.gate, self.x, self.out, |g: L, x| {
                let inner = g.mul(g).mul_add(cubic, slope).mul(g);
                g.div(inner.exp().add(one)).mul(x)
            });
        }
    }
}

impl CustomKernel for Gated {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let gate = inputs.first().ok_or_else(|| Error::argument(NAME, "no inputs"))?;
        Ok(vec![gate.clone()])
    }

    fn takes_strided(&self, index: usize) -> bool {
        index < 2
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
        let [gate, x] = inputs else { return None };
        Some(metal::gated(self.unit, gate, x))
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [gate, x] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let mut inner = (gate * self.unit.slope)?;
        if self.unit.cubic != 0.0 {
            inner = ((gate * ops::square(gate)?)? * self.unit.cubic + inner)?;
        }
        Ok(vec![((gate * ops::sigmoid(&inner)?)? * x)?])
    }
}
