//! Choosing from the last axis, against sorted `f64` numbers and against MLX's own choice.

use mlxport::generate::{Sampler, Sampling, Token};
use mlxport::kernels::{self, Path};
use mlxport::{Array, Dtype, Result, ops, transforms};
use proptest::prelude::*;

use crate::matmul::{LIES, Lies};
use crate::{FLOATS, assert_maps, assert_repeats, bits, check, drawn, fast_paths, rounded};
use support::{Numbers, SOLVER, assert_close, f32_array, to_f64};

/// Rows of so many numbers of few values, so that there are equals, with `specials` here and there.
fn with_equals(shape: &[i32], dtype: Dtype, lies: Lies, specials: &[f64], seed: u64) -> (Array, Vec<f64>) {
    let (_, values) =
        drawn(&mut Numbers(seed), shape, Dtype::Float32, Lies::RowMajor, |x| (x * 20.0).round() / 4.0);
    let mut numbers = Numbers(seed ^ 1);
    let special = |x: f64| match numbers.below(40) {
        0 if !specials.is_empty() => specials[numbers.below(specials.len())],
        1 => -0.0,
        _ => x,
    };
    let values: Vec<f64> = values.into_iter().map(special).collect();
    let (array, values) = rounded(&values, shape, dtype);
    (crate::laid_out(&array, lies), values)
}

/// The order of the largest first, equals by where they are, NaN last.
fn order(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| {
        let nan = row[a].is_nan().cmp(&row[b].is_nan());
        nan.then(row[b].partial_cmp(&row[a]).unwrap_or(std::cmp::Ordering::Equal)).then(a.cmp(&b))
    });
    order
}

fn on<R>(path: Path, f: impl FnOnce() -> Result<R>) -> R {
    kernels::force(path, f).unwrap().unwrap()
}

fn lengths() -> impl Strategy<Value = i32> {
    prop::sample::select(vec![1, 63, 64, 65, 1000, 1024, 1025, 5000])
}

/// Log probabilities from as good as certain to as good as equal.
fn logprobs(shape: &[i32], dtype: Dtype, lies: Lies, spread: f64, seed: u64) -> (Array, Vec<f64>) {
    let (x, _) = drawn(&mut Numbers(seed), shape, Dtype::Float32, Lies::RowMajor, |x| x * spread);
    let logprobs = (&x - ops::logsumexp(&x, -1, true).unwrap()).unwrap();
    let (array, values) = rounded(&to_f64(&logprobs), shape, dtype);
    (crate::laid_out(&array, lies), values)
}

fn token(logprobs: Array) -> Token {
    Token { id: 0, logprob: 0.0, logprobs, from_draft: false, finish_reason: None }
}

