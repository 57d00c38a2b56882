//! Norms, softmax, rotary positions and the gated unit against their formulas in `f64`.

mod gradients;

use mlxport::nn::activations::{Activation, swiglu};
use mlxport::{Array, Dtype, fast, kernels, ops, transforms};
use proptest::prelude::*;

use crate::{FLOATS, assert_maps, assert_repeats, check, differences, fast_paths, rounded};
use support::{Numbers, REDUCTION, SOLVER, difference, epsilon, to_f64};

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

/// The same values, but they lie backwards in memory.
fn reversed(array: &Array) -> Array {
    let n = array.dim(-1).unwrap();
    let backwards: Vec<i32> = (0..n).rev().collect();
    let backwards = Array::from_slice(&backwards, &[n]).unwrap();
    let copy = ops::contiguous(&ops::take(array, &backwards, -1).unwrap(), false).unwrap();
    let shape = array.shape();
    let start: Vec<i32> =
        shape.iter().enumerate().map(|(i, &d)| if i + 1 == shape.len() { d - 1 } else { 0 }).collect();
    let stop: Vec<i32> =
        shape.iter().enumerate().map(|(i, &d)| if i + 1 == shape.len() { -d - 1 } else { d }).collect();
    let step: Vec<i32> = (1..=shape.len()).map(|i| if i == shape.len() { -1 } else { 1 }).collect();
    ops::slice(&copy, &start, &stop, &step).unwrap()
}

