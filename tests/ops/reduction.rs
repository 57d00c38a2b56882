//! Reductions over any axes, and running ones along one.

use mlxport::ops::Axes;
use mlxport::{Array, Dtype, Result, ops};
use proptest::prelude::*;
use support::element::{FLOATS, INTEGERS, WHOLE, ints, reals};
use support::strategy::{self, MODERATE, Values};
use support::{Expected, Input, Nd, Tolerance, assert_matches, check, computes};

use Tolerance::{Balanced, Exact, Permissive, Strict};
use Values::{Any, Within};

/// Which axes to reduce, as a caller would say it.
#[derive(Debug, Clone)]
struct Over {
    axes: Vec<usize>,
    keepdims: bool,
    negative: bool,
}

impl Over {
    fn axes(&self, ndim: usize) -> Axes<'static> {
        let one = |&axis: &usize| axis as i32 - if self.negative { ndim as i32 } else { 0 };
        match self.axes[..] {
            [axis] => Axes::One(one(&axis)),
            _ if self.axes.len() == ndim && !self.negative => Axes::All,
            _ => Axes::Many(self.axes.iter().map(one).collect()),
        }
    }
}

fn case(
    dtypes: &'static [Dtype],
    values: Values,
    shape: impl Strategy<Value = Vec<usize>>,
) -> impl Strategy<Value = (Input, Over)> {
    (strategy::dtype(dtypes), shape).prop_flat_map(move |(dtype, shape)| {
        let over = (strategy::axes(shape.len()), any::<bool>(), any::<bool>());
        let over = over.prop_map(|(axes, keepdims, negative)| Over { axes, keepdims, negative });
        (strategy::input(dtype, &shape, values), over)
    })
}