proptest! {
    #![proptest_config(crate::config(64))]

    #[test]
    fn the_largest_are_those_of_a_sort_and_of_mlx(
        rows in 1..4i32,
        length in lengths(),
        dtype in prop::sample::select(&FLOATS[..]),
        lies in prop::sample::select(&LIES[..]),
        specials in prop::sample::select(vec![
            vec![],
            vec![f64::INFINITY, f64::NEG_INFINITY],
            vec![f64::NAN],
            vec![f64::NAN, f64::NEG_INFINITY],
        ]),
        count in prop::sample::select(vec![1, 2, 50, 300, 4999]),
        seed: u64,
    ) {
        let (x, values) = with_equals(&[rows, length], dtype, lies, &specials, seed);
        let count = count.min(length);
        let sampling = Sampling { temperature: 1.0, top_k: count, ..Sampling::default() };
        let keep = || Sampler::new(sampling.clone())?.filter(&x);
        let expected = on(Path::Reference, || Ok((ops::argmax(&x, -1, false)?, ops::argmax(&x, 1, true)?, keep()?)));
        for path in fast_paths() {
            let (flat, kept_dims, kept) =
                on(path, || Ok((ops::argmax(&x, -1, false)?, ops::argmax(&x, 1, true)?, keep()?)));
            prop_assert_eq!(flat.to_vec::<u32>().unwrap(), expected.0.to_vec::<u32>().unwrap());
            prop_assert_eq!(kept_dims.shape(), &[rows, 1]);
            prop_assert_eq!(bits(&kept_dims), bits(&expected.1));
            prop_assert_eq!(kept.dtype(), dtype);
            for (r, row) in values.chunks(length as usize).enumerate() {
                let order = order(row);
                let largest = if row[0].is_nan() { 0 } else { order[0] };
                prop_assert_eq!(flat.to_vec::<u32>().unwrap()[r] as usize, largest);
                let found = &to_f64(&kept)[r * length as usize..][..length as usize];
                for (place, &at) in order.iter().enumerate() {
                    let kept = place < count as usize || count == length;
                    let wanted = if kept { row[at] } else { f64::NEG_INFINITY };
                    prop_assert!(found[at] == wanted || found[at].is_nan() && wanted.is_nan());
                }
                let row_of = on(path, || ops::reshape(&x.index(r as i32)?, &[length]));
                let top = on(path, || token(row_of.clone()).top(count as usize));
                let ids: Vec<usize> = top.iter().map(|(id, _)| *id as usize).collect();
                prop_assert_eq!(&ids[..], &order[..count as usize]);
            }
        }
    }

    #[test]
    fn the_nucleus_is_the_smallest_that_is_enough(
        rows in 1..3i32,
        length in lengths(),
        dtype in prop::sample::select(&FLOATS[..]),
        lies in prop::sample::select(&LIES[..]),
        spread in prop::sample::select(vec![0.0, 0.1, 3.0, 40.0]),
        top_p in prop::sample::select(vec![1e-6, 0.1, 0.5, 0.9, 0.999]),
        seed: u64,
    ) {
        let (x, values) = logprobs(&[rows, length], dtype, lies, spread, seed);
        let sampling = Sampling { temperature: 1.0, top_p: top_p as f32, ..Sampling::default() };
        for path in fast_paths() {
            let kept = on(path, || Sampler::new(sampling.clone())?.filter(&x));
            prop_assert_eq!(kept.dtype(), dtype);
            let kept = to_f64(&kept);
            for (row, kept) in values.chunks(length as usize).zip(kept.chunks(length as usize)) {
                let least = kept.iter().copied().filter(|x| x.is_finite()).fold(f64::INFINITY, f64::min);
                for (x, kept) in row.iter().zip(kept) {
                    prop_assert_eq!(*kept, if *x < least { f64::NEG_INFINITY } else { *x });
                }
                let sum = |f: &dyn Fn(f64) -> bool| row.iter().filter(|x| f(**x)).map(|x| x.exp()).sum::<f64>();
                let enough = sum(&|_| true) * f64::from(top_p as f32);
                let (above, with) = (sum(&|x| x > least), sum(&|x| x >= least));
                prop_assert!(above < enough * (1.0 + 1e-5), "{above} {enough}");
                prop_assert!(with >= enough * (1.0 - 1e-5), "{with} {enough}");
            }
        }
    }

    #[test]
    fn sums_of_exponentials_are_as_exact_as_the_reference(
        rows in 1..4i32,
        length in lengths(),
        dtype in prop::sample::select(&FLOATS[..]),
        lies in prop::sample::select(&LIES[..]),
        (shift, spread) in prop::sample::select(vec![(0.0, 1.0), (100.0, 1.0), (-1e4, 20.0), (0.0, 1e4)]),
        seed: u64,
    ) {
        let (x, values) = drawn(&mut Numbers(seed), &[rows, length], dtype, lies, |x| shift + x * spread);
        let expected: Vec<f64> = values
            .chunks(length as usize)
            .map(|row| {
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
            })
            .collect();
        let f = || ops::logsumexp(&x, -1, false);
        check(&expected, 1.0, f, f)?;
        let with_axis = ops::logsumexp(&x, 1, true).unwrap();
        prop_assert_eq!(with_axis.shape(), &[rows, 1]);
    }

    #[test]
    fn the_largest_with_its_noise_is_drawn_of_the_largest(
        rows in 1..4i32,
        length in lengths(),
        dtype in prop::sample::select(&FLOATS[..]),
        count in prop::sample::select(vec![1, 2, 50, 4999]),
        specials in prop::sample::select(vec![vec![], vec![f64::NEG_INFINITY], vec![f64::NAN]]),
        seed: u64,
    ) {
        let (x, values) = with_equals(&[rows, length], dtype, Lies::RowMajor, &specials, seed);
        let (noise, noises) = drawn(&mut Numbers(seed), &[rows, length], Dtype::Float32, Lies::RowMajor, |x| 4.0 * x);
        let count = count.min(length);
        for path in fast_paths() {
            let drawn = on(path, || kernels::top_k_sample(&x, &noise, count, 0.5)).to_vec::<u32>().unwrap();
            for (r, row) in values.chunks(length as usize).enumerate() {
                // Half of a small multiple of a quarter is exact in every dtype.
                let noisy = |at: usize| row[at] * 0.5 + noises[r * length as usize + at];
                let left = order(row).into_iter().take(count as usize).filter(|&at| !row[at].is_nan());
                let best = left.map(noisy).fold(f64::NEG_INFINITY, f64::max);
                prop_assert!(noisy(drawn[r] as usize) >= best - 1e-6, "{path}: {} {best}", drawn[r]);
                prop_assert!(order(row)[..count as usize].contains(&(drawn[r] as usize)));
            }
        }
    }

    #[test]
    fn a_draw_is_where_the_distribution_passes_it(
        length in lengths(),
        dtype in prop::sample::select(&FLOATS[..]),
        spread in prop::sample::select(vec![0.0, 0.1, 3.0, 40.0]),
        holes: bool,
        seed in 0..1u64 << 40,
    ) {
        let (x, values) = logprobs(&[1, length], dtype, Lies::RowMajor, spread, seed);
        let hole = |i: usize| holes && i % 3 != 1 && length > 3;
        let values: Vec<f64> =
            values.into_iter().enumerate().map(|(i, x)| if hole(i) { f64::NEG_INFINITY } else { x }).collect();
        let (x, values) = if holes { rounded(&values, &[1, length], dtype) } else { (x, values) };
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let draw = || Sampler::new(sampling.clone())?.sample(&x)?.to_vec::<u32>();
        let key = mlxport::random::key(seed).unwrap();
        let (_, key) = mlxport::random::split(&key).unwrap();
        let u = mlxport::random::uniform(0.0, 1.0, &[1], Dtype::Float32, Some(&key)).unwrap();
        let total: f64 = values.iter().map(|x| x.exp()).sum();
        let at = to_f64(&u)[0] * total;
        for path in fast_paths() {
            let drawn = on(path, draw)[0] as usize;
            prop_assert!(values[drawn].is_finite());
            let below: f64 = values[..drawn].iter().map(|x| x.exp()).sum();
            prop_assert!(below <= at + 1e-5 * total, "{path}: {drawn} {below} {at}");
            prop_assert!(below + values[drawn].exp() >= at - 1e-5 * total, "{path}: {drawn} {below} {at}");
        }
    }
}

