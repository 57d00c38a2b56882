//! Codes of a few bits, packed one after another from the lowest bit of a byte on, as MLX, GPTQ and
//! compressed-tensors have them.

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops;

const OP: &str = "unpack";

/// The codes in rows of words or bytes, which must hold a whole number of them: `uint8`.
pub(super) fn unpack(packed: &Array, bits: i32) -> Result<Array> {
    let bytes = ops::view(packed, Dtype::Uint8)?;
    let Some((&length, rows)) = bytes.shape().split_last() else {
        return Err(Error::argument(OP, "a scalar holds no rows of codes"));
    };
    // So many codes end where a unit of bytes ends.
    let (unit, codes) = match bits {
        2 | 4 => (1, 8 / bits),
        3 | 5 | 6 => (bits, 8),
        8 => return Ok(bytes),
        _ => return Err(Error::argument(OP, format!("codes of {bits} bits"))),
    };
    if length % unit != 0 {
        return Err(Error::argument(OP, format!("{length} bytes of codes of {bits} bits")));
    }
    let mut shape = [rows, &[length / unit, unit]].concat();
    let wide = match unit {
        1 => ops::reshape(&bytes, &shape)?,
        _ => {
            let places = Array::from_slice(&(0..unit as u64).map(|i| 8 * i).collect::<Vec<_>>(), &[unit])?;
            let wide = ops::astype(&ops::reshape(&bytes, &shape)?, Dtype::Uint64)?;
            ops::sum(&ops::left_shift(&wide, &places)?, -1, true)?
        }
    };
    let places: Vec<u64> = (0..codes as u64).map(|i| bits as u64 * i).collect();
    let places = ops::astype(&Array::from_slice(&places, &[codes])?, wide.dtype())?;
    let mask = ops::astype(&Array::from((1u32 << bits) - 1), wide.dtype())?;
    let codes_of = ops::bitwise_and(&ops::right_shift(&wide, &places)?, &mask)?;
    shape.truncate(rows.len());
    shape.push(length / unit * codes);
    ops::reshape(&ops::astype(&codes_of, Dtype::Uint8)?, &shape)
}

/// Rows of codes, `uint8`, as words: `[..., n]` to `[..., n * bits / 32]`. `n * bits` must be a multiple
/// of 32.
pub(super) fn pack(codes: &Array, bits: i32) -> Result<Array> {
    let Some((&count, rows)) = codes.shape().split_last() else {
        return Err(Error::argument("pack", "a scalar is no row of codes"));
    };
    let (group, unit, dtype) = match bits {
        2 | 4 => (8 / bits, 1, Dtype::Uint8),
        3 | 5 | 6 => (8, bits, Dtype::Uint64),
        8 => return ops::view(&ops::contiguous(codes, false)?, Dtype::Uint32),
        _ => return Err(Error::argument("pack", format!("codes of {bits} bits"))),
    };
    if count % group != 0 || i64::from(count) * i64::from(bits) % 32 != 0 {
        return Err(Error::argument("pack", format!("{count} codes of {bits} bits do not fill words")));
    }
    let places: Vec<u64> = (0..group as u64).map(|i| bits as u64 * i).collect();
    let places = ops::astype(&Array::from_slice(&places, &[group])?, dtype)?;
    let groups = ops::reshape(&ops::astype(codes, dtype)?, &[rows, &[count / group, group]].concat())?;
    // Sums of bytes are wider than bytes.
    let wide = ops::astype(&ops::sum(&ops::left_shift(&groups, &places)?, -1, true)?, dtype)?;
    let mut bytes = ops::view(&ops::contiguous(&wide, false)?, Dtype::Uint8)?;
    if unit > 1 {
        let shape = bytes.shape().to_vec();
        let stop: Vec<i32> = [&shape[..shape.len() - 1], &[unit]].concat();
        bytes = ops::slice(&bytes, &vec![0; stop.len()], &stop, &vec![1; stop.len()])?;
    }
    let bytes = ops::reshape(&bytes, &[rows, &[count / group * unit]].concat())?;
    ops::view(&ops::contiguous(&bytes, false)?, Dtype::Uint32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code `i` is at bit `i * bits` of the row.
    #[test]
    fn codes_lie_one_after_another() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let codes: Vec<u8> =
                (0..96u32).map(|i| (i * 37 % 251) as u8 & ((1u16 << bits) - 1) as u8).collect();
            let packed = pack(&Array::from_slice(&codes, &[3, 32]).unwrap(), bits).unwrap();
            assert_eq!(packed.shape(), [3, bits]);
            let words: Vec<u32> = packed.to_vec().unwrap();
            for (i, &code) in codes.iter().enumerate() {
                let bit = |b: i32| {
                    let at = (i as i32 % 32) * bits + b;
                    words[i / 32 * bits as usize + at as usize / 32] >> (at % 32) & 1
                };
                assert_eq!((0..bits).map(|b| bit(b) << b).sum::<u32>(), u32::from(code), "{bits} bits, {i}");
            }
            assert_eq!(unpack(&packed, bits).unwrap().to_vec::<u8>().unwrap(), codes);
        }
    }

    #[test]
    fn rows_that_do_not_come_out_even_are_refused() {
        let row = |n: usize| Array::from_slice(&vec![1u8; n], &[n as i32]).unwrap();
        assert!(pack(&row(12), 4).is_err() && pack(&row(30), 3).is_err() && pack(&row(32), 7).is_err());
        assert!(unpack(&row(4), 3).is_err() && unpack(&row(4), 1).is_err());
        assert!(unpack(&Array::from(1u32), 4).is_err());
    }
}
