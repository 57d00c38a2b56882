//! Elementwise operations against f64 and exact integers, in every dtype, shape and layout.

use std::cmp::Ordering;

use mlxport::{Array, Dtype, Result, ops};
use num_complex::Complex64;
use proptest::prelude::*;
use support::element::{self, FLOATS, INTEGERS, NUMBERS, complexes, ints, range, reals};
use support::strategy::{self, MODERATE, Values};
use support::{Expected, Input, Nd, Tolerance, assert_matches, check, computes};

use Tolerance::{Balanced, Exact, Single, Strict};
use Values::{Any, Ordered, Within};

fn one(dtypes: &'static [Dtype], values: Values) -> impl Strategy<Value = Input> {
    (strategy::dtype(dtypes), strategy::shape(3))
        .prop_flat_map(move |(dtype, shape)| strategy::input(dtype, &shape, values))
}

/// Two inputs of one dtype whose shapes broadcast.
fn two(dtypes: &'static [Dtype], a: Values, b: Values) -> impl Strategy<Value = (Input, Input)> {
    (strategy::dtype(dtypes), strategy::broadcastable(3)).prop_flat_map(move |(dtype, (left, right))| {
        (strategy::input(dtype, &left, a), strategy::input(dtype, &right, b))
    })
}

fn unary(
    op: fn(&Array) -> Result<Array>,
    reference: fn(f64) -> f64,
    values: Values,
    tolerance: impl Fn(Dtype) -> Tolerance,
) {
    check(48, one(FLOATS, values), |device, input| {
        let dtype = input.tensor.dtype();
        if computes(device, dtype) {
            let expected = Expected::reals(&reals(&input.tensor).map(|&x| reference(x)), dtype);
            assert_matches(&op(&input.array()).unwrap(), &expected, tolerance(dtype));
        }
    });
    // Integers are computed in float32, except where the operation stays within them.
    let (integer, float) = (Array::from(1i32), Array::from(1f32));
    if op(&integer).unwrap().dtype() == op(&float).unwrap().dtype() {
        let near = match values {
            Within(low, high) => Within(low, high),
            _ => Within(-9.0, 9.0),
        };
        check(16, one(INTEGERS, near), |_, input| {
            let expected = Expected::reals(&reals(&input.tensor).map(|&x| reference(x)), Dtype::Float32);
            assert_matches(&op(&input.array()).unwrap(), &expected, tolerance(Dtype::Float32));
        });
    }
}

macro_rules! unary {
    ($($op:ident: $reference:expr, $values:expr, $tolerance:expr;)*) => { $(
        #[test]
        fn $op() {
            unary(ops::$op, $reference, $values, |_| $tolerance);
        }
    )* };
}

unary! {
    negative: |x| -x, Any, Exact;
    positive: |x| x, Any, Exact;
    abs: f64::abs, Any, Exact;
    square: |x| x * x, Any, Strict;
    sqrt: f64::sqrt, Any, Strict;
    rsqrt: |x| 1.0 / x.sqrt(), Any, Strict;
    reciprocal: |x| 1.0 / x, Any, Strict;
    floor: f64::floor, Any, Exact;
    ceil: f64::ceil, Any, Exact;
    trunc: f64::trunc, Any, Exact;
    expm1: f64::exp_m1, Any, Strict;
    log: f64::ln, Any, Strict;
    log2: f64::log2, Any, Strict;
    log10: f64::log10, Any, Strict;
    log1p: f64::ln_1p, Any, Strict;
    sin: f64::sin, Within(-30.0, 30.0), Single;
    cos: f64::cos, Within(-30.0, 30.0), Single;
    tan: f64::tan, Within(-30.0, 30.0), Strict;
    arcsin: f64::asin, Within(-1.5, 1.5), Strict;
    arccos: f64::acos, Within(-1.5, 1.5), Strict;
    arctan: f64::atan, Any, Strict;
    sinh: f64::sinh, Any, Strict;
    cosh: f64::cosh, Any, Strict;
    tanh: f64::tanh, Any, Strict;
    arcsinh: libm::asinh, Any, Strict;
    arccosh: |x| if x < 1.0 { f64::NAN } else { libm::acosh(x) }, Any, Strict;
    arctanh: libm::atanh, Within(-1.5, 1.5), Strict;
    degrees: f64::to_degrees, Any, Strict;
    radians: f64::to_radians, Any, Strict;
}

