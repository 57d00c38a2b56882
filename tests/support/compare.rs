//! Holding a result to its reference, with messages that say where and by how much it is off.

use std::fmt;

use mlxport::{Array, Dtype, HostTensor};
use num_complex::Complex64;

use super::element::{bits, decode, encode, encode_complex, encode_int, mlx_shape};
use super::nd::{Nd, indices};
use super::numbers::to_f64;
use super::tolerance::{Tolerance, Ulps, epsilon};

/// What an operation should give.
#[derive(Debug, Clone)]
pub struct Expected {
    dtype: Dtype,
    bits: Nd<u64>,
    /// Value and magnitude of each number, unrounded; a complex element has two.
    numbers: Option<Vec<(f64, f64)>>,
}

impl Expected {
    /// Real numbers, rounded to `dtype`.
    pub fn reals(values: &Nd<f64>, dtype: Dtype) -> Self {
        Self::sums(values, &values.map(|v| v.abs()), dtype)
    }

    /// Real numbers that are sums of terms whose magnitudes add up to `magnitudes`: errors count
    /// relative to those, since terms that cancel leave their rounding errors behind.
    pub fn sums(values: &Nd<f64>, magnitudes: &Nd<f64>, dtype: Dtype) -> Self {
        assert_eq!(values.shape, magnitudes.shape);
        let numbers = values.data.iter().zip(&magnitudes.data).map(|(&v, &m)| (v, m.max(v.abs()))).collect();
        Self { dtype, bits: values.map(|&v| encode(v, dtype)), numbers: Some(numbers) }
    }

    /// Complex numbers; errors count relative to the modulus.
    pub fn complexes(values: &Nd<Complex64>) -> Self {
        let parts = |v: &Complex64| [(v.re, v.norm()), (v.im, v.norm())];
        let numbers = values.data.iter().flat_map(parts).collect();
        Self { dtype: Dtype::Complex64, bits: values.map(|&v| encode_complex(v)), numbers: Some(numbers) }
    }

    /// Exact integers, modulo two to the dtype's width.
    pub fn ints(values: &Nd<i128>, dtype: Dtype) -> Self {
        Self { dtype, bits: values.map(|&v| encode_int(v, dtype)), numbers: None }
    }

    /// Truth values.
    pub fn bools(values: &Nd<bool>) -> Self {
        Self { dtype: Dtype::Bool, bits: values.map(|&v| v.into()), numbers: None }
    }

    /// Elements that were moved, not computed.
    pub fn bits(bits: &Nd<u64>, dtype: Dtype) -> Self {
        Self { dtype, bits: bits.clone(), numbers: None }
    }

    /// The values of a tensor.
    pub fn tensor(tensor: &HostTensor) -> Self {
        Self::bits(&bits(tensor), tensor.dtype())
    }
}

/// One element that is off.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    pub index: Vec<usize>,
    pub found: f64,
    pub expected: f64,
    /// The error; infinite where one side is not finite and the other differs.
    pub error: f64,
    pub allowed: f64,
    /// Representable numbers between the two, where both are numbers.
    pub ulps: Option<u128>,
}

/// How a result differs from what was expected.
#[derive(Debug, Clone, PartialEq)]
pub enum Mismatch {
    Shape {
        found: Vec<i32>,
        expected: Vec<i32>,
    },
    Dtype {
        found: Dtype,
        expected: Dtype,
    },
    /// `count` of `total` elements; the first of them, and the one furthest beyond what is allowed.
    Values {
        count: usize,
        total: usize,
        first: Element,
        worst: Element,
    },
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, found, expected, error, allowed, ulps } = self;
        write!(f, "{index:?}: found {found:?}, expected {expected:?} (error {error:.3e}")?;
        if let Some(ulps) = ulps {
            write!(f, ", {ulps} ULP")?;
        }
        write!(f, ", allowed {allowed:.3e})")
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Shape { found, expected } => write!(f, "shape {found:?}, expected {expected:?}"),
            Mismatch::Dtype { found, expected } => write!(f, "dtype {found}, expected {expected}"),
            Mismatch::Values { count, total, first, worst } => {
                write!(f, "{count} of {total} elements differ; first at {first}")?;
                if worst != first { write!(f, "; worst at {worst}") } else { Ok(()) }
            }
        }
    }
}

