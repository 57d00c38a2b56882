//! How other programs store a quantized matrix, and what it is in MLX.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::bits::{pack, unpack};
use super::ggml::Ggml;
use super::transposed;
use crate::array::{Array, Dtype};
use crate::checkpoint::transform::Spec;
use crate::error::{Error, Result};
use crate::ops::{self, QuantizationMode};

pub(super) const OP: &str = "decode";

/// A format in which other programs store a quantized matrix. What comes out is MLX's: packed codes,
/// scales and biases (of the affine mode), codes and scales (of the others), or one dense matrix.
///
/// Codes stay as they are wherever MLX has their groups: a group that is a multiple of 32, 64 or 128
/// becomes several. Elsewhere the matrix becomes dense, in the dtype of the scales. Biases are
/// `-zero * scale`, rounded to the dtype of the scales, as mlx-lm has them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Encoding {
    /// AutoAWQ's GEMM layout, 4 bits. Parts: codes `[in, out / 8]`, each word in the order 0, 2, 4, 6, 1,
    /// 3, 5, 7; scales `[groups, out]`; optionally zeros `[groups, out / 8]`, else 8.
    Awq,
    /// GPTQ. Parts: codes `[in * bits / 32, out]`, scales `[groups, out]`; optionally zeros
    /// `[groups, out * bits / 32]`, else the middle; optionally the group of each column, `[in]`, which
    /// makes the matrix dense: MLX's groups are columns one after another.
    Gptq {
        /// Bits per code.
        bits: i32,
        /// What is to be added to the stored zeros: 1 in the first version of the format.
        zero_offset: u8,
    },
    /// Integers packed along the columns by compressed-tensors. Parts: codes `[out, in * bits / 32]`,
    /// scales `[out, groups]`; optionally zeros, `[out * bits / 32, groups]`, else the middle; optionally
    /// the group of each column, as for GPTQ.
    PackedInt {
        /// Bits per code.
        bits: i32,
    },
    /// Signed bytes `[out, in]` and scales, `[out, groups]` or one.
    Int8,
    /// 8-bit floats (e4m3). Parts: the matrix `[..., out, in]`; scales: a number, or what broadcasts to the
    /// matrix, or one for each block. Dense `bfloat16`, but `mxfp8` where the scales are powers of two
    /// (e8m0) for groups of 32.
    Fp8 {
        /// Rows and columns of a block.
        block: [i32; 2],
    },
    /// 4-bit floats (e2m1), two in a byte. Parts: codes `[..., out, in / 2]`, bytes; scales, e8m0 for
    /// each 32 (`mxfp4`) or e4m3 for each 16 (`nvfp4`); optionally a scale of the whole, which makes it
    /// dense `bfloat16`.
    Fp4 {
        /// Whether the scale of the whole divides.
        divided: bool,
    },
    /// BitNet's -1, 0 and 1, four in a byte. Parts: codes `[out / 4, in]`, `uint8`, of which the lowest
    /// bits are the first quarter of the rows; one scale. Becomes 2-bit affine codes.
    Ternary {
        /// Whether the scale divides.
        divided: bool,
    },
    /// MLX's own affine matrices, of so many columns, which the model has transposed. Parts: codes, scales,
    /// biases.
    Transposed {
        /// Columns.
        columns: i32,
    },
    /// A tensor of a GGUF file: rows of bytes, `[..., bytes]`.
    Ggml(Ggml),
}

/// Where codes, scales and zeros of an affine matrix are.
struct Affine {
    rows: i32,
    columns: i32,
    groups: i32,
    bits: i32,
    /// The dtype of the scales.
    dtype: Dtype,
    /// Whether each column names its group.
    ordered: bool,
}

impl Affine {
    /// MLX's groups, if it has any that fit.
    fn group_size(&self) -> Option<i32> {
        let size = self.columns / self.groups;
        [128, 64, 32].into_iter().find(|group| size % group == 0 && !self.ordered)
    }

    fn specs(&self) -> Vec<Spec> {
        match self.group_size() {
            Some(size) => {
                let scales = (vec![self.rows, self.columns / size], self.dtype);
                let words = self.columns / 32 * self.bits;
                vec![(vec![self.rows, words], Dtype::Uint32), scales.clone(), scales]
            }
            None => vec![(vec![self.rows, self.columns], self.dtype)],
        }
    }

