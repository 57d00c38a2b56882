//! x86 with AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::Loop;
use super::Lanes;

pub(super) fn run<F: Loop>(f: F) -> F::Output {
    // SAFETY: this path is taken only where the CPU has these instructions.
    unsafe { run_with(f) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_with<F: Loop>(f: F) -> F::Output {
    f.run::<Sixteen>()
}

/// Named by [`run`] alone, so that its methods run only where the CPU has the instructions.
#[derive(Clone, Copy)]
struct Sixteen(__m512);

// SAFETY (of every block below): the CPU has the instructions, as above; slices are cut to what is read or written.
impl Lanes for Sixteen {
    const WIDTH: usize = 16;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..16];
        // SAFETY: sixteen numbers.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn load_f16(from: &[f16]) -> Self {
        let from = &from[..16];
        // SAFETY: sixteen numbers.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16]) -> Self {
        let from = &from[..16];
        // SAFETY: sixteen numbers.
        Self(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..16];
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [f16]) {
        let to = &mut to[..16];
        // SAFETY: sixteen numbers.
        unsafe {
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), half);
        }
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16]) {
        let to = &mut to[..16];
        // SAFETY: sixteen numbers.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, bias);
            // A NaN stays one.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), upper);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn times_power(self, n: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }
    #[inline(always)]
    fn choose_below(self, bound: f32, yes: Self, no: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, _mm512_set1_ps(bound));
            _mm512_mask_blend_ps(below, no.0, yes.0)
        })
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_permute_ps::<0b10_11_00_01>(self.0) })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    fn sum_eight(all: [Self; 8]) -> [f32; 8] {
        let mut sums = [0.0; 8];
        // SAFETY: as above; eight numbers.
        unsafe {
            // Of every four lanes the sums of all that four vectors have there.
            let mut fours = [_mm512_setzero_ps(); 2];
            for (four, all) in fours.iter_mut().zip(all.as_chunks::<4>().0) {
                let [a, b, c, d] = all;
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                *four = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            }
            let [first, second] = fours;
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(first, second);
            let halves = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(first, second));
            let whole = _mm512_add_ps(halves, _mm512_shuffle_f32x4::<0b10_11_00_01>(halves, halves));
            let whole = _mm512_shuffle_f32x4::<0b00_00_10_00>(whole, whole);
            _mm256_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps256(whole));
        }
        sums
    }
}
