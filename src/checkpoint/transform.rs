//! What a step of the weight map does to shapes, forwards, and backwards.

use std::fmt;

use super::foreign::Encoding;
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops;

const OP: &str = "weight_rules";

/// How tensors become others. A rule makes one of these for each place where it applies, with axes
/// and sizes filled in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Transform {
    /// The same values under another name.
    Rename,
    /// The same values under a second name.
    Tie,
    /// One tensor cut along an axis; sizes of -1 stand for equal ones until they are planned.
    Split { axis: i32, sizes: Vec<i32> },
    /// Tensors joined along an axis.
    Merge { axis: i32 },
    /// Tensors of one shape joined along a new axis.
    Stack { axis: i32 },
    /// The axes in another order.
    Transpose { axes: Vec<i32> },
    /// The same elements, row-major, in another shape.
    Reshape { shape: Vec<i32> },
    /// A number added to every element.
    Add { value: f32 },
    /// Every element times a number.
    Scale { value: f32 },
    /// Divided by the norm along an axis.
    Normalize { axis: i32 },
    /// Another dtype.
    Cast { dtype: Dtype },
    /// The same bytes as another dtype.
    View { dtype: Dtype },
    /// One tensor whose slices along an axis belong to so many in turn.
    Deal { axis: i32, parts: i32 },
    /// The factors that a gate's parameter stands for.
    ResidualGate { temperature: f32 },
    /// A quantized matrix in its parts, as MLX has it.
    Decode { encoding: Encoding },
}

/// Shape and dtype.
pub(super) type Spec = (Vec<i32>, Dtype);

impl Transform {
    /// Shapes and dtypes of what comes out. Fills in what the rule left open: negative axes, equal
    /// sizes, dimensions of 0 and -1.
    pub(super) fn plan(&mut self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (shape, dtype) = &inputs[0];
        let fail = |message: String| Err(Error::argument(OP, message));
        if let Transform::Decode { encoding } = self {
            return encoding.plan(inputs);
        }
        if let Some((_, other)) = inputs.iter().find(|(_, other)| other != dtype) {
            return Err(Error::Dtype { op: OP, expected: *dtype, found: *other });
        }
        let out = match self {
            Transform::Add { .. }
            | Transform::Scale { .. }
            | Transform::Normalize { .. }
            | Transform::ResidualGate { .. }
                if !dtype.is_floating() =>
            {
                return fail(format!("only floating point is added to and normalised, not {dtype}"));
            }
            Transform::ResidualGate { .. } => {
                return Ok(vec![(shape.clone(), Dtype::Float32); 2]);
            }
            Transform::Normalize { axis } => {
                *axis = positive_axis(*axis, shape.len())?;
                vec![shape.clone()]
            }
            Transform::Rename | Transform::Tie | Transform::Add { .. } | Transform::Scale { .. } => {
                vec![shape.clone()]
            }
            Transform::Cast { dtype } => return Ok(vec![(shape.clone(), *dtype)]),
            Transform::Split { axis, sizes } => {
                *axis = positive_axis(*axis, shape.len())?;
                let size = shape[*axis as usize];
                let parts = sizes.len() as i32;
                if parts > 0 && sizes.iter().all(|&s| s == -1) && size % parts == 0 {
                    sizes.fill(size / parts);
                }
                let sum: i64 = sizes.iter().map(|&s| i64::from(s)).sum();
                if parts == 0 || sum != i64::from(size) || sizes.iter().any(|&s| s < 0) {
                    return fail(format!(
                        "{size} elements along axis {axis} do not split into {parts} parts of sizes {sizes:?}"
                    ));
                }
                sizes.iter().map(|&s| with(shape, *axis, s)).collect()
            }
            Transform::Merge { axis } => {
                *axis = positive_axis(*axis, shape.len())?;
                let mut sum = 0i32;
                for (other, _) in inputs {
                    if other.len() != shape.len() || with(other, *axis, 0) != with(shape, *axis, 0) {
                        return Err(Error::Shape { op: OP, lhs: shape.clone(), rhs: other.clone() });
                    }
                    let Some(next) = sum.checked_add(other[*axis as usize]) else {
                        return fail(format!("more than {} elements along axis {axis}", i32::MAX));
                    };
                    sum = next;
                }
                vec![with(shape, *axis, sum)]
            }
            Transform::Stack { axis } => {
                *axis = positive_axis(*axis, shape.len() + 1)?;
                if let Some((other, _)) = inputs.iter().find(|(other, _)| other != shape) {
                    return Err(Error::Shape { op: OP, lhs: shape.clone(), rhs: other.clone() });
                }
                let mut out = shape.clone();
                out.insert(*axis as usize, inputs.len() as i32);
                vec![out]
            }
            Transform::Transpose { axes } => {
                for axis in axes.iter_mut() {
                    *axis = positive_axis(*axis, shape.len())?;
                }
                let mut sorted = axes.clone();
                sorted.sort_unstable();
                if !sorted.iter().copied().eq(0..shape.len() as i32) {
                    return fail(format!("axes {axes:?} are not those of shape {shape:?}"));
                }
                vec![axes.iter().map(|&axis| shape[axis as usize]).collect()]
            }
            Transform::View { dtype: to } => {
                let bytes = shape.last().map_or(0, |&n| i64::from(n) * dtype.size() as i64);
                let last = i32::try_from(bytes / to.size() as i64).ok();
                let last = last.filter(|_| bytes % to.size() as i64 == 0 && *to != Dtype::Bool);
                let (Some(last), false) = (last, shape.is_empty()) else {
                    return fail(format!("{shape:?} {dtype} does not come out even as {to}"));
                };
                return Ok(vec![(with(shape, shape.len() as i32 - 1, last), *to)]);
            }
            Transform::Deal { axis, parts } => {
                *axis = positive_axis(*axis, shape.len())?;
                let size = shape[*axis as usize];
                if *parts <= 0 || size % *parts != 0 {
                    return fail(format!("{size} slices along axis {axis} are not dealt out to {parts}"));
                }
                vec![with(shape, *axis, size / *parts); *parts as usize]
            }
            Transform::Decode { .. } => unreachable!("planned above"),
            Transform::Reshape { shape: to } => {
                *to = reshaped(shape, to)?;
                vec![to.clone()]
            }
        };
        Ok(out.into_iter().map(|shape| (shape, *dtype)).collect())
    }

