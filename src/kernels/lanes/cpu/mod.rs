//! Vectors in Rust for any CPU, and in instructions of some.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(super) mod avx2;

use super::{Lane, Simd};

/// Rust for any CPU.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    type V = Lane;

    #[inline(always)]
    fn splat(self, x: f32) -> Lane {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, from: &Lane) -> Lane {
        *from
    }
    #[inline(always)]
    fn store(self, v: Lane, to: &mut Lane) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Lane, b: Lane) -> Lane {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Lane, b: Lane) -> Lane {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Lane, b: Lane) -> Lane {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Lane, b: Lane, c: Lane) -> Lane {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn exp(self, v: Lane) -> Lane {
        v.map(f32::exp)
    }
    #[inline(always)]
    fn sum(self, [a, b, c, d, e, f, g, h]: Lane) -> f32 {
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}
