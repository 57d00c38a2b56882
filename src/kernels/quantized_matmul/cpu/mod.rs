//! Implementations in Rust, and the quantized matrix as they see it.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(super) mod avx2;
pub(super) mod portable;

use std::sync::LazyLock;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::array::Dtype;
use crate::error::{Error, Result};
use crate::kernels::View;
use crate::ops::{Quantization, QuantizationMode};

/// A quantized matrix of `n` rows and `k` columns.
pub(super) struct Weights<'a> {
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
pub(super) enum Scales<'a> {
    Float32(&'a [f32]),
    Float16(&'a [f16]),
    Bfloat16(&'a [bf16]),
    /// Codes of 8-bit floats, and what they stand for.
    Float8(&'a [u8], &'static [f32; 256]),
}

impl<'a> Weights<'a> {
    pub fn new(
        w: &View<'a>,
        scales: &View<'a>,
        biases: Option<&View<'a>>,
        how: Quantization,
    ) -> Result<Self> {
        let [n, words] = *w.shape() else {
            return Err(Error::argument("quantized_matmul", format!("weights of shape {:?}", w.shape())));
        };
        Ok(Self {
            codes: bytemuck::cast_slice(w.as_slice::<u32>()?),
            scales: Scales::new(scales, how.mode)?,
            biases: biases.map(|b| Scales::new(b, how.mode)).transpose()?,
            how,
            n: n as usize,
            k: words as usize * 32 / how.bits as usize,
        })
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
            (Dtype::Uint8, QuantizationMode::Nvfp4) => Self::Float8(view.as_slice()?, &E4M3),
            (Dtype::Uint8, _) => Self::Float8(view.as_slice()?, &E8M0),
            (Dtype::Float16, _) => Self::Float16(view.as_slice()?),
            (Dtype::Bfloat16, _) => Self::Bfloat16(view.as_slice()?),
            _ => Self::Float32(view.as_slice()?),
        })
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
            Self::Float8(s, table) => {
                for (out, &s) in out.iter_mut().zip(&s[range]) {
                    *out = table[usize::from(s)];
                }
            }
        }
    }
}

/// 4-bit floats: a sign, two bits of exponent, one of mantissa.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// 8-bit floats: a sign, four bits of exponent, three of mantissa. As MLX, without a NaN.
pub(super) static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|code| {
        // The bits have the places they have in float16, whose exponent has another bias.
        let magnitude = f16::from_bits((code as u16 & 127) << 7).to_f32() * 256.0;
        if code & 128 == 0 { magnitude } else { -magnitude }
    })
});

/// Powers of two, from 2^-127 up. As MLX, the last is infinite.
pub(super) static E8M0: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|code| f32::from_bits(((code as u32) << 23).max(1 << 22))));
