//! Sums in `float32` with one rounding, as MLX has them: in a [`Chain`].

use half::{bf16, f16};

use super::chain::{Chain, Node};
use super::math::{self, Lanes, Loop, Number};
use super::path::Path;
use super::{CustomKernel, Spec, View, ViewMut, pool};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};

/// Elements that are worth another thread.
const WORK: usize = 1 << 14;
const NAME: &str = "add";

impl Chain {
    /// `x + y`, of one shape or with `y` the same for all rows; `None` where it is not a case for the kernel.
    pub(crate) fn add(&mut self, x: Node, y: Node) -> Result<Option<Node>> {
        let (a, b, path) = (self.spec(x), self.spec(y), math::path());
        let float = matches!(a.dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
        let on_cpu = current_device().kind == DeviceKind::Cpu;
        if path == Path::Reference || !on_cpu || !float || a.dtype != b.dtype || !fit(a, b) {
            return Ok(None);
        }
        Ok(self.push(Add { path }, [x, y])?.first().copied())
    }
}

/// Whether the second is of the shape of the first, or of its rows.
fn fit(x: &Spec, y: &Spec) -> bool {
    let row = matches!((&x.shape[..], &y.shape[..]), ([.., n], [m]) if n == m);
    (x.shape == y.shape || row) && !x.shape.is_empty() && !x.shape.contains(&0)
}

struct Add {
    path: Path,
}

impl Add {
    fn fill<T: Number>(&self, [x, y]: [&View<'_>; 2], out: &mut ViewMut<'_>) -> Result<()> {
        let (x, y) = (x.rows::<T>()?, y.rows::<T>()?);
        let (n, one) = (x.len(), y.count() == 1);
        let grain = WORK.div_ceil(n);
        pool::for_each_piece(out.as_mut_slice::<T>()?, grain * n, |piece, out| {
            let mut rooms = [Vec::new(), Vec::new()];
            for (i, sum) in out.chunks_exact_mut(n).enumerate() {
                let ([a, b], row) = (&mut rooms, piece * grain + i);
                let (x, y) = (x.get(row, a), y.get(if one { 0 } else { row }, b));
                math::run(self.path, Row { x, y, sum });
            }
        });
        Ok(())
    }
}

/// A row of a sum.
pub(super) struct Row<'a, T> {
    pub x: &'a [T],
    pub y: &'a [T],
    pub sum: &'a mut [T],
}

impl<T: Number> Loop for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        math::zip(self.x, self.y, self.sum, L::add);
    }
}

impl CustomKernel for Add {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        match inputs {
            [x, y] if fit(x, y) => Ok(vec![x.clone()]),
            _ => Err(Error::argument(NAME, format!("{inputs:?}"))),
        }
    }

    fn takes_strided(&self, _: usize) -> bool {
        true
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let (inputs, out) = ([&inputs[0], &inputs[1]], &mut outputs[0]);
        match out.dtype() {
            Dtype::Float16 => self.fill::<f16>(inputs, out),
            Dtype::Bfloat16 => self.fill::<bf16>(inputs, out),
            _ => self.fill::<f32>(inputs, out),
        }
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Ok(vec![(&inputs[0] + &inputs[1])?])
    }
}
