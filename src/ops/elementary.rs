//! Elementary functions, elementwise.
//!
//! Floating and complex dtypes stay; integers and `bool` become `float32`.

use super::{binary, unary};

unary! {
    /// `e^a`.
    exp => mlx_exp;
    /// `e^a - 1`, accurate near zero.
    expm1 => mlx_expm1;
    /// The natural logarithm.
    log => mlx_log;
    /// The logarithm to base 2.
    log2 => mlx_log2;
    /// The logarithm to base 10.
    log10 => mlx_log10;
    /// `ln(1 + a)`, accurate near zero.
    log1p => mlx_log1p;
    /// `1 / (1 + e^-a)`.
    sigmoid => mlx_sigmoid;
    /// The error function.
    erf => mlx_erf;
    /// The inverse of the error function.
    erfinv => mlx_erfinv;
    /// The sine of radians.
    sin => mlx_sin;
    /// The cosine of radians.
    cos => mlx_cos;
    /// The tangent of radians.
    tan => mlx_tan;
    /// The inverse sine, in radians.
    arcsin => mlx_arcsin;
    /// The inverse cosine, in radians.
    arccos => mlx_arccos;
    /// The inverse tangent, in radians.
    arctan => mlx_arctan;
    /// The hyperbolic sine.
    sinh => mlx_sinh;
    /// The hyperbolic cosine.
    cosh => mlx_cosh;
    /// The hyperbolic tangent.
    tanh => mlx_tanh;
    /// The inverse hyperbolic sine.
    arcsinh => mlx_arcsinh;
    /// The inverse hyperbolic cosine.
    arccosh => mlx_arccosh;
    /// The inverse hyperbolic tangent.
    arctanh => mlx_arctanh;
    /// Radians as degrees.
    degrees => mlx_degrees;
    /// Degrees as radians.
    radians => mlx_radians;
}

binary! {
    /// The angle of the point `(b, a)`, in radians, over all four quadrants.
    arctan2 => mlx_arctan2;
}
