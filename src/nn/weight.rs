//! A matrix of weights, in whichever form the checkpoint has it.

use super::module::join;
use super::{Module, Rotation};
use crate::array::Array;
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::kernels::{self, Chain, Node};
use crate::ops::{self, Quantization, QuantizationMode};

/// A matrix `[rows, columns]`, or several of them, `[..., rows, columns]`, dense or quantized along the
/// columns.
#[derive(Debug, Clone)]
pub enum Weight {
    /// One floating-point array.
    Dense(Array),
    /// Packed codes with their scales.
    Quantized {
        /// Codes, `uint32`.
        weight: Array,
        /// One scale for each group of a row.
        scales: Array,
        /// One bias for each group of a row, in the affine mode.
        biases: Option<Array>,
        /// What the codes mean.
        how: Quantization,
    },
    /// One of the others, whose inputs are rotated first.
    Rotated {
        /// The matrix, with the rotation folded in.
        weight: Box<Weight>,
        /// Of the columns.
        rotation: Rotation,
    },
}

impl Weight {
    /// The matrix `weight` at the path of `w`. It is quantized if there are `scales` beside it; shapes
    /// and the dtype of the scales then say how. Fails unless its shape is `[..., rows, columns]` as
    /// given, and if the config names this layer and says otherwise.
    pub fn load(w: &Weights, shape: &[i32]) -> Result<Self> {
        let loaded = match Self::of_shapes(w, shape) {
            Ok(loaded) => loaded,
            Err(error) => return Ok(Weight::Dense(w.stand_in(error, shape)?)),
        };
        let found = if let Weight::Quantized { how, .. } = &loaded { Some(*how) } else { None };
        if let Some(named) = w.named_quantization().filter(|named| *named != found) {
            let [named, found] = [named, found].map(|how| how.map_or("dense".into(), |how| how.to_string()));
            let message = format!("weight `{}` is {found}, and the config says {named}", w.path());
            return Err(Error::invalid(w.file(), message));
        }
        w.note_matrix(found);
        let Some(block) = w.rotation() else { return Ok(loaded) };
        let rotation = Rotation::load(w, shape.last().copied().unwrap_or(0), block)?;
        Ok(Weight::Rotated { weight: Box::new(loaded), rotation })
    }

    fn of_shapes(w: &Weights, shape: &[i32]) -> Result<Self> {
        if !w.contains("scales") {
            let weight = w.get_shaped("weight", shape)?;
            if !weight.dtype().is_floating() {
                let what = format!("weight `{}` of dtype {}", w.full("weight"), weight.dtype());
                return Err(Error::unsupported(what, "a weight without scales must be floating point"));
            }
            return Ok(Weight::Dense(weight));
        }
        let (weight, scales, biases) = (w.get("weight")?, w.get("scales")?, w.try_get("biases")?);
        let how = quantization_of(&weight, &scales, shape)
            .filter(|how| how.check("weight").is_ok() && (how.mode == QuantizationMode::Affine) == biases.is_some())
            .ok_or_else(|| {
                let (packed, groups) = (weight.shape(), scales.shape());
                let message = format!(
                    "weight `{}`: no quantization of {shape:?} has codes {packed:?} {} and scales {groups:?} {}",
                    w.path(), weight.dtype(), scales.dtype(),
                );
                Error::invalid(w.file(), message)
            })?;
        Ok(Weight::Quantized { weight, scales, biases, how })
    }

    /// Matrices of one shape as one, `[count, rows, columns]`. Fails where they are not all dense, or all
    /// quantized in the same way.
    pub fn stack(parts: &[Weight]) -> Result<Self> {
        let arrays = parts.iter().map(|part| match part {
            Weight::Dense(weight) => Some((None, vec![weight])),
            Weight::Quantized { weight, scales, biases, how } => {
                Some((Some(*how), [weight, scales].into_iter().chain(biases).collect()))
            }
            Weight::Rotated { .. } => None,
        });
        let differ = || Error::unsupported("experts that are stored differently", "they are computed as one");
        let arrays: Vec<(Option<Quantization>, Vec<&Array>)> =
            arrays.collect::<Option<_>>().ok_or_else(differ)?;
        let how = arrays.first().and_then(|(how, _)| *how);
        if arrays.iter().any(|(other, _)| *other != how) {
            return Err(differ());
        }
        let stack = |part: usize| ops::stack(arrays.iter().map(|(_, arrays)| arrays[part]), 0);
        Ok(match how {
            None => Weight::Dense(stack(0)?),
            Some(how) => {
                let biased = how.mode == QuantizationMode::Affine;
                let biases = biased.then(|| stack(2)).transpose()?;
                Weight::Quantized { weight: stack(0)?, scales: stack(1)?, biases, how }
            }
        })
    }

    /// Its rows; of each matrix, if there are several.
    pub fn rows_count(&self) -> i32 {
        match self {
            Weight::Dense(weight) | Weight::Quantized { weight, .. } => {
                weight.shape().iter().rev().nth(1).copied().unwrap_or(0)
            }
            Weight::Rotated { weight, .. } => weight.rows_count(),
        }
    }

    /// `x @ self.T`: `[..., columns]` to `[..., rows]`. Several matrices broadcast with the axes of `x`
    /// before its last two.
    pub fn project(&self, x: &Array) -> Result<Array> {
        match self {
            Weight::Dense(weight) => ops::matmul(x, &ops::swapaxes(weight, -2, -1)?),
            Weight::Quantized { weight, scales, biases, how } => {
                ops::quantized_matmul(x, weight, scales, biases.as_ref(), true, *how)
            }
            Weight::Rotated { weight, rotation } => weight.project(&rotation.forward(x)?),
        }
    }