#[test]
fn exp() {
    // On the CPU, MLX has its own `exp`: in float32 even for float64, and with nothing beyond e^88. It
    // multiplies its argument by log2(e) first, and the rounding of that grows with the argument.
    let reference = |x: f64| match x {
        x if x > 88.0 => f64::INFINITY,
        x if x < -88.0 => 0.0,
        x => x.exp(),
    };
    check(96, prop_oneof![one(FLOATS, Any), one(FLOATS, Within(-95.0, 95.0))], |device, input| {
        let (dtype, x) = (input.tensor.dtype(), reals(&input.tensor));
        if computes(device, dtype) {
            let values = x.map(|&x| reference(x));
            let expected = Expected::sums(&values, &x.zip(&values, |x, y| (1.0 + x.abs()) * y), dtype);
            let tolerance = if dtype == Dtype::Float64 { Single } else { Strict };
            assert_matches(&ops::exp(&input.array()).unwrap(), &expected, tolerance);
        }
    });
}

#[test]
fn sigmoid() {
    unary(ops::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), Any, |_| Single);
}

#[test]
fn erf() {
    unary(ops::erf, libm::erf, Any, |_| Single);
}

#[test]
fn erfinv() {
    // The inverse by bisection: erf rises.
    let inverse = |y: f64| {
        if y.abs() >= 1.0 {
            return if y.abs() == 1.0 { y * f64::INFINITY } else { f64::NAN };
        }
        let (mut low, mut high) = (-6.0, 6.0);
        for _ in 0..100 {
            let middle = (low + high) / 2.0;
            if libm::erf(middle) < y { low = middle } else { high = middle }
        }
        low
    };
    unary(ops::erfinv, inverse, Within(-0.999, 0.999), |_| Single);
}

#[test]
fn sign() {
    // MLX gives 0 for NaN, where NumPy gives NaN.
    let reference = |x: f64| {
        if x > 0.0 {
            1.0
        } else if x < 0.0 {
            -1.0
        } else {
            0.0
        }
    };
    unary(ops::sign, reference, Any, |_| Exact);
}

#[test]
fn round_half_to_even() {
    const HALVES: &[Dtype] = &[Dtype::Float16, Dtype::Float32, Dtype::Float64];
    check(48, one(HALVES, Any), |device, input| {
        let (dtype, array) = (input.tensor.dtype(), input.array());
        if computes(device, dtype) {
            let expected = Expected::reals(&reals(&input.tensor).map(|x| x.round_ties_even()), dtype);
            assert_matches(&ops::round(&array, 0).unwrap(), &expected, Exact);
            let halves = ops::multiply(ops::trunc(&array), 0.5).unwrap();
            let values = reals(&halves.to_host().unwrap()).map(|x| x.round_ties_even());
            assert_matches(&ops::round(&halves, 0).unwrap(), &Expected::reals(&values, dtype), Exact);
        }
    });
}

#[test]
fn round_to_decimals() {
    // Away from ties: there, the rounding of the scale decides.
    let numbers = prop::collection::vec((-20..=20i32, -0.1..0.1f64), 1..9);
    check(96, (strategy::dtype(NUMBERS), -2..3i32, numbers), |device, (dtype, decimals, numbers)| {
        let (dtype, unit) = (*dtype, 10f64.powi(-decimals));
        if !computes(device, dtype) || (!dtype.is_floating() && (*decimals >= 0 || dtype.size() == 1)) {
            return;
        }
        let unsigned = dtype.is_integer() && range(dtype).0 == 0;
        let whole = |k: i32| f64::from(if unsigned { k.abs() } else { k });
        let numbers: Vec<_> = numbers.iter().map(|&(k, off)| (whole(k), off)).collect();
        let shape = [numbers.len()];
        let near = Nd::new(
            &shape,
            numbers.iter().map(|(k, off)| element::encode((k + off) * unit, dtype)).collect(),
        );
        let values = Nd::new(&shape, numbers.iter().map(|(k, _)| k * unit).collect());
        let found =
            ops::round(&Array::from_host(&element::from_bits(&near, dtype)).unwrap(), *decimals).unwrap();
        // The scale is a float32 even for float64.
        let tolerance = if dtype == Dtype::Float64 { Single } else { Strict };
        assert_matches(&found, &Expected::reals(&values, dtype), tolerance);
    });
}

