//! Kernels whose numbers lie in vectors of eight.

use std::sync::Once;

use super::math::{self, Lanes, Loop};
use super::path::{Path, active_of};
use super::pool;
use crate::device::{DeviceKind, current_device};

/// Numbers in a vector, on every path of [`path_for`].
pub(crate) const LANES: usize = 8;

/// Numbers in memory that make a vector.
pub(crate) type Lane = [f32; LANES];

/// The path of a kernel that is written so; `None` where its reference is to be taken.
pub(crate) fn path_for(kernel: &'static str, first_use: &'static Once) -> Option<Path> {
    let path = active_of(&[Path::Avx2]);
    if path == Path::Reference || current_device().kind != DeviceKind::Cpu {
        return None;
    }
    first_use.call_once(|| tracing::info!(kernel, %path, threads = pool::threads(), "first use"));
    Some(path)
}

/// Vectors that `count` numbers fill, the last perhaps in part.
pub(crate) fn lanes(count: usize) -> usize {
    count.div_ceil(LANES)
}

/// Replaces each number by its exponential.
pub(crate) fn exp(path: Path, values: &mut [Lane]) {
    struct Exp<'a>(&'a mut [Lane]);
    impl Loop for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self) {
            for v in self.0 {
                L::load(v).exp().store(v);
            }
        }
    }
    math::run(path, Exp(values));
}
