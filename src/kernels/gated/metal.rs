//! On the GPU.

use super::Unit;
use crate::array::Array;
use crate::error::Result;
use crate::kernels::Spec;
use crate::kernels::metal::{GATED, Launch, rows};
use crate::ops;

/// Of arrays of one shape and dtype that are not empty.
pub(super) fn gated(unit: Unit, gate: &Array, x: &Array) -> Result<Vec<Array>> {
    let (flat, [count, width]) = rows(gate)?;
    let outputs = Launch {
        shader: &GATED,
        inputs: &[flat, rows(x)?.0, Array::from(unit.slope as f32), Array::from(unit.cubic as f32)],
        template: &[("T", gate.dtype().into())],
        grid: [(width - 1) / 4 + 1, count, 1],
        thread_group: [256, 1, 1],
        outputs: &[Spec::new(&[count, width], gate.dtype())],
    }
    .run()?;
    outputs.iter().map(|y| ops::reshape(y, gate.shape())).collect()
}
