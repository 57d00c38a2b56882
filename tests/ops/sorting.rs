//! Sorting and selecting along any axis.

use std::cmp::Ordering;

use mlxport::{Array, Dtype, ops};
use proptest::prelude::*;
use support::element::{self, ORDERED, bits, ints};
use support::strategy::{self, Values};
use support::{Expected, Input, Nd, Tolerance, assert_matches, check, computes};

fn case(values: Values) -> impl Strategy<Value = (Input, usize)> {
    (strategy::dtype(ORDERED), strategy::filled_shape(3))
        .prop_flat_map(move |(dtype, shape)| (strategy::input(dtype, &shape, values), 0..shape.len()))
}

/// Ascending; NaN is above everything.
fn order(a: u64, b: u64, dtype: Dtype) -> Ordering {
    if !dtype.is_floating() {
        return element::decode_int(a, dtype).cmp(&element::decode_int(b, dtype));
    }
    let (a, b) = (element::decode(a, dtype), element::decode(b, dtype));
    a.partial_cmp(&b).unwrap_or(a.is_nan().cmp(&b.is_nan()))
}

fn positions(line: &[u64], dtype: Dtype) -> Vec<usize> {
    let mut at: Vec<_> = (0..line.len()).collect();
    at.sort_by(|&i, &j| order(line[i], line[j], dtype));
    at
}

#[test]
fn sort_and_its_positions() {
    check(128, case(Values::Any), |device, (input, axis)| {
        let (dtype, x, array) = (input.tensor.dtype(), bits(&input.tensor), input.array());
        if !computes(device, dtype) {
            return;
        }
        let sorted = |x: &Nd<u64>, axis| {
            x.map_lines(axis, |line| positions(line, dtype).into_iter().map(|i| line[i]).collect())
        };
        let axis_i32 = *axis as i32;
        let expected = sorted(&x, *axis);
        assert_matches(
            &ops::sort(&array, axis_i32).unwrap(),
            &Expected::bits(&expected, dtype),
            Tolerance::Exact,
        );
        let places =
            x.map_lines(*axis, |line| positions(line, dtype).into_iter().map(|i| i as i128).collect());
        let found = ops::argsort(&array, axis_i32 - x.shape.len() as i32).unwrap();
        assert_matches(&found, &Expected::ints(&places, Dtype::Uint32), Tolerance::Exact);
        let flat = x.reshape(&[x.data.len()]);
        let found = ops::sort(&array, None).unwrap();
        assert_matches(&found, &Expected::bits(&sorted(&flat, 0), dtype), Tolerance::Exact);
    });
}

#[test]
fn partitions_and_the_largest() {
    let strategy = (case(Values::Ordered), any::<prop::sample::Index>());
    check(96, strategy, |device, ((input, axis), kth)| {
        let (dtype, x, array) = (input.tensor.dtype(), bits(&input.tensor), input.array());
        if !computes(device, dtype) {
            return;
        }
        let (axis, length) = (*axis as i32, x.shape[*axis]);
        let kth = kth.index(length);
        let rank = |line: &[u64]| -> Vec<u64> {
            let mut line = line.to_vec();
            line.sort_by(|&a, &b| order(a, b, dtype));
            line
        };
        // Both sides of a partition are in no order: sort each before comparing.
        let halves = |line: &[u64]| [rank(&line[..kth]), vec![line[kth]], rank(&line[kth + 1..])].concat();
        let value = |b: &Nd<u64>| {
            if dtype.is_floating() {
                b.map(|&b| element::decode(b, dtype))
            } else {
                ints(&element::from_bits(b, dtype)).map(|&v| v as f64)
            }
        };
        let expected = value(&x.map_lines(axis as usize, rank));
        let found = ops::partition(&array, kth as i32, axis).unwrap();
        let found = bits(&found.to_host().unwrap()).map_lines(axis as usize, halves);
        assert_eq!(value(&found), expected);
        let places = ops::argpartition(&array, kth as i32, axis).unwrap();
        let through = ops::take_along_axis(&array, &places, axis).unwrap();
        let through = bits(&through.to_host().unwrap()).map_lines(axis as usize, halves);
        assert_eq!(value(&through), expected);
        let largest = ops::topk(&array, kth as i32 + 1, axis).unwrap();
        let largest = bits(&largest.to_host().unwrap()).map_lines(axis as usize, rank);
        let top: Vec<_> = (length - kth - 1..length).collect();
        assert_eq!(value(&largest), expected.pick_along(axis as usize, &top));
    });
}

#[test]
fn a_sort_needs_its_axis_and_a_partition_its_place() {
    let x = ops::zeros(&[3, 4], Dtype::Float32).unwrap();
    assert!(ops::sort(&x, 2).is_err() && ops::argsort(&x, -3).is_err());
    assert!(ops::partition(&x, 4, 1).is_err() && ops::argpartition(&x, -5, 1).is_err());
    assert!(ops::topk(&x, 5, 1).is_err());
}

#[test]
fn values_go_before_or_after_their_equals() {
    let sorted = Array::from_slice(&[1.0f32, 2.0, 2.0, 4.0], &[4]).unwrap();
    let values = Array::from_slice(&[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0], &[2, 3]).unwrap();
    let places = |side| {
        let places = ops::searchsorted(&sorted, &values, side).unwrap();
        assert_eq!(places.shape(), [2, 3]);
        places.to_vec::<u32>().unwrap()
    };
    assert_eq!(places(ops::Side::Left), [0, 0, 1, 3, 3, 4]);
    assert_eq!(places(ops::Side::Right), [0, 1, 3, 3, 4, 4]);
}
