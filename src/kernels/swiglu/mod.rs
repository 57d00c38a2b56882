//! `silu(gate) * x`, in `float32`, with one rounding at the end.

use std::sync::Once;

use half::{bf16, f16};

use super::path::{Path, active_of};
use super::product::{Numbers, to_bf16, to_f16};
use super::{CustomKernel, Spec, View, ViewMut, apply, math, pool};
use crate::array::{Array, Dtype, Element};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ops;

/// Elements that a thread takes at a time.
const PIECE: usize = 1 << 13;
const NAME: &str = "swiglu";

/// `silu(gate) * x`; in MLX's operations where it is not a case for the kernel.
pub(crate) fn swiglu(gate: &Array, x: &Array) -> Result<Array> {
    let path = active_of(&[Path::Avx2]);
    let float = matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let alike = gate.shape() == x.shape() && gate.dtype() == x.dtype();
    if path == Path::Reference || !float || !alike || current_device().kind != DeviceKind::Cpu {
        return reference(gate, x);
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    Ok(apply(Swiglu { path }, [gate, x])?.swap_remove(0))
}

fn reference(gate: &Array, x: &Array) -> Result<Array> {
    (gate * ops::sigmoid(gate)?)? * x
}

struct Swiglu {
    path: Path,
}

impl Swiglu {
    fn fill<T: Element + Send>(
        &self,
        inputs: &[View<'_>],
        out: &mut ViewMut<'_>,
        cast: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let ((gate, g), (x, u)) = (Numbers::of(&inputs[0])?, Numbers::of(&inputs[1])?);
        pool::for_each_piece(out.as_mut_slice::<T>()?, PIECE, |piece, out| {
            // Small enough for the nearest cache.
            let (mut a, mut b) = ([0.0; 512], [0.0; 512]);
            for (i, out) in out.chunks_mut(512).enumerate() {
                let (at, n) = (piece * PIECE + i * 512, out.len());
                gate.read(g + at, &mut a[..n]);
                x.read(u + at, &mut b[..n]);
                math::silu_times(self.path, &mut a[..n], &b[..n]);
                cast(&a[..n], out);
            }
        });
        Ok(())
    }
}

impl CustomKernel for Swiglu {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let gate = inputs.first().ok_or_else(|| Error::argument(NAME, "no inputs"))?;
        Ok(vec![gate.clone()])
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
        let [gate, x] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        Ok(vec![reference(gate, x)?])
    }
}
