//! In operations of MLX.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::ops;

pub(super) fn ternary_matmul(x: &Array, w: &Array, scales: &Array, bits: i32) -> Result<Array> {
    let [rows, columns] = [w.dim(0)?, x.dim(-1)?];
    let groups = scales.dim(1)?;
    if rows == 0 || columns == 0 || x.size() == 0 {
        let shape = [&x.shape()[..x.ndim() - 1], &[rows]].concat();
        return ops::zeros(&shape, x.dtype());
    }
    let places = ops::arange(0, 32, f64::from(bits), Dtype::Uint32)?;
    let codes = ops::right_shift(&ops::expand_dims(w, -1)?, &places)?;
    let codes = ops::bitwise_and(&codes, Array::from((1u32 << bits) - 1))?;
    let values = ops::astype(&ops::reshape(&codes, &[rows, groups, columns / groups])?, x.dtype())?;
    let values = if bits == 1 { ((values * 2)? - 1)? } else { (values - 1)? };
    let matrix = ops::reshape(&(values * ops::expand_dims(scales, -1)?)?, &[rows, columns])?;
    ops::matmul(x, &ops::swapaxes(&matrix, 0, 1)?)
}
