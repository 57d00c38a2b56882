//! On the GPU.

use crate::array::Array;
use crate::error::Result;
use crate::fast::TemplateArg;
use crate::kernels::Spec;
use crate::kernels::metal::{Launch, TERNARY_MATMUL, TERNARY_MATVEC, rows};
use crate::ops;

/// Rows of `x` that meet the codes one by one.
const FEW: i32 = 8;

/// Of arrays that fit together and are not empty.
pub(super) fn ternary_matmul(x: &Array, w: &Array, scales: &Array, bits: i32) -> Result<Vec<Array>> {
    let (flat, [count, _]) = rows(x)?;
    let n = w.dim(0)?;
    let few = count <= FEW;
    let tiles = |size: i32| (size - 1) / 32 + 1;
    let [grid, thread_group] = if few {
        [[32, (n - 1) / 4 + 1, count], [32, 2, 1]]
    } else {
        [[128 * tiles(n), tiles(count), 1], [128, 1, 1]]
    };
    let outputs = Launch {
        shader: if few { &TERNARY_MATVEC } else { &TERNARY_MATMUL },
        inputs: &[flat, w.clone(), scales.clone()],
        template: &[("T", x.dtype().into()), ("BITS", TemplateArg::Int(bits))],
        grid,
        thread_group,
        outputs: &[Spec::new(&[count, n], x.dtype())],
    }
    .run()?;
    let shape = [&x.shape()[..x.ndim() - 1], &[n]].concat();
    outputs.iter().map(|y| ops::reshape(y, &shape)).collect()
}
