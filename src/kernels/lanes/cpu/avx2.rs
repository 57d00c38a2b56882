//! x86 with AVX2, FMA and F16C.

use std::arch::x86_64::*;

use crate::kernels::lanes::{Lane, Simd, Task};
use crate::kernels::math;

/// Made where the CPU has the instructions, and nowhere else.
#[derive(Clone, Copy)]
pub(in crate::kernels::lanes) struct Avx2(());

/// Does `task`. This path is taken only where the CPU has AVX2, FMA and F16C.
pub(in crate::kernels::lanes) fn run<T: Task>(task: T) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn run_of<T: Task>(task: T) {
        task.run(Avx2(()));
    }
    // SAFETY: as above.
    unsafe { run_of(task) }
}

impl Simd for Avx2 {
    type V = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: who has an `Avx2` is where the CPU has the instructions.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &Lane) -> __m256 {
        // SAFETY: as above; eight numbers.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m256, to: &mut Lane) {
        // SAFETY: as above; eight numbers.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn exp(self, v: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { math::cpu::avx2::exp(v) }
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
