//! An affine matrix quantized along the axis that the model has as its rows.

use super::encoding::OP;
use crate::array::{Array, Dtype};
use crate::checkpoint::transform::Spec;
use crate::error::{Error, Result};
use crate::ops::{self, Quantization, QuantizationMode};

/// How the parts of matrices with so many columns were quantized, and the shape of the transposed ones.
fn sizes(parts: &[Spec], columns: i32) -> Result<(Quantization, Vec<i32>)> {
    let fail = || {
        let parts: Vec<String> = parts.iter().map(|(shape, dtype)| format!("{shape:?} {dtype}")).collect();
        Error::argument(OP, format!("no affine matrix of {columns} columns has parts {}", parts.join(", ")))
    };
    let [(codes, Dtype::Uint32), (scales, dtype), (biases, _)] = parts else { return Err(fail()) };
    let ([before @ .., rows, words], [of_scales @ .., groups]) = (codes.as_slice(), scales.as_slice()) else {
        return Err(fail());
    };
    let fits = dtype.is_floating() && scales == biases && of_scales == &codes[..codes.len() - 1];
    let bits = i32::try_from(i64::from(*words) * 32 / i64::from(columns.max(1))).unwrap_or(0);
    let group_size = columns.checked_div(*groups).unwrap_or(0);
    let how = Quantization { mode: QuantizationMode::Affine, group_size, bits };
    let exact = i64::from(bits) * i64::from(columns) == i64::from(*words) * 32
        && i64::from(group_size) * i64::from(*groups) == i64::from(columns);
    if !fits || !exact || how.check(OP).is_err() {
        return Err(fail());
    }
    Ok((how, [before, &[columns, *rows]].concat()))
}

/// Codes, scales and biases of the transposed matrices, or dense ones where the groups don't fit.
pub(super) fn plan(parts: &[Spec], columns: i32) -> Result<Vec<Spec>> {
    let (how, shape) = sizes(parts, columns)?;
    let (dtype, (rows, before)) = (parts[1].1, shape.split_last().unwrap_or((&0, &[])));
    if rows % how.group_size != 0 {
        return Ok(vec![(shape, dtype)]);
    }
    let with = |last: i32| [before, &[last]].concat();
    let scales = (with(rows / how.group_size), dtype);
    Ok(vec![(with(rows / 32 * how.bits), Dtype::Uint32), scales.clone(), scales])
}

/// What `plan` promises: quantized anew, nearly the same values.
pub(super) fn decode(parts: &[Array], columns: i32) -> Result<Vec<Array>> {
    let specs: Vec<Spec> = parts.iter().map(|part| (part.shape().to_vec(), part.dtype())).collect();
    let (how, shape) = sizes(&specs, columns)?;
    let dense = ops::dequantize(&parts[0], &parts[1], Some(&parts[2]), how, None, None)?;
    let dense = ops::contiguous(&ops::swapaxes(&dense, -1, -2)?, false)?;
    if shape.last().is_some_and(|rows| rows % how.group_size != 0) {
        return Ok(vec![dense]);
    }
    let ops::Quantized { weight, scales, biases } = ops::quantize(&dense, how, None)?;
    Ok([weight, scales].into_iter().chain(biases).collect())
}
