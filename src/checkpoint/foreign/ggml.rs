//! The block formats of ggml, which GGUF files hold.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::bits::pack;
use crate::array::{Array, Dtype};
use crate::checkpoint::transform::Spec;
use crate::error::{Error, Result};
use crate::ops;

/// A format of blocks of 32 or 256 values. The first four are MLX's affine mode in groups of 32, with
/// scales and biases in `float16`, exact; `mxfp4` is MLX's too. The others become dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(non_camel_case_types)]
#[expect(missing_docs, reason = "these are the format's names")]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q8_0,
    Q5_0,
    Q5_1,
    Mxfp4,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// A format, and the dtype of what becomes dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ggml {
    /// The format.
    pub kind: GgmlType,
    /// For matrices that MLX cannot hold packed.
    pub dtype: Dtype,
}

/// What a matrix becomes.
enum Form {
    /// Affine, groups of 32.
    Affine {
        bits: i32,
    },
    Mxfp4,
    Dense,
}

impl GgmlType {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q8_0,
        Self::Q5_0,
        Self::Q5_1,
        Self::Mxfp4,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Its number in a file.
    pub fn code(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::Mxfp4 => 39,
        }
    }

    /// Values and bytes of a block.
    pub fn block(self) -> (i32, i32) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Mxfp4 => (32, 17),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    fn form(self) -> Form {
        match self {
            Self::Q4_0 | Self::Q4_1 => Form::Affine { bits: 4 },
            Self::Q5_0 | Self::Q5_1 => Form::Affine { bits: 5 },
            Self::Q8_0 => Form::Affine { bits: 8 },
            Self::Mxfp4 => Form::Mxfp4,
            _ => Form::Dense,
        }
    }
}

impl fmt::Display for Ggml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl Ggml {
    pub(super) fn plan(&self, (shape, dtype): &Spec) -> Result<Vec<Spec>> {
        let fail = || Error::argument("decode", format!("{self} in {shape:?} {dtype}"));
        let (values, bytes) = self.kind.block();
        let Some((&row, rows)) = shape.split_last().filter(|_| *dtype == Dtype::Uint8) else {
            return Err(fail());
        };
        if row % bytes != 0 || row == 0 {
            return Err(fail());
        }
        let columns = (row / bytes).checked_mul(values).ok_or_else(fail)?;
        let with = |last: i32| [rows, &[last]].concat();
        Ok(match self.kind.form() {
            Form::Affine { bits } => {
                let scales = (with(columns / 32), Dtype::Float16);
                vec![(with(columns / 32 * bits), Dtype::Uint32), scales.clone(), scales]
            }
            Form::Mxfp4 => vec![(with(columns / 8), Dtype::Uint32), (with(columns / 32), Dtype::Uint8)],
            Form::Dense => vec![(with(columns), self.dtype)],
        })
    }

