//! How far a result may be from its reference. The numbers live here and nowhere else.

use mlxport::Dtype;

/// A named bound on the error of one element: `relative * magnitude + absolute`, where the magnitude
/// is the larger of the expected value and what it was summed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tolerance {
    /// The same bits; any NaN equals any NaN, and -0 differs from 0.
    Exact,
    /// A rounding or two: arithmetic, and elementary functions of a good mathematics library.
    Strict,
    /// Short sums, functions built from several others, approximations by polynomials.
    Balanced,
    /// `Balanced`, but that of `float32` for `float64`: what MLX computes in single precision even there.
    Single,
    /// Long sums and chains of operations, each rounded.
    Permissive,
}

impl Tolerance {
    /// The error allowed per unit of magnitude.
    pub fn relative(self, dtype: Dtype) -> f64 {
        let dtype = if self == Tolerance::Single && dtype == Dtype::Float64 { Dtype::Float32 } else { dtype };
        let [strict, balanced, permissive] = match dtype {
            // The machine epsilons are 2.2e-16, 1.2e-7, 9.8e-4 and 7.8e-3; a rounding errs by half of one.
            Dtype::Float64 => [1e-15, 2e-14, 1e-12],
            Dtype::Float32 | Dtype::Complex64 => [5e-7, 5e-6, 1e-4],
            Dtype::Float16 => [1e-3, 4e-3, 2e-2],
            Dtype::Bfloat16 => [8e-3, 2e-2, 6e-2],
            _ => [0.0; 3],
        };
        match self {
            Tolerance::Exact => 0.0,
            Tolerance::Strict => strict,
            Tolerance::Balanced | Tolerance::Single => balanced,
            Tolerance::Permissive => permissive,
        }
    }

    /// The error allowed near zero. `Strict` lets subnormal numbers be flushed, no more; the others
    /// suppose values around one.
    pub fn absolute(self, dtype: Dtype) -> f64 {
        match self {
            Tolerance::Exact => 0.0,
            Tolerance::Strict => match dtype {
                Dtype::Float64 => f64::MIN_POSITIVE,
                Dtype::Float32 | Dtype::Complex64 | Dtype::Bfloat16 => f32::MIN_POSITIVE.into(),
                Dtype::Float16 => half::f16::MIN_POSITIVE.to_f64(),
                _ => 0.0,
            },
            _ => self.relative(dtype) / 4.0,
        }
    }
}

/// How far a result may be from the exact one, in units of the last place of its dtype at the larger
/// of the expected value and the root mean square of all expected values.
#[derive(Debug, Clone, Copy)]
pub struct Ulps(pub f64);

/// The expected value itself.
pub const EXACT: Ulps = Ulps(0.0);
/// One rounding, or a library function that is good to a few units.
pub const ROUNDING: Ulps = Ulps(4.0);
/// A sum over tens of elements, or a few roundings after each other.
pub const REDUCTION: Ulps = Ulps(32.0);
/// A factorisation, a long sum, or a fit: errors that grow with the size.
pub const SOLVER: Ulps = Ulps(512.0);

/// A derivative against a central difference in `float64` with steps of 1e-5: the difference is good to
/// ten digits, and a derivative that is wrong is wrong in the first.
pub const FINITE_DIFFERENCE: Ulps = Ulps(2e9);

/// The same with steps of 1e-2, for values that MLX computes to seven digits whatever their dtype.
pub const COARSE_DIFFERENCE: Ulps = Ulps(5e12);

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
