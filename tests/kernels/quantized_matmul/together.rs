//! `quantized_matmuls`: products of one `x` with several matrices.

use mlxport::nn::Linear;

use super::gradients::{Exact, codes};
use super::*;

/// Matrices of `ns` rows that meet the same `x`.
fn cases(
    how: Quantization,
    dtypes: [Dtype; 2],
    x_shape: &[i32],
    ns: &[i32],
    groups: i32,
    seed: u64,
) -> Vec<Case> {
    cases_by(how, dtypes, x_shape, ns, groups, seed, unit_values)
}

/// The same, with `x` of other values.
fn cases_by(
    how: Quantization,
    dtypes: [Dtype; 2],
    x_shape: &[i32],
    ns: &[i32],
    groups: i32,
    seed: u64,
    value: impl FnMut(&mut Numbers) -> f64 + Copy,
) -> Vec<Case> {
    let of = |(i, &n): (usize, &i32)| Case::new(how, dtypes, x_shape, n, groups, seed + i as u64, value);
    let mut cases: Vec<Case> = ns.iter().enumerate().map(of).collect();
    let (x, x_values) = (cases[0].x.clone(), cases[0].x_values.clone());
    for case in &mut cases[1..] {
        (case.x, case.x_values) = (x.clone(), x_values.clone());
    }
    cases
}

fn products(x: &Array, cases: &[Case]) -> mlxport::Result<Vec<Array>> {
    let parts: Vec<_> = cases.iter().map(|case| (&case.w, &case.scales, case.biases.as_ref())).collect();
    ops::quantized_matmuls(x, &parts, cases[0].how)
}

proptest! {
    #![proptest_config(crate::config(64))]

    #[test]
    fn they_are_as_exact_as_the_reference_and_the_same_as_alone(
        how in prop::sample::select(quantizations()),
        x_dtype in prop::sample::select(&FLOATS[..]),
        scale_dtype in prop::sample::select(&FLOATS[..]),
        x_shape in prop::sample::select(vec![
            vec![], vec![1], vec![2], vec![12], vec![13], vec![0], vec![1, 3], vec![2, 0], vec![1, 1, 1],
        ]),
        ns in prop::collection::vec(prop::sample::select(vec![0, 1, 2, 4, 7, 13, 300]), 1..5),
        groups in 0..10i32,
        exponent in prop::sample::select(vec![0, 0, 0, -100, 100]),
        seed in 0..u64::MAX / 2,
    ) {
        let dtypes = [x_dtype, scale_dtype];
        let exponent = if x_dtype == Dtype::Float16 { 0 } else { exponent };
        let value = |random: &mut Numbers| unit_values(random) * 2f64.powi(exponent);
        let cases = cases_by(how, dtypes, &x_shape, &ns, groups, seed, value);
        let alike = Case::new(how, dtypes, &x_shape, 64, groups, seed, value);
        for (i, case) in cases.iter().enumerate() {
            let on = |path| {
                let all = kernels::force(path, || products(&case.x, &cases)).unwrap().unwrap();
                assert_eq!(all.len(), cases.len());
                assert_eq!(bits(&all[i]), bits(&case.on(path)), "{path} {how:?} matrix {i}");
                all[i].clone()
            };
            case.check_by(Some(&alike), on)?;
        }
    }
}

#[test]
fn they_repeat_and_do_not_depend_on_the_threads() {
    let cases = cases(Quantization::affine(64, 4), [Dtype::Bfloat16; 2], &[1], &[1001, 3, 600], 16, 1);
    assert_repeats(|| products(&cases[0].x, &cases));
}

#[test]
fn pieces_do_not_cross_from_one_matrix_to_the_next() {
    for (rows, dtype) in [(1, Dtype::Bfloat16), (1, Dtype::Float32), (2, Dtype::Bfloat16)] {
        let cases = cases(Quantization::affine(64, 4), [dtype; 2], &[rows], &[501, 3, 302], 16, 1);
        for (i, case) in cases.iter().enumerate() {
            let on =
                |path| kernels::force(path, || products(&case.x, &cases)).unwrap().unwrap().swap_remove(i);
            case.check_by(Some(&cases[0]), on).unwrap();
        }
    }
}

