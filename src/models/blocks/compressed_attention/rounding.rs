//! Keys and queries as they were rounded in training.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::ops;

/// `x` in blocks of 32 features as 8-bit floats (e4m3) times a power of two, where 32 divides them.
pub(super) fn round_fp8(x: &Array) -> Result<Array> {
    in_blocks(x, 32, |blocks, largest| {
        let scale = power_of_two(&(ops::maximum(largest, 1e-4)? / 448.0)?)?;
        let codes = ops::to_fp8(&ops::clip(&(blocks / &scale)?, -448.0..=448.0)?)?;
        ops::from_fp8(&codes, Dtype::Float32)? * scale
    })
}

/// `x` in blocks of so many features as 4-bit floats (e2m1) times a power of two, or an 8-bit float, where
/// the size divides them.
pub(super) fn round_fp4(x: &Array, size: i32, fp8_scale: bool) -> Result<Array> {
    in_blocks(x, size, |blocks, largest| {
        let least = if fp8_scale { 6.0 * 2f32.powi(-9) } else { 6.0 * 2f32.powi(-126) };
        let scale = (ops::maximum(largest, least)? / 6.0)?;
        let scale = match fp8_scale {
            true => ops::from_fp8(&ops::to_fp8(&scale)?, Dtype::Float32)?,
            false => power_of_two(&scale)?,
        };
        let x = ops::clip(&(blocks / &scale)?, -6.0..=6.0)?;
        let size = ops::abs(&x)?;
        let step = |is_above: Array, height: f32| ops::astype(&is_above, Dtype::Float32)? * height;
        // Halfway, the even code.
        let mut code = ops::zeros_like(&x)?;
        for (from, height) in [(0.25, 0.5), (1.25, 0.5), (2.5, 1.0), (5.0, 2.0)] {
            code = (code + step(ops::greater(&size, from)?, height)?)?;
        }
        for (from, height) in [(0.75, 0.5), (1.75, 0.5), (3.5, 1.0)] {
            code = (code + step(ops::greater_equal(&size, from)?, height)?)?;
        }
        (ops::sign(&x)? * code)? * scale
    })
}

/// The least power of two that is no less.
fn power_of_two(x: &Array) -> Result<Array> {
    ops::power(2.0, &ops::ceil(&ops::log2(x)?)?)
}

/// `round` of blocks of so many features, in `float32`, and of the largest size in each.
fn in_blocks(x: &Array, size: i32, round: impl FnOnce(&Array, &Array) -> Result<Array>) -> Result<Array> {
    if x.dim(-1)? % size != 0 {
        return Ok(x.clone());
    }
    let blocks = ops::unflatten(&ops::astype(x, Dtype::Float32)?, -1, &[-1, size])?;
    let rounded = round(&blocks, &ops::max(&ops::abs(&blocks)?, -1, true)?)?;
    ops::astype(&ops::flatten(&rounded, -2, -1)?, x.dtype())
}