    /// [`project`](Self::project) of several weights in a chain; `None` where chains do not have it.
    pub(crate) fn record_all(weights: &[&Weight], chain: &mut Chain, x: Node) -> Result<Option<Vec<Node>>> {
        let parts = weights.iter().map(|weight| match weight {
            Weight::Quantized { weight, scales, biases, how } => {
                Some(((weight, scales, biases.as_ref()), *how))
            }
            _ => None,
        });
        let Some(parts) = parts.collect::<Option<Vec<_>>>() else { return Ok(None) };
        let mut all = Vec::with_capacity(parts.len());
        // Those that are quantized alike read `x` once.
        for alike in parts.chunk_by(|a, b| a.1 == b.1 && a.0.1.dtype() == b.0.1.dtype()) {
            let how = alike[0].1;
            let matrices: Vec<_> = alike.iter().map(|&(parts, _)| parts).collect();
            match chain.quantized_matmuls(x, &matrices, how)? {
                Some(made) => all.extend(made),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// [`project`](Self::project) of several weights, which read `x` once where they are quantized alike.
    pub fn project_all(weights: &[&Weight], x: &Array) -> Result<Vec<Array>> {
        let one_by_one = || weights.iter().map(|weight| weight.project(x)).collect();
        let Some(Weight::Quantized { how, .. }) = weights.first() else { return one_by_one() };
        let parts = weights.iter().map(|weight| match weight {
            Weight::Quantized { weight, scales, biases, how: other } if other == how => {
                Some((weight, scales, biases.as_ref()))
            }
            _ => None,
        });
        match parts.collect::<Option<Vec<_>>>() {
            Some(parts) => ops::quantized_matmuls(x, &parts, *how),
            None => one_by_one(),
        }
    }

    /// `x @ self`: `[..., rows]` to `[..., columns]`, as [`project`](Self::project) otherwise.
    pub fn project_back(&self, x: &Array) -> Result<Array> {
        match self {
            Weight::Dense(weight) => ops::matmul(x, weight),
            Weight::Quantized { weight, scales, biases, how } => {
                ops::quantized_matmul(x, weight, scales, biases.as_ref(), false, *how)
            }
            Weight::Rotated { weight, rotation } => rotation.back(&weight.project_back(x)?),
        }
    }

    /// `x @ self[i].T` with the matrix that `indices` names: `x` is `[..., m, columns]`, `indices` are
    /// integers whose shape broadcasts with the `...`; the result is `[..., m, rows]`. `sorted` promises
    /// that the indices ascend.
    pub fn gather(&self, x: &Array, indices: &Array, sorted: bool) -> Result<Array> {
        match self {
            Weight::Dense(weight) => {
                ops::gather_mm(x, &ops::swapaxes(weight, -2, -1)?, None, Some(indices), sorted)
            }
            Weight::Quantized { weight, scales, biases, how } => {
                let biases = biases.as_ref();
                ops::gather_qmm(x, weight, scales, biases, None, Some(indices), true, *how, sorted)
            }
            Weight::Rotated { weight, rotation } => weight.gather(&rotation.forward(x)?, indices, sorted),
        }
    }

    /// The rows that `ids` names: integers `[...]` to `[..., columns]`. Ids outside wrap around.
    pub fn rows(&self, ids: &Array) -> Result<Array> {
        match self {
            Weight::Dense(weight) => ops::take(weight, ids, 0),
            Weight::Quantized { weight, scales, biases, how } => {
                kernels::quantized_rows(weight, scales, biases.as_ref(), *how, ids)
            }
            Weight::Rotated { weight, rotation } => rotation.back(&weight.rows(ids)?),
        }
    }
}

/// How matrices of this shape were quantized. Only the affine mode has floating-point scales, and each
/// other mode has one pair of bits and group size.
fn quantization_of(weight: &Array, scales: &Array, shape: &[i32]) -> Option<Quantization> {
    let (&columns, rows) = shape.split_last()?;
    let (&words, packed_rows) = weight.shape().split_last()?;
    let (&groups, scale_rows) = scales.shape().split_last()?;
    if packed_rows != rows || scale_rows != rows || groups == 0 || columns <= 0 || columns % groups != 0 {
        return None;
    }
    let bits = i32::try_from(i64::from(words) * 32 / i64::from(columns)).ok()?;
    let group_size = columns / groups;
    let of_mode = |&mode: &QuantizationMode| {
        (mode == QuantizationMode::Affine) == scales.dtype().is_floating()
            && Quantization { mode, group_size, bits }.check("weight").is_ok()
    };
    let mode = QuantizationMode::ALL.into_iter().find(of_mode)?;
    Some(Quantization { mode, group_size, bits })
}

impl Module for Weight {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        match self {
            Weight::Dense(weight) => f(&join(path, "weight"), weight),
            Weight::Quantized { weight, scales, biases, .. } => {
                f(&join(path, "weight"), weight);
                f(&join(path, "scales"), scales);
                biases.visit(&join(path, "biases"), f);
            }
            Weight::Rotated { weight, rotation } => {
                weight.visit(path, f);
                rotation.visit(path, f);
            }
        }
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        match self {
            Weight::Dense(weight) => f(&join(path, "weight"), weight),
            Weight::Quantized { weight, scales, biases, .. } => {
                f(&join(path, "weight"), weight);
                f(&join(path, "scales"), scales);
                biases.visit_mut(&join(path, "biases"), f);
            }
            Weight::Rotated { weight, rotation } => {
                weight.visit_mut(path, f);
                rotation.visit_mut(path, f);
            }
        }
    }
}
