//! Codes as the numbers that they stand for.

use std::arch::x86_64::*;

use super::{E2M1, Weights, columns_of, dot};
use crate::ops::QuantizationMode;

/// Numbers `start..start + out.len()` of row `n`; both are multiples of eight.
pub fn decode(w: &Weights<'_>, n: usize, start: usize, out: &mut [f32]) {
    let bits = w.how.bits as usize;
    let codes = &w.codes[n * w.row_bytes() + start / 8 * bits..];
    assert!(start + out.len() <= w.k && out.len().is_multiple_of(8) && codes.len() >= out.len() / 8 * bits);
    let affine = w.how.mode == QuantizationMode::Affine;
    // SAFETY: this path is taken only where the CPU has AVX2; there are codes for all of `out`.
    unsafe {
        match bits {
            1 => decode_as::<1, 0>(w, n, start, codes, out),
            2 => decode_as::<2, 0>(w, n, start, codes, out),
            3 => decode_as::<3, 0>(w, n, start, codes, out),
            4 if affine => decode_as::<4, 0>(w, n, start, codes, out),
            4 => decode_as::<4, 4>(w, n, start, codes, out),
            5 => decode_as::<5, 0>(w, n, start, codes, out),
            6 => decode_as::<6, 0>(w, n, start, codes, out),
            _ if affine => decode_as::<8, 0>(w, n, start, codes, out),
            _ => decode_as::<8, 8>(w, n, start, codes, out),
        }
    }
}

/// Codes of `BITS`, which are integers or floats of `FLOAT` bits.
///
/// # Safety
/// The CPU must have AVX2 and FMA; `codes` must hold `BITS` bytes for each eight of `out`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_as<const BITS: usize, const FLOAT: usize>(
    w: &Weights<'_>,
    n: usize,
    start: usize,
    codes: &[u8],
    out: &mut [f32],
) {
    // Each lane takes the two bytes in which its code is, and shifts it down.
    let mut spread = [-1i8; 32];
    let mut shifts = [0i32; 8];
    for (lane, shift) in shifts.iter_mut().enumerate() {
        let bit = lane * BITS;
        spread[lane * 4] = (bit / 8) as i8;
        spread[lane * 4 + 1] = if bit % 8 + BITS > 8 { (bit / 8 + 1) as i8 } else { -1 };
        *shift = (bit % 8) as i32;
    }
    let group = w.how.group_size as usize;
    // SAFETY: plain vector instructions; loads and stores stay in arrays and slices.
    unsafe {
        let spread = _mm256_loadu_si256(spread.as_ptr().cast());
        let shifts = _mm256_loadu_si256(shifts.as_ptr().cast());
        let mask = _mm256_set1_epi32((1 << BITS) - 1);
        let table = _mm256_loadu_ps(E2M1.as_ptr());
        // The first group may be there in part.
        let (first, rest) = out.split_at_mut(((group - start % group) % group).min(out.len()));
        let mut codes = codes;
        let groups = std::iter::once(first).chain(rest.chunks_mut(group)).filter(|out| !out.is_empty());
        for (index, out) in (n * w.groups() + start / group..).zip(groups) {
            let [scale, bias] = w.group(index);
            let (scale, bias) = (_mm256_set1_ps(scale), _mm256_set1_ps(bias));
            for out in out.chunks_exact_mut(8) {
                let eight = if codes.len() >= 16 {
                    _mm_loadu_si128(codes.as_ptr().cast())
                } else {
                    let mut padded = [0u8; 16];
                    padded[..codes.len()].copy_from_slice(codes);
                    _mm_loadu_si128(padded.as_ptr().cast())
                };
                codes = &codes[BITS..];
                let lanes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(eight), spread);
                let codes = _mm256_and_si256(_mm256_srlv_epi32(lanes, shifts), mask);
                let values = match FLOAT {
                    4 => {
                        let sign = _mm256_slli_epi32::<28>(_mm256_and_si256(codes, _mm256_set1_epi32(8)));
                        let magnitude = _mm256_permutevar8x32_ps(table, codes);
                        _mm256_or_ps(magnitude, _mm256_castsi256_ps(sign))
                    }
                    8 => {
                        let top = _mm256_srai_epi32::<4>(_mm256_slli_epi32::<24>(codes));
                        let bits = _mm256_and_si256(top, _mm256_set1_epi32(0x87f0_0000u32 as i32));
                        let unbias = _mm256_set1_ps(f32::from_bits((127 + 120) << 23));
                        _mm256_mul_ps(_mm256_castsi256_ps(bits), unbias)
                    }
                    _ => _mm256_cvtepi32_ps(codes),
                };
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_fmadd_ps(values, scale, bias));
            }
        }
    }
}

/// As [`super::product`], with each row of the weights decoded.
pub fn product(weights: &[Weights<'_>], x: &[&[f32]], columns: &mut [f32], grain: usize) {
    columns_of(weights, x, columns, grain, |w, first, columns| {
        let mut row = vec![0.0; w.w.k];
        for (n, sums) in columns.chunks_exact_mut(x.len()).enumerate() {
            decode(w.w, first + n, 0, &mut row);
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum = dot(x, &row));
        }
    });
}
