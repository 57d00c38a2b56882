//! Eight numbers at a time, in one text for every CPU.

mod cpu;

use std::sync::Once;

use super::path::{Path, active_of};
use super::pool;
use crate::device::{DeviceKind, current_device};

/// Numbers in a vector.
pub(crate) const LANES: usize = 8;

/// Numbers in memory that make a vector.
pub(crate) type Lane = [f32; LANES];

/// Instructions on vectors of [`LANES`] numbers. Who holds one of these may use them.
pub(crate) trait Simd: Copy {
    /// A vector.
    type V: Copy;
    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &Lane) -> Self::V;
    fn store(self, v: Self::V, to: &mut Lane);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once or twice.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// To about one unit in the last place; subnormal results may be zero.
    fn exp(self, v: Self::V) -> Self::V;
    /// The sum of the numbers, in a fixed order.
    fn sum(self, v: Self::V) -> f32;
}

/// Work that is written for any [`Simd`]. `run`, and what it calls, must be `#[inline(always)]`, so that it
/// is compiled with the instructions at hand.
pub(crate) trait Task {
    fn run<S: Simd>(self, simd: S);
}

/// The path of a kernel that is written so; `None` where its reference is to be taken.
pub(crate) fn path_for(kernel: &'static str, first_use: &'static Once) -> Option<Path> {
    let path = active_of(&[Path::Avx2]);
    if path == Path::Reference || current_device().kind != DeviceKind::Cpu {
        return None;
    }
    first_use.call_once(|| tracing::info!(kernel, %path, threads = pool::threads(), "first use"));
    Some(path)
}

/// Does `task` with the instructions of `path`.
pub(crate) fn dispatch<T: Task>(path: Path, task: T) {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => cpu::avx2::run(task),
        _ => task.run(cpu::Portable),
    }
}

/// Vectors that `count` numbers fill, the last perhaps in part.
pub(crate) fn lanes(count: usize) -> usize {
    count.div_ceil(LANES)
}

/// Replaces each number by its exponential.
pub(crate) fn exp(path: Path, values: &mut [Lane]) {
    struct Exp<'a>(&'a mut [Lane]);
    impl Task for Exp<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for v in self.0 {
                simd.store(simd.exp(simd.load(v)), v);
            }
        }
    }
    dispatch(path, Exp(values));
}
