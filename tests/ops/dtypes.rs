//! Casts, and the dtype of what two dtypes make.

use half::bf16;
use mlxport::{Array, Dtype, ops};
use proptest::prelude::*;
use support::element::{
    self, FLOATS, INTEGERS, bits, complexes, decode, encode, encode_int, ints, range, reals,
};
use support::strategy::{self, Values};
use support::{Expected, Tolerance, assert_matches, check, computes};

#[test]
fn integers_cast_modulo_their_width() {
    let cases = (strategy::dtype(INTEGERS), strategy::dtype(INTEGERS), strategy::shape(3));
    let cases =
        cases.prop_flat_map(|(from, to, shape)| (strategy::input(from, &shape, Values::Any), Just(to)));
    check(96, cases, |_, (input, to)| {
        let expected = Expected::ints(&ints(&input.tensor), *to);
        assert_matches(&ops::astype(&input.array(), *to).unwrap(), &expected, Tolerance::Exact);
        let truth = Expected::bools(&ints(&input.tensor).map(|&v| v != 0));
        assert_matches(&ops::astype(&input.array(), Dtype::Bool).unwrap(), &truth, Tolerance::Exact);
    });
}

#[test]
fn floats_cast_to_nearest_even() {
    let cases = (strategy::dtype(FLOATS), strategy::dtype(FLOATS), strategy::shape(3));
    let cases =
        cases.prop_flat_map(|(from, to, shape)| (strategy::input(from, &shape, Values::Any), Just(to)));
    check(128, cases, |device, (input, to)| {
        let from = input.tensor.dtype();
        if !computes(device, from) || !computes(device, *to) {
            return;
        }
        // From float64, half precision is reached through float32, in two roundings.
        let cast = |&b: &u64| {
            let value = decode(b, from);
            encode(if to.size() == 2 { f64::from(value as f32) } else { value }, *to)
        };
        let expected = Expected::bits(&bits(&input.tensor).map(cast), *to);
        assert_matches(&ops::astype(&input.array(), *to).unwrap(), &expected, Tolerance::Exact);
        let truth = Expected::bools(&reals(&input.tensor).map(|&v| v != 0.0));
        assert_matches(&ops::astype(&input.array(), Dtype::Bool).unwrap(), &truth, Tolerance::Exact);
    });
}

#[test]
fn floats_cast_to_integers_towards_zero() {
    let cases = (strategy::dtype(FLOATS), strategy::dtype(INTEGERS)).prop_flat_map(|(from, to)| {
        let low = if range(to).0 < 0 { -100.0 } else { 0.0 };
        (strategy::input(from, &[9], Values::Within(low, 100.0)), Just(to))
    });
    check(96, cases, |device, (input, to)| {
        if computes(device, input.tensor.dtype()) {
            let expected = Expected::ints(&reals(&input.tensor).map(|v| v.trunc() as i128), *to);
            assert_matches(&ops::astype(&input.array(), *to).unwrap(), &expected, Tolerance::Exact);
        }
    });
    let cases = (strategy::dtype(INTEGERS), strategy::dtype(FLOATS))
        .prop_flat_map(|(from, to)| (strategy::input(from, &[9], Values::Any), Just(to)));
    check(96, cases, |device, (input, to)| {
        if computes(device, *to) {
            let expected = Expected::reals(&ints(&input.tensor).map(|&v| v as f64), *to);
            assert_matches(&ops::astype(&input.array(), *to).unwrap(), &expected, Tolerance::Strict);
        }
    });
}

#[test]
fn reals_cast_to_complex_without_an_imaginary_part() {
    check(32, strategy::input(Dtype::Float32, &[7], Values::Any), |_, input| {
        let expected = Expected::complexes(&complexes(&input.tensor));
        assert_matches(&ops::astype(&input.array(), Dtype::Complex64).unwrap(), &expected, Tolerance::Exact);
    });
}

#[test]
fn views_keep_the_bits() {
    check(32, strategy::input(Dtype::Float32, &[2, 4], Values::Any), |_, input| {
        let expected = Expected::bits(&bits(&input.tensor), Dtype::Uint32);
        assert_matches(&ops::view(&input.array(), Dtype::Uint32).unwrap(), &expected, Tolerance::Exact);
    });
}

