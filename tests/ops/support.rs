//! The helpers themselves: a comparator that lets a fault pass would make every test here worthless.

use ::support::compare::{Element, Expected, Mismatch, compare};
use ::support::element::{self, FLOATS, decode, encode};
use ::support::layout::{Layout, lay_out};
use ::support::nd::{Nd, broadcast_shapes};
use ::support::{EXACT, REDUCTION, ROUNDING, Tolerance, difference, for_each_device};
use half::{bf16, f16};
use mlxport::array::Element as _;
use mlxport::{Array, Dtype, HostTensor};
use num_complex::{Complex32, Complex64};

fn tensor(values: &[f64], dtype: Dtype) -> HostTensor {
    let bits = values.iter().map(|&v| encode(v, dtype)).collect();
    element::from_bits(&Nd::new(&[values.len()], bits), dtype)
}

fn fault(found: &[f64], expected: &[f64], dtype: Dtype, tolerance: Tolerance) -> Option<(Element, Element)> {
    let expected = Expected::reals(&Nd::new(&[expected.len()], expected.to_vec()), dtype);
    match compare(&tensor(found, dtype), &expected, tolerance) {
        None => None,
        Some(Mismatch::Values { first, worst, .. }) => Some((first, worst)),
        Some(other) => panic!("{other}"),
    }
}

const NAMED: [Tolerance; 3] = [Tolerance::Strict, Tolerance::Balanced, Tolerance::Permissive];

#[test]
fn an_error_beyond_the_tolerance_is_found_and_one_within_it_is_not() {
    for &dtype in FLOATS {
        for tolerance in NAMED {
            let allowed = tolerance.relative(dtype) + tolerance.absolute(dtype);
            let off = |factor: f64| [3.0, 1.0 + factor * allowed, -2.0];
            assert!(fault(&[3.0, 1.0, -2.0], &off(0.9), dtype, tolerance).is_none());
            let (first, worst) = fault(&[3.0, 1.0, -2.0], &off(1.1), dtype, tolerance).unwrap();
            assert_eq!((first.index.clone(), first.found), (vec![1], 1.0), "{dtype} {tolerance:?}");
            assert_eq!(first, worst);
        }
    }
}

#[test]
fn tolerances_are_ordered_and_far_below_the_values_they_bound() {
    for &dtype in FLOATS {
        let bound = |t: Tolerance| t.relative(dtype) + t.absolute(dtype);
        let bounds =
            [Tolerance::Exact, Tolerance::Strict, Tolerance::Balanced, Tolerance::Permissive].map(bound);
        assert!(bounds.is_sorted_by(|a, b| a < b) && bounds[3] < 0.1, "{dtype}: {bounds:?}");
    }
}

#[test]
fn exact_means_one_bit() {
    for &dtype in FLOATS {
        let (one, next) = (encode(1.0, dtype), encode(1.0, dtype) + 1);
        let found = element::from_bits(&Nd::new(&[1], vec![next]), dtype);
        let expected = Expected::bits(&Nd::new(&[1], vec![one]), dtype);
        let Some(Mismatch::Values { worst, .. }) = compare(&found, &expected, Tolerance::Exact) else {
            panic!("{dtype}: a flipped bit passed");
        };
        assert_eq!(worst.ulps, Some(1), "{dtype}");
    }
}

#[test]
fn faults_beyond_so_many_ulps_are_found_and_roundings_are_not() {
    let eps = f64::from(f32::EPSILON);
    let expected = [1.0, -2.0, 1e-9, f64::INFINITY, f64::NAN];
    let mut found = expected;
    assert_eq!(difference(&found, &expected, eps, EXACT), None);
    found[0] += 3.0 * eps;
    assert_eq!(difference(&found, &expected, eps, ROUNDING), None);
    assert!(difference(&found, &expected, eps, EXACT).is_some());
    found[0] += 10.0 * eps;
    assert!(difference(&found, &expected, eps, ROUNDING).is_some());
    for (at, wrong) in [(0, f64::NAN), (1, 2.0), (3, f64::MAX), (3, f64::NEG_INFINITY), (4, 0.0)] {
        let mut found = expected;
        found[at] = wrong;
        assert!(difference(&found, &expected, eps, REDUCTION).is_some(), "element {at} as {wrong}");
    }
    assert!(difference(&expected[..4], &expected, eps, REDUCTION).is_some());
}

#[test]
fn the_first_and_the_worst_element_are_named() {
    let (first, worst) =
        fault(&[1.0, 2.5, 9.0, 4.0], &[1.0, 2.0, 3.0, 4.0], Dtype::Float32, Tolerance::Strict).unwrap();
    assert_eq!((first.index, first.error), (vec![1], 0.5));
    assert_eq!((worst.index, worst.error), (vec![2], 6.0));
    let found = HostTensor::from_slice(&[1.0f32, 2.5, 3.0, 4.0], &[2, 2]).unwrap();
    let expected = Expected::reals(&Nd::new(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]), Dtype::Float32);
    let message = compare(&found, &expected, Tolerance::Strict).unwrap().to_string();
    assert_eq!(
        message,
        "1 of 4 elements differ; first at [0, 1]: found 2.5, expected 2.0 (error 5.000e-1, 2097152 ULP, \
         allowed 1.000e-6)"
    );
}

