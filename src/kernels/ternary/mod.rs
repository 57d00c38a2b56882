//! Products with matrices of -1, 0 and 1 (Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58
//! Bits", 2024), or of -1 and 1, with a scale for each group of a row.

mod metal;
mod reference;

use super::path::{Path, active_of};
use super::{CustomKernel, Spec, View, ViewMut};
use crate::array::{Array, Dtype};
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};

const NAME: &str = "ternary_matmul";

/// `x @ (w * scales).T`, in the dtype of `x`.
///
/// `x` is `[..., columns]`. `w`, `uint32`, holds rows of codes of `bits` bits, `[rows, columns * bits / 32]`, from the
/// lowest bit of a word on: 0, 1 and 2 with 2 bits for -1, 0 and 1, 0 and 1 with 1 bit for -1 and 1. `scales`, of the
/// dtype of `x`, is `[rows, groups]`, with groups of a multiple of 32 columns. Fails for anything else.
pub fn ternary_matmul(x: &Array, w: &Array, scales: &Array, bits: i32) -> Result<Array> {
    let float = matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    if !float || scales.dtype() != x.dtype() || w.dtype() != Dtype::Uint32 || !matches!(bits, 1 | 2) {
        let (x, w, scales) = (x.dtype(), w.dtype(), scales.dtype());
        return Err(Error::argument(NAME, format!("{x} by {bits} bits in {w} with scales of {scales}")));
    }
    let columns = |words: i32| i64::from(words) * 32 / i64::from(bits);
    let fits = match (x.shape(), w.shape(), scales.shape()) {
        (&[.., columns_of_x], &[rows, words], &[rows_of_scales, groups]) => {
            let whole = i64::from(groups) * 32;
            rows == rows_of_scales
                && columns(words) == i64::from(columns_of_x)
                && columns(words).checked_rem(whole).map_or(words == 0, |rest| rest == 0)
        }
        _ => false,
    };
    if !fits {
        let (x, w, scales) = (x.shape(), w.shape(), scales.shape());
        return Err(Error::argument(NAME, format!("{x:?} by {bits} bits in {w:?} with scales {scales:?}")));
    }
    let filled = x.size() > 0 && w.size() > 0;
    let path = active_of(&[Path::Avx2]);
    let on_cpu = current_device().kind == DeviceKind::Cpu && path != Path::Reference;
    if filled && (on_cpu || super::metal::is_active()) {
        return Ok(super::apply(TernaryMatmul { bits, path }, [x, w, scales])?.swap_remove(0));
    }
    reference::ternary_matmul(x, w, scales, bits)
}

struct TernaryMatmul {
    bits: i32,
    path: Path,
}

impl CustomKernel for TernaryMatmul {
    fn name(&self) -> &str {
        NAME
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [Spec { shape, dtype }, w, _] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        let mut shape = shape.clone();
        if let (Some(last), Some(&rows)) = (shape.last_mut(), w.shape.first()) {
            *last = rows;
        }
        Ok(vec![Spec { shape, dtype: *dtype }])
    }

    fn cpu(&self, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) -> Result<()> {
        let ([x, w, scales], [out]) = (inputs, outputs) else { return Ok(()) };
        super::quantized_matmul::product_of_ternary(self.path, self.bits, [x, w, scales], out)
    }

    fn metal(&self, inputs: &[Array]) -> Option<Result<Vec<Array>>> {
        let [x, w, scales] = inputs else { return None };
        let small = [x, w].iter().all(|x| x.shape().iter().all(|&n| n < 1 << 28));
        small.then(|| metal::ternary_matmul(x, w, scales, self.bits))
    }

    fn reference(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [x, w, scales] = inputs else {
            return Err(Error::argument(NAME, format!("{} inputs", inputs.len())));
        };
        Ok(vec![reference::ternary_matmul(x, w, scales, self.bits)?])
    }
}
