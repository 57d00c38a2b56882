//! `x @ dequantize(w).T` and `x @ dequantize(w)`, the products of language models; also of matrices that are
//! picked from batches.
//!
//! Everything is computed in `float32`, whatever the dtypes are, so scales of another dtype than `x` are
//! read as they are. Rows of half precision may be taken as integers, which lose less than rounding to
//! half precision has cost them. Each output is summed in one fixed order, which does not depend on the number of
//! threads, nor on the other rows of `x` as long as they are at most 2, 3 to 12, or more than that.

mod cpu;
mod mapped;
mod reference;
mod rows;
mod together;

use std::sync::Once;

pub(crate) use rows::quantized_rows;
pub(crate) use together::quantized_matmuls;

pub(super) use self::cpu::{Matrix, Scales, Weights};
use self::cpu::{NAME, QuantizedMatmul};
use super::chain::Shaped;
use super::path::{Path, active_of, force};
use super::product::Numbers;
use super::{CustomKernel, Shape, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ops::{self, Quantization, QuantizationMode};
use crate::transforms;

/// `x @ dequantize(w)`, or with `transpose` `x @ dequantize(w).T`; MLX's own operation where it is not a case
/// for the kernel, errors included.
pub(crate) fn quantized_matmul(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    transpose: bool,
    how: Quantization,
) -> Result<Array> {
    let path = path_for(x, w, scales, biases, transpose, how);
    let Some(path) = path.filter(|_| w.ndim() == 2 || x.ndim() > 1) else {
        return reference::quantized_matmul(x, w, scales, biases, transpose, how);
    };
    let kernel = QuantizedMatmul { how, path, transpose, picked: w.ndim() > 2 };
    let indices = if kernel.picked { Some(super::matmul::indices([(x, None), (w, None)])?) } else { None };
    let inputs = [x, w, scales].into_iter().chain(biases).chain(indices.iter().flatten());
    Ok(apply(kernel, inputs)?.swap_remove(0))
}

/// The same of picked matrices; indices are below the sizes of the batches.
#[allow(clippy::too_many_arguments)]
pub(crate) fn gather_qmm(
    x: &Array,
    w: &Array,
    scales: &Array,
    biases: Option<&Array>,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    transpose: bool,
    how: Quantization,
    sorted: bool,
) -> Result<Array> {
    let path = path_for(x, w, scales, biases, transpose, how);
    let Some(path) = path.filter(|_| x.ndim() > 1) else {
        return reference::gather_qmm(x, w, scales, biases, lhs, rhs, transpose, how, sorted);
    };
    let indices = super::matmul::indices([(x, lhs), (w, rhs)])?;
    let inputs = [x, w, scales].into_iter().chain(biases).chain(&indices);
    Ok(apply(QuantizedMatmul { how, path, transpose, picked: true }, inputs)?.swap_remove(0))
}

/// The path of such a product, unless MLX's own is to be taken.
fn path_for<W: Shaped>(
    x: &impl Shaped,
    w: &W,
    scales: &W,
    biases: Option<&W>,
    transpose: bool,
    how: Quantization,
) -> Option<Path> {
    let path = active_of(&[Path::Avx2, Path::Avx512, Path::Avx512Bf16, Path::Amx]);
    let on_cpu = current_device().kind == DeviceKind::Cpu;
    if path == Path::Reference || !on_cpu || !suits(x, w, scales, biases, transpose, how) {
        return None;
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    Some(path)
}

/// Whether these are what the kernel computes: shapes that fit, and dtypes that it reads.
fn suits<W: Shaped>(
    x: &impl Shaped,
    w: &W,
    scales: &W,
    biases: Option<&W>,
    transpose: bool,
    how: Quantization,
) -> bool {
    let codes = w.shape().last().map(|&words| i64::from(words) * 32 / i64::from(how.bits));
    let inner = if transpose { codes } else { w.shape().iter().nth_back(1).map(|&rows| i64::from(rows)) };
    floats_fit(scales, biases, how)
        && is_float(x)
        && w.dtype() == Dtype::Uint32
        && w.ndim() >= 2
        && x.shape().last().map(|&k| i64::from(k)) == inner
}

fn is_float(a: &impl Shaped) -> bool {
    matches!(a.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
}

/// Whether scales and biases are those of the mode.
fn floats_fit<W: Shaped>(scales: &W, biases: Option<&W>, how: Quantization) -> bool {
    match (how.mode, biases) {
        (QuantizationMode::Affine, Some(biases)) => is_float(scales) && is_float(biases),
        (QuantizationMode::Affine, None) | (_, Some(_)) => false,
        (_, None) => scales.dtype() == Dtype::Uint8,
    }
}

/// `x @ (w * scales).T` with codes of [`ternary_matmul`](super::ternary_matmul): affine ones, whose scales and
/// biases follow from the one scale.
pub(super) fn product_of_ternary(
    path: Path,
    bits: i32,
    [x, w, scales]: [&View<'_>; 3],
    out: &mut ViewMut<'_>,
) -> Result<()> {
    let (&[n, _], &[.., k], &[_, groups]) = (w.shape(), x.shape(), scales.shape()) else { return Ok(()) };
    let [n, k, groups] = [n, k, groups].map(|size| size as usize);
    if x.size() == 0 || n == 0 || groups == 0 {
        return Ok(());
    }
    let size = k / groups;
    let group_size = [128, 64, 32].into_iter().find(|group| size.is_multiple_of(*group)).unwrap_or(32);
    let mut stored = vec![0.0; n * groups];
    let (numbers, origin) = Numbers::of(scales)?;
    numbers.read(origin, &mut stored);
    let step = if bits == 1 { 2.0 } else { 1.0 };
    let spread = |factor: f32| -> Vec<f32> {
        stored.iter().flat_map(|scale| std::iter::repeat_n(scale * factor, size / group_size)).collect()
    };
    let (scales, biases) = (spread(step), spread(-1.0));
    let how = Quantization::affine(group_size as i32, bits);
    let codes = bytemuck::cast_slice(w.as_slice::<u32>()?);
    let (scales, biases) = (Scales::Float32(&scales), Some(Scales::Float32(&biases)));
    let w = Weights { codes, scales, biases, how, n, k };
    let all: Vec<_> = (0..x.size() / k).map(|row| [row, row]).collect();
    QuantizedMatmul { how, path, transpose: true, picked: false }.rows(
        &[w],
        x,
        &all,
        std::slice::from_mut(out),
    )
}

impl QuantizedMatmul {
    /// Of the product of `x` with such codes, scales, perhaps biases, and perhaps indices.
    fn output(&self, x: &Spec, weights: &[Spec]) -> Result<Spec> {
        let [w, rest @ ..] = weights else {
            return Err(Error::argument(NAME, "no weights"));
        };
        let (floats, indices) = self.split(rest);
        let (&[.., rows, words], [batch @ .., _]) = (&w.shape[..], &x.shape[..]) else {
            return Err(Error::argument(NAME, "operands without rows"));
        };
        let columns = (i64::from(words) * 32 / i64::from(self.how.bits)) as i32;
        let n = if self.transpose { rows } else { columns };
        let mut shape = Shape::from_slice(batch);
        if let [left, _] = indices {
            shape = left.shape.iter().chain(batch.last()).copied().collect();
        }
        shape.push(n);
        let floats = floats.iter().map(|s| s.dtype).filter(|d| d.is_floating());
        // Of the dtypes at hand, any two that differ promote to float32.
        let dtype = floats.fold(x.dtype, |d, other| if d == other { d } else { Dtype::Float32 });
        Ok(Spec { shape, dtype })
    }

    /// The product of the cotangent with the same weights, turned.
    fn gradient_of_x(&self, inputs: &[Array], dy: &Array) -> Result<Array> {
        let [x, w, scales, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (biases, indices) = self.split(rest);
        let (biases, turned, how) = (biases.first(), !self.transpose, self.how);
        let ([left, right], &[ref batch @ .., m, k]) = (indices, x.shape()) else {
            return quantized_matmul(dy, w, scales, biases, turned, how);
        };
        let picked = gather_qmm(dy, w, scales, biases, None, Some(right), turned, how, false)?;
        // A matrix that was picked several times gets the sum.
        let row = m.checked_mul(k).ok_or_else(|| Error::argument(NAME, "matrices are too large"))?;
        let (picked, left) = (ops::reshape(&picked, &[-1, row])?, ops::reshape(left, &[-1, 1])?);
        let left = ops::broadcast_to(&left, picked.shape())?;
        let none = ops::zeros(&[batch.iter().product(), row], picked.dtype())?;
        ops::reshape(&ops::scatter_add_axis(&none, &left, &picked, 0)?, x.shape())
    }

    /// The gradients of scales and biases, as `argnums` has them, through the decoded weights: what MLX has for
    /// picked matrices that are not transposed are other sums.
    fn gradients_of_parts(&self, inputs: &[Array], dy: &Array, argnums: &[i32]) -> Result<Vec<Array>> {
        let vars: Vec<&Array> = argnums.iter().map(|&i| &inputs[i as usize]).collect();
        if vars.is_empty() {
            return Ok(Vec::new());
        }
        let product = |vars: &[Array]| {
            let mut all = inputs.to_vec();
            argnums.iter().zip(vars).for_each(|(&i, var)| all[i as usize] = var.clone());
            let [x, w, scales, biases, indices @ ..] = &all[..] else {
                return Err(Error::argument(NAME, format!("{} inputs", all.len())));
            };
            let w = reference::decoded(w, [scales, biases], self.how)?;
            let w = if self.transpose { ops::swapaxes(&w, -1, -2)? } else { w };
            let y = match indices {
                [lhs, rhs] => ops::gather_mm(x, &w, Some(lhs), Some(rhs), false)?,
                _ => ops::matmul(x, &w)?,
            };
            Ok([ops::astype(&y, dy.dtype())?])
        };
        Ok(transforms::vjp(product, vars, [dy])?.1)
    }
}

impl CustomKernel for QuantizedMatmul {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        match inputs {
            [x, weights @ ..] => Ok(vec![self.output(x, weights)?]),
            [] => Err(Error::argument(NAME, "no inputs")),
        }
    }

    fn fills(&self) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        self.run(inputs, &mut outputs[0])
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, w, scales, rest @ ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let (biases, indices) = self.split(rest);
        let y = match indices {
            [lhs, rhs] => {
                let (lhs, rhs) = (Some(lhs), Some(rhs));
                let Self { transpose, how, .. } = *self;
                reference::gather_qmm(x, w, scales, biases.first(), lhs, rhs, transpose, how, false)
            }
            _ => reference::quantized_matmul(x, w, scales, biases.first(), self.transpose, self.how),
        };
        y.map(|y| vec![y])
    }

    /// Of `x`, of scales and of biases.
    fn vjp(&self, inputs: &[Array], cotangents: &[Array], argnums: &[i32]) -> Result<Option<Vec<Array>>> {
        let ([x, w, ..], [dy]) = (inputs, cotangents) else { return Ok(None) };
        let has_parts = self.how.mode == QuantizationMode::Affine && w.size() > 0;
        if !argnums.iter().all(|&i| i == 0 || has_parts && matches!(i, 2 | 3)) {
            return Ok(None);
        }
        let parts: Vec<i32> = argnums.iter().copied().filter(|&i| i > 0).collect();
        let gradients = force(self.path, || {
            let mut of_parts = self.gradients_of_parts(inputs, dy, &parts)?.into_iter();
            let of = |&i: &i32| match i {
                0 => ops::astype(&self.gradient_of_x(inputs, dy)?, x.dtype()),
                _ => of_parts.next().ok_or_else(|| Error::argument(NAME, "too few gradients")),
            };
            argnums.iter().map(of).collect::<Result<Vec<_>>>()
        })??;
        Ok(Some(gradients))
    }

    /// MLX has none for its own operation.
    fn vmap(&self, inputs: &[Array], axes: &[Option<i32>]) -> Result<Option<Vec<Array>>> {
        let y = force(self.path, || mapped::product(self, inputs, axes))??;
        Ok(Some(vec![y]))
    }
}