    /// Packs what `specs` promises. `packed` is `[rows, words]`, `scales` and `zeros` `[rows, groups]`.
    fn arrays(
        &self,
        packed: Array,
        scales: &Array,
        zeros: &Array,
        order: Option<&Array>,
    ) -> Result<Vec<Array>> {
        let wide = |a: &Array| ops::astype(a, Dtype::Float32);
        let Some(size) = self.group_size() else {
            let codes = wide(&unpack(&packed, self.bits)?)?;
            let spread = |a: &Array| match order {
                Some(order) => ops::take(&wide(a)?, order, -1),
                None => ops::repeat(&wide(a)?, self.columns / self.groups, -1),
            };
            let dense = ((codes - spread(zeros)?)? * spread(scales)?)?;
            return Ok(vec![ops::astype(&dense, self.dtype)?]);
        };
        let biases = ops::astype(&ops::negative(&(wide(zeros)? * wide(scales)?)?)?, self.dtype)?;
        let times = self.columns / self.groups / size;
        let spread = |a: &Array| ops::contiguous(&ops::repeat(a, times, -1)?, false);
        Ok(vec![packed, spread(scales)?, spread(&biases)?])
    }
}

impl Encoding {
    /// Shapes and dtypes of what comes out of these parts.
    pub(in crate::checkpoint) fn plan(&self, parts: &[Spec]) -> Result<Vec<Spec>> {
        if let Some((shape, _)) = parts.iter().find(|(shape, _)| shape.contains(&0)) {
            return Err(Error::argument(OP, format!("an empty part, {shape:?}")));
        }
        match self {
            Self::Awq | Self::Gptq { .. } | Self::PackedInt { .. } | Self::Int8 | Self::Ternary { .. } => {
                Ok(self.affine(parts)?.specs())
            }
            Self::Fp8 { block } => Ok(match fp8(parts, *block)? {
                Fp8::Mx => {
                    let over = |n: i32| {
                        let mut shape = parts[0].0.clone();
                        shape.iter_mut().next_back().into_iter().for_each(|last| *last /= n);
                        shape
                    };
                    vec![(over(4), Dtype::Uint32), (over(32), Dtype::Uint8)]
                }
                Fp8::Spread | Fp8::Blocks => vec![(parts[0].0.clone(), Dtype::Bfloat16)],
            }),
            Self::Fp4 { .. } => {
                let (mut shape, last) = (parts[0].0.clone(), parts[0].0.len().wrapping_sub(1));
                fp4(parts)?;
                if parts.len() > 2 {
                    shape[last] *= 2;
                    return Ok(vec![(shape, Dtype::Bfloat16)]);
                }
                shape[last] /= 4;
                Ok(vec![(shape, Dtype::Uint32), parts[1].clone()])
            }
            Self::Transposed { columns } => transposed::plan(parts, *columns),
            Self::Ggml(kind) => kind.plan(&parts[0]),
        }
    }