#[test]
fn nan_to_num() {
    const HALVES: &[Dtype] = &[Dtype::Float16, Dtype::Bfloat16, Dtype::Float32];
    check(48, (one(HALVES, Any), prop::option::of(-9.0..9.0f32)), |_, (input, bound)| {
        let dtype = input.tensor.dtype();
        let largest = element::decode(element::encode(f64::INFINITY, dtype) - 1, dtype);
        let high = bound.map_or(largest, f64::from);
        let reference = |&x: &f64| match x {
            x if x.is_nan() => 0.5,
            f64::INFINITY => high,
            f64::NEG_INFINITY => -largest,
            x => x,
        };
        let expected = Expected::reals(&reals(&input.tensor).map(reference), dtype);
        assert_matches(&ops::nan_to_num(&input.array(), 0.5, *bound, None).unwrap(), &expected, Exact);
    });
}

#[test]
fn classes_of_numbers() {
    let tests: [(fn(&Array) -> Result<Array>, fn(f64) -> bool); 5] = [
        (ops::isnan, f64::is_nan),
        (ops::isinf, f64::is_infinite),
        (ops::isfinite, f64::is_finite),
        (ops::isposinf, |x| x == f64::INFINITY),
        (ops::isneginf, |x| x == f64::NEG_INFINITY),
    ];
    check(48, one(FLOATS, Any), |device, input| {
        if computes(device, input.tensor.dtype()) {
            for (op, reference) in tests {
                let expected = Expected::bools(&reals(&input.tensor).map(|&x| reference(x)));
                assert_matches(&op(&input.array()).unwrap(), &expected, Exact);
            }
        }
    });
    check(16, one(INTEGERS, Any), |_, input| {
        let finite = Expected::bools(&ints(&input.tensor).map(|_| true));
        assert_matches(&ops::isfinite(&input.array()).unwrap(), &finite, Exact);
    });
}

#[test]
fn integers_stay_integers_and_wrap() {
    let tests: [(fn(&Array) -> Result<Array>, fn(i128) -> i128); 8] = [
        (ops::negative, |x| -x),
        (ops::abs, i128::abs),
        (ops::sign, i128::signum),
        (ops::square, |x| x.wrapping_mul(x)),
        (ops::floor, |x| x),
        (ops::ceil, |x| x),
        (ops::trunc, |x| x),
        (ops::bitwise_invert, |x| !x),
    ];
    check(48, one(INTEGERS, Any), |_, input| {
        for (op, reference) in tests {
            let expected = Expected::ints(&ints(&input.tensor).map(|&x| reference(x)), input.tensor.dtype());
            assert_matches(&op(&input.array()).unwrap(), &expected, Exact);
        }
    });
}

fn binary(
    op: fn(&Array, &Array) -> Result<Array>,
    reference: fn(f64, f64, Dtype) -> f64,
    [a, b]: [Values; 2],
    tolerance: impl Fn(Dtype) -> Tolerance,
) {
    check(64, two(FLOATS, a, b), |device, (a, b)| {
        let dtype = a.tensor.dtype();
        if computes(device, dtype) {
            let values = reals(&a.tensor).zip(&reals(&b.tensor), |&x, &y| reference(x, y, dtype));
            let found = op(&a.array(), &b.array()).unwrap();
            assert_matches(&found, &Expected::reals(&values, dtype), tolerance(dtype));
        }
    });
}

macro_rules! binary {
    ($($op:ident: $reference:expr, $a:expr, $b:expr, $tolerance:expr;)*) => { $(
        #[test]
        fn $op() {
            binary(|a, b| ops::$op(a, b), $reference, [$a, $b], |_| $tolerance);
        }
    )* };
}

fn python_remainder(x: f64, y: f64, dtype: Dtype) -> f64 {
    let r = x % y;
    if r != 0.0 && (r < 0.0) != (y < 0.0) { element::round(r + y, dtype) } else { r }
}

