//! Values to test with, and what a result holds.

use mlxport::Array;

use super::element::reals;

/// The elements of a real array as `f64`.
pub fn to_f64(x: &Array) -> Vec<f64> {
    reals(&x.to_host().unwrap()).data
}

/// A repeatable stream of numbers (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One number of `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Numbers of `[-1, 1)` that every floating dtype holds: multiples of 1/128.
    pub fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| (self.bits() >> 56) as f64 / 128.0 - 1.0).collect()
    }

    /// A `float32` array of such numbers, with the same numbers as `f64`.
    pub fn array(&mut self, shape: &[i32]) -> (Array, Vec<f64>) {
        let values = self.values(shape.iter().map(|&d| d as usize).product());
        (f32_array(&values, shape), values)
    }
}

/// A `float32` array of `values`.
pub fn f32_array(values: &[f64], shape: &[i32]) -> Array {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    Array::from_slice(&values, shape).unwrap()
}