type Op = fn(&Array, Axes<'static>, bool) -> Result<Array>;

/// Holds a reduction of floats to `reference`, whose errors count relative to `magnitude`.
fn floats(
    op: Op,
    reference: fn(&[f64]) -> f64,
    magnitude: fn(&[f64]) -> f64,
    values: Values,
    tolerance: fn(Dtype) -> Tolerance,
) {
    check(64, case(FLOATS, values, strategy::filled_shape(4)), |device, (input, over)| {
        let (dtype, x) = (input.tensor.dtype(), reals(&input.tensor));
        if computes(device, dtype) {
            let found = op(&input.array(), over.axes(x.shape.len()), over.keepdims).unwrap();
            let reduce = |f: fn(&[f64]) -> f64| x.reduce(&over.axes, over.keepdims, f);
            assert_matches(
                &found,
                &Expected::sums(&reduce(reference), &reduce(magnitude), dtype),
                tolerance(dtype),
            );
        }
    });
}

fn largest(x: &[f64]) -> f64 {
    x.iter().copied().fold(0.0, |m: f64, v| m.max(v.abs()))
}

fn total(x: &[f64]) -> f64 {
    x.iter().map(|v| v.abs()).sum()
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

fn variance(x: &[f64], ddof: usize) -> f64 {
    let mean = mean(x);
    x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len().saturating_sub(ddof) as f64
}

fn median(x: &[f64]) -> f64 {
    let mut x = x.to_vec();
    x.sort_by(f64::total_cmp);
    (x[(x.len() - 1) / 2] + x[x.len() / 2]) / 2.0
}

fn logsumexp(x: &[f64]) -> f64 {
    x.iter().map(|v| v.exp()).sum::<f64>().ln()
}

macro_rules! floats {
    ($($name:ident: $op:expr, $reference:expr, $magnitude:expr, $values:expr, $tolerance:expr;)*) => { $(
        #[test]
        fn $name() {
            floats($op, $reference, $magnitude, $values, |_| $tolerance);
        }
    )* };
}

floats! {
    sum: ops::sum, |x| x.iter().sum(), total, MODERATE, Permissive;
    prod: ops::prod, |x| x.iter().product(), largest, Within(0.9, 1.1), Permissive;
    mean_of: ops::mean, mean, total, MODERATE, Balanced;
    // The deviations from a rounded mean leave errors of the size of the values.
    var: |a, axes, keep| ops::var(a, axes, keep, 0), |x| variance(x, 0), |x| largest(x).powi(2), MODERATE, Permissive;
    std: |a, axes, keep| ops::std(a, axes, keep, 0), |x| variance(x, 0).sqrt(), largest, Within(-4.0, 4.0), Permissive;
    median_of: ops::median, median, largest, MODERATE, Strict;
}

/// What goes through `exp`, which is float32 on the CPU.
fn through_exp(dtype: Dtype) -> Tolerance {
    if dtype == Dtype::Float64 { Tolerance::Single } else { Permissive }
}

#[test]
fn log_sum_exp() {
    let op = |a: &Array, axes, keep| ops::logsumexp(a, axes, keep);
    floats(op, logsumexp, |x| largest(x).max(1.0), Within(-9.0, 9.0), through_exp);
}

#[test]
fn unbiased_variance() {
    let shape = prop::collection::vec(2..6usize, 1..4);
    check(48, case(&[Dtype::Float32, Dtype::Float64], MODERATE, shape), |device, (input, over)| {
        let (dtype, x) = (input.tensor.dtype(), reals(&input.tensor));
        if computes(device, dtype) {
            let found = ops::var(&input.array(), over.axes(x.shape.len()), over.keepdims, 1).unwrap();
            let reduce = |f: fn(&[f64]) -> f64| x.reduce(&over.axes, over.keepdims, f);
            let values = reduce(|x| variance(x, 1));
            assert_matches(
                &found,
                &Expected::sums(&values, &reduce(|x| largest(x).powi(2)), dtype),
                Balanced,
            );
        }
    });
}

#[test]
fn extremes_and_their_places() {
    check(64, case(FLOATS, Any, strategy::filled_shape(3)), |device, (input, over)| {
        let (dtype, x, array) = (input.tensor.dtype(), reals(&input.tensor), input.array());
        if !computes(device, dtype) {
            return;
        }
        let extreme = |x: &[f64], better: fn(f64, f64) -> bool| {
            let nan = x.iter().position(|v| v.is_nan());
            let first = |best, (i, &v): (usize, &f64)| if better(v, x[best]) { i } else { best };
            nan.unwrap_or_else(|| x.iter().enumerate().fold(0, first))
        };
        let more: fn(f64, f64) -> bool = |a, b| a > b;
        let less: fn(f64, f64) -> bool = |a, b| a < b;
        for (op, better) in [(ops::max as Op, more), (ops::min, less)] {
            let values = x.reduce(&over.axes, over.keepdims, |x| x[extreme(x, better)]);
            let found = op(&array, over.axes(x.shape.len()), over.keepdims).unwrap();
            // Among zeros of both signs, either is the largest.
            assert_matches(&found, &Expected::reals(&values, dtype), Strict);
        }
        if x.data.iter().any(|v| v.is_nan()) {
            return; // the extreme is NaN, held above; its place is one of several
        }
        let axis = over.axes[0];
        for (op, better) in [(ops::argmax as fn(&_, _, _) -> _, more), (ops::argmin, less)] {
            let places = x.reduce(&[axis], over.keepdims, |x| extreme(x, better) as i128);
            let found: Array = op(&array, Some(axis as i32), over.keepdims).unwrap();
            assert_matches(&found, &Expected::ints(&places, Dtype::Uint32), Exact);
        }
        let flat = x.reshape(&[x.data.len()]);
        let place = extreme(&flat.data, more) as i128;
        let found = ops::argmax(&array, None, false).unwrap();
        assert_matches(&found, &Expected::ints(&Nd::scalar(place), Dtype::Uint32), Exact);
    });
}

/// Sums and products of narrow integers are computed in 32 bits; not those of a scalar, which has no
/// axis to sum over.
fn wide(dtype: Dtype, shape: &[usize]) -> Dtype {
    match dtype {
        _ if shape.is_empty() => dtype,
        Dtype::Bool | Dtype::Int8 | Dtype::Int16 => Dtype::Int32,
        Dtype::Uint8 | Dtype::Uint16 => Dtype::Uint32,
        other => other,
    }
}

#[test]
fn integers_reduce_exactly() {
    check(96, case(WHOLE, Any, strategy::shape(3)), |_, (input, over)| {
        let (dtype, x, array) = (input.tensor.dtype(), ints(&input.tensor), input.array());
        let axes = || over.axes(x.shape.len());
        let sums = x.reduce(&over.axes, over.keepdims, |x| x.iter().sum());
        let found = ops::sum(&array, axes(), over.keepdims).unwrap();
        assert_matches(&found, &Expected::ints(&sums, wide(dtype, &x.shape)), Exact);
        let products =
            x.reduce(&over.axes, over.keepdims, |x| x.iter().fold(1i128, |p, &v| p.wrapping_mul(v)));
        let found = ops::prod(&array, axes(), over.keepdims).unwrap();
        assert_matches(&found, &Expected::ints(&products, wide(dtype, &x.shape)), Exact);
        let all = x.reduce(&over.axes, over.keepdims, |x| x.iter().all(|&v| v != 0));
        assert_matches(&ops::all(&array, axes(), over.keepdims).unwrap(), &Expected::bools(&all), Exact);
        let any = x.reduce(&over.axes, over.keepdims, |x| x.iter().any(|&v| v != 0));
        assert_matches(&ops::any(&array, axes(), over.keepdims).unwrap(), &Expected::bools(&any), Exact);
        let count = x.reduce(&over.axes, over.keepdims, |x| x.iter().filter(|&&v| v != 0).count() as i128);
        let found = ops::count_nonzero(&array, axes(), over.keepdims).unwrap();
        assert_matches(&found, &Expected::ints(&count, found.dtype()), Exact);
        let empty = over.axes.iter().any(|&axis| x.shape[axis] == 0) || x.data.is_empty();
        for (op, pick) in [(ops::max as Op, i128::max as fn(i128, i128) -> i128), (ops::min, i128::min)] {
            let found = op(&array, axes(), over.keepdims);
            if empty {
                continue; // the least of nothing is an error, held below
            }
            let values = x.reduce(&over.axes, over.keepdims, |x| x.iter().copied().reduce(pick).unwrap());
            assert_matches(&found.unwrap(), &Expected::ints(&values, dtype), Exact);
        }
    });
}

#[test]
fn nothing_has_a_sum_but_no_extremes() {
    let nothing = ops::zeros(&[0, 3], Dtype::Float32).unwrap();
    let is = |found: Result<Array>, value: f64| {
        let expected = Expected::reals(&Nd::from_fn(&[3], |_| value), Dtype::Float32);
        assert_matches(&found.unwrap(), &expected, Exact);
    };
    is(ops::sum(&nothing, 0, false), 0.0);
    is(ops::prod(&nothing, 0, false), 1.0);
    is(ops::mean(&nothing, 0, false), f64::NAN);
    assert!(ops::logsumexp(&nothing, 0, false).is_err());
    assert!(ops::max(&nothing, 0, false).is_err() && ops::min(&nothing, .., false).is_err());
    assert!(ops::argmax(&nothing, 0, false).is_err() && ops::sum(&nothing, 2, false).is_err());
}

#[test]
fn softmax_sums_to_one_over_its_axes() {
    check(64, case(FLOATS, Within(-20.0, 20.0), strategy::filled_shape(3)), |device, (input, over)| {
        let (dtype, x) = (input.tensor.dtype(), reals(&input.tensor));
        if !computes(device, dtype) {
            return;
        }
        let exp = x.map(|v| v.exp());
        let values = exp.zip(&exp.reduce(&over.axes, true, |e| e.iter().sum::<f64>()), |e, sum| e / sum);
        for precise in [false, true] {
            let found = ops::softmax(&input.array(), over.axes(x.shape.len()), precise).unwrap();
            assert_matches(&found, &Expected::reals(&values, dtype), through_exp(dtype));
        }
    });
}

fn line(dtypes: &'static [Dtype], values: Values) -> impl Strategy<Value = (Input, usize, bool, bool)> {
    (strategy::dtype(dtypes), strategy::filled_shape(3)).prop_flat_map(move |(dtype, shape)| {
        (strategy::input(dtype, &shape, values), 0..shape.len(), any::<bool>(), any::<bool>())
    })
}

/// What each element of a running reduction counts: all before it, itself too if inclusive, seen from
/// the end if reversed.
fn running<T: Clone, U: Clone>(
    x: &Nd<T>,
    axis: usize,
    reverse: bool,
    inclusive: bool,
    f: fn(&[T]) -> U,
) -> Nd<U> {
    x.map_lines(axis, |line| {
        let mut line = line.to_vec();
        if reverse {
            line.reverse();
        }
        let mut out: Vec<_> = (0..line.len()).map(|i| f(&line[..i + usize::from(inclusive)])).collect();
        if reverse {
            out.reverse();
        }
        out
    })
}

#[test]
fn running_sums_of_floats() {
    check(64, line(FLOATS, MODERATE), |device, (input, axis, reverse, inclusive)| {
        let (dtype, x, array) = (input.tensor.dtype(), reals(&input.tensor), input.array());
        if !computes(device, dtype) {
            return;
        }
        let of = |x: &Nd<f64>, f| running(x, *axis, *reverse, *inclusive, f);
        let expected = Expected::sums(&of(&x, |x| x.iter().sum()), &of(&x, total), dtype);
        let found = ops::cumsum(&array, *axis as i32, *reverse, *inclusive).unwrap();
        assert_matches(&found, &expected, Permissive);
        if *inclusive {
            let max = of(&x, |x| x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            let found = ops::cummax(&array, *axis as i32, *reverse, *inclusive).unwrap();
            assert_matches(&found, &Expected::reals(&max, dtype), Strict);
            let min = of(&x, |x| x.iter().copied().fold(f64::INFINITY, f64::min));
            let found = ops::cummin(&array, *axis as i32, *reverse, *inclusive).unwrap();
            assert_matches(&found, &Expected::reals(&min, dtype), Strict);
            let expected = Expected::sums(&of(&x, logsumexp), &of(&x, |x| largest(x).max(1.0)), dtype);
            let found = ops::logcumsumexp(&array, *axis as i32, *reverse, *inclusive).unwrap();
            assert_matches(&found, &expected, through_exp(dtype));
        }
    });
}

#[test]
fn running_sums_of_integers_wrap() {
    check(64, line(INTEGERS, Any), |_, (input, axis, reverse, inclusive)| {
        let (dtype, x, array) = (input.tensor.dtype(), ints(&input.tensor), input.array());
        let of = |f| running(&x, *axis, *reverse, *inclusive, f);
        // Unlike a sum, a running one stays in the dtype of its elements.
        let found = ops::cumsum(&array, *axis as i32, *reverse, *inclusive).unwrap();
        assert_matches(&found, &Expected::ints(&of(|x| x.iter().sum()), dtype), Exact);
        let found = ops::cumprod(&array, *axis as i32, *reverse, *inclusive).unwrap();
        let product = of(|x| x.iter().fold(1i128, |p, &v| p.wrapping_mul(v)));
        assert_matches(&found, &Expected::ints(&product, dtype), Exact);
        if *inclusive {
            let found = ops::cummax(&array, *axis as i32, *reverse, *inclusive).unwrap();
            assert_matches(&found, &Expected::ints(&of(|x| *x.iter().max().unwrap()), dtype), Exact);
        }
    });
}

#[test]
fn running_over_everything_flattens() {
    let x = ops::arange(1, 7, 1, Dtype::Int32).unwrap();
    let square = ops::transpose(&ops::reshape(&x, &[2, 3]).unwrap(), ..).unwrap();
    let found = ops::cumsum(&square, None, false, true).unwrap();
    assert_eq!(found.to_vec::<i32>().unwrap(), [1, 5, 7, 12, 15, 21]);
}