#[test]
fn promotion_keeps_both_ranges() {
    let one = |dtype| {
        Array::from_host(&element::from_bits(
            &support::Nd::scalar(if dtype == Dtype::Complex64 {
                encode(1.0, Dtype::Float32)
            } else {
                encode(1.0, dtype)
            }),
            dtype,
        ))
        .unwrap()
    };
    for &a in Dtype::ALL {
        for &b in Dtype::ALL {
            let found = ops::maximum(one(a), one(b)).unwrap().dtype();
            assert_eq!(found, promoted(a, b), "{a} and {b}");
            assert_eq!(found, promoted(b, a), "{b} and {a}");
        }
    }
    let (half, brain) = (Array::from(half::f16::ONE), Array::from(bf16::ONE));
    assert_eq!((&half + &brain).unwrap().dtype(), Dtype::Float32);
}

/// MLX's lattice, from its documentation. NumPy differs: there int32 and float32 make float64, int64
/// and uint64 make float64, and there is no bfloat16.
fn promoted(a: Dtype, b: Dtype) -> Dtype {
    let rank = |d: Dtype| match d {
        Dtype::Bool => 0,
        d if d.is_integer() => 1,
        d if d.is_floating() => 2,
        _ => 3,
    };
    match (rank(a), rank(b)) {
        (x, y) if x < y => b,
        (x, y) if x > y => a,
        _ if a == b => a,
        (1, _) => {
            let signed = |d: Dtype| range(d).0 < 0;
            let (wide, narrow) = if a.size() >= b.size() { (a, b) } else { (b, a) };
            match (signed(wide), signed(narrow)) {
                (x, y) if x == y => wide,
                (true, false) if wide.size() > narrow.size() => wide,
                // A signed integer twice as wide; there is none beyond int64, and MLX falls to float32.
                _ => match wide.size() {
                    1 => Dtype::Int16,
                    2 => Dtype::Int32,
                    4 => Dtype::Int64,
                    _ => Dtype::Float32,
                },
            }
        }
        _ if a == Dtype::Float64 || b == Dtype::Float64 => Dtype::Float64,
        _ => Dtype::Float32,
    }
}

#[test]
fn new_arrays() {
    for &dtype in INTEGERS {
        let (from, to) = if range(dtype).0 < 0 { (-7i32, 9i32) } else { (2, 9) };
        let found = ops::arange(from, to, 3, dtype).unwrap();
        let values: Vec<i128> = (from..to).step_by(3).map(i128::from).collect();
        assert_matches(
            &found,
            &Expected::ints(&support::Nd::new(&[values.len()], values), dtype),
            Tolerance::Exact,
        );
        let full = ops::full(&[2, 1], 5, dtype).unwrap();
        let fives = support::Nd::from_fn(&[2, 1], |_| encode_int(5, dtype));
        assert_matches(&full, &Expected::bits(&fives, dtype), Tolerance::Exact);
        for (found, value) in constants(&full) {
            let expected = support::Nd::from_fn(&[2, 1], |_| encode_int(value, dtype));
            assert_matches(&found, &Expected::bits(&expected, dtype), Tolerance::Exact);
        }
    }
    for &dtype in FLOATS {
        let points = support::Nd::from_fn(&[9], |at| -1.0 + at[0] as f64 / 4.0);
        let found = ops::linspace(-1.0, 1.0, 9, true, dtype).unwrap();
        assert_matches(&found, &Expected::sums(&points, &points.map(|_| 1.0), dtype), Tolerance::Strict);
        for (found, value) in constants(&ops::full(&[2, 1], 5, dtype).unwrap()) {
            let expected = support::Nd::from_fn(&[2, 1], |_| value as f64);
            assert_matches(&found, &Expected::reals(&expected, dtype), Tolerance::Exact);
        }
        let eye = support::Nd::from_fn(&[3, 4], |at| if at[1] == at[0] + 1 { 1.0 } else { 0.0 });
        assert_matches(&ops::eye(3, 4, 1, dtype).unwrap(), &Expected::reals(&eye, dtype), Tolerance::Exact);
    }
}

/// Zeros and ones of the shape and dtype of `like`, made in both ways.
fn constants(like: &Array) -> [(Array, i128); 4] {
    let (shape, dtype) = (like.shape(), like.dtype());
    [
        (ops::zeros(shape, dtype).unwrap(), 0),
        (ops::ones(shape, dtype).unwrap(), 1),
        (ops::zeros_like(like).unwrap(), 0),
        (ops::ones_like(like).unwrap(), 1),
    ]
}