/// How `found` differs from `expected`, if it does. Integers, bools and moved elements are always
/// compared exactly.
pub fn compare(found: &HostTensor, expected: &Expected, tolerance: Tolerance) -> Option<Mismatch> {
    let shape = mlx_shape(&expected.bits.shape);
    if found.shape() != shape {
        return Some(Mismatch::Shape { found: found.shape().to_vec(), expected: shape });
    }
    if found.dtype() != expected.dtype {
        return Some(Mismatch::Dtype { found: found.dtype(), expected: expected.dtype });
    }
    let (parts, found) = split(&bits(found), expected.dtype);
    let (_, wanted) = split(&expected.bits, expected.dtype);
    let dtype = if parts == 2 { Dtype::Float32 } else { expected.dtype };
    let exact = tolerance == Tolerance::Exact || expected.numbers.is_none();
    let shape = [&expected.bits.shape[..], if parts == 2 { &[2] } else { &[] }].concat();
    let mut off = vec![];
    for (at, (&found, &wanted)) in found.iter().zip(&wanted).enumerate() {
        let (allowed, value) = match &expected.numbers {
            Some(numbers) if !exact => {
                let (value, magnitude) = numbers[at];
                let magnitude = if magnitude.is_finite() { magnitude } else { 0.0 };
                let allowed = tolerance.relative(dtype) * magnitude + tolerance.absolute(dtype);
                (allowed, value)
            }
            _ => (0.0, decode(wanted, dtype)),
        };
        if exact && (found == wanted || both_nan(found, wanted, dtype)) {
            continue;
        }
        let error = error(found, wanted, value, dtype);
        if exact || error > allowed {
            let index = indices(&shape)[at].clone();
            let (number, ulps) = (decode(found, dtype), ulps(found, wanted, dtype));
            off.push(Element { index, found: number, expected: value, error, allowed, ulps });
        }
    }
    let beyond = |e: &&Element| (e.error - e.allowed, e.ulps.unwrap_or(u128::MAX));
    let worse = |a: &&Element, b: &&Element| beyond(a).partial_cmp(&beyond(b)).unwrap();
    let first = off.first()?.clone();
    let worst = off.iter().max_by(worse)?.clone();
    Some(Mismatch::Values { count: off.len(), total: indices(&shape).len(), first, worst })
}

/// As [`compare`], for an array; panics with the mismatch.
#[track_caller]
pub fn assert_matches(found: &Array, expected: &Expected, tolerance: Tolerance) {
    let found = found.to_host().expect("the result can be computed");
    if let Some(mismatch) = compare(&found, expected, tolerance) {
        panic!("{mismatch} [{tolerance:?}, {}]", expected.dtype);
    }
}

/// Why `found` is not `expected` within `tolerance`, or `None`. NaN equals NaN, and an infinity itself.
pub fn difference(found: &[f64], expected: &[f64], epsilon: f64, tolerance: Ulps) -> Option<String> {
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
pub fn assert_close(found: &Array, expected: &[f64], tolerance: Ulps) {
    if let Some(why) = difference(&to_f64(found), expected, epsilon(found.dtype()), tolerance) {
        panic!("{found:?}: {why}");
    }
}

/// The real numbers of each element: two for complex.
fn split(bits: &Nd<u64>, dtype: Dtype) -> (usize, Vec<u64>) {
    match dtype {
        Dtype::Complex64 => (2, bits.data.iter().flat_map(|b| [b & 0xffff_ffff, b >> 32]).collect()),
        _ => (1, bits.data.clone()),
    }
}

fn both_nan(a: u64, b: u64, dtype: Dtype) -> bool {
    dtype.is_floating() && decode(a, dtype).is_nan() && decode(b, dtype).is_nan()
}

/// The distance of `found` from the unrounded `value`, of which `wanted` is the rounding.
fn error(found: u64, wanted: u64, value: f64, dtype: Dtype) -> f64 {
    let (number, rounded) = (decode(found, dtype), decode(wanted, dtype));
    if number == rounded || (number.is_nan() && value.is_nan()) {
        return 0.0;
    }
    // A value close to the largest number may round to infinity on one side only.
    let limit = |v: f64| if v.is_infinite() && value.is_finite() { v.signum() * largest(dtype) } else { v };
    let error = (limit(number) - value).abs();
    if error.is_nan() { f64::INFINITY } else { error }
}

fn largest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float16 => half::f16::MAX.to_f64(),
        Dtype::Bfloat16 => half::bf16::MAX.to_f64(),
        Dtype::Float32 => f32::MAX.into(),
        _ => f64::MAX,
    }
}

/// Steps between two floating-point numbers; 1 between -0 and 0.
fn ulps(a: u64, b: u64, dtype: Dtype) -> Option<u128> {
    let number = |bits| dtype.is_floating() && !decode(bits, dtype).is_nan();
    let sign = 1u64 << (8 * dtype.size() - 1);
    let ordered = |b: u64| if b & sign == 0 { i128::from(b) } else { -1 - i128::from(b ^ sign) };
    (number(a) && number(b)).then(|| ordered(a).abs_diff(ordered(b)))
}