    /// The outputs from the inputs.
    pub(super) fn forwards(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let first = &inputs[0];
        Ok(vec![match self {
            Transform::Rename | Transform::Tie => first.clone(),
            Transform::Split { axis, sizes } => return split(first, sizes, *axis),
            Transform::Merge { axis } => ops::concatenate(inputs, *axis)?,
            Transform::Stack { axis } => ops::stack(inputs, *axis)?,
            Transform::Transpose { axes } => ops::transpose(first, axes.as_slice())?,
            Transform::Reshape { shape } => ops::reshape(first, shape)?,
            Transform::Add { value } => ops::add(first, *value)?,
            Transform::Scale { value } => ops::multiply(first, *value)?,
            Transform::Normalize { axis } => {
                let wide = ops::astype(first, Dtype::Float32)?;
                let norm = (ops::sqrt(&ops::sum(&ops::square(&wide)?, *axis, true)?)? + 1e-7)?;
                ops::astype(&(wide / norm)?, first.dtype())?
            }
            Transform::Cast { dtype } => ops::astype(first, *dtype)?,
            Transform::View { dtype } => ops::view(first, *dtype)?,
            Transform::Deal { axis, parts } => {
                let (zeros, ends) = (vec![0; first.ndim()], first.shape().to_vec());
                let part = |i: i32| {
                    let strides = with(&vec![1; first.ndim()], *axis, *parts);
                    // Kernels copy matrices whose rows are apart, at each use.
                    let part = ops::slice(first, &with(&zeros, *axis, i), &ends, &strides)?;
                    ops::contiguous(&part, false)
                };
                return (0..*parts).map(part).collect();
            }
            Transform::ResidualGate { temperature } => {
                let gate = (ops::astype(first, Dtype::Float32)? / *temperature)?;
                let beta = ops::sigmoid(&gate)?;
                // 1 - beta^2, without loss where beta is almost 1.
                let rest = (ops::sigmoid(&ops::negative(&gate)?)? * (&beta + 1.0)?)?;
                let alpha = ops::sqrt(&ops::maximum(&rest, 1e-3)?)?;
                return Ok(vec![alpha, beta]);
            }
            Transform::Decode { encoding } => return encoding.decode(inputs),
        }])
    }