/// In memory as they are, turned or backwards.
fn lying(array: &Array, how: usize) -> Array {
    match how {
        0 => array.clone(),
        1 => turned(array),
        _ => reversed(array),
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

fn normed(x: &[f64], w: &[f64]) -> Vec<f64> {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean_square + f64::from(1e-5f32)).sqrt();
    x.iter().zip(w).map(|(x, w)| x * factor * w).collect()
}

fn by_row(x: &[f64], n: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(n).flat_map(f).collect()
}

proptest! {
    #![proptest_config(crate::config(96))]

    #[test]
    fn rows_are_as_exact_as_the_reference(
        rows in prop::sample::select(vec![1, 2, 5]),
        n in prop::sample::select(vec![1, 2, 7, 8, 15, 16, 33, 257]),
        dtypes in (prop::sample::select(&FLOATS[..]), prop::sample::select(&FLOATS[..])),
        exponent in prop::sample::select(vec![-30, -3, 0, 2, 8]),
        has_weight: bool,
        has_bias: bool,
        lies in 0..3usize,
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        // Half precision has no such numbers.
        let exponent = if dtypes.0 == Dtype::Float16 { exponent.max(-3) } else { exponent };
        let (x, values) = random(&mut numbers, &[2, rows, n], dtypes.0, 2f64.powi(exponent));
        let x = lying(&x, lies);
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
        let expected: Vec<f64> = g.iter().zip(&values).map(|(g, x)| gelu_tanh(*g) * x).collect();
        let f = || Activation::GeluTanh.gated(&gate, &x);
        check(&expected, 0.0, f, f)?;
        let expected: Vec<f64> = g.iter().zip(&values).map(|(g, x)| g * sigmoid(1.702 * g) * x).collect();
        let f = || Activation::GeluSigmoid.gated(&gate, &x);
        check(&expected, 0.0, f, f)?;

        // The sum is rounded before it is normed.
        let (added, y) = random(&mut numbers, &[2, rows, n as i32], dtypes.0, 2f64.powi(exponent));
        let added = lying(&added, 2 - lies);
        let (weight, w) = random(&mut numbers, &[n as i32], dtypes.0, 2.0);
        let sum = |part: usize| move |x: &Array, y: &Array, weight: &Array| {
            Ok(fast::add_rms_norm(x, y, weight, 1e-5)?[part].clone())
        };
        let exact: Vec<f64> = values.iter().zip(&y).map(|(x, y)| x + y).collect();
        let f = || sum(0)(&x, &added, &weight);
        check(&exact, 0.0, f, f)?;
        let (_, exact) = rounded(&exact, &[2, rows, n as i32], dtypes.0);
        let f = || sum(1)(&x, &added, &weight);
        check(&by_row(&exact, n, |x| normed(x, &w)), 2.0, f, f)?;
    }

    #[test]
    fn positions_turn_as_exactly_as_in_the_reference(
        shape in prop::sample::select(vec![vec![1, 1, 1], vec![2, 5, 1], vec![2, 3, 4], vec![2, 2, 3, 1]]),
        head in prop::sample::select(vec![[2, 2], [8, 8], [10, 6], [64, 64], [17, 16]]),
        dtype in prop::sample::select(&FLOATS[..]),
        traditional: bool,
        lies in 0..3usize,
        offset in prop::sample::select(vec![0, 1, 1000]),
        each: bool,
        periods: bool,
        seed: u64,
    ) {
        let (mut numbers, [n, dims]) = (Numbers(seed), head);
        let shape: Vec<i32> = shape.into_iter().chain([n]).collect();
        let (x, values) = random(&mut numbers, &shape, dtype, 1.0);
        let x = lying(&x, lies);
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
        let (weight, w) = random(&mut numbers, &[n as i32], dtype, 1.5);
        let rows = values.chunks_exact(n).enumerate();
        let expected: Vec<f64> = rows.flat_map(|(row, x)| turn((row, &normed(x, &w)))).collect();
        let f = || fast::rms_norm_rope(&x, &weight, 1e-5, dims, traditional, frequencies, 0.5, offset);
        check(&expected, 2.0, f, f)?;
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
    // What is infinite everywhere has no softmax; beside a number, minus infinity has no weight.
    let infinite = f64::NEG_INFINITY;
    let (x, _) = rounded(&[infinite, infinite, infinite, 0.0], &[2, 2], Dtype::Float32);
    for path in fast_paths() {
        let y = to_f64(&kernels::force(path, || ops::softmax(&x, -1, true)).unwrap().unwrap());
        assert!(y[0].is_nan() && y[1].is_nan() && y[2..] == [0.0, 1.0], "{path} {y:?}");
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

/// Everything here, of one row or more: `x` and what is like it, and weights as long as a row.
fn all(x: &Array, like: &Array, weight: &Array) -> mlxport::Result<Vec<Array>> {
    let dims = x.dim(-1)? / 2 * 2;
    let [sum, normed] = fast::add_rms_norm(x, like, weight, 1e-5)?;
    Ok(vec![
        fast::rms_norm(x, Some(weight), 1e-5)?,
        fast::layer_norm(x, Some(weight), Some(weight), 1e-5)?,
        fast::layer_norm(x, None, Some(weight), 1e-5)?,
        ops::softmax(x, -1, true)?,
        fast::rope(x, dims, true, 10_000.0, 1.0, 7)?,
        fast::rms_norm_rope(x, weight, 1e-5, dims, false, 10_000.0, 1.0, 7)?,
        swiglu(x, like)?,
        Activation::GeluTanh.gated(x, like)?,
        Activation::GeluSigmoid.gated(x, like)?,
        sum,
        normed,
    ])
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    let mut numbers = Numbers(2);
    for how in 0..3 {
        let [x, like] =
            [(); 2].map(|()| lying(&random(&mut numbers, &[3, 70, 300], Dtype::Bfloat16, 2.0).0, how));
        let (weight, _) = random(&mut numbers, &[300], Dtype::Bfloat16, 2.0);
        assert_repeats(|| all(&x, &like, &weight));
    }
}

/// More rows than a thread takes at a time, and more positions than angles are computed at a time.
#[test]
fn many_rows_are_as_exact_as_the_reference() {
    const SHAPE: [i32; 3] = [2, 70, 130];
    let n = 130;
    for (how, dtype) in FLOATS.into_iter().enumerate() {
        let mut numbers = Numbers(how as u64);
        let [(x, values), (y, added)] = [(); 2].map(|()| random(&mut numbers, &SHAPE, dtype, 2.0));
        let (x, y) = (lying(&x, how), lying(&y, how));
        let (weight, w) = random(&mut numbers, &[130], dtype, 2.0);
        let rows = |f: &dyn Fn(&[f64]) -> Vec<f64>| by_row(&values, n, f);
        let turn = |(row, x): (usize, Vec<f64>)| {
            let mut y = x.clone();
            for i in 0..n / 2 {
                let angle = (7.0 + (row % 70) as f64) * 10_000f64.powf(-2.0 * i as f64 / n as f64);
                let ((sin, cos), j) = (angle.sin_cos(), i + n / 2);
                (y[i], y[j]) = (x[i] * cos - x[j] * sin, x[i] * sin + x[j] * cos);
            }
            y
        };
        let sum: Vec<f64> = values.iter().zip(&added).map(|(x, y)| x + y).collect();
        let (_, rounded_sum) = rounded(&sum, &SHAPE, dtype);
        let mean = |x: &[f64]| x.iter().sum::<f64>() / n as f64;
        let centred = |x: &[f64]| x.iter().map(|v| v - mean(x)).collect::<Vec<_>>();
        let biased = |y: &[f64]| y.iter().zip(&w).map(|(y, b)| y + b).collect::<Vec<_>>();
        let normed_rows = rows(&|x| normed(x, &w));
        let pairs =
            |unit: &dyn Fn(f64) -> f64| values.iter().zip(&added).map(|(g, x)| unit(*g) * x).collect();
        let turned = |rows: &[f64]| rows.chunks(n).map(<[f64]>::to_vec).enumerate().flat_map(turn).collect();
        let expected: [(usize, Vec<f64>); 9] = [
            (0, normed_rows.clone()),
            (1, rows(&|x| biased(&normed(&centred(x), &w)))),
            (2, rows(&|x| biased(&normed(&centred(x), &vec![1.0; n])))),
            (5, turned(&normed_rows)),
            (6, pairs(&|g| g * sigmoid(g))),
            (7, pairs(&gelu_tanh)),
            (8, pairs(&|g| g * sigmoid(1.702 * g))),
            (9, sum),
            (10, by_row(&rounded_sum, n, |x| normed(x, &w))),
        ];
        for (which, expected) in &expected {
            let f = || Ok(all(&x, &y, &weight)?.swap_remove(*which));
            check(expected, 4.0, f, f).unwrap();
        }
        let f = || fast::rope(&x, 130, false, 10_000.0, 1.0, 7);
        check(&turned(&values), 1.0, f, f).unwrap();
    }
}

/// Angles are as exact at any position; the reference's are not.
#[test]
fn positions_far_away_turn_as_exactly_as_near_ones() {
    let (x, values) = random(&mut Numbers(4), &[1, 1, 3, 16], Dtype::Float32, 1.0);
    for offset in [5, 1 << 20, (1 << 24) + 1] {
        let turn = |(row, x): (usize, &[f64])| {
            let mut y = x.to_vec();
            for i in 0..8 {
                let frequency = f64::from(10_000f32).powf(-(i as f64) / 8.0);
                let (sin, cos) = ((f64::from(offset) + row as f64) * frequency).sin_cos();
                (y[i], y[i + 8]) = (x[i] * cos - x[i + 8] * sin, x[i] * sin + x[i + 8] * cos);
            }
            y
        };
        let expected: Vec<f64> = values.chunks_exact(16).enumerate().flat_map(turn).collect();
        for path in fast_paths() {
            let y = || fast::rope(&x, 16, false, 10_000.0, 1.0, offset);
            let y = to_f64(&kernels::force(path, y).unwrap().unwrap());
            let wrong = difference(&y, &expected, epsilon(Dtype::Float32), support::ROUNDING);
            assert!(wrong.is_none(), "{path} {offset}: {wrong:?}");
        }
    }
}

/// Angles that are kept from one call to the next are of as many positions.
#[test]
fn a_position_turns_the_same_with_more_or_fewer_after_it() {
    let (x, _) = random(&mut Numbers(5), &[2, 2, 3, 16], Dtype::Float32, 1.0);
    let offsets = Array::from_slice(&[3, 40], &[2]).unwrap();
    for path in fast_paths() {
        let turned = |length: i32| {
            let x = ops::slice(&x, &[0; 4], &[2, 2, length, 16], &[1; 4]).unwrap();
            let y = || fast::rope(&x, 16, false, 10_000.0, 1.0, &offsets);
            kernels::force(path, y).unwrap().unwrap()
        };
        let all = turned(3);
        for length in [3, 1, 2, 1] {
            let expected = ops::slice(&all, &[0; 4], &[2, 2, length, 16], &[1; 4]).unwrap();
            assert_eq!(to_f64(&turned(length)), to_f64(&expected), "{path} {length}");
        }
    }
}

/// Large means, and numbers whose exponentials or squares are at the ends of their range.
#[test]
fn ends_of_the_range_are_as_exact_as_the_reference() {
    for (shift, spread) in [(1000.0, 1.0), (-300.0, 1.0), (88.0, 60.0), (0.0, 100.0)] {
        let numbers: Vec<f64> = Numbers(9).values(3 * 50).iter().map(|v| shift + v * spread).collect();
        let (x, values) = rounded(&numbers, &[3, 50], Dtype::Float32);
        let (one, _) = rounded(&[1.0; 150], &[3, 50], Dtype::Float32);
        let softmax = |x: &[f64]| {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
            x.iter().map(|x| (x - max).exp() / sum).collect()
        };
        check(
            &by_row(&values, 50, softmax),
            1.0,
            || ops::softmax(&x, -1, true),
            || ops::softmax(&x, 1, true),
        )
        .unwrap();
        let centred = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            normed(&x.iter().map(|x| x - mean).collect::<Vec<_>>(), &[1.0; 50])
        };
        // The variance in `float32` of numbers about 1000 is good to three digits.
        let f = || fast::layer_norm(&x, None, None, 1e-5);
        check(&by_row(&values, 50, centred), 4.0 * shift.abs().max(1.0), f, f).unwrap();
        let expected: Vec<f64> = values.iter().map(|g| g * sigmoid(*g)).collect();
        check(&expected, 0.0, || swiglu(&x, &one), || swiglu(&x, &one)).unwrap();
    }
    // Products of what a gate lets through may be finite where its parts are not.
    let (gate, _) = rounded(&[3e30, -3e30, 1e-30], &[3], Dtype::Float32);
    let (x, _) = rounded(&[1e-30, 1e30, 1e30], &[3], Dtype::Float32);
    for path in fast_paths() {
        for unit in [Activation::GeluTanh, Activation::GeluSigmoid] {
            let y = to_f64(&kernels::force(path, || unit.gated(&gate, &x)).unwrap().unwrap());
            assert!((y[0] - 3.0).abs() < 1e-5 && y[1] == 0.0 && (y[2] - 0.5).abs() < 1e-5, "{path} {y:?}");
        }
    }
}

/// No rows, rows of nothing, one axis, and rows that lie apart or repeat.
#[test]
fn rows_of_any_shape_are_rows() {
    let mut numbers = Numbers(8);
    for shape in [&[0, 8][..], &[2, 0, 8], &[3, 0]] {
        let [x, weight] = [shape, &shape[shape.len() - 1..]]
            .map(|shape| random(&mut numbers, shape, Dtype::Float32, 1.0).0);
        for path in fast_paths() {
            let same = |y: mlxport::Result<Array>| {
                let y = y.unwrap();
                assert_eq!(y.shape(), shape, "{path}");
                y.eval().unwrap();
            };
            kernels::force(path, || {
                same(fast::rms_norm(&x, Some(&weight), 1e-5));
                same(fast::layer_norm(&x, Some(&weight), Some(&weight), 1e-5));
                same(ops::softmax(&x, -1, true));
                same(swiglu(&x, &x));
                same(fast::add_rms_norm(&x, &x, &weight, 1e-5).map(|[_, y]| y));
            })
            .unwrap();
        }
    }
    let (x, values) = random(&mut numbers, &[6, 4, 40], Dtype::Float32, 2.0);
    let (weight, w) = random(&mut numbers, &[40], Dtype::Float32, 2.0);
    let row = |i: usize, j: usize| &values[(i * 4 + j) * 40..][..40];
    let single = ops::slice(&x, &[2, 1, 0], &[3, 2, 40], &[1; 3]).unwrap();
    let last = ops::squeeze(&ops::slice(&x, &[0, 3, 0], &[6, 4, 40], &[1; 3]).unwrap(), 1).unwrap();
    let repeated = ops::broadcast_to(&last, &[5, 6, 40]).unwrap();
    let swapped = ops::swapaxes(&x, 0, 1).unwrap();
    let cases: [(Array, Vec<f64>); 5] = [
        (ops::reshape(&single, &[40]).unwrap(), row(2, 1).to_vec()),
        (single, row(2, 1).to_vec()),
        (last, (0..6).flat_map(|i| row(i, 3).to_vec()).collect()),
        (repeated, (0..30).flat_map(|i| row(i % 6, 3).to_vec()).collect()),
        (swapped, (0..24).flat_map(|i| row(i % 6, i / 6).to_vec()).collect()),
    ];
    for (x, values) in &cases {
        let expected = by_row(values, 40, |x| normed(x, &w));
        check(
            &expected,
            2.0,
            || fast::rms_norm(x, Some(&weight), 1e-5),
            || fast::rms_norm(x, Some(&weight), 1e-5),
        )
        .unwrap();
        let expected: Vec<f64> = values.iter().map(|g| g * g * sigmoid(*g)).collect();
        check(&expected, 0.0, || swiglu(x, x), || swiglu(x, x)).unwrap();
        let expected: Vec<f64> = values.iter().map(|x| x + x).collect();
        let f = || fast::add_rms_norm(x, x, &weight, 1e-5).map(|[sum, _]| sum);
        check(&expected, 0.0, f, f).unwrap();
    }
}

#[test]
fn they_map_over_an_axis() {
    let mut numbers = Numbers(12);
    let [x, like] = [(); 2].map(|()| random(&mut numbers, &[3, 4, 2, 8], Dtype::Float32, 1.0).0);
    let (weight, _) = random(&mut numbers, &[8], Dtype::Float32, 1.0);
    let (weights, _) = random(&mut numbers, &[8, 3], Dtype::Float32, 1.0);
    let f = |args: &[Array]| all(&args[0], &args[1], &args[2]);
    assert_maps(&[&x, &like, &weight], &[Some(0), Some(0), None], f);
    let last = |x: &Array| ops::moveaxis(x, 0, 3).unwrap();
    assert_maps(&[&last(&x), &like, &weight], &[Some(3), Some(0), None], f);
    assert_maps(&[&x, &like, &weights], &[Some(0), Some(0), Some(1)], |args| {
        Ok(vec![fast::rms_norm(&(&args[0] * &args[2])?, Some(&weight), 1e-5)?, swiglu(&args[0], &args[1])?])
    });
}