binary! {
    add: |x, y, _| x + y, Any, Any, Strict;
    subtract: |x, y, _| x - y, Any, Any, Strict;
    multiply: |x, y, _| x * y, Any, Any, Strict;
    divide: |x, y, _| x / y, Any, Any, Strict;
    // The floor of the rounded quotient, where NumPy floors the exact one.
    floor_divide: |x, y, dtype| element::round(x / y, dtype).floor(), Any, Any, Exact;
    remainder: python_remainder, Within(-50.0, 50.0), Within(0.5, 8.0), Balanced;
    power: |x, y, _| x.powf(y), Within(0.0, 8.0), Within(-4.0, 4.0), Strict;
    arctan2: |y, x, _| y.atan2(x), Any, Any, Strict;
    maximum: |x, y, _| if x.is_nan() || y.is_nan() { f64::NAN } else { x.max(y) }, Any, Any, Strict;
    minimum: |x, y, _| if x.is_nan() || y.is_nan() { f64::NAN } else { x.min(y) }, Any, Any, Strict;
}

#[test]
fn logaddexp() {
    let reference = |x: f64, y: f64, _| {
        let (high, low) = (x.max(y), x.min(y));
        if high.is_infinite() { high } else { high + (low - high).exp().ln_1p() }
    };
    binary(|a, b| ops::logaddexp(a, b), reference, [Ordered, Ordered], |_| Single);
}

#[test]
fn integer_arithmetic_wraps() {
    let tests: [(fn(&Array, &Array) -> Result<Array>, fn(i128, i128) -> i128); 5] = [
        (|a, b| ops::add(a, b), |x, y| x + y),
        (|a, b| ops::subtract(a, b), |x, y| x - y),
        (|a, b| ops::multiply(a, b), i128::wrapping_mul),
        (|a, b| ops::maximum(a, b), i128::max),
        (|a, b| ops::minimum(a, b), i128::min),
    ];
    check(64, two(INTEGERS, Any, Any), |_, (a, b)| {
        for (op, reference) in tests {
            let values = ints(&a.tensor).zip(&ints(&b.tensor), |&x, &y| reference(x, y));
            let expected = Expected::ints(&values, a.tensor.dtype());
            assert_matches(&op(&a.array(), &b.array()).unwrap(), &expected, Exact);
        }
    });
}

#[test]
fn integer_powers_wrap_and_negative_exponents_give_zero() {
    let reference = |x: i128, y: i128| match y {
        ..0 => 0,
        _ => (0..y).fold(1i128, |product, _| product.wrapping_mul(x)),
    };
    check(48, two(INTEGERS, Any, Within(-3.0, 20.0)), |_, (a, b)| {
        let values = ints(&a.tensor).zip(&ints(&b.tensor), |&x, &y| reference(x, y));
        let expected = Expected::ints(&values, a.tensor.dtype());
        assert_matches(&ops::power(a.array(), b.array()).unwrap(), &expected, Exact);
    });
}

#[test]
fn integers_divide_in_floating_point() {
    check(48, two(INTEGERS, Within(-100.0, 100.0), Within(-100.0, 100.0)), |_, (a, b)| {
        let values = reals(&a.tensor).zip(&reals(&b.tensor), |x, y| x / y);
        let expected = Expected::reals(&values, Dtype::Float32);
        assert_matches(&ops::divide(a.array(), b.array()).unwrap(), &expected, Strict);
    });
}

#[test]
fn comparisons() {
    // By the order of two numbers, of which NaN has none.
    let tests: [(fn(&Array, &Array) -> Result<Array>, fn(Option<Ordering>) -> bool); 6] = [
        (|a, b| ops::equal(a, b), |order| order.is_some_and(Ordering::is_eq)),
        (|a, b| ops::not_equal(a, b), |order| !order.is_some_and(Ordering::is_eq)),
        (|a, b| ops::less(a, b), |order| order.is_some_and(Ordering::is_lt)),
        (|a, b| ops::less_equal(a, b), |order| order.is_some_and(Ordering::is_le)),
        (|a, b| ops::greater(a, b), |order| order.is_some_and(Ordering::is_gt)),
        (|a, b| ops::greater_equal(a, b), |order| order.is_some_and(Ordering::is_ge)),
    ];
    check(64, two(NUMBERS, Any, Any), |device, (a, b)| {
        let dtype = a.tensor.dtype();
        if !computes(device, dtype) {
            return;
        }
        let orders = if dtype.is_floating() {
            reals(&a.tensor).zip(&reals(&b.tensor), f64::partial_cmp)
        } else {
            ints(&a.tensor).zip(&ints(&b.tensor), i128::partial_cmp)
        };
        for (op, reference) in tests {
            let expected = Expected::bools(&orders.map(|&order| reference(order)));
            assert_matches(&op(&a.array(), &b.array()).unwrap(), &expected, Exact);
        }
    });
}