#[test]
fn scales_may_have_several_dtypes() {
    let how = Quantization::affine(32, 4);
    let of = |scales, seed| Case::new(how, [Dtype::Bfloat16, scales], &[2], 50, 20, seed, unit_values);
    // What the first gives is rounded, what the others give is not.
    let mut cases: Vec<Case> =
        (1..).zip(FLOATS.into_iter().rev()).map(|(seed, dtype)| of(dtype, seed)).collect();
    let x = cases[0].x.clone();
    cases.iter_mut().for_each(|case| case.x = x.clone());
    for path in fast_paths() {
        let all = kernels::force(path, || products(&x, &cases)).unwrap().unwrap();
        for (y, case) in all.iter().zip(&cases) {
            assert_eq!((y.dtype(), bits(y)), (case.on(path).dtype(), bits(&case.on(path))), "{path}");
        }
    }
}

#[test]
fn x_may_be_strided() {
    let cases = cases(Quantization::affine(32, 4), [Dtype::Float32; 2], &[6], &[8, 5], 4, 3);
    let turned = ops::contiguous(&ops::transpose(&cases[0].x, ..).unwrap(), false).unwrap();
    let turned = ops::transpose(&turned, ..).unwrap();
    for path in fast_paths() {
        let all = kernels::force(path, || products(&turned, &cases)).unwrap().unwrap();
        for (y, case) in all.iter().zip(&cases) {
            assert_eq!(bits(y), bits(&case.on(path)), "{path}");
        }
    }
}

#[test]
fn gradients_add_up() {
    for how in quantizations() {
        let cases = cases(how, [Dtype::Float32; 2], &[3], &[13, 6], 2, 5);
        let k = cases[0].x.shape()[1] as usize;
        let weights = [13, 6].map(|n| Numbers(n as u64).array(&[3, n]));
        let mut expected = vec![0.0; 3 * k];
        for ((_, weights), case) in weights.iter().zip(&cases) {
            let n = weights.len() / 3;
            for (at, dx) in expected.iter_mut().enumerate() {
                *dx += (0..n).map(|i| weights[at / k * n + i] * case.decoded[i * k + at % k]).sum::<f64>();
            }
        }
        let scale = cases.iter().flat_map(|case| &case.decoded).fold(0.0, |max, w| f64::max(max, w.abs()));
        let loss = |all: Vec<Array>| {
            let sums = all.iter().zip(&weights).map(|(y, (weights, _))| ops::sum(&(y * weights)?, .., false));
            let [a, b] = <[Array; 2]>::try_from(sums.collect::<mlxport::Result<Vec<_>>>()?).unwrap();
            a + b
        };
        let gradient = || transforms::grad(|x| loss(products(x, &cases)?), &cases[0].x);
        check(&expected, scale, gradient, gradient).unwrap();
    }
}

/// Of all that has a gradient, and of the scales of one matrix.
#[test]
fn gradients_are_differences() {
    let how = Quantization::affine(32, 4);
    let cases = cases(how, [Dtype::Float32; 2], &[3], &[4, 2], 2, 5);
    let [one, two] = [&cases[0], &cases[1]];
    let parts = [one, two].map(|case| [&case.scales, case.biases.as_ref().unwrap()]).concat();
    let inputs = [&one.x].into_iter().chain(parts).collect::<Vec<_>>();
    let expected = crate::differences(&inputs.iter().copied().map(to_f64).collect::<Vec<_>>(), |values| {
        let product = |i: usize, n: usize| {
            let codes = &codes(&cases[i].w, how.bits);
            let exact =
                Exact { codes, group: 32, sizes: [n, 64], transpose: true, rows: 3, picks: &[[0, 0]] };
            let y = exact.products(&values[0], &values[1 + 2 * i], &values[2 + 2 * i]);
            y.iter().map(|y| y * y).sum::<f64>()
        };
        product(0, 4) + 3.0 * product(1, 2)
    });
    let loss = |args: &[Array]| {
        let parts = [(&one.w, &args[1], Some(&args[2])), (&two.w, &args[3], Some(&args[4]))];
        let all = ops::quantized_matmuls(&args[0], &parts, how)?;
        let sum = |y: &Array| ops::sum(&ops::square(y)?, .., false);
        sum(&all[0])? + (sum(&all[1])? * 3.0)?
    };
    let of_scales = |scales: &Array| {
        let mut args: Vec<Array> = inputs.iter().copied().cloned().collect();
        args[3] = scales.clone();
        loss(&args)
    };
    for path in fast_paths() {
        let on = || transforms::value_and_grad(loss, inputs.iter().copied());
        let all = kernels::force(path, on).unwrap().unwrap().1;
        for (found, expected) in all.iter().zip(&expected) {
            support::assert_close(found, expected, support::SOLVER);
        }
        let alone = kernels::force(path, || transforms::grad(of_scales, &two.scales)).unwrap().unwrap();
        assert_eq!(bits(&alone), bits(&all[3]), "{path}");
    }
}

