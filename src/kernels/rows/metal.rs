//! On the GPU.

use crate::array::Array;
use crate::error::Result;
use crate::kernels::Spec;
use crate::kernels::metal::{ADD_RMS_NORM, Launch, rows, threads};
use crate::ops;

/// The sum of `x` and `y`, and its norm; all of one dtype and not empty.
pub(super) fn add_rms_norm(x: &Array, y: &Array, weight: &Array, eps: f32) -> Result<Vec<Array>> {
    let (flat, [count, width]) = rows(x)?;
    let spec = Spec::new(&[count, width], x.dtype());
    let group = threads(width / 4, 1024);
    let outputs = Launch {
        shader: &ADD_RMS_NORM,
        inputs: &[flat, rows(y)?.0, weight.clone(), Array::from(eps)],
        template: &[("T", x.dtype().into())],
        grid: [group, count, 1],
        thread_group: [group, 1, 1],
        outputs: &[spec.clone(), spec],
    }
    .run()?;
    outputs.iter().map(|y| ops::reshape(y, x.shape())).collect()
}