#[test]
fn draws_are_those_of_mlx() {
    let (x, _) = logprobs(&[1, 3000], Dtype::Float32, Lies::RowMajor, 5.0, 1);
    let (infinite, _) = rounded(
        &(0..100).map(|i| if i % 30 == 7 { f64::INFINITY } else { 1.0 }).collect::<Vec<_>>(),
        &[1, 100],
        Dtype::Float32,
    );
    for (x, seed) in (0..200).map(|seed| (if seed < 150 { &x } else { &infinite }, seed)) {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let draw = || Sampler::new(sampling.clone())?.sample(x)?.to_vec::<u32>();
        for path in fast_paths() {
            assert_eq!(on(path, draw), on(Path::Reference, draw), "{path} {seed}");
        }
    }
}

#[test]
fn sums_of_the_infinite_are_infinite() {
    let sum = |special: [f32; 2]| {
        let mut row = vec![f32::NEG_INFINITY; 100];
        row[70..72].copy_from_slice(&special);
        let x = Array::from_slice(&row, &[1, 100]).unwrap();
        let of = |path| to_f64(&on(path, || ops::logsumexp(&x, -1, false)))[0];
        fast_paths().into_iter().map(|path| (of(path), of(Path::Reference))).collect::<Vec<_>>()
    };
    let none = f32::NEG_INFINITY;
    for (special, expected) in
        [([none, none], f64::NEG_INFINITY), ([f32::INFINITY, 1.0], f64::INFINITY), ([2.5, none], 2.5)]
    {
        assert!(sum(special).iter().all(|pair| *pair == (expected, expected)), "{special:?}");
    }
    assert!(sum([f32::NAN, 1.0]).iter().all(|(found, reference)| found.is_nan() && reference.is_nan()));
}