#[test]
fn they_map_over_an_axis() {
    for how in quantizations() {
        let cases = cases(how, [Dtype::Float32; 2], &[4], &[6, 3], 2, 9);
        let (one, two) = (&cases[0], &cases[1]);
        let k = one.x.shape()[1];
        let (x, _) = Numbers(1).array(&[k, 3, 2]);
        let codes = ops::stack([&one.w, &one.w, &one.w], 1).unwrap();
        let (first, second) =
            ((&one.scales, one.biases.as_ref()), (&two.w, &two.scales, two.biases.as_ref()));
        let product = |x: &Array, w: &Array| ops::quantized_matmuls(x, &[(w, first.0, first.1), second], how);
        let turned = |x: &Array| ops::transpose(x, ..);
        assert_maps(&[&x], &[Some(1)], |args| product(&turned(&args[0])?, &one.w));
        assert_maps(&[&x, &codes], &[Some(1), Some(1)], |args| product(&turned(&args[0])?, &args[1]));
        assert_maps(&[&one.x, &codes], &[None, Some(1)], |args| product(&args[0], &args[1]));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let how = Quantization::affine(32, 4);
    let good = cases(how, [Dtype::Float32; 2], &[1], &[4, 4], 2, 1);
    let longer = cases(how, [Dtype::Float32; 2], &[1], &[4, 4], 3, 1);
    let batch = |a: &Array| ops::expand_dims(a, 0).unwrap();
    let (w, scales, biases) = (&good[1].w, &good[1].scales, good[1].biases.as_ref().unwrap());
    let (deep, deep_scales, deep_biases) = (batch(w), batch(scales), batch(biases));
    let beside = |other| {
        let first = (&good[0].w, &good[0].scales, good[0].biases.as_ref());
        ops::quantized_matmuls(&good[0].x, &[first, other], how).and_then(|all| transforms::eval(&all))
    };
    assert!(beside((w, scales, Some(biases))).is_ok());
    for path in fast_paths().into_iter().chain([Path::Reference]) {
        let refused = |other| assert!(kernels::force(path, || beside(other)).unwrap().is_err(), "{path}");
        refused((&longer[1].w, &longer[1].scales, longer[1].biases.as_ref()));
        refused((w, &longer[1].scales, Some(biases)));
        refused((w, scales, None));
        refused((&deep, &deep_scales, Some(&deep_biases)));
    }
    assert!(ops::quantized_matmuls(&good[0].x, &[], how).unwrap().is_empty());
}

#[test]
fn layers_of_any_kind_go_together() {
    let cases = cases(Quantization::affine(64, 4), [Dtype::Bfloat16; 2], &[2], &[8, 8, 8], 3, 4);
    let k = cases[0].x.shape()[1];
    let bias = rounded(&Numbers(3).values(8), &[8], Dtype::Bfloat16).0;
    let dense = rounded(&Numbers(4).values(8 * k as usize), &[8, k], Dtype::Bfloat16).0;
    let layer = |weight, bias| Linear { weight, bias };
    let quantized = |i: usize, bias| layer(cases[i].weight(), bias);
    let all = [
        [quantized(0, None), quantized(1, Some(bias.clone())), quantized(2, None)],
        [quantized(0, Some(bias.clone())), layer(Weight::Dense(dense), Some(bias)), quantized(1, None)],
    ];
    for layers in &all {
        let together = Linear::forward_all(layers.each_ref(), &cases[0].x).unwrap();
        for (layer, y) in layers.iter().zip(&together) {
            assert_eq!(bits(y), bits(&layer.forward(&cases[0].x).unwrap()));
        }
    }
}
