//! Implementations in Rust, and the quantized matrix as they see it.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
mod portable;
mod run;

pub(super) use run::{NAME, QuantizedMatmul};

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::array::Dtype;
use crate::error::{Error, Result};
use crate::kernels::View;
use crate::kernels::path::Path;
use crate::kernels::product::Lines;
use crate::ops::{Quantization, QuantizationMode};

/// A batch of quantized matrices.
pub(super) struct Batch<'a> {
    all: Weights<'a>,
    /// How many there are.
    pub count: usize,
}

/// A quantized matrix of `n` rows and `k` columns.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Weights<'a> {
    /// Rows of codes: little-endian streams of bits.
    pub codes: &'a [u8],
    pub scales: Scales<'a>,
    /// For the affine mode.
    pub biases: Option<Scales<'a>>,
    pub how: Quantization,
    pub n: usize,
    pub k: usize,
}

/// One number for each group of each row, as stored.
#[derive(Clone, Copy)]
pub(in crate::kernels) enum Scales<'a> {
    Float32(&'a [f32]),
    Float16(&'a [f16]),
    Bfloat16(&'a [bf16]),
    /// 8-bit floats.
    Float8(&'a [u8]),
    /// Powers of two.
    Exponent(&'a [u8]),
}

impl<'a> Batch<'a> {
    pub fn new(
        w: &View<'a>,
        scales: &View<'a>,
        biases: Option<&View<'a>>,
        how: Quantization,
    ) -> Result<Self> {
        let &[ref batch @ .., n, words] = w.shape() else {
            return Err(Error::argument("quantized_matmul", format!("weights of shape {:?}", w.shape())));
        };
        let all = Weights {
            codes: bytemuck::cast_slice(w.as_slice::<u32>()?),
            scales: Scales::new(scales, how.mode)?,
            biases: biases.map(|b| Scales::new(b, how.mode)).transpose()?,
            how,
            n: n as usize,
            k: (i64::from(words) * 32 / i64::from(how.bits)) as usize,
        };
        Ok(Self { all, count: batch.iter().map(|&size| size as usize).product() })
    }

    /// Rows and columns of each.
    pub fn sizes(&self) -> [usize; 2] {
        [self.all.n, self.all.k]
    }

    pub fn matrix(&self, index: usize) -> Weights<'a> {
        let all = &self.all;
        let (bytes, groups) = (all.n * all.row_bytes(), all.n * all.groups());
        Weights {
            codes: &all.codes[index * bytes..][..bytes],
            scales: all.scales.part(index * groups, groups),
            biases: all.biases.map(|biases| biases.part(index * groups, groups)),
            ..*all
        }
    }
}

impl Lines for Matrix<'_> {
    fn read(&self, line: usize, start: usize, out: &mut [f32]) {
        match self.path {
            #[cfg(target_arch = "x86_64")]
            path if path >= Path::Avx512 && self.w.how.mode == QuantizationMode::Affine => {
                avx512::decode(&self.w, line, start, out);
            }
            #[cfg(target_arch = "x86_64")]
            path if path >= Path::Avx2 => avx2::decode(&self.w, line, start, out),
            _ => portable::decode(&self.w, line, start, out),
        }
    }

    /// Enough for a result in half precision. Floats of 4 and 8 bits times their scales are `bfloat16`.
    fn parts(&self) -> usize {
        if self.w.how.mode == QuantizationMode::Affine { 2 } else { 1 }
    }
}

/// A quantized matrix whose rows are read as numbers, and on which path.
pub(in crate::kernels) struct Matrix<'a> {
    pub w: Weights<'a>,
    pub path: Path,
}

impl Matrix<'_> {
    /// The products of `x`, `[m, k]`, with `rows`, into the first numbers of the rows of `out`, which are `stride` long. Returns
    /// whether they can be had without reading rows as numbers; not, if one is infinite or NaN, which may come of the order of its parts.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn dot(&self, rows: Range<usize>, x: &[f32], out: &mut [f32], stride: usize) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.path >= Path::Avx512 && avx512::near::suits(&self.w) {
            let count = rows.len();
            avx512::near::dot(&self.w, rows, x, out, stride);
            let mut found = out.chunks(stride).take(x.len() / self.w.k);
            return found.all(|out| out[..count].iter().all(|product| product.is_finite()));
        }
        false
    }

    /// Adds `rows` to each row of `sums`, `[m, k]`, times the first numbers of a row of `factors`, which are `stride` long. Returns
    /// whether it can without reading rows as numbers; if not, nothing is added.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn add(&self, rows: Range<usize>, factors: &[f32], stride: usize, sums: &mut [f32]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.path >= Path::Avx512 && avx512::near::suits(&self.w) {
            avx512::near::add(&self.w, rows, factors, stride, sums);
            return true;
        }
        false
    }
}

