//! Arrays that are made, and the shapes that they are given.

use std::f64::consts::PI;

use mlxport::ops::{self, Indexing};
use mlxport::{Array, Dtype, Result};
use support::{REDUCTION, assert_close};

#[test]
fn windows_are_their_formulas() {
    type Window = fn(i32) -> Result<Array>;
    type Formula = fn(f64) -> f64;
    // Of `n / (size - 1)`.
    let windows: [(Window, Formula); 4] = [
        (ops::bartlett, |t| 1.0 - (2.0 * t - 1.0).abs()),
        (ops::hanning, |t| 0.5 - 0.5 * (2.0 * PI * t).cos()),
        (ops::hamming, |t| 0.54 - 0.46 * (2.0 * PI * t).cos()),
        (ops::blackman, |t| 0.42 - 0.5 * (2.0 * PI * t).cos() + 0.08 * (4.0 * PI * t).cos()),
    ];
    for (window, formula) in windows {
        for size in [3, 7, 64] {
            let expected: Vec<f64> = (0..size).map(|n| formula(f64::from(n) / f64::from(size - 1))).collect();
            assert_close(&window(size).unwrap(), &expected, REDUCTION);
        }
        assert_eq!(window(1).unwrap().to_vec::<f32>().unwrap(), [1.0]);
        assert_eq!(window(0).unwrap().shape(), [0]);
    }
}

#[test]
fn grids_and_shapes_in_common() {
    let array = |values: &[i32], shape: &[i32]| Array::from_slice(values, shape).unwrap();
    let (x, y) = (array(&[1, 2, 3], &[3]), array(&[10, 20], &[2]));
    let is = |found: &[Array], expected: &[(&[i32], &[i32])]| {
        assert_eq!(found.len(), expected.len());
        for (found, (shape, values)) in found.iter().zip(expected) {
            assert_eq!((found.shape(), &found.to_vec::<i32>().unwrap()[..]), (*shape, *values));
        }
    };
    let grid = |sparse, indexing| ops::meshgrid([&x, &y], sparse, indexing).unwrap();
    let paper: [(&[i32], &[i32]); 2] = [(&[2, 3], &[1, 2, 3, 1, 2, 3]), (&[2, 3], &[10, 10, 10, 20, 20, 20])];
    is(&grid(false, Indexing::Xy), &paper);
    is(&grid(false, Indexing::Ij), &[(&[3, 2], &[1, 1, 2, 2, 3, 3]), (&[3, 2], &[10, 20, 10, 20, 10, 20])]);
    is(&grid(true, Indexing::Xy), &[(&[1, 3], &[1, 2, 3]), (&[2, 1], &[10, 20])]);
    is(&grid(true, Indexing::Ij), &[(&[3, 1], &[1, 2, 3]), (&[1, 2], &[10, 20])]);

    let column = array(&[10, 20], &[2, 1]);
    is(&ops::broadcast_arrays([&x, &column]).unwrap(), &paper);
    assert!(ops::broadcast_arrays([&x, &y]).is_err());

    let like = ops::zeros(&[2, 3], Dtype::Float32).unwrap();
    is(&[ops::full_like(&like, &column, Dtype::Int32).unwrap()], &paper[1..]);
    is(&[ops::full_like(&like, 7, Dtype::Int32).unwrap()], &[(&[2, 3], &[7; 6])]);
}

#[test]
fn dimensions_are_added_to_few() {
    let shapes = |shape: &[i32]| {
        let a = ops::zeros(shape, Dtype::Int8).unwrap();
        [ops::atleast_1d(&a), ops::atleast_2d(&a), ops::atleast_3d(&a)].map(|a| a.unwrap().shape().to_vec())
    };
    assert_eq!(shapes(&[]), [vec![1], vec![1, 1], vec![1, 1, 1]]);
    assert_eq!(shapes(&[2]), [vec![2], vec![1, 2], vec![1, 2, 1]]);
    assert_eq!(shapes(&[2, 3]), [vec![2, 3], vec![2, 3], vec![2, 3, 1]]);
    assert_eq!(shapes(&[2, 3, 4, 5]), [[2, 3, 4, 5].to_vec(), [2, 3, 4, 5].to_vec(), [2, 3, 4, 5].to_vec()]);
}
