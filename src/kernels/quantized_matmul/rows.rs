//! Rows of a quantized matrix as numbers: what a layer of embeddings looks up.

use super::cpu::{Batch, Matrix};
use super::{floats_fit, reference};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::kernels::path::{Path, active_of, force};
use crate::kernels::product::{Lines, to_bf16, to_f16};
use crate::kernels::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::ops::{self, Quantization, QuantizationMode};

const NAME: &str = "quantized_rows";
/// Numbers that are worth another thread.
const WORK: usize = 1 << 15;

/// Rows `ids`, integers `[...]`, of a quantized matrix, `[..., columns]`: the dtype is that of the scales, or
/// `bfloat16` for the modes other than affine. Ids outside wrap around.
pub(crate) fn quantized_rows(
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    how: Quantization,
    ids: &Array,
) -> Result<Array> {
    let path = active_of(&[Path::Avx2]);
    let on_cpu = current_device().kind == DeviceKind::Cpu;
    let case = w.ndim() == 2
        && scales.ndim() == 2
        && w.dtype() == Dtype::Uint32
        && w.size() > 0
        && floats_fit(scales, biases, how)
        && ids.dtype().is_integer()
        && ids.dtype() != Dtype::Uint64;
    if path == Path::Reference || !on_cpu || !case {
        return reference::quantized_rows(w, scales, biases, how, ids);
    }
    let ids = ops::astype(ids, Dtype::Int64)?;
    let inputs = [w, scales].into_iter().chain(biases).chain([&ids]);
    Ok(apply(QuantizedRows { how, path }, inputs)?.swap_remove(0))
}

struct QuantizedRows {
    how: Quantization,
    path: Path,
}

impl CustomKernel for QuantizedRows {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let ([w, scales, .., ids], affine) = (inputs, self.how.mode == QuantizationMode::Affine) else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let words = w.shape.last().copied().unwrap_or(0);
        let columns = (i64::from(words) * 32 / i64::from(self.how.bits)) as i32;
        let shape = ids.shape.iter().copied().chain([columns]).collect();
        Ok(vec![Spec { shape, dtype: if affine { scales.dtype } else { Dtype::Bfloat16 } }])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let ([w, scales, biases @ .., ids], [out]) = (inputs, outputs) else { return Ok(()) };
        let weights = Batch::new(w, scales, biases.first(), self.how)?;
        let [count, columns] = weights.sizes();
        let ids: Vec<usize> =
            ids.as_slice::<i64>()?.iter().map(|id| id.rem_euclid(count as i64) as usize).collect();
        if ids.is_empty() || columns == 0 {
            return Ok(());
        }
        let matrix = Matrix { w: weights.matrix(0), path: self.path };
        match out.dtype() {
            Dtype::Float16 => read(&matrix, &ids, out.as_mut_slice()?, to_f16),
            Dtype::Bfloat16 => read(&matrix, &ids, out.as_mut_slice()?, to_bf16),
            _ => read(&matrix, &ids, out.as_mut_slice::<f32>()?, |row, out| out.copy_from_slice(row)),
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [w, scales, biases @ .., ids] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        Ok(vec![reference::quantized_rows(w, scales, biases.first(), self.how, ids)?])
    }

    /// Of one matrix: MLX cannot map what decodes 8-bit floats.
    fn vmap(&self, inputs: &[Array], axes: &[Option<i32>]) -> Result<Option<Vec<Array>>> {
        let ([w, scales, biases @ .., ids], &[ref parts @ .., Some(axis)]) = (inputs, axes) else {
            return Ok(None);
        };
        if parts.iter().any(Option::is_some) {
            return Ok(None);
        }
        let ids = ops::moveaxis(ids, axis, 0)?;
        let rows = force(self.path, || quantized_rows(w, scales, biases.first(), self.how, &ids))??;
        Ok(Some(vec![rows]))
    }
}

fn read<T: Send>(matrix: &Matrix<'_>, ids: &[usize], out: &mut [T], cast: impl Fn(&[f32], &mut [T]) + Sync) {
    let columns = matrix.w.k;
    let grain = WORK.div_ceil(columns);
    pool::for_each_piece(out, grain * columns, |piece, out| {
        let mut row = vec![0.0; columns];
        for (out, &id) in out.chunks_exact_mut(columns).zip(&ids[piece * grain..]) {
            matrix.read(id, 0, &mut row);
            cast(&row, out);
        }
    });
}
