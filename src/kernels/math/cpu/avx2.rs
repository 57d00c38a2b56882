//! x86 with AVX2, FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::Loop;
use super::Lanes;

pub(super) fn run<F: Loop>(f: F) -> F::Output {
    // SAFETY: this path is taken only where the CPU has AVX2, FMA and F16C.
    unsafe { run_with(f) }
}

/// As [`super::fetch`], for any CPU of x86-64.
#[inline(always)]
pub(super) fn fetch<T>(numbers: &[T]) {
    const LINE: usize = 64;
    for at in (0..size_of_val(numbers)).step_by(LINE) {
        // SAFETY: every such CPU has the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(numbers.as_ptr().cast::<i8>().wrapping_add(at)) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run_with<F: Loop>(f: F) -> F::Output {
    f.run::<Eight>()
}

/// Named by [`run`] alone, so that its methods run only where the CPU has the instructions.
#[derive(Clone, Copy)]
struct Eight(__m256);

// SAFETY (of every block below): the CPU has the instructions, as above; slices are cut to what is read or written.
impl Lanes for Eight {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..8];
        // SAFETY: eight numbers.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn load_f16(from: &[f16]) -> Self {
        let from = &from[..8];
        // SAFETY: eight numbers.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16]) -> Self {
        let from = &from[..8];
        // SAFETY: eight numbers.
        Self(unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..8];
        // SAFETY: eight numbers.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [f16]) {
        let to = &mut to[..8];
        // SAFETY: eight numbers.
        unsafe {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm_storeu_si128(to.as_mut_ptr().cast(), half);
        }
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16]) {
        let to = &mut to[..8];
        // SAFETY: eight numbers.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_add_epi32(bits, bias);
            // A NaN stays one.
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
            let kept = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
            let upper = _mm256_srli_epi32::<16>(kept);
            let packed = _mm256_packus_epi32(upper, upper);
            let packed = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn times_power(self, n: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            // In two steps: 2^128 is no number.
            let n = _mm256_cvtps_epi32(n.0);
            let half = _mm256_srai_epi32::<1>(n);
            let (bias, rest) = (_mm256_set1_epi32(127), _mm256_sub_epi32(n, half));
            let first = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
            let second = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias)));
            _mm256_mul_ps(_mm256_mul_ps(self.0, first), second)
        })
    }
    #[inline(always)]
    fn choose_below(self, bound: f32, yes: Self, no: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            let below = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, _mm256_set1_ps(bound));
            _mm256_blendv_ps(no.0, yes.0, below)
        })
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_permute_ps::<0b10_11_00_01>(self.0) })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