    /// What `plan` promises, lazy.
    pub(in crate::checkpoint) fn decode(&self, parts: &[Array]) -> Result<Vec<Array>> {
        let specs: Vec<Spec> = parts.iter().map(|part| (part.shape().to_vec(), part.dtype())).collect();
        let transposed = |a: &Array| ops::contiguous(&ops::swapaxes(a, 0, 1)?, false);
        let words = |a: &Array| ops::view(a, Dtype::Uint32);
        match self {
            Self::Fp8 { block } => return decode_fp8(&parts[1], &parts[0], *block, fp8(&specs, *block)?),
            Self::Fp4 { divided } => return decode_fp4(parts, &specs, *divided),
            Self::Transposed { columns } => return transposed::decode(parts, *columns),
            Self::Ggml(kind) => return kind.decode(&parts[0]),
            _ => {}
        }
        let affine = self.affine(&specs)?;
        let order = parts.get(2..).and_then(|rest| rest.iter().find(|part| part.ndim() == 1));
        let zeros = parts.get(2).filter(|part| part.ndim() == 2);
        let middle = || ops::full(&[affine.rows, affine.groups], 1 << (affine.bits - 1), Dtype::Uint8);
        match self {
            Self::Awq => {
                // The nibbles of a word, and where column 0, 1, ... of it is.
                let order = Array::from_slice(&[0, 4, 1, 5, 2, 6, 3, 7], &[8])?;
                let unpack = |a: &Array| {
                    let (rows, columns) = (a.dim(0)?, a.dim(1)?);
                    let nibbles = ops::reshape(&unpack(a, 4)?, &[rows, columns, 8])?;
                    let codes = ops::take(&nibbles, &order, -1)?;
                    transposed(&ops::reshape(&codes, &[rows, columns * 8])?)
                };
                let zeros = zeros.map_or_else(middle, unpack)?;
                affine.arrays(pack(&unpack(&parts[0])?, 4)?, &transposed(&parts[1])?, &zeros, None)
            }
            Self::Gptq { zero_offset, .. } => {
                let zeros = match zeros {
                    None => middle()?,
                    Some(zeros) => {
                        let stored = transposed(&unpack(&words(zeros)?, affine.bits)?)?;
                        let mask = ((1u16 << affine.bits) - 1) as u8;
                        ops::bitwise_and(&(stored + Array::from(*zero_offset))?, Array::from(mask))?
                    }
                };
                affine.arrays(words(&transposed(&parts[0])?)?, &transposed(&parts[1])?, &zeros, order)
            }
            Self::PackedInt { .. } => {
                let zeros = match zeros {
                    None => middle()?,
                    Some(zeros) => transposed(&unpack(&words(&transposed(zeros)?)?, affine.bits)?)?,
                };
                affine.arrays(words(&parts[0])?, &parts[1], &zeros, order)
            }
            Self::Int8 => {
                // 128 more as a byte: the highest bit turned.
                let bytes = ops::bitwise_xor(&ops::view(&parts[0], Dtype::Uint8)?, Array::from(128u8))?;
                let shape = [affine.rows, affine.groups];
                let scales = ops::broadcast_to(&as_column(&parts[1])?, &shape)?;
                affine.arrays(pack(&bytes, 8)?, &scales, &middle()?, None)
            }
            Self::Ternary { divided } => {
                let quarters: Result<Vec<Array>> = (0..4u8)
                    .map(|i| {
                        ops::bitwise_and(&ops::right_shift(&parts[0], Array::from(2 * i))?, Array::from(3u8))
                    })
                    .collect();
                let codes = ops::concatenate(&quarters?, 0)?;
                let scale = ops::astype(&ops::reshape(&parts[1], &[1, 1])?, Dtype::Float32)?;
                let scale = if *divided { ops::reciprocal(&scale)? } else { scale };
                let scales = ops::broadcast_to(&ops::astype(&scale, affine.dtype)?, &[affine.rows, 1])?;
                affine.arrays(
                    pack(&codes, 2)?,
                    &scales,
                    &ops::full(&[affine.rows, 1], 1, Dtype::Uint8)?,
                    None,
                )
            }
            Self::Fp8 { .. } | Self::Fp4 { .. } | Self::Transposed { .. } | Self::Ggml(_) => {
                unreachable!("decoded above")
            }
        }
    }

