//! Gradient clipping.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::ops;

/// Scales `gradients` down together so that their global L2 norm is at most `max_norm`, keeping their
/// dtypes. Also returns the norm before, a `float32` scalar.
pub fn clip_grad_norm(gradients: &[Array], max_norm: f64) -> Result<(Vec<Array>, Array)> {
    let mut squares = Array::from(0.0f32);
    for g in gradients {
        let g = ops::astype(g, Dtype::Float32)?;
        squares = (squares + ops::sum(&ops::square(&g)?, .., false)?)?;
    }
    let norm = ops::sqrt(&squares)?;
    // 1e-6 as in MLX and PyTorch: keeps the division defined where all gradients are zero.
    let scale = ops::minimum(max_norm / (&norm + 1e-6)?, 1.0)?;
    let scaled = gradients.iter().map(|g| ops::astype(&(g * &scale)?, g.dtype()));
    Ok((scaled.collect::<Result<_>>()?, norm))
}