#[test]
fn logic() {
    let tests: [(fn(&Array, &Array) -> Result<Array>, fn(bool, bool) -> bool); 3] = [
        (|a, b| ops::logical_and(a, b), |x, y| x && y),
        (|a, b| ops::logical_or(a, b), |x, y| x || y),
        (|a, b| ops::logical_xor(a, b), |x, y| x != y),
    ];
    check(64, two(NUMBERS, Any, Any), |device, (a, b)| {
        if !computes(device, a.tensor.dtype()) {
            return;
        }
        let truth = |input: &Input| reals(&input.tensor).map(|&x| x != 0.0);
        for (op, reference) in tests {
            let expected = Expected::bools(&truth(a).zip(&truth(b), |&x, &y| reference(x, y)));
            assert_matches(&op(&a.array(), &b.array()).unwrap(), &expected, Exact);
        }
        let not = Expected::bools(&truth(a).map(|x| !x));
        assert_matches(&ops::logical_not(&a.array()).unwrap(), &not, Exact);
    });
}

#[test]
fn bits() {
    let tests: [(fn(&Array, &Array) -> Result<Array>, fn(i128, i128) -> i128); 3] = [
        (|a, b| ops::bitwise_and(a, b), |x, y| x & y),
        (|a, b| ops::bitwise_or(a, b), |x, y| x | y),
        (|a, b| ops::bitwise_xor(a, b), |x, y| x ^ y),
    ];
    check(64, two(INTEGERS, Any, Any), |_, (a, b)| {
        for (op, reference) in tests {
            let values = ints(&a.tensor).zip(&ints(&b.tensor), |&x, &y| reference(x, y));
            let expected = Expected::ints(&values, a.tensor.dtype());
            assert_matches(&op(&a.array(), &b.array()).unwrap(), &expected, Exact);
        }
    });
}

#[test]
fn where_picks_bits() {
    let inputs = (strategy::dtype(Dtype::ALL), strategy::broadcastable(3), strategy::shape(0)).prop_flat_map(
        |(dtype, (left, right), _)| {
            let of = |shape: &[usize]| strategy::input(dtype, shape, Any);
            (strategy::input(Dtype::Bool, &left, Any), of(&right), of(&left), Just(dtype))
        },
    );
    check(64, inputs, |device, (condition, x, y, dtype)| {
        if !computes(device, *dtype) {
            return;
        }
        let pairs = element::bits(&x.tensor).zip(&element::bits(&y.tensor), |&x, &y| (x, y));
        let values = ints(&condition.tensor).zip(&pairs, |&c, &(x, y)| if c != 0 { x } else { y });
        let found = ops::where_(&condition.array(), x.array(), y.array()).unwrap();
        assert_matches(&found, &Expected::bits(&values, *dtype), Exact);
    });
}

#[test]
fn clip() {
    check(64, (two(NUMBERS, Ordered, Within(0.0, 5.0)), 0..3), |device, ((x, low), ends)| {
        let dtype = x.tensor.dtype();
        if !computes(device, dtype) {
            return;
        }
        // The upper bound is above the lower one everywhere: their order is not defined otherwise.
        let (values, bounds, low) = (reals(&x.tensor), reals(&low.tensor), low.array());
        let high = ops::add(&low, 7).unwrap();
        let found = match ends {
            0 => ops::clip(&x.array(), &low..),
            1 => ops::clip(&x.array(), ..=&high),
            _ => ops::clip(&x.array(), &low..=&high),
        };
        let values = values.zip(&bounds, |&x, &low| {
            let x = if *ends == 1 { x } else { x.max(low) };
            if *ends == 0 { x } else { x.min(element::round(low + 7.0, dtype)) }
        });
        assert_matches(&found.unwrap(), &Expected::reals(&values, dtype), Strict);
    });
}

