//! Products of dense matrices, where one of them is `float16` or `bfloat16`; `gather_mm` also in `float32`.
//!
//! Sums are taken in `float32` and rounded once. The order of a sum depends on the shapes and strides of the
//! operands, not on the number of threads.

mod cpu;
mod reference;

use std::sync::Once;

use self::cpu::{GATHER, NAME};
use super::path::{Path, active_of};
use super::{CustomKernel, Spec, View, ViewMut, apply, pool};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::ops;

/// `a @ b`; MLX's own operation where it is not a case for the kernel, errors included.
pub(crate) fn matmul(a: &Array, b: &Array) -> Result<Array> {
    let fits = product_shape(a.shape(), b.shape()).is_some();
    match path_for(&[a, b], true).filter(|_| fits) {
        Some(path) => first(apply(Matmul { path, add: None }, [a, b])),
        None => reference::matmul(a, b),
    }
}

/// `alpha * (a @ b) + beta * c`; MLX's own operation where it is not a case for the kernel, errors included.
pub(crate) fn addmm(c: &Array, a: &Array, b: &Array, alpha: f32, beta: f32) -> Result<Array> {
    let shape = product_shape(a.shape(), b.shape());
    let fits = shape.as_ref().is_some_and(|s| broadcast(s, c.shape()).as_ref() == Some(s));
    match path_for(&[a, b, c], true).filter(|_| fits) {
        Some(path) => first(apply(Matmul { path, add: Some([alpha, beta]) }, [a, b, c])),
        None => reference::addmm(c, a, b, alpha, beta),
    }
}

/// Products of picked matrices; indices are below the sizes of the batches.
pub(crate) fn gather_mm(
    a: &Array,
    b: &Array,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
    sorted: bool,
) -> Result<Array> {
    let inner = |x: &Array, axis: usize| x.shape().iter().nth_back(axis).copied();
    let fits = a.ndim() > 1 && inner(a, 0) == inner(b, 1) && (lhs.is_some() || rhs.is_some());
    let Some(path) = path_for(&[a, b], false).filter(|_| fits) else {
        return reference::gather_mm(a, b, lhs, rhs, sorted, Dtype::Float32);
    };
    let [lhs, rhs] = indices([(a, lhs), (b, rhs)])?;
    first(apply(GatherMm { path }, [a, b, &lhs, &rhs]))
}

/// Indices as `uint32` of one shape; those that are missing name the matrices of a batch in order.
pub(super) fn indices(of: [(&Array, Option<&Array>); 2]) -> Result<[Array; 2]> {
    let [lhs, rhs] = of.map(|(of, indices)| match indices {
        Some(indices) => ops::astype(indices, Dtype::Uint32),
        None => {
            let batch = &of.shape()[..of.ndim() - 2];
            ops::reshape(&ops::arange(0, batch.iter().product::<i32>(), 1, Dtype::Uint32)?, batch)
        }
    });
    let (lhs, rhs) = (lhs?, rhs?);
    let shape = broadcast(lhs.shape(), rhs.shape()).ok_or_else(|| Error::Shape {
        op: "gather",
        lhs: lhs.shape().to_vec(),
        rhs: rhs.shape().to_vec(),
    })?;
    Ok([ops::broadcast_to(&lhs, &shape)?, ops::broadcast_to(&rhs, &shape)?])
}

fn first(outputs: Result<Vec<Array>>) -> Result<Array> {
    Ok(outputs?.swap_remove(0))
}

/// The path of a product of the first two, unless MLX's own is to be taken.
fn path_for(operands: &[&Array], only_halves: bool) -> Option<Path> {
    let path = active_of(&[Path::Avx2, Path::Avx512, Path::Avx512Bf16, Path::Amx]);
    let half = |x: &&Array| matches!(x.dtype(), Dtype::Float16 | Dtype::Bfloat16);
    let case = operands.iter().all(|x| half(x) || x.dtype() == Dtype::Float32)
        && (!only_halves || operands[..2].iter().any(half))
        && current_device().kind == DeviceKind::Cpu;
    if path == Path::Reference || !case {
        return None;
    }
    static FIRST: Once = Once::new();
    FIRST.call_once(|| tracing::info!(kernel = NAME, %path, threads = pool::threads(), "first use"));
    Some(path)
}

/// The shape of `a @ b` for two matrices or batches of them that fit.
fn product_shape(a: &[i32], b: &[i32]) -> Option<Vec<i32>> {
    let ([batch_a @ .., m, k], [batch_b @ .., kb, n]) = (a, b) else { return None };
    let mut shape = broadcast(batch_a, batch_b).filter(|_| k == kb)?;
    shape.extend([m, n]);
    Some(shape)
}

/// The shape that both broadcast to.
fn broadcast(a: &[i32], b: &[i32]) -> Option<Vec<i32>> {
    let ndim = a.len().max(b.len());
    let size = |s: &[i32], axis: usize| (axis + s.len()).checked_sub(ndim).map_or(1, |axis| s[axis]);
    let join = |axis| match (size(a, axis), size(b, axis)) {
        (x, y) if x == y || y == 1 => Some(x),
        (1, y) => Some(y),
        _ => None,
    };
    (0..ndim).map(join).collect()
}

/// What floating dtypes promote to: any two that differ to `float32`.
fn promoted(specs: &[Spec]) -> Dtype {
    let dtypes = specs.iter().map(|spec| spec.dtype);
    dtypes.reduce(|a, b| if a == b { a } else { Dtype::Float32 }).unwrap_or(Dtype::Float32)
}

struct Matmul {
    path: Path,
    /// What multiplies the product and what is added to it.
    add: Option<[f32; 2]>,
}

impl CustomKernel for Matmul {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [a, b, ..] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let shape = product_shape(&a.shape, &b.shape).ok_or_else(|| Error::Shape {
            op: NAME,
            lhs: a.shape.to_vec(),
            rhs: b.shape.to_vec(),
        })?;
        Ok(vec![Spec::new(&shape, promoted(inputs))])
    }

    fn takes_strided(&self, _: usize) -> bool {
        true
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        cpu::products(self.path, self.add, inputs, &mut outputs[0])
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let y = match (self.add, inputs) {
            (None, [a, b]) => reference::matmul(a, b),
            (Some([alpha, beta]), [a, b, c]) => reference::addmm(c, a, b, alpha, beta),
            _ => Err(Error::argument(NAME, format!("{} inputs", inputs.len()))),
        };
        Ok(vec![y?])
    }
}

struct GatherMm {
    path: Path,
}

impl CustomKernel for GatherMm {
    fn name(&self) -> &str {
        GATHER
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [a, b, lhs, _] = inputs else {
            return Err(Error::argument(GATHER, format!("{} inputs", inputs.len())));
        };
        let (&[.., m, _], &[.., n]) = (&a.shape[..], &b.shape[..]) else {
            return Err(Error::argument(GATHER, "operands without rows"));
        };
        let shape = lhs.shape.iter().copied().chain([m, n]).collect();
        Ok(vec![Spec { shape, dtype: promoted(&inputs[..2]) }])
    }

    fn takes_strided(&self, index: usize) -> bool {
        index < 2
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        cpu::picked(self.path, inputs, &mut outputs[0])
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [a, b, lhs, rhs] = inputs else {
            return Err(Error::argument(GATHER, format!("{} inputs", inputs.len())));
        };
        let specs = [a, b].map(|x| Spec::new(x.shape(), x.dtype()));
        Ok(vec![reference::gather_mm(a, b, Some(lhs), Some(rhs), false, promoted(&specs))?])
    }
}
