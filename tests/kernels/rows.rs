//! Norms, softmax, rotary positions and the gated unit against their formulas in `f64`.

use mlxport::nn::activations::swiglu;
use mlxport::{Array, Dtype, fast, kernels, ops, transforms};
use proptest::prelude::*;

use crate::support::{Numbers, REDUCTION, assert_close, to_f64};
use crate::{FLOATS, bits, check, fast_paths, rounded};

fn random(numbers: &mut Numbers, shape: &[i32], dtype: Dtype, scale: f64) -> (Array, Vec<f64>) {
    let count = shape.iter().map(|&d| d as usize).product();
    let values: Vec<f64> = numbers.values(count).iter().map(|v| v * scale).collect();
    rounded(&values, shape, dtype)
}

/// `array` with its last two axes swapped in memory.
fn turned(array: &Array) -> Array {
    let n = array.ndim() as i32;
    let copy = ops::contiguous(&ops::swapaxes(array, n - 2, n - 1).unwrap(), false).unwrap();
    ops::swapaxes(&copy, n - 2, n - 1).unwrap()
}

fn by_row(x: &[f64], n: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(n).flat_map(f).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_as_exact_as_the_reference(
        rows in prop::sample::select(vec![1, 2, 5]),
        n in prop::sample::select(vec![1, 2, 7, 8, 15, 16, 33, 257]),
        dtypes in (prop::sample::select(&FLOATS[..]), prop::sample::select(&FLOATS[..])),
        exponent in prop::sample::select(vec![-30, -3, 0, 2, 8]),
        has_weight: bool,
        has_bias: bool,
        lies_turned: bool,
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        // Half precision has no such numbers.
        let exponent = if dtypes.0 == Dtype::Float16 { exponent.max(-3) } else { exponent };
        let (x, values) = random(&mut numbers, &[2, rows, n], dtypes.0, 2f64.powi(exponent));
        let x = if lies_turned { turned(&x) } else { x };
        let (weight, w) = random(&mut numbers, &[n], dtypes.1, 2.0);
        let (bias, b) = random(&mut numbers, &[n], dtypes.1, 1.0);
        let (weight, bias) = (has_weight.then_some(&weight), has_bias.then_some(&bias));
        let n = n as usize;
        let scaled = |x: &[f64], factor: f64| -> Vec<f64> {
            x.iter().zip(&w).map(|(x, w)| x * factor * if has_weight { *w } else { 1.0 }).collect()
        };
        let mean_square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() / n as f64;

        let norm = |x: &[f64]| scaled(x, 1.0 / (mean_square(x) + f64::from(1e-5f32)).sqrt());
        let f = || fast::rms_norm(&x, weight, 1e-5);
        check(&by_row(&values, n, norm), 2.0, f, f)?;

        let norm = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / n as f64;
            let x: Vec<f64> = x.iter().map(|x| x - mean).collect();
            let y = scaled(&x, 1.0 / (mean_square(&x) + f64::from(1e-5f32)).sqrt());
            y.iter().zip(&b).map(|(y, b)| y + if has_bias { *b } else { 0.0 }).collect()
        };
        let f = || fast::layer_norm(&x, weight, bias, 1e-5);
        check(&by_row(&values, n, norm), 4.0 * (1.0 + 2f64.powi(exponent)), f, f)?;

        let softmax = |x: &[f64]| {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.iter().map(|e| e / sum).collect()
        };
        check(&by_row(&values, n, softmax), 1.0, || ops::softmax(&x, -1, true), || ops::softmax(&x, 2, true))?;

        let (gate, g) = random(&mut numbers, &[2, rows, n as i32], dtypes.0, 2f64.powi(exponent.max(-3)));
        let expected: Vec<f64> = g.iter().zip(&values).map(|(g, x)| g / (1.0 + (-g).exp()) * x).collect();
        check(&expected, 0.0, || swiglu(&gate, &x), || swiglu(&gate, &x))?;
    }

    #[test]
    fn positions_turn_as_exactly_as_in_the_reference(
        shape in prop::sample::select(vec![vec![1, 1, 1], vec![2, 5, 1], vec![2, 3, 4], vec![2, 2, 3, 1]]),
        head in prop::sample::select(vec![[2, 2], [8, 8], [10, 6], [64, 64], [17, 16]]),
        dtype in prop::sample::select(&FLOATS[..]),
        traditional: bool,
        lies_turned: bool,
        offset in prop::sample::select(vec![0, 1, 1000]),
        each: bool,
        periods: bool,
        seed: u64,
    ) {
        let (mut numbers, [n, dims]) = (Numbers(seed), head);
        let shape: Vec<i32> = shape.into_iter().chain([n]).collect();
        let (x, values) = random(&mut numbers, &shape, dtype, 1.0);
        let x = if lies_turned { turned(&x) } else { x };
        let half = (dims / 2) as usize;
        let given: Vec<f32> = (0..half).map(|i| 1.5f32.powi(i as i32)).collect();
        let given_array = Array::from_slice(&given, &[half as i32]).unwrap();
        let offsets: Vec<i32> = (0..shape[0]).map(|b| if each { offset + 3 * b } else { offset }).collect();
        let offset_array = Array::from_slice(&offsets, &[shape[0]]).unwrap();
        let (length, n) = (shape[shape.len() - 2] as usize, n as usize);
        let per_batch = values.len() / n / shape[0] as usize;
        let turn = |(row, x): (usize, &[f64])| {
            let position = f64::from(offsets[row / per_batch]) + (row % length) as f64;
            let mut y = x.to_vec();
            for (i, &period) in given.iter().enumerate() {
                let frequency = match periods {
                    true => 1.0 / f64::from(period),
                    false => 10_000f64.powf(-(i as f64) / half as f64),
                };
                let (sin, cos) = (0.5 * position * frequency).sin_cos();
                let (a, b) = if traditional { (2 * i, 2 * i + 1) } else { (i, i + half) };
                (y[a], y[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
            }
            y
        };
        let expected: Vec<f64> = values.chunks_exact(n).enumerate().flat_map(turn).collect();
        let offset = if each { fast::RopeOffset::Each(&offset_array) } else { offset.into() };
        let frequencies = if periods { (&given_array).into() } else { fast::RopeFrequencies::Base(10_000.0) };
        let f = || fast::rope(&x, dims, traditional, frequencies, 0.5, offset);
        check(&expected, 1.0, f, f)?;
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for special in [f64::NAN, f64::INFINITY] {
        let mut values = vec![0.5; 40];
        values[3] = special;
        let (x, _) = rounded(&values, &[2, 20], Dtype::Float32);
        for path in fast_paths() {
            let on =
                |f: &dyn Fn() -> mlxport::Result<Array>| to_f64(&kernels::force(path, f).unwrap().unwrap());
            for y in [on(&|| fast::rms_norm(&x, None, 1e-5)), on(&|| ops::softmax(&x, -1, true))] {
                assert!(y[3].is_nan() && y[20..].iter().all(|y| y.is_finite()), "{path} {special}");
            }
            let y = on(&|| swiglu(&x, &x));
            assert!(!y[3].is_finite() && y[4..].iter().all(|y| y.is_finite()), "{path} {special}");
        }
    }
    // The gate of a large negative number is closed, and the unit of an infinite one open.
    let (x, _) = rounded(&[-200.0, -90.0, 90.0, f64::INFINITY], &[4], Dtype::Float32);
    let (one, _) = rounded(&[1.0; 4], &[4], Dtype::Float32);
    for path in fast_paths() {
        let y = to_f64(&kernels::force(path, || swiglu(&x, &one)).unwrap().unwrap());
        assert!(
            y[..2].iter().all(|y| y.abs() < 1e-30) && y[2] == 90.0 && y[3] == f64::INFINITY,
            "{path} {y:?}"
        );
    }
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    let before = kernels::threads();
    let (x, _) = random(&mut Numbers(2), &[3, 70, 300], Dtype::Bfloat16, 2.0);
    let all = || -> mlxport::Result<Vec<u8>> {
        let mut seen = bits(&fast::rms_norm(&x, None, 1e-5)?);
        seen.extend(bits(&ops::softmax(&x, -1, true)?));
        seen.extend(bits(&fast::rope(&x, 300, false, 10_000.0, 1.0, 7)?));
        seen.extend(bits(&swiglu(&x, &x)?));
        Ok(seen)
    };
    for path in fast_paths() {
        let mut seen = Vec::new();
        for threads in [1, 2, 5] {
            kernels::set_threads(threads).unwrap();
            seen.push(kernels::force(path, all).unwrap().unwrap());
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{path}");
    }
    kernels::set_threads(before).unwrap();
}

#[test]
fn gradients_are_those_of_the_reference() {
    let mut numbers = Numbers(6);
    let (x, _) = random(&mut numbers, &[2, 3, 8], Dtype::Float32, 1.0);
    let (w, _) = random(&mut numbers, &[8], Dtype::Float32, 1.0);
    let loss = |args: &[Array]| {
        let y =
            fast::layer_norm(&fast::rms_norm(&args[0], Some(&args[1]), 1e-5)?, None, Some(&args[1]), 1e-5)?;
        let y = fast::rope(&ops::softmax(&y, -1, true)?, 8, false, 100.0, 1.0, 3)?;
        ops::sum(&ops::square(&swiglu(&y, &args[0])?)?, .., false)
    };
    let grads =
        |path| kernels::force(path, || transforms::value_and_grad(loss, [&x, &w])).unwrap().unwrap().1;
    let expected = grads(kernels::Path::Reference);
    for path in fast_paths() {
        for (found, expected) in grads(path).iter().zip(&expected) {
            assert_close(found, &to_f64(expected), REDUCTION);
        }
    }
}
