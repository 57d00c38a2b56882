//! MLX's own operation.

use crate::array::Array;
use crate::error::Result;
use crate::fast::Mask;
use crate::ffi::op;

pub(super) fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    mask: Mask<'_>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let (mode, mask) = match mask {
        Mask::None => (c"", None),
        Mask::Causal => (c"causal", None),
        Mask::Array(mask) => (c"array", Some(mask)),
    };
    let force_fused = false;
    op!(mlx_fast_scaled_dot_product_attention(q, k, v, scale, mode, mask, sinks, force_fused))
}