    pub(super) fn decode(&self, raw: &Array) -> Result<Vec<Array>> {
        let (values, bytes) = self.kind.block();
        let Some((&row, rows)) = raw.shape().split_last() else {
            return Err(Error::argument("decode", "a scalar holds no blocks"));
        };
        let blocks = row / bytes;
        let b = Blocks {
            raw: ops::reshape(raw, &[rows, &[blocks, bytes]].concat())?,
            batch: [rows, &[blocks]].concat(),
        };
        let with = |last: i32| [rows, &[last]].concat();
        // For a whole row: one after another what each block has.
        let flat = |a: &Array, each: i32| ops::reshape(a, &with(blocks * each));
        let packed = |codes: Array, bits: i32, scales: Array, biases: Array| {
            let weight = pack(&flat(&codes, 32)?, bits)?;
            Ok(vec![weight, flat(&scales, 1)?, flat(&biases, 1)?])
        };
        let f16 = |a: &Array, by: f32| a * by;
        let dense = |a: Array| Ok(vec![ops::astype(&flat(&a, values)?, self.dtype)?]);
        match self.kind {
            GgmlType::Q4_0 => {
                let d = b.f16(0)?;
                packed(b.nibbles(2)?, 4, d.clone(), f16(&d, -8.0)?)
            }
            GgmlType::Q4_1 => packed(b.nibbles(4)?, 4, b.f16(0)?, b.f16(2)?),
            GgmlType::Q5_0 => {
                let d = b.f16(0)?;
                packed(b.with_high_bits(b.nibbles(6)?, 2)?, 5, d.clone(), f16(&d, -16.0)?)
            }
            GgmlType::Q5_1 => packed(b.with_high_bits(b.nibbles(8)?, 4)?, 5, b.f16(0)?, b.f16(2)?),
            GgmlType::Q8_0 => {
                let (d, codes) = (b.f16(0)?, ops::bitwise_xor(&b.bytes(2, 32)?, Array::from(128u8))?);
                packed(codes, 8, d.clone(), f16(&d, -128.0)?)
            }
            GgmlType::Mxfp4 => {
                let weight = pack(&flat(&b.nibbles(1)?, 32)?, 4)?;
                Ok(vec![weight, flat(&b.bytes(0, 1)?, 1)?])
            }
            GgmlType::Q2_K => {
                let scales = b.bytes(0, 16)?;
                let (d, m) = (scaled(&low(&scales)?, &b.f16(80)?)?, scaled(&high(&scales)?, &b.f16(82)?)?);
                dense(b.grouped(&b.pairs(16)?, 16, &d, Some(&m))?)
            }
            GgmlType::Q3_K => {
                let lows = b.pairs(32)?;
                // Bit 4 n + j of byte l belongs to value 128 n + 32 j + l, and takes 4 away where it is 0.
                let highs = bits_of(&b.bytes(0, 32)?, 1, 8)?;
                let codes = (wide(&lows)? + (wide(&b.reshape(&highs, &[256])?)? - 1.0)? * 4.0)?;
                let scales = (wide(&b.scales_q3(96)?)? - 32.0)?;
                dense(b.grouped(&codes, 16, &scaled(&scales, &b.f16(108)?)?, None)?)
            }
            GgmlType::Q4_K => {
                let (scales, mins) = b.scales_and_mins(4)?;
                let (d, m) = (scaled(&scales, &b.f16(0)?)?, scaled(&mins, &b.f16(2)?)?);
                dense(b.grouped(&b.halves(16, 4)?, 32, &d, Some(&m))?)
            }
            GgmlType::Q5_K => {
                let (scales, mins) = b.scales_and_mins(4)?;
                let (d, m) = (scaled(&scales, &b.f16(0)?)?, scaled(&mins, &b.f16(2)?)?);
                // Bit g of byte l belongs to value l of group g.
                let fifth = b.reshape(&bits_of(&b.bytes(16, 32)?, 1, 8)?, &[256])?;
                let codes = ops::bitwise_or(&b.halves(48, 4)?, &ops::left_shift(&fifth, Array::from(4u8))?)?;
                dense(b.grouped(&codes, 32, &d, Some(&m))?)
            }
            GgmlType::Q6_K => {
                // Each half of 128: 64 bytes of low nibbles, 32 bytes of which each has four pairs of bits.
                let lows = b.reshape(&b.bytes(0, 128)?, &[2, 1, 64])?;
                let lows = ops::concatenate(&[low(&lows)?, high(&lows)?], -2)?;
                let highs = bits_of(&b.reshape(&b.bytes(128, 64)?, &[2, 32])?, 2, 4)?;
                let highs = ops::left_shift(&b.reshape(&highs, &[256])?, Array::from(4u8))?;
                let codes = ops::bitwise_or(&b.reshape(&lows, &[256])?, &highs)?;
                let scales = ops::view(&ops::contiguous(&b.bytes(192, 16)?, false)?, Dtype::Int8)?;
                let d = scaled(&scales, &b.f16(208)?)?;
                dense(b.grouped(&(wide(&codes)? - 32.0)?, 16, &d, None)?)
            }
        }
    }
}

/// Rows of blocks, `[..., blocks, bytes]`.
struct Blocks {
    raw: Array,
    /// `[..., blocks]`.
    batch: Vec<i32>,
}

impl Blocks {
    fn reshape(&self, a: &Array, shape: &[i32]) -> Result<Array> {
        ops::reshape(a, &[&self.batch, shape].concat())
    }

    fn bytes(&self, start: i32, length: i32) -> Result<Array> {
        let mut from = vec![0; self.batch.len()];
        from.push(start);
        ops::slice(&self.raw, &from, &[&self.batch[..], &[start + length]].concat(), &vec![1; from.len()])
    }

    /// A number of each block: `[..., blocks, 1]`.
    fn f16(&self, at: i32) -> Result<Array> {
        ops::view(&ops::contiguous(&self.bytes(at, 2)?, false)?, Dtype::Float16)
    }

    /// 32 codes: the low halves of 16 bytes, then the high ones.
    fn nibbles(&self, start: i32) -> Result<Array> {
        self.halves_of(start, 16, 1)
    }