    /// The sizes of an affine matrix, which must agree among its parts.
    fn affine(&self, parts: &[Spec]) -> Result<Affine> {
        let fail = || {
            let parts: Vec<String> =
                parts.iter().map(|(shape, dtype)| format!("{shape:?} {dtype}")).collect();
            Error::argument(OP, format!("{self} does not have parts {}", parts.join(", ")))
        };
        let [(codes, codes_dtype), (scales, dtype), more @ ..] = parts else { return Err(fail()) };
        let &[first, second] = codes.as_slice() else { return Err(fail()) };
        let wide = matches!(codes_dtype, Dtype::Int32 | Dtype::Uint32);
        let times = |a: i32, by: i32, over: i32| {
            let product = i64::from(a) * i64::from(by);
            i32::try_from(product / i64::from(over)).ok().filter(|_| product % i64::from(over) == 0)
        };
        let (bits, rows, columns, fits) = match self {
            Self::Awq => (4, times(second, 8, 1), Some(first), wide),
            Self::Gptq { bits, .. } => (*bits, Some(second), times(first, 32, *bits), wide),
            Self::PackedInt { bits } => (*bits, Some(first), times(second, 32, *bits), wide),
            Self::Int8 => (8, Some(first), Some(second), *codes_dtype == Dtype::Int8),
            _ => (2, times(first, 4, 1), Some(second), *codes_dtype == Dtype::Uint8),
        };
        let (Some(rows), Some(columns)) = (rows, columns) else { return Err(fail()) };
        let groups = match (self, scales.as_slice()) {
            (Self::Awq | Self::Gptq { .. }, &[groups, out]) if out == rows => groups,
            (Self::PackedInt { .. } | Self::Int8, &[out, groups]) if out == rows => groups,
            (Self::PackedInt { .. } | Self::Int8, &[out]) if out == rows => 1,
            (Self::Int8 | Self::Ternary { .. }, shape) if shape.iter().all(|&n| n == 1) => 1,
            _ => return Err(fail()),
        };
        let mut ordered = false;
        for (shape, part) in more {
            let packed = times(rows, bits, 32);
            let ok = match (self, shape.as_slice()) {
                (Self::Awq | Self::Gptq { .. }, &[g, out]) => g == groups && Some(out) == packed,
                (Self::PackedInt { .. }, &[out, g]) => g == groups && Some(out) == packed,
                (Self::Gptq { .. } | Self::PackedInt { .. }, &[n]) => {
                    ordered = true;
                    n == columns
                }
                _ => false,
            };
            if !ok || !matches!(part, Dtype::Int32 | Dtype::Uint32) {
                return Err(fail());
            }
        }
        let whole = groups > 0 && columns % groups == 0 && columns % 32 == 0;
        if !fits || !whole && !ordered || !dtype.is_floating() || columns % 32 != 0 {
            return Err(fail());
        }
        Ok(Affine { rows, columns, groups, bits, dtype: *dtype, ordered })
    }
}

/// How the scales of 8-bit floats belong to them.
enum Fp8 {
    Mx,
    Spread,
    Blocks,
}

fn fp8(parts: &[Spec], [block_rows, block_columns]: [i32; 2]) -> Result<Fp8> {
    let [(matrix, dtype), (scales, scale_dtype)] = parts else {
        return Err(Error::argument(OP, "8-bit floats have scales and a matrix"));
    };
    if *dtype != Dtype::Uint8 {
        return Err(Error::Dtype { op: OP, expected: Dtype::Uint8, found: *dtype });
    }
    let exponents = *scale_dtype == Dtype::Uint8;
    if !exponents && !scale_dtype.is_floating() {
        return Err(Error::argument(OP, format!("scales of dtype {scale_dtype}")));
    }
    if let ([rest @ .., rows, groups], [batch @ .., m, n]) = (scales.as_slice(), matrix.as_slice())
        && rest == batch
    {
        if exponents && n % 32 == 0 && *groups == n / 32 && (rows == m || *rows == (m - 1) / 32 + 1) {
            return Ok(Fp8::Mx);
        }
        let covers = |blocks: i32, size: i32, block: i32| block > 0 && blocks == (size - 1) / block + 1;
        if covers(*rows, *m, block_rows) && covers(*groups, *n, block_columns) {
            return Ok(Fp8::Blocks);
        }
    }
    let aligned = matrix.iter().rev().zip(scales.iter().rev());
    if scales.len() <= matrix.len() && aligned.into_iter().all(|(size, scale)| *scale == 1 || scale == size) {
        return Ok(Fp8::Spread);
    }
    Err(Error::Shape { op: OP, lhs: matrix.clone(), rhs: scales.clone() })
}

