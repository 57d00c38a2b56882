//! Affine codes as the numbers that they stand for.

use std::arch::x86_64::*;

use super::super::Weights;
use super::bytes::in_order;

/// Numbers `start..start + out.len()` of row `n`; both are multiples of eight.
pub fn decode(w: &Weights<'_>, n: usize, start: usize, out: &mut [f32]) {
    let bits = w.how.bits as usize;
    let codes = &w.codes[n * w.row_bytes() + start / 8 * bits..];
    assert!(start + out.len() <= w.k && out.len().is_multiple_of(8) && codes.len() >= out.len() / 8 * bits);
    // SAFETY: this path is taken only where the CPU has the instructions; there are codes for all of `out`.
    unsafe {
        match bits {
            1 => decode_as::<1>(w, n, start, codes, out),
            2 => decode_as::<2>(w, n, start, codes, out),
            3 => decode_as::<3>(w, n, start, codes, out),
            4 => decode_as::<4>(w, n, start, codes, out),
            5 => decode_as::<5>(w, n, start, codes, out),
            6 => decode_as::<6>(w, n, start, codes, out),
            _ => decode_as::<8>(w, n, start, codes, out),
        }
    }
}

/// Codes of `BITS`, in groups of a power of two.
///
/// # Safety
/// The CPU must have the features of this path; `codes` must hold `BITS` bytes for each eight of `out`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn decode_as<const BITS: usize>(
    w: &Weights<'_>,
    n: usize,
    start: usize,
    codes: &[u8],
    out: &mut [f32],
) {
    let group = w.how.group_size as usize;
    let (first, shift) = (n * w.groups(), group.trailing_zeros());
    let mut done = 0;
    while done < out.len() {
        let at = start + done;
        // No more than are left of a group.
        let count = (group - (at & (group - 1))).min(64).min(out.len() - done);
        let index = first + (at >> shift);
        let [scale, bias] = w.group(index);
        // SAFETY: the masks keep to the codes and the numbers that are there.
        unsafe {
            let (scale, bias) = (_mm512_set1_ps(scale), _mm512_set1_ps(bias));
            let mask = u64::MAX >> (64 - count / 8 * BITS);
            let codes = codes.as_ptr().add(done / 8 * BITS);
            let bytes = in_order::<BITS>(_mm512_maskz_loadu_epi8(mask, codes.cast()));
            let quarters = [
                _mm512_castsi512_si128(bytes),
                _mm512_extracti32x4_epi32::<1>(bytes),
                _mm512_extracti32x4_epi32::<2>(bytes),
                _mm512_extracti32x4_epi32::<3>(bytes),
            ];
            for (i, quarter) in quarters.into_iter().enumerate() {
                let values = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(quarter));
                let values = _mm512_fmadd_ps(values, scale, bias);
                let out = out.as_mut_ptr().wrapping_add(done + 16 * i);
                if count == 64 {
                    _mm512_storeu_ps(out, values);
                } else {
                    let left = count.saturating_sub(16 * i).min(16);
                    _mm512_mask_storeu_ps(out, ((1u32 << left) - 1) as u16, values);
                }
            }
        }
        done += count;
    }
}
