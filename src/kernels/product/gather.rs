//! Products of matrices that are picked from two batches.

use crate::error::{Error, Result};
use crate::kernels::View;

/// Matrix `left` of one batch meets matrix `right` of the other; the product is matrix `out` of the result.
#[derive(Clone, Copy)]
pub(crate) struct Pick {
    pub left: usize,
    pub right: usize,
    pub out: usize,
}

/// The pairs that `left` and `right` name, `uint32` of the same shape, ordered by the right one. Fails for an
/// index that is not below the `counts`.
pub(crate) fn picks(
    op: &'static str,
    left: &View<'_>,
    right: &View<'_>,
    counts: [usize; 2],
) -> Result<Vec<Pick>> {
    let pairs = left.as_slice::<u32>()?.iter().zip(right.as_slice::<u32>()?).enumerate();
    let mut picks: Vec<Pick> =
        pairs.map(|(out, (&l, &r))| Pick { left: l as usize, right: r as usize, out }).collect();
    if let Some(pick) = picks.iter().find(|p| p.left >= counts[0] || p.right >= counts[1]) {
        let message =
            format!("indices {} and {} into {} and {} matrices", pick.left, pick.right, counts[0], counts[1]);
        return Err(Error::argument(op, message));
    }
    picks.sort_by_key(|pick| pick.right);
    Ok(picks)
}

/// Where each matrix of a batch begins, in elements from the first one: the batch dimensions are all but the
/// last two.
pub(crate) fn batch_origins(view: &View<'_>) -> Vec<isize> {
    let batch = view.shape().len().saturating_sub(2);
    let mut origins = vec![0];
    for (&size, &stride) in view.shape()[..batch].iter().zip(view.strides()) {
        let along = |origin: &isize| {
            (0..size as isize).map(move |i| origin + i * stride as isize).collect::<Vec<_>>()
        };
        origins = origins.iter().flat_map(along).collect();
    }
    origins
}
