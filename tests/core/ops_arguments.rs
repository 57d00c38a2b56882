//! How operations take their arguments: axes, overloads, weak numbers, bounds.

use mlxport::{Array, Dtype, Result, ops};

fn grid() -> Array {
    ops::reshape(&ops::arange(0, 24, 1, Dtype::Float32).unwrap(), &[2, 3, 4]).unwrap()
}

fn values(a: Result<Array>) -> Vec<f32> {
    ops::astype(&a.unwrap(), Dtype::Float32).unwrap().to_vec().unwrap()
}

fn shape(a: Result<Array>) -> Vec<i32> {
    a.unwrap().shape().to_vec()
}

#[test]
fn axes_are_all_one_or_several() {
    let x = grid();
    assert_eq!(values(ops::sum(&x, .., false)), [276.0]);
    assert_eq!(shape(ops::sum(&x, .., true)), [1, 1, 1]);
    assert_eq!(shape(ops::sum(&x, -1, false)), [2, 3]);
    assert_eq!(shape(ops::sum(&x, [0, -1], true)), [1, 3, 1]);
    assert_eq!(values(ops::sum(&x, [0, 2], false)), [60.0, 92.0, 124.0]);
    assert_eq!(values(ops::sum(&x, &vec![0, 2], false)), values(ops::sum(&x, &[0, 2][..], false)));
    assert_eq!(shape(ops::sum(&x, [], false)), [2, 3, 4]);
    assert!(ops::sum(&x, 3, false).is_err());
    assert!(ops::sum(&x, [0, 0], false).is_err());
    assert!(ops::sum(&x, [0, -3], false).is_err());
}

#[test]
fn an_axis_that_is_left_out_flattens() {
    let x = grid();
    assert_eq!(values(ops::argmax(&x, None, false)), [23.0]);
    assert_eq!(values(ops::argmax(&x, -1, false)), [3.0; 6]);
    assert_eq!(shape(ops::cumsum(&x, None, false, true)), [24]);
    assert_eq!(values(ops::cumsum(&x, 0, true, false))[..2], [12.0, 13.0]);
    assert_eq!(shape(ops::sort(&x, None)), [24]);
    assert_eq!(shape(ops::topk(&x, 2, -1)), [2, 3, 2]);
    assert_eq!(shape(ops::repeat(&x, 2, None)), [48]);
    assert_eq!(shape(ops::repeat(&x, 2, 1)), [2, 6, 4]);
    let first = Array::from(0u32);
    assert_eq!(values(ops::take(&x, &first, None)), [0.0]);
    assert_eq!(shape(ops::take(&x, &first, 1)), [2, 4]);
}

#[test]
fn split_takes_a_count_or_indices() {
    let x = grid();
    let shapes = |parts: Result<Vec<Array>>| -> Vec<Vec<i32>> {
        parts.unwrap().iter().map(|p| p.shape().to_vec()).collect()
    };
    assert_eq!(shapes(ops::split(&x, 2, -1)), [[2, 3, 2], [2, 3, 2]]);
    assert_eq!(shapes(ops::split(&x, [1, 3], -1)), [[2, 3, 1], [2, 3, 2], [2, 3, 1]]);
    assert!(ops::split(&x, 2, 1).is_err());
    assert!(ops::split(&x, 0, 1).is_err());
}

#[test]
fn clip_takes_a_range_of_numbers_or_arrays() {
    let x = Array::from_slice(&[-2.0f32, 0.5, 3.0], &[3]).unwrap();
    assert_eq!(values(ops::clip(&x, -1.0..=1.0)), [-1.0, 0.5, 1.0]);
    assert_eq!(values(ops::clip(&x, 0..)), [0.0, 0.5, 3.0]);
    let high = Array::from_slice(&[0.0f32, 0.0, 2.0], &[3]).unwrap();
    assert_eq!(values(ops::clip(&x, ..=&high)), [-2.0, 0.0, 2.0]);
}

#[test]
fn numbers_stay_weak_in_functions() {
    let half = ops::ones(&[2], Dtype::Bfloat16).unwrap();
    for y in [ops::maximum(&half, 0.5), ops::power(2.0, &half), ops::where_(&half, &half, 0.0)] {
        assert_eq!(y.unwrap().dtype(), Dtype::Bfloat16);
    }
    assert_eq!(ops::full(&[2], 0.5, Dtype::Float16).unwrap().dtype(), Dtype::Float16);
    assert_eq!(values(ops::full(&[2], 1.5, Dtype::Int32)), [1.0, 1.0]);
}
