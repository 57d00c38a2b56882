//! Vectors of instruction sets.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
mod portable;

use half::{bf16, f16};

use super::Loop;
use crate::kernels::path::{Path, active_of};

/// As many `float32` numbers as an instruction set works on at once. Slices hold as many at least, or it panics.
///
/// Implementations are private here: only [`run`] names one, where the CPU has the instructions.
pub(crate) trait Lanes: Copy {
    const WIDTH: usize;

    fn splat(x: f32) -> Self;
    fn load(from: &[f32]) -> Self;
    fn load_f16(from: &[f16]) -> Self;
    fn load_bf16(from: &[bf16]) -> Self;
    fn store(self, to: &mut [f32]);
    /// Rounded to nearest, ties to even, as is the next.
    fn store_f16(self, to: &mut [f16]);
    fn store_bf16(self, to: &mut [bf16]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + term`, with one rounding where the set can.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The greater; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self * 2^n`, for integers from -160 to 160.
    fn times_power(self, n: Self) -> Self;
    /// `yes` where `self < bound`, else `no`.
    fn choose_below(self, bound: f32, yes: Self, no: Self) -> Self;
    /// Each number in the place of its neighbour: 1, 0, 3, 2...
    fn swap_pairs(self) -> Self;

    fn sum(self) -> f32;

    /// [`sum`](Self::sum) of each.
    #[inline(always)]
    fn sum_eight(all: [Self; 8]) -> [f32; 8] {
        let mut sums = [0.0; 8];
        for (sum, one) in sums.iter_mut().zip(all) {
            *sum = one.sum();
        }
        sums
    }

    #[inline(always)]
    fn exp(self) -> Self {
        super::exp(self)
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        super::tanh(self)
    }
}

/// Those that have vectors of their own.
const PATHS: &[Path] = &[Path::Avx2, Path::Avx512];

/// The path that loops take now.
pub(crate) fn path() -> Path {
    active_of(PATHS)
}

/// Runs a loop with the instructions of a path.
pub(crate) fn run<F: Loop>(path: Path, f: F) -> F::Output {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2::run(f),
        #[cfg(target_arch = "x86_64")]
        path if path >= Path::Avx512 => avx512::run(f),
        _ => f.run::<portable::Eight>(),
    }
}

/// Brings number `at` near, if there is one, and its neighbours.
#[inline(always)]
pub(crate) fn fetch_at<T>(numbers: &[T], at: usize) {
    if let Some(number) = numbers.get(at) {
        fetch(std::slice::from_ref(number));
    }
}

/// Brings numbers near that are needed soon.
#[inline(always)]
pub(crate) fn fetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    avx2::fetch(numbers);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}