#[test]
fn nan_equals_nan_and_nothing_else() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    for &dtype in FLOATS {
        for tolerance in [Tolerance::Exact, Tolerance::Permissive] {
            assert!(fault(&[nan, inf, -inf], &[nan, inf, -inf], dtype, tolerance).is_none());
            for (found, expected) in [(nan, 1.0), (1.0, nan), (nan, inf), (inf, nan), (inf, -inf), (1.0, inf)]
            {
                let (first, _) = fault(&[found], &[expected], dtype, tolerance).unwrap();
                assert_eq!(first.error, f64::INFINITY, "{dtype} {found} {expected}");
            }
            assert!(fault(&[inf], &[1.0], dtype, tolerance).is_some());
        }
    }
}

#[test]
fn overflow_is_infinity_only_next_to_the_largest_number() {
    let largest = f16::MAX.to_f64();
    let near = |found, expected| fault(&[found], &[expected], Dtype::Float16, Tolerance::Strict).is_none();
    assert!(near(f64::INFINITY, 1e6) && near(largest, largest + 20.0));
    assert!(near(f64::INFINITY, largest), "a rounding away from the largest number");
    assert!(!near(f64::INFINITY, largest * 0.9) && !near(-f64::INFINITY, 1e6) && !near(largest, 1e6));
}

#[test]
fn the_sign_of_zero_counts_when_exact_and_only_then() {
    for &dtype in FLOATS {
        assert!(fault(&[-0.0], &[0.0], dtype, Tolerance::Exact).is_some(), "{dtype}");
        assert!(fault(&[-0.0], &[0.0], dtype, Tolerance::Strict).is_none(), "{dtype}");
    }
}

#[test]
fn strict_flushes_subnormals_but_nothing_normal() {
    let smallest = f64::from(f32::MIN_POSITIVE);
    let flushed = |v| fault(&[0.0], &[v], Dtype::Float32, Tolerance::Strict).is_none();
    assert!(flushed(smallest / 2.0) && !flushed(smallest * 1.5) && !flushed(1e-30));
}

#[test]
fn errors_of_sums_count_relative_to_their_terms() {
    let (value, terms) = (Nd::scalar(0.0), Nd::scalar(1e6));
    let found = HostTensor::from_slice(&[0.25f32], &[]).unwrap();
    let sums = Expected::sums(&value, &terms, Dtype::Float32);
    assert!(compare(&found, &sums, Tolerance::Strict).is_none());
    assert!(compare(&found, &Expected::reals(&value, Dtype::Float32), Tolerance::Permissive).is_some());
    let far = HostTensor::from_slice(&[1.0f32], &[]).unwrap();
    assert!(compare(&far, &sums, Tolerance::Strict).is_some());
}

#[test]
fn shapes_and_dtypes_must_agree() {
    let found = HostTensor::from_slice(&[1.0f32, 1.0], &[2]).unwrap();
    let of = |shape: &[usize], dtype| Expected::reals(&Nd::from_fn(shape, |_| 1.0), dtype);
    let against = |shape: &[usize], dtype| compare(&found, &of(shape, dtype), Tolerance::Permissive);
    assert_eq!(against(&[2], Dtype::Float32), None);
    for shape in [&[2usize, 1][..], &[1, 2], &[3], &[]] {
        assert!(matches!(against(shape, Dtype::Float32), Some(Mismatch::Shape { .. })), "{shape:?}");
    }
    assert!(matches!(against(&[2], Dtype::Float16), Some(Mismatch::Dtype { .. })));
    let empty = HostTensor::from_slice::<f32>(&[], &[0, 3]).unwrap();
    let no_rows = Expected::reals(&Nd::new(&[3, 0], vec![]), Dtype::Float32);
    assert!(matches!(compare(&empty, &no_rows, Tolerance::Strict), Some(Mismatch::Shape { .. })));
}

#[test]
fn integers_are_exact_whatever_the_tolerance() {
    let found = HostTensor::from_slice(&[i64::MAX, -1], &[2]).unwrap();
    let is = |a: i128, b: i128| {
        let expected = Expected::ints(&Nd::new(&[2], vec![a, b]), Dtype::Int64);
        compare(&found, &expected, Tolerance::Permissive)
    };
    assert_eq!(is(i64::MAX.into(), -1), None);
    assert_eq!(is(i128::from(i64::MAX) + (1 << 64), -1), None, "wraps");
    let Some(Mismatch::Values { count: 1, first, .. }) = is(i128::from(i64::MAX) - 1, -1) else {
        panic!("one off at 2^63 passed");
    };
    assert_eq!(first.index, [0]);
    let truth = HostTensor::from_slice(&[true], &[1]).unwrap();
    assert!(compare(&truth, &Expected::bools(&Nd::new(&[1], vec![false])), Tolerance::Permissive).is_some());
}

