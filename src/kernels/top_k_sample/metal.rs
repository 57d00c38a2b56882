//! On the GPU.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::kernels::Spec;
use crate::kernels::metal::{Launch, TOP_K_SAMPLE, threads};
use crate::ops;

/// Of arrays that fit together and are not empty.
pub(super) fn top_k_sample(logits: &Array, noise: &Array, k: i32, scale: f32) -> Result<Vec<Array>> {
    let [rows, width] = [logits.dim(0)?, logits.dim(1)?];
    let scale = ops::astype(&Array::from(scale), logits.dtype())?;
    let group = threads(width / 4, 1024);
    Launch {
        shader: &TOP_K_SAMPLE,
        inputs: &[logits.clone(), noise.clone(), Array::from(k), scale],
        template: &[("T", logits.dtype().into())],
        grid: [group, rows, 1],
        thread_group: [group, 1, 1],
        outputs: &[Spec::new(&[rows], Dtype::Uint32)],
    }
    .run()
}