#[test]
fn complex_arithmetic() {
    const COMPLEX: &[Dtype] = &[Dtype::Complex64];
    let pairs: [(fn(&Array, &Array) -> Result<Array>, fn(Complex64, Complex64) -> Complex64); 4] = [
        (|a, b| ops::add(a, b), |x, y| x + y),
        (|a, b| ops::subtract(a, b), |x, y| x - y),
        (|a, b| ops::multiply(a, b), |x, y| x * y),
        (|a, b| ops::divide(a, b), |x, y| x / y),
    ];
    check(48, two(COMPLEX, MODERATE, Within(0.25, 4.0)), |_, (a, b)| {
        for (op, reference) in pairs {
            let values = complexes(&a.tensor).zip(&complexes(&b.tensor), |&x, &y| reference(x, y));
            // A sum may cancel; its error counts relative to the terms, all below 6.
            let expected = Expected::complexes(&values);
            assert_matches(&op(&a.array(), &b.array()).unwrap(), &expected, Balanced);
        }
    });
    let ones: [(fn(&Array) -> Result<Array>, fn(Complex64) -> Complex64); 9] = [
        (ops::negative, |x| -x),
        (ops::conjugate, |x| x.conj()),
        (ops::square, |x| x * x),
        (ops::exp, Complex64::exp),
        (ops::log, Complex64::ln),
        (ops::sqrt, Complex64::sqrt),
        (ops::sin, Complex64::sin),
        (ops::cos, Complex64::cos),
        (ops::tanh, Complex64::tanh),
    ];
    let reals: [(fn(&Array) -> Result<Array>, fn(Complex64) -> f64); 3] =
        [(ops::abs, Complex64::norm), (ops::real, |x| x.re), (ops::imag, |x| x.im)];
    check(48, one(COMPLEX, Within(0.25, 4.0)), |_, input| {
        let values = complexes(&input.tensor);
        for (op, reference) in ones {
            let expected = Expected::complexes(&values.map(|&x| reference(x)));
            assert_matches(&op(&input.array()).unwrap(), &expected, Balanced);
        }
        for (op, reference) in reals {
            let found = op(&input.array()).unwrap();
            let expected = Expected::reals(&values.map(|&x| reference(x)), Dtype::Float32);
            let found = if found.dtype() == Dtype::Complex64 { ops::real(&found).unwrap() } else { found };
            assert_matches(&found, &expected, Strict);
        }
    });
}

#[test]
fn an_integer_range_holds_its_extremes() {
    for &dtype in INTEGERS {
        let (min, max) = range(dtype);
        let extremes = Nd::new(&[2], vec![min, max]);
        let bits = extremes.map(|&v| element::encode_int(v, dtype));
        let array = Array::from_host(&element::from_bits(&bits, dtype)).unwrap();
        assert_matches(&ops::sort(&array, 0).unwrap(), &Expected::ints(&extremes, dtype), Exact);
    }
}

#[test]
fn what_is_close_or_equal() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let array = |values: &[f32]| Array::from_slice(values, &[values.len() as i32]).unwrap();
    let a = array(&[100.0, 110.0, 0.0, 0.5, inf, inf, nan]);
    let b = array(&[110.0, 100.0, 0.001, 0.5, inf, -inf, nan]);
    // At most 0.01 and 0.095 of the second apart.
    let close = |equal_nan| ops::isclose(&a, &b, 0.095, 0.01, equal_nan).unwrap().to_vec::<bool>().unwrap();
    assert_eq!(close(false), [true, false, true, true, true, false, false]);
    assert_eq!(close(true), [true, false, true, true, true, false, true]);
    let all = |a: &Array, b: &Array, equal_nan| {
        ops::allclose(a, b, 0.095, 0.01, equal_nan).unwrap().item::<bool>().unwrap()
    };
    let [x, y] = [[100.0, 0.0, nan], [110.0, 0.001, nan]].map(|values| array(&values));
    assert_eq!([all(&x, &y, true), all(&x, &y, false), all(&y, &x, true)], [true, false, false]);
    let equal =
        |a: &Array, b: &Array, equal_nan| ops::array_equal(a, b, equal_nan).unwrap().item::<bool>().unwrap();
    assert_eq!([equal(&a, &a, true), equal(&a, &a, false), equal(&a, &b, true)], [true, false, false]);
    let row = ops::expand_dims(&x, 0).unwrap();
    assert!(!equal(&x, &row, true), "of another shape");
}