#[test]
fn each_part_of_a_complex_number_is_held() {
    let found = HostTensor::from_slice(&[Complex32::new(3.0, 4.0)], &[1]).unwrap();
    let against = |re, im| {
        compare(&found, &Expected::complexes(&Nd::new(&[1], vec![Complex64::new(re, im)])), Tolerance::Strict)
    };
    assert_eq!(against(3.0, 4.0), None);
    assert_eq!(against(3.0, 4.0 + 1e-6), None);
    for (re, im, part) in [(3.1, 4.0, 0), (3.0, -4.0, 1)] {
        let Some(Mismatch::Values { first, .. }) = against(re, im) else { panic!("({re}, {im}) passed") };
        assert_eq!(first.index, [0, part]);
    }
}

#[test]
fn rounding_to_every_dtype_is_to_nearest_even() {
    // Halfway between two neighbours, and a hair to either side, further than f32 can tell.
    for (dtype, epsilon) in [(Dtype::Float16, 2f64.powi(-10)), (Dtype::Bfloat16, 2f64.powi(-7))] {
        let is = |value, rounded| assert_eq!(element::round(value, dtype), rounded, "{dtype} {value}");
        let hair = 2f64.powi(-50);
        for sign in [1.0, -1.0] {
            is(sign * (1.0 + epsilon / 2.0), sign);
            is(sign * (1.0 + epsilon / 2.0 + hair), sign * (1.0 + epsilon));
            is(sign * (1.0 + 1.5 * epsilon), sign * (1.0 + 2.0 * epsilon));
            is(sign * (1.0 + 1.5 * epsilon - hair), sign * (1.0 + epsilon));
        }
    }
    assert_eq!(element::round(65519.999, Dtype::Float16), 65504.0);
    assert_eq!(element::round(65520.0, Dtype::Float16), f64::INFINITY);
    for bits in [0x0001u64, 0x3c00, 0x7bff, 0x8001, 0xfc00] {
        assert_eq!(encode(decode(bits, Dtype::Float16), Dtype::Float16), bits);
        assert_eq!(encode(decode(bits, Dtype::Bfloat16), Dtype::Bfloat16), bits);
    }
    assert_eq!(decode(0x3e00, f16::DTYPE), 1.5);
    assert_eq!(decode(0x3fc0, bf16::DTYPE), 1.5);
}

#[test]
fn the_naive_array_follows_numpy() {
    let x = Nd::new(&[2, 3], vec![1, 2, 3, 4, 5, 6]);
    assert_eq!(x.permute(&[1, 0]), Nd::new(&[3, 2], vec![1, 4, 2, 5, 3, 6]));
    assert_eq!(x.reduce(&[0], false, |v| v.iter().sum::<i32>()), Nd::new(&[3], vec![5, 7, 9]));
    assert_eq!(x.reduce(&[1], true, |v| v.iter().sum::<i32>()), Nd::new(&[2, 1], vec![6, 15]));
    assert_eq!(x.reduce(&[1, 0], false, <[i32]>::to_vec), Nd::scalar(vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(x.pick_along(1, &[2, 0]), Nd::new(&[2, 2], vec![3, 1, 6, 4]));
    assert_eq!(x.map_lines(0, |v| vec![v[1] - v[0]]), Nd::new(&[1, 3], vec![3, 3, 3]));
    let column = Nd::new(&[2, 1], vec![10, 20]);
    assert_eq!(x.zip(&column, |a, b| a + b), Nd::new(&[2, 3], vec![11, 12, 13, 24, 25, 26]));
    let empty = Nd::<i32>::new(&[0, 3], vec![]);
    assert_eq!(empty.reduce(&[0], false, |v| v.len()), Nd::new(&[3], vec![0, 0, 0]));
    assert_eq!(broadcast_shapes(&[5, 1, 3], &[4, 1]), Some(vec![5, 4, 3]));
    assert_eq!(broadcast_shapes(&[0], &[1]), Some(vec![0]));
    assert_eq!(broadcast_shapes(&[2], &[3]), None);
}

#[test]
fn layouts_hold_the_same_values() {
    let layouts = [Layout::Contiguous, Layout::Transposed, Layout::Strided, Layout::Flipped, Layout::Offset];
    for_each_device(|device| {
        for shape in [&[2usize, 3, 2][..], &[4], &[0, 2], &[1, 1], &[]] {
            let mut next = 0;
            let values = Nd::from_fn(shape, |_| {
                next += 1;
                encode(next.into(), Dtype::Float32)
            });
            let tensor = element::from_bits(&values, Dtype::Float32);
            for layout in &layouts {
                let array = lay_out(&tensor, layout).unwrap();
                assert_eq!(array.to_host().unwrap(), tensor, "{device} {shape:?} {layout:?}");
            }
        }
    });
    let rows = Array::from_slice(&[1i32, 2, 1, 2], &[2, 2]).unwrap().to_host().unwrap();
    let broadcast = lay_out(&rows, &Layout::Broadcast(vec![0])).unwrap();
    assert_eq!(broadcast.to_host().unwrap(), rows);
}