#[test]
fn the_gradient_of_a_sum_of_exponentials_is_the_softmax() {
    let (x, values) = drawn(&mut Numbers(3), &[2, 70], Dtype::Float32, Lies::RowMajor, |x| 3.0 * x);
    let weights = f32_array(&[1.0, -2.5], &[2]);
    let loss = |x: &Array| ops::sum(&(ops::logsumexp(x, -1, false)? * &weights)?, .., false);
    let expected = crate::differences(&[values], |values| {
        let of = |row: &[f64]| row.iter().map(|x| x.exp()).sum::<f64>().ln();
        of(&values[0][..70]) - 2.5 * of(&values[0][70..])
    });
    for path in fast_paths() {
        assert_close(&on(path, || transforms::grad(loss, &x)), &expected[0], SOLVER);
    }
}

/// What is kept is passed on as it is, the rest not at all: the gradient of the logarithm of the sum of what is kept is
/// its softmax.
#[test]
fn what_is_kept_has_a_gradient() {
    let (x, values) = logprobs(&[2, 70], Dtype::Float32, Lies::RowMajor, 3.0, 3);
    let (weights, factors) = (f32_array(&[1.0, -2.5], &[2]), [1.0, -2.5]);
    for (top_k, top_p) in [(5, 1.0), (0, 0.7)] {
        let sampling = Sampling { temperature: 1.0, top_k, top_p, ..Sampling::default() };
        let kept = |x: &Array| Sampler::new(sampling.clone())?.filter(x);
        let sum = |x: &Array| ops::sum(&(ops::logsumexp(&kept(x)?, -1, false)? * &weights)?, .., false);
        let mut expected = Vec::new();
        for (row, factor) in values.chunks(70).zip(factors) {
            let all: f64 = row.iter().map(|x| x.exp()).sum();
            let (mut before, mut count, order) = (0.0, 0, order(row));
            while count < 70
                && if top_k > 0 { count < top_k as usize } else { before < f64::from(top_p) * all }
            {
                before += row[order[count]].exp();
                count += 1;
            }
            let is_kept = |at: usize| order[..count].contains(&at);
            expected
                .extend((0..70).map(|at| if is_kept(at) { factor * row[at].exp() / before } else { 0.0 }));
        }
        for path in fast_paths() {
            assert_close(&on(path, || transforms::grad(sum, &x)), &expected, SOLVER);
        }
    }
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    let (x, _) = logprobs(&[5, 20_000], Dtype::Bfloat16, Lies::Strided, 3.0, 3);
    let keep = |sampling: Sampling| Sampler::new(Sampling { temperature: 1.0, ..sampling })?.filter(&x);
    assert_repeats(|| {
        Ok(vec![
            ops::argmax(&x, -1, false)?,
            ops::logsumexp(&x, -1, false)?,
            keep(Sampling { top_k: 40, ..Sampling::default() })?,
            keep(Sampling { top_p: 0.9, ..Sampling::default() })?,
            Sampler::new(Sampling { temperature: 0.7, ..Sampling::default() })?.sample(&x.index(..1)?)?,
        ])
    });
}

