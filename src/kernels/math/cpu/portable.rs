//! Any CPU.

use half::{bf16, f16};

use super::Lanes;
use crate::kernels::product::number;

/// What compilers make vectors of.
#[derive(Clone, Copy)]
pub(super) struct Eight([f32; 8]);

impl Eight {
    #[inline(always)]
    fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Eight {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(std::array::from_fn(|i| from[i]))
    }
    #[inline(always)]
    fn load_f16(from: &[f16]) -> Self {
        Self(std::array::from_fn(|i| from[i].to_f32()))
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16]) -> Self {
        Self(std::array::from_fn(|i| number(from[i])))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [f16]) {
        to[..8].iter_mut().zip(self.0).for_each(|(to, x)| *to = f16::from_f32(x));
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16]) {
        for (to, x) in to[..8].iter_mut().zip(self.0) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            // A NaN stays one.
            *to = bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { rounded } as u16);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.with(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        self.mul(factor).add(term)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.with(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.with(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Beyond 2^23 there are no fractions: what this adds rounds them away.
        const FAR: f32 = 12_582_912.0;
        Self(self.0.map(|x| (x + FAR) - FAR))
    }
    #[inline(always)]
    fn times_power(self, n: Self) -> Self {
        // In two steps: 2^128 is no number.
        let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        self.with(n, |x, n| {
            let (n, half) = (n as i32, n as i32 / 2);
            x * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn choose_below(self, bound: f32, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < bound { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        Self(std::array::from_fn(|i| self.0[i ^ 1]))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
}