    /// So many times 64 codes: the low halves of 32 bytes, then the high ones.
    fn halves(&self, start: i32, times: i32) -> Result<Array> {
        self.halves_of(start, 32, times)
    }

    fn halves_of(&self, start: i32, bytes: i32, times: i32) -> Result<Array> {
        let raw = self.reshape(&self.bytes(start, bytes * times)?, &[times, 1, bytes])?;
        self.reshape(&ops::concatenate(&[low(&raw)?, high(&raw)?], -2)?, &[2 * bytes * times])
    }

    /// Twice 128 codes of two bits: the lowest bits of 32 bytes, then the next.
    fn pairs(&self, start: i32) -> Result<Array> {
        let raw = self.reshape(&self.bytes(start, 64)?, &[2, 32])?;
        self.reshape(&bits_of(&raw, 2, 4)?, &[256])
    }

    /// A fifth bit for 32 codes: bit `j` of four bytes is that of code `j`.
    fn with_high_bits(&self, codes: Array, start: i32) -> Result<Array> {
        let places = Array::from_slice(&[0u8, 1, 2, 3, 4, 5, 6, 7], &[8])?;
        let bytes = self.reshape(&self.bytes(start, 4)?, &[4, 1])?;
        let bits = ops::bitwise_and(&ops::right_shift(&bytes, &places)?, Array::from(1u8))?;
        ops::bitwise_or(&codes, &ops::left_shift(&self.reshape(&bits, &[32])?, Array::from(4u8))?)
    }

    /// 8 scales and 8 minima of 6 bits in 12 bytes: the first four of each in the low bits of the first
    /// eight bytes, whose high bits complete those of which the last four bytes have four bits.
    fn scales_and_mins(&self, start: i32) -> Result<(Array, Array)> {
        let [first, second, third] = [0, 4, 8].map(|at| self.bytes(start + at, 4));
        let (first, second, third) = (first?, second?, third?);
        let six = |a: &Array| ops::bitwise_and(a, Array::from(63u8));
        let top = |a: &Array| {
            let two = ops::right_shift(a, Array::from(6u8))?;
            ops::left_shift(&two, Array::from(4u8))
        };
        let scales = ops::concatenate(&[six(&first)?, ops::bitwise_or(&low(&third)?, &top(&first)?)?], -1)?;
        let mins = ops::concatenate(&[six(&second)?, ops::bitwise_or(&high(&third)?, &top(&second)?)?], -1)?;
        Ok((scales, mins))
    }

    /// 16 scales of 6 bits in 12 bytes: the low halves of eight, then the high ones, and two bits of each
    /// of the last four bytes, lowest first.
    fn scales_q3(&self, start: i32) -> Result<Array> {
        let bytes = self.bytes(start, 8)?;
        let lows = ops::concatenate(&[low(&bytes)?, high(&bytes)?], -1)?;
        let highs = self.reshape(&bits_of(&self.bytes(start + 8, 4)?, 2, 4)?, &[16])?;
        ops::bitwise_or(&lows, &ops::left_shift(&highs, Array::from(4u8))?)
    }

    /// `code * scale - minimum` in `float32`, with groups of this size.
    fn grouped(&self, codes: &Array, size: i32, scales: &Array, mins: Option<&Array>) -> Result<Array> {
        let groups = 256 / size;
        let column = |a: &Array| self.reshape(a, &[groups, 1]);
        let product = (self.reshape(&wide(codes)?, &[groups, size])? * column(scales)?)?;
        let values = match mins {
            Some(mins) => (product - column(mins)?)?,
            None => product,
        };
        self.reshape(&values, &[256])
    }
}

fn low(a: &Array) -> Result<Array> {
    ops::bitwise_and(a, Array::from(15u8))
}

fn high(a: &Array) -> Result<Array> {
    ops::right_shift(a, Array::from(4u8))
}

fn wide(a: &Array) -> Result<Array> {
    ops::astype(a, Dtype::Float32)
}

fn scaled(a: &Array, by: &Array) -> Result<Array> {
    wide(a)? * wide(by)?
}

/// `[..., n]` bytes as `[..., count, n]` codes of these bits: the lowest of all, then the next.
fn bits_of(bytes: &Array, bits: i32, count: i32) -> Result<Array> {
    let places: Vec<u8> = (0..count).map(|i| (i * bits) as u8).collect();
    let shifted = ops::right_shift(&ops::expand_dims(bytes, -2)?, &Array::from_slice(&places, &[count, 1])?)?;
    ops::bitwise_and(&shifted, Array::from(((1u16 << bits) - 1) as u8))
}