    /// The inputs, which were as `inputs` says, from the outputs. None for what was decoded.
    pub(super) fn backwards(&self, outputs: &[Array], inputs: &[Spec]) -> Result<Vec<Array>> {
        let (first, (shape, dtype)) = (&outputs[0], &inputs[0]);
        Ok(vec![match self {
            Transform::Rename | Transform::Tie | Transform::Normalize { .. } => first.clone(),
            Transform::Split { axis, .. } => ops::concatenate(outputs, *axis)?,
            Transform::Merge { axis } => {
                let sizes: Vec<i32> = inputs.iter().map(|(shape, _)| shape[*axis as usize]).collect();
                return split(first, &sizes, *axis);
            }
            Transform::Stack { axis } => {
                let parts = split(first, &vec![1; inputs.len()], *axis)?;
                return parts.iter().map(|part| ops::reshape(part, shape)).collect();
            }
            Transform::Transpose { axes } => {
                let mut inverse = axes.clone();
                for (to, &from) in axes.iter().enumerate() {
                    inverse[from as usize] = to as i32;
                }
                ops::transpose(first, inverse.as_slice())?
            }
            Transform::Reshape { .. } => ops::reshape(first, shape)?,
            Transform::Add { value } => ops::subtract(first, *value)?,
            Transform::Scale { value } => ops::divide(first, *value)?,
            Transform::Cast { .. } => ops::astype(first, *dtype)?,
            Transform::View { .. } => ops::view(&ops::contiguous(first, false)?, *dtype)?,
            Transform::Deal { axis, .. } => {
                let dealt = ops::stack(outputs, *axis + 1)?;
                ops::reshape(&dealt, shape)?
            }
            Transform::ResidualGate { temperature } => {
                let beta = &outputs[1];
                let gate = (ops::log(&(beta / ops::subtract(1.0, beta)?)?)? * *temperature)?;
                ops::astype(&gate, *dtype)?
            }
            Transform::Decode { .. } => return Ok(Vec::new()),
        }])
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transform::Rename => write!(f, "rename"),
            Transform::Tie => write!(f, "tie"),
            Transform::Split { axis, sizes } => write!(f, "split {sizes:?} along {axis}"),
            Transform::Merge { axis } => write!(f, "merge along {axis}"),
            Transform::Stack { axis } => write!(f, "stack along {axis}"),
            Transform::Transpose { axes } => write!(f, "transpose {axes:?}"),
            Transform::Reshape { shape } => write!(f, "reshape {shape:?}"),
            Transform::Add { value } => write!(f, "add {value}"),
            Transform::Scale { value } => write!(f, "scale by {value}"),
            Transform::Normalize { axis } => write!(f, "normalize along {axis}"),
            Transform::Cast { dtype } => write!(f, "cast to {dtype}"),
            Transform::View { dtype } => write!(f, "view as {dtype}"),
            Transform::Deal { axis, parts } => write!(f, "deal to {parts} along {axis}"),
            Transform::ResidualGate { temperature } => write!(f, "gate at temperature {temperature}"),
            Transform::Decode { encoding } => write!(f, "decode {encoding}"),
        }
    }
}

fn split(array: &Array, sizes: &[i32], axis: i32) -> Result<Vec<Array>> {
    let ends = sizes.iter().scan(0, |end, size| {
        *end += size;
        Some(*end)
    });
    let cuts: Vec<i32> = ends.take(sizes.len().saturating_sub(1)).collect();
    ops::split(array, cuts.as_slice(), axis)
}

fn positive_axis(axis: i32, ndim: usize) -> Result<i32> {
    let at = if axis < 0 { axis + ndim as i32 } else { axis };
    if (0..ndim as i32).contains(&at) {
        return Ok(at);
    }
    Err(Error::argument(OP, format!("there is no axis {axis} among {ndim}")))
}

/// `shape` with another size along `axis`.
fn with(shape: &[i32], axis: i32, size: i32) -> Vec<i32> {
    let mut out = shape.to_vec();
    out[axis as usize] = size;
    out
}

/// `to` with each 0 replaced by the dimension of `from` in its place, and one -1 by what is left.
fn reshaped(from: &[i32], to: &[i32]) -> Result<Vec<i32>> {
    let fail = || Error::argument(OP, format!("{from:?} does not reshape to {to:?}"));
    let size = |shape: &[i32]| crate::array::element_count(shape).ok_or_else(fail);
    let mut out = to.to_vec();
    for (at, dim) in out.iter_mut().enumerate().filter(|(_, dim)| **dim == 0) {
        *dim = *from.get(at).ok_or_else(fail)?;
    }
    let open: Vec<usize> = (0..out.len()).filter(|&at| out[at] == -1).collect();
    if let [at] = open[..] {
        out[at] = 1;
        let (whole, rest) = (size(from)?, size(&out)?);
        out[at] = whole.checked_div(rest).and_then(|dim| i32::try_from(dim).ok()).ok_or_else(fail)?;
    }
    if size(from)? == size(&out)? { Ok(out) } else { Err(fail()) }
}
