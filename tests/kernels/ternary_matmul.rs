//! `ternary_matmul` against sums in `f64`.

use mlxport::{Array, Dtype, kernels, ops, transforms};
use proptest::prelude::*;

use crate::{FLOATS, assert_maps, assert_repeats, check, differences, fast_paths, rounded};
use support::Numbers;

/// Random codes of `bits` bits, `[n, k]`, and the numbers that they stand for: -1 and 1, or 0 too.
fn matrix(numbers: &mut Numbers, [n, k]: [i32; 2], bits: i32) -> (Array, Vec<f64>) {
    let codes: Vec<u32> = (0..n * k).map(|_| numbers.below(bits as usize + 1) as u32).collect();
    let word = |codes: &[u32]| codes.iter().enumerate().fold(0, |w, (i, c)| w | c << (i as i32 * bits));
    let words: Vec<u32> = codes.chunks_exact(32 / bits as usize).map(word).collect();
    let sign = |&code: &u32| if bits == 1 { 2.0 * f64::from(code) - 1.0 } else { f64::from(code) - 1.0 };
    (Array::from_slice(&words, &[n, k * bits / 32]).unwrap(), codes.iter().map(sign).collect())
}

/// `x @ w.T` of rows of `k` numbers, where each group of `size` numbers of `w` has a scale.
fn exact(x: &[f64], w: &[f64], scales: &[f64], k: usize, size: usize) -> Vec<f64> {
    let weight = |at: usize| w[at] * scales[at / size];
    let dot = |x: &[f64], row: usize| x.iter().enumerate().map(|(i, x)| x * weight(row * k + i)).sum();
    x.chunks_exact(k).flat_map(|x| (0..w.len() / k).map(move |row| dot(x, row))).collect()
}

proptest! {
    #![proptest_config(crate::config(48))]

    #[test]
    fn products_are_as_exact_as_the_reference(
        bits in 1..=2i32,
        dtype in prop::sample::select(&FLOATS[..]),
        m in prop::sample::select(vec![1, 2, 5, 13]),
        n in prop::sample::select(vec![1, 3, 4, 21]),
        groups in 1..4i32,
        units in prop::sample::select(vec![1, 2, 3, 4, 10]),
        seed: u64,
    ) {
        let numbers = &mut Numbers(seed);
        let (size, k) = (units * 32, groups * units * 32);
        let (w, weights) = matrix(numbers, [n, k], bits);
        let (scales, scale_values) = rounded(&numbers.values((n * groups) as usize), &[n, groups], dtype);
        let (x, values) = rounded(&numbers.values((m * k) as usize), &[m, k], dtype);
        let expected = exact(&values, &weights, &scale_values, k as usize, size as usize);
        let f = || kernels::ternary_matmul(&x, &w, &scales, bits);
        check(&expected, f64::from(k).sqrt(), f, f)?;
    }
}

#[test]
fn they_have_gradients_and_map_over_an_axis() {
    for bits in [1, 2] {
        let numbers = &mut Numbers(bits as u64);
        let [n, k] = [5, 64];
        let (w, weights) = matrix(numbers, [n, k], bits);
        let [(x, x_values), (scales, scale_values)] = [[3, k], [n, 2]].map(|shape| numbers.array(&shape));
        let loss = |values: &[Vec<f64>]| {
            exact(&values[0], &weights, &values[1], 64, 32).iter().map(|y| y.powi(2)).sum::<f64>()
        };
        let expected = differences(&[x_values, scale_values], loss);
        let product = |args: &[Array]| kernels::ternary_matmul(&args[0], &w, &args[1], bits);
        let loss = |args: &[Array]| ops::sum(&ops::square(&product(args)?)?, .., false);
        for path in fast_paths() {
            let found = kernels::force(path, || transforms::value_and_grad(loss, [&x, &scales]));
            for (found, expected) in found.unwrap().unwrap().1.iter().zip(&expected) {
                support::assert_close(found, expected, support::SOLVER);
            }
        }
        assert_maps(&[&x, &scales], &[Some(0), None], |args| {
            Ok(vec![product(&[ops::expand_dims(&args[0], 0)?, args[1].clone()])?])
        });
        assert_repeats(|| Ok(vec![product(&[x.clone(), scales.clone()])?]));
        let refused = |x: &[i32], scales: &[i32]| {
            let [x, scales] = [x, scales].map(|shape| ops::zeros(shape, Dtype::Float32).unwrap());
            kernels::ternary_matmul(&x, &w, &scales, bits).unwrap_err();
        };
        refused(&[3, 32], &[5, 2]);
        refused(&[3, 64], &[4, 2]);
        refused(&[3, 64], &[5, 3]);
        refused(&[3, 64], &[5, 4]);
    }
}
