//! What the tests share: tolerances with names, and values to test with.

#![allow(dead_code)] // each test binary uses its own part

use mlxport::{Array, Dtype};

/// How far a result may be from the exact one, in units of the last place of its dtype at the larger
/// of the expected value and the root mean square of all expected values.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance(pub f64);

/// The expected value itself.
pub const EXACT: Tolerance = Tolerance(0.0);
/// One rounding, or a library function that is good to a few units.
pub const ROUNDING: Tolerance = Tolerance(4.0);
/// A sum over tens of elements, or a few roundings after each other.
pub const REDUCTION: Tolerance = Tolerance(32.0);
/// A factorisation, a long sum, or a fit: errors that grow with the size.
pub const SOLVER: Tolerance = Tolerance(512.0);

/// A derivative against a central difference in `float64` with steps of 1e-5: the difference is good to
/// ten digits, and a derivative that is wrong is wrong in the first.
pub const FINITE_DIFFERENCE: Tolerance = Tolerance(2e9);

/// The same with steps of 1e-2, for values that MLX computes to seven digits whatever their dtype.
pub const COARSE_DIFFERENCE: Tolerance = Tolerance(5e12);

/// The distance from 1 to the next number of a dtype; 0 for integers.
pub fn epsilon(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float64 => f64::EPSILON,
        Dtype::Float32 | Dtype::Complex64 => f64::from(f32::EPSILON),
        Dtype::Float16 => 2f64.powi(-10),
        Dtype::Bfloat16 => 2f64.powi(-7),
        _ => 0.0,
    }
}

/// The elements of a real array as `f64`.
pub fn to_f64(x: &Array) -> Vec<f64> {
    let values = |v: Vec<f32>| v.into_iter().map(f64::from).collect();
    match x.dtype() {
        Dtype::Float64 => x.to_vec().unwrap(),
        Dtype::Float32 => values(x.to_vec().unwrap()),
        Dtype::Float16 => x.to_vec::<half::f16>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Bfloat16 => x.to_vec::<half::bf16>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Bool => x.to_vec::<bool>().unwrap().into_iter().map(|b| f64::from(u8::from(b))).collect(),
        Dtype::Uint8 => x.to_vec::<u8>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Uint16 => x.to_vec::<u16>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Uint32 => x.to_vec::<u32>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Uint64 => x.to_vec::<u64>().unwrap().into_iter().map(|v| v as f64).collect(),
        Dtype::Int8 => x.to_vec::<i8>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Int16 => x.to_vec::<i16>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Int32 => x.to_vec::<i32>().unwrap().into_iter().map(f64::from).collect(),
        Dtype::Int64 => x.to_vec::<i64>().unwrap().into_iter().map(|v| v as f64).collect(),
        other => panic!("{other} has no f64 values"),
    }
}

/// Why `found` is not `expected` within `tolerance`, or `None`. NaN equals NaN, and an infinity itself.
pub fn difference(found: &[f64], expected: &[f64], epsilon: f64, tolerance: Tolerance) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} elements, expected {}", found.len(), expected.len()));
    }
    let finite: Vec<f64> = expected.iter().copied().filter(|e| e.is_finite()).collect();
    let rms = (finite.iter().map(|e| e * e).sum::<f64>() / finite.len().max(1) as f64).sqrt();
    let wrong = |(&f, &e): (&f64, &f64)| {
        let same = f == e || (f.is_nan() && e.is_nan());
        // Negated, so that a NaN where a number should be is wrong.
        #[allow(clippy::neg_cmp_op_on_partial_ord)]
        let far = !((f - e).abs() <= tolerance.0 * epsilon * e.abs().max(rms));
        !same && (far || !e.is_finite())
    };
    let at = found.iter().zip(expected).position(wrong)?;
    Some(format!("element {at} is {}, expected {} (root mean square {rms:e})", found[at], expected[at]))
}

/// Panics unless the elements of `found` are `expected` within `tolerance`.
#[track_caller]
pub fn assert_close(found: &Array, expected: &[f64], tolerance: Tolerance) {
    if let Some(why) = difference(&to_f64(found), expected, epsilon(found.dtype()), tolerance) {
        panic!("{found:?}: {why}");
    }
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

/// Runs a test in a process of its own, with nothing beside it: true in that process, where the test goes
/// on; elsewhere false, after starting it with `env` and seeing it pass.
pub fn alone(test: &str, env: &[(&str, &str)]) -> bool {
    const MARK: &str = "MLXPORT_TEST_ALONE";
    if std::env::var(MARK).as_deref() == Ok(test) {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(MARK, test);
    let output = command.envs(env.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{}: {text}", output.status);
    false
}