impl Weights<'_> {
    /// Scale and bias of group `index` of all rows.
    #[inline(always)]
    pub fn group(&self, index: usize) -> [f32; 2] {
        [self.scales.get(index), self.biases.map_or(0.0, |biases| biases.get(index))]
    }

    /// Groups in a row.
    pub fn groups(&self) -> usize {
        self.k / self.how.group_size as usize
    }

    /// Bytes of codes in a row.
    pub fn row_bytes(&self) -> usize {
        self.k * self.how.bits as usize / 8
    }
}

impl<'a> Scales<'a> {
    fn new(view: &View<'a>, mode: QuantizationMode) -> Result<Self> {
        Ok(match (view.dtype(), mode) {
            (Dtype::Uint8, QuantizationMode::Nvfp4) => Self::Float8(view.as_slice()?),
            (Dtype::Uint8, _) => Self::Exponent(view.as_slice()?),
            (Dtype::Float16, _) => Self::Float16(view.as_slice()?),
            (Dtype::Bfloat16, _) => Self::Bfloat16(view.as_slice()?),
            _ => Self::Float32(view.as_slice()?),
        })
    }

    #[cfg(target_arch = "x86_64")]
    pub fn len(&self) -> usize {
        match self {
            Self::Float32(s) => s.len(),
            Self::Float16(s) => s.len(),
            Self::Bfloat16(s) => s.len(),
            Self::Float8(s) | Self::Exponent(s) => s.len(),
        }
    }

    fn part(&self, start: usize, count: usize) -> Self {
        let range = start..start + count;
        match *self {
            Self::Float32(s) => Self::Float32(&s[range]),
            Self::Float16(s) => Self::Float16(&s[range]),
            Self::Bfloat16(s) => Self::Bfloat16(&s[range]),
            Self::Float8(s) => Self::Float8(&s[range]),
            Self::Exponent(s) => Self::Exponent(&s[range]),
        }
    }

    /// The number at `index`.
    #[inline(always)]
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::Float32(s) => s[index],
            Self::Float16(s) => s[index].to_f32(),
            Self::Bfloat16(s) => s[index].to_f32(),
            Self::Float8(s) => e4m3(s[index]),
            // From 2^-127 up. As in MLX, the last is infinite.
            Self::Exponent(s) => f32::from_bits((u32::from(s[index]) << 23).max(1 << 22)),
        }
    }

    /// Reads as many numbers as `out` takes, from number `start`.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Self::Float32(s) => out.copy_from_slice(&s[range]),
            Self::Float16(s) => s[range].convert_to_f32_slice(out),
            // A bfloat16 is the upper half of a float32.
            Self::Bfloat16(s) => {
                for (out, s) in out.iter_mut().zip(&s[range]) {
                    *out = f32::from_bits(u32::from(s.to_bits()) << 16);
                }
            }
            _ => out.iter_mut().zip(range).for_each(|(out, index)| *out = self.get(index)),
        }
    }
}

/// 4-bit floats: a sign, two bits of exponent, one of mantissa.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// An 8-bit float: a sign, four bits of exponent, three of mantissa. As in MLX, none is a NaN.
pub(super) fn e4m3(code: u8) -> f32 {
    // The bits have the places they have in float32, whose exponent has another bias.
    let (sign, magnitude) = (u32::from(code & 128) << 24, u32::from(code & 127) << 20);
    f32::from_bits(sign | magnitude) * f32::from_bits((127 + 120) << 23)
}
