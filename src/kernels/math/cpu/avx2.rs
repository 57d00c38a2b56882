//! x86 with AVX2, FMA and F16C.

use std::arch::x86_64::*;

/// As [`super::super::exp_sum`].
pub fn exp_sum(values: &mut [f32], max: f32) -> f32 {
    // SAFETY: this path is taken only where the CPU has AVX2 and FMA.
    unsafe { exp_sum_of(values, max) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn exp_sum_of(values: &mut [f32], max: f32) -> f32 {
    let max = _mm256_set1_ps(max);
    let mut sums = _mm256_setzero_ps();
    let mut chunks = values.chunks_exact_mut(8);
    for chunk in &mut chunks {
        // SAFETY: eight numbers.
        unsafe {
            let e = exp(_mm256_sub_ps(_mm256_loadu_ps(chunk.as_ptr()), max));
            _mm256_storeu_ps(chunk.as_mut_ptr(), e);
            sums = _mm256_add_ps(sums, e);
        }
    }
    let mut lanes = [0.0f32; 8];
    // SAFETY: eight numbers.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
    let rest = chunks.into_remainder();
    let mut padded = [0.0f32; 8];
    padded[..rest.len()].copy_from_slice(rest);
    // SAFETY: eight numbers.
    unsafe {
        let e = exp(_mm256_sub_ps(_mm256_loadu_ps(padded.as_ptr()), max));
        _mm256_storeu_ps(padded.as_mut_ptr(), e);
    }
    for ((value, e), lane) in rest.iter_mut().zip(padded).zip(&mut lanes) {
        *value = e;
        *lane += e;
    }
    lanes.iter().sum()
}

/// `exp(x)` to about one unit in the last place; subnormal results are zero.
///
/// `x = n ln 2 + r`, and a polynomial in `r` (Cody and Waite, "Software Manual for the Elementary Functions",
/// 1980; the coefficients are those of the series, to degree 7).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn exp(x: __m256) -> __m256 {
    // Where the result overflows and where it is below the normal numbers.
    let (most, least) = (_mm256_set1_ps(88.72284), _mm256_set1_ps(-87.33655));
    let clamped = _mm256_min_ps(_mm256_max_ps(x, least), most);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        clamped,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    // ln 2 in two parts, the first of few bits.
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), clamped);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm256_set1_ps(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    // In two steps: 2^128 is no number.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
    let y = _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(n, half)));
    let y = _mm256_blendv_ps(y, _mm256_setzero_ps(), _mm256_cmp_ps::<_CMP_LT_OQ>(x, least));
    let y = _mm256_blendv_ps(y, _mm256_set1_ps(f32::INFINITY), _mm256_cmp_ps::<_CMP_GT_OQ>(x, most));
    _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x))
}

/// As [`super::super::silu_times`].
pub fn silu_times(gate: &mut [f32], x: &[f32]) {
    // SAFETY: this path is taken only where the CPU has AVX2 and FMA.
    unsafe { silu_times_of(gate, x) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn silu_times_of(gate: &mut [f32], x: &[f32]) {
    for (gate, x) in gate.chunks_mut(8).zip(x.chunks(8)) {
        let (mut g, mut u) = ([0.0f32; 8], [0.0f32; 8]);
        g[..gate.len()].copy_from_slice(gate);
        u[..x.len()].copy_from_slice(x);
        // SAFETY: eight numbers each.
        unsafe {
            let wide = _mm256_loadu_ps(g.as_ptr());
            let e = exp(_mm256_sub_ps(_mm256_setzero_ps(), wide));
            let silu = _mm256_div_ps(wide, _mm256_add_ps(_mm256_set1_ps(1.0), e));
            _mm256_storeu_ps(g.as_mut_ptr(), _mm256_mul_ps(silu, _mm256_loadu_ps(u.as_ptr())));
        }
        gate.copy_from_slice(&g[..gate.len()]);
    }
}