fn decode_fp8(scales: &Array, matrix: &Array, block: [i32; 2], how: Fp8) -> Result<Vec<Array>> {
    let shape = matrix.shape();
    if let Fp8::Mx = how {
        let m = shape[shape.len() - 2];
        let mut rows = scales.clone();
        if scales.shape()[scales.ndim() - 2] != m {
            let mut stop = scales.shape().to_vec();
            stop[scales.ndim() - 2] = m;
            let repeated = ops::repeat(scales, 32, -2)?;
            rows = ops::slice(&repeated, &vec![0; stop.len()], &stop, &vec![1; stop.len()])?;
        }
        return Ok(vec![ops::view(matrix, Dtype::Uint32)?, ops::contiguous(&rows, false)?]);
    }
    let scales = match scales.dtype() {
        Dtype::Uint8 => ops::power(2.0, &(ops::astype(scales, Dtype::Float32)? - 127.0)?)?,
        _ => ops::astype(scales, Dtype::Float32)?,
    };
    let values = ops::from_fp8(matrix, Dtype::Float32)?;
    let product = match how {
        Fp8::Blocks => {
            let (batch, [m, n]) =
                (&shape[..shape.len() - 2], [shape[shape.len() - 2], shape[shape.len() - 1]]);
            let [blocks_m, blocks_n] = [(m - 1) / block[0] + 1, (n - 1) / block[1] + 1];
            let mut widths = vec![(0, 0); shape.len()];
            widths[batch.len()].1 = blocks_m * block[0] - m;
            widths[batch.len() + 1].1 = blocks_n * block[1] - n;
            let padded = ops::pad(&values, &widths, ops::PadMode::Constant, 0.0)?;
            let tiles = ops::reshape(&padded, &[batch, &[blocks_m, block[0], blocks_n, block[1]]].concat())?;
            let scales = ops::reshape(&scales, &[batch, &[blocks_m, 1, blocks_n, 1]].concat())?;
            let padded = ops::reshape(&(tiles * scales)?, padded.shape())?;
            ops::slice(&padded, &vec![0; shape.len()], shape, &vec![1; shape.len()])?
        }
        _ => (values * scales)?,
    };
    Ok(vec![ops::astype(&product, Dtype::Bfloat16)?])
}

/// The mode of 4-bit floats with these scales.
fn fp4(parts: &[Spec]) -> Result<QuantizationMode> {
    let [(codes, Dtype::Uint8 | Dtype::Int8), (scales, Dtype::Uint8), rest @ ..] = parts else {
        return Err(Error::argument(OP, "4-bit floats have codes and scales of one byte"));
    };
    if let ([rows @ .., bytes], [scale_rows @ .., groups]) = (codes.as_slice(), scales.as_slice())
        && rows == scale_rows
        && !rows.is_empty()
        && rest.iter().all(|(shape, dtype)| shape.iter().all(|&n| n == 1) && dtype.is_floating())
        && bytes % groups == 0
        && bytes % 4 == 0
    {
        match bytes / groups {
            16 => return Ok(QuantizationMode::Mxfp4),
            8 => return Ok(QuantizationMode::Nvfp4),
            _ => {}
        }
    }
    Err(Error::Shape { op: OP, lhs: codes.clone(), rhs: scales.clone() })
}

fn decode_fp4(parts: &[Array], specs: &[Spec], divided: bool) -> Result<Vec<Array>> {
    let mode = fp4(specs)?;
    let (words, scales) = (ops::view(&parts[0], Dtype::Uint32)?, parts[1].clone());
    let Some(whole) = parts.get(2) else { return Ok(vec![words, scales]) };
    let values = ops::dequantize(&words, &scales, None, mode.into(), None, Some(Dtype::Float32))?;
    let whole = ops::reshape(&ops::astype(whole, Dtype::Float32)?, &[])?;
    let dense = if divided { values / whole } else { values * whole };
    Ok(vec![ops::astype(&dense?, Dtype::Bfloat16)?])
}

/// Scales for each row, as `[rows, 1]` where they are `[rows]`.
fn as_column(scales: &Array) -> Result<Array> {
    if scales.ndim() == 1 { ops::expand_dims(scales, 1) } else { Ok(scales.clone()) }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Awq => write!(f, "AWQ"),
            Self::Gptq { bits, .. } => write!(f, "GPTQ of {bits} bits"),
            Self::PackedInt { bits } => write!(f, "packed integers of {bits} bits"),
            Self::Int8 => write!(f, "8-bit integers"),
            Self::Fp8 { .. } => write!(f, "8-bit floats"),
            Self::Fp4 { .. } => write!(f, "4-bit floats"),
            Self::Ternary { .. } => write!(f, "ternary codes"),
            Self::Transposed { .. } => write!(f, "transposed affine codes"),
            Self::Ggml(kind) => write!(f, "{kind}"),
        }
    }
}
