//! Products for each index of mapped axes, as products of batches.

use super::{NAME, QuantizedMatmul, gather_qmm, quantized_matmul};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops;

/// One product for each index of the `axes` of the inputs, along the first axis.
pub(super) fn product(kernel: &QuantizedMatmul, inputs: &[Array], axes: &[Option<i32>]) -> Result<Array> {
    let &QuantizedMatmul { how, transpose, .. } = kernel;
    let size = |(x, axis): (&Array, &Option<i32>)| axis.map(|axis| x.dim(axis));
    let (Some(count), [x, _, _, ..]) = (inputs.iter().zip(axes).find_map(size).transpose()?, inputs) else {
        return Err(Error::argument(NAME, format!("{} inputs mapped over {axes:?}", inputs.len())));
    };
    // With the mapped axis first, or repeated along one.
    let front = |i: usize| match axes[i] {
        Some(axis) => ops::moveaxis(&inputs[i], axis, 0),
        None => {
            let shape: Vec<i32> = std::iter::once(count).chain(inputs[i].shape().iter().copied()).collect();
            ops::broadcast_to(&inputs[i], &shape)
        }
    };
    let parts = 1..inputs.len() - if kernel.picked { 2 } else { 0 };
    let each = axes[parts.clone()].iter().any(Option::is_some);
    let weights = parts.map(|i| if each { front(i) } else { Ok(inputs[i].clone()) });
    let weights = weights.collect::<Result<Vec<_>>>()?;
    let [w, scales, biases @ ..] = &weights[..] else {
        return Err(Error::argument(NAME, "no scales"));
    };
    let biases = biases.first();
    if kernel.picked {
        // Matrix `i` of index `b` is matrix `b * batch + i` of all.
        let batch = |of: usize| -> i32 {
            let mut shape = inputs[of].shape().to_vec();
            axes[of].map(|axis| shape.remove(axis as usize));
            shape.iter().rev().skip(2).product()
        };
        let picks = |at: usize, of: usize, each: bool| {
            let indices = front(at)?;
            if !each {
                return Ok(indices);
            }
            let first = (ops::arange(0, count, 1, Dtype::Uint32)? * batch(of))?;
            let shape: Vec<i32> = std::iter::once(count).chain(vec![1; indices.ndim() - 1]).collect();
            indices + ops::reshape(&first, &shape)?
        };
        let (last, x_is_mapped) = (inputs.len() - 1, axes[0].is_some());
        let (left, right) = (picks(last - 1, 0, x_is_mapped)?, picks(last, 1, each)?);
        let x = if x_is_mapped { front(0)? } else { x.clone() };
        return gather_qmm(&x, w, scales, biases, Some(&left), Some(&right), transpose, how, false);
    }
    let x = front(0)?;
    if !each {
        return quantized_matmul(&x, w, scales, biases, transpose, how);
    }
    let &[_, ref batch @ .., k] = x.shape() else {
        return Err(Error::argument(NAME, "operands without rows"));
    };
    let rows = batch.iter().product();
    let y = quantized_matmul(&ops::reshape(&x, &[count, rows, k])?, w, scales, biases, transpose, how)?;
    let shape: Vec<i32> = std::iter::once(count).chain(batch.iter().copied()).chain([y.dim(-1)?]).collect();
    ops::reshape(&y, &shape)
}