#[test]
fn they_map_over_an_axis() {
    let (x, _) = logprobs(&[3, 70], Dtype::Float32, Lies::RowMajor, 3.0, 3);
    let sampler = |sampling| Sampler::new(Sampling { temperature: 1.0, ..sampling });
    let turned = ops::transpose(&x, ..).unwrap();
    for (x, axis) in [(&x, 0), (&turned, 1)] {
        assert_maps(&[x], &[Some(axis)], |args| {
            let row = ops::expand_dims(&args[0], 0)?;
            Ok(vec![
                ops::argmax(&args[0], -1, false)?,
                ops::logsumexp(&args[0], -1, true)?,
                sampler(Sampling { top_k: 4, ..Sampling::default() })?.filter(&row)?,
                sampler(Sampling { top_p: 0.7, ..Sampling::default() })?.filter(&row)?,
            ])
        });
    }
}

#[test]
fn a_nan_is_the_answer_only_where_it_comes_first() {
    for (at, expected) in [(0, 0), (1, 70), (99, 70)] {
        let mut row = vec![0.0f32; 100];
        (row[70], row[at]) = (1.0, f32::NAN);
        let x = Array::from_slice(&row, &[1, 100]).unwrap();
        for path in fast_paths().into_iter().chain([Path::Reference]) {
            assert_eq!(on(path, || ops::argmax(&x, -1, false)?.to_vec::<u32>()), [expected], "{path} {at}");
        }
    }
}

#[test]
fn the_least_number_of_tokens_is_kept_besides_the_likely_ones() {
    let (x, values) = logprobs(&[2, 1000], Dtype::Float32, Lies::RowMajor, 3.0, 3);
    for (min_p, count) in [(0.05, 1), (0.5, 300), (0.9, 2), (0.01, 600)] {
        let sampling = Sampling { temperature: 1.0, min_p, min_tokens_to_keep: count, ..Sampling::default() };
        for path in fast_paths() {
            let kept = to_f64(&on(path, || Sampler::new(sampling.clone())?.filter(&x)));
            for (row, kept) in values.chunks(1000).zip(kept.chunks(1000)) {
                let order = order(row);
                let least = row[order[0]] + f64::from(min_p).ln();
                for (place, &at) in order.iter().enumerate() {
                    if place < count as usize || row[at] > least + 1e-5 {
                        assert_eq!(kept[at], row[at], "{path} {min_p} {count}");
                    } else if row[at] < least - 1e-5 {
                        assert_eq!(kept[at], f64::NEG_INFINITY, "{path} {min_p} {count}");
                    }
                }
            }
        }
    }
}

#[test]
fn many_rows_are_each_chosen_from() {
    // More rows than a thread takes at a time.
    let (x, values) = logprobs(&[900, 70], Dtype::Float32, Lies::RowMajor, 3.0, 3);
    for path in fast_paths() {
        let found = on(path, || ops::argmax(&x, -1, false)).to_vec::<u32>().unwrap();
        let sums = to_f64(&on(path, || ops::logsumexp(&x, -1, false)));
        for ((row, found), sum) in values.chunks(70).zip(found).zip(sums) {
            assert_eq!(order(row)[0], found as usize, "{path}");
            assert!((row.iter().map(|x| x.exp()).sum::<f64>().ln() - sum).abs() < 1e-6, "{path}");
        }
    }
}

#[test]
fn more_than_there_are_is_refused() {
    assert_eq!(token(ops::zeros(&[100], Dtype::Float32).unwrap()).top(1000).unwrap().len(), 100);
    assert!(ops::argmax(&ops::zeros(&[3, 0], Dtype::Float32).unwrap(), -1, false).is_err());
}
