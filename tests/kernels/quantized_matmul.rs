//! `quantized_matmul` against an oracle in `f64` that decodes the weights by itself.

mod gradients;
mod together;
mod values;

use mlxport::kernels::{self, Path};
use mlxport::nn::Weight;
use mlxport::ops::{self, Quantization, QuantizationMode};
use mlxport::{Array, Dtype, transforms};
use proptest::prelude::*;

use crate::{FLOATS, assert_maps, assert_repeats, bits, check, fast_paths, largest_error, rounded};
use support::codes::{code, minifloat};
use support::{Numbers, epsilon, to_f64};

/// A product, its operands as MLX has them, and its exact result.
struct Case {
    how: Quantization,
    x: Array,
    w: Array,
    scales: Array,
    biases: Option<Array>,
    /// `[n, k]`.
    decoded: Vec<f64>,
    x_values: Vec<f64>,
}

fn quantizations() -> Vec<Quantization> {
    let affine =
        [32, 64, 128].into_iter().flat_map(|g| [2, 3, 4, 5, 6, 8].map(|b| Quantization::affine(g, b)));
    affine.chain(QuantizationMode::ALL[1..].iter().map(|&mode| mode.into())).collect()
}

impl Case {
    /// Random codes and scales, and `x` from `value`, `[x_shape..., groups * group_size]`.
    fn new(
        how: Quantization,
        dtypes: [Dtype; 2],
        x_shape: &[i32],
        n: i32,
        groups: i32,
        seed: u64,
        mut value: impl FnMut(&mut Numbers) -> f64,
    ) -> Self {
        let mut random = Numbers(seed);
        let k = groups * how.group_size;
        let words: Vec<u32> = (0..n * k * how.bits / 32).map(|_| random.bits() as u32).collect();
        let count = (n * groups) as usize;
        let scale_shape = [n, groups];
        let (scales, scale_values, biases, bias_values) = if how.mode == QuantizationMode::Affine {
            let unit = 1.0 / f64::from(1 << how.bits);
            let scales: Vec<f64> = random.values(count).iter().map(|v| v * unit).collect();
            let (scales, scale_values) = rounded(&scales, &scale_shape, dtypes[1]);
            // As a quantizer has it: the middle of the codes stands for about zero.
            let middle = f64::from((1 << how.bits) - 1) / 2.0;
            let biases: Vec<f64> =
                scale_values.iter().zip(random.values(count)).map(|(s, v)| -middle * s + 0.1 * v).collect();
            let (biases, bias_values) = rounded(&biases, &scale_shape, dtypes[1]);
            (scales, scale_values, Some(biases), bias_values)
        } else {
            let nv = how.mode == QuantizationMode::Nvfp4;
            let codes: Vec<u8> = (0..count)
                .map(|_| if nv { random.bits() as u8 } else { 120 + random.below(8) as u8 })
                .collect();
            let value = |&c: &u8| {
                if nv { minifloat(c.into(), 4, 3) } else { 2f64.powi(i32::from(c) - 127) }
            };
            let values = codes.iter().map(value).collect();
            (Array::from_slice(&codes, &scale_shape).unwrap(), values, None, vec![0.0; count])
        };
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut decoded = Vec::new();
        for row in 0..n as usize {
            for i in 0..k as usize {
                let code = code(&bytes, how.bits as usize, row * k as usize + i);
                let value = match how.mode {
                    QuantizationMode::Affine => f64::from(code),
                    QuantizationMode::Mxfp8 => minifloat(code, 4, 3),
                    _ => minifloat(code, 2, 1),
                };
                let group = row * groups as usize + i / how.group_size as usize;
                decoded.push(value * scale_values[group] + bias_values[group]);
            }
        }
        let shape: Vec<i32> = x_shape.iter().copied().chain([k]).collect();
        let x: Vec<f64> = (0..shape.iter().product::<i32>()).map(|_| value(&mut random)).collect();
        let (x, x_values) = rounded(&x, &shape, dtypes[0]);
        let w = Array::from_slice(&words, &[n, k * how.bits / 32]).unwrap();
        Self { how, x, w, scales, biases, decoded, x_values }
    }

    fn exact(&self) -> Vec<f64> {
        let k = *self.x.shape().last().unwrap() as usize;
        let without_columns = || self.x.shape().iter().rev().skip(1).product::<i32>() as usize;
        let rows = self.x.size().checked_div(k).unwrap_or_else(without_columns);
        let n = self.w.shape()[0] as usize;
        let dot = |m: usize, n: usize| {
            let (x, w) = (&self.x_values[m * k..][..k], &self.decoded[n * k..][..k]);
            x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()
        };
        (0..rows).flat_map(|m| (0..n).map(move |n| (m, n))).map(|(m, n)| dot(m, n)).collect()
    }

    fn product(&self) -> mlxport::Result<Array> {
        ops::quantized_matmul(&self.x, &self.w, &self.scales, self.biases.as_ref(), true, self.how)
    }

    fn weight(&self) -> Weight {
        let Self { w, scales, biases, how, .. } = self;
        Weight::Quantized { weight: w.clone(), scales: scales.clone(), biases: biases.clone(), how: *how }
    }

    fn on(&self, path: Path) -> Array {
        let y = kernels::force(path, || self.product()).unwrap().unwrap();
        y.eval().unwrap();
        y
    }

    /// The largest error of `y`.
    fn error(&self, y: &Array) -> f64 {
        largest_error(y, &self.exact())
    }

    /// Holds every path to: at most twice the reference's error, and one unit in the last place of the
    /// largest result. The reference may be lucky where results are few; `alike` has more of them.
    fn check(&self, alike: Option<&Self>) -> Result<(), TestCaseError> {
        self.check_by(alike, |path| self.on(path))
    }

    /// The same of what `on` gives for a path.
    fn check_by(&self, alike: Option<&Self>, on: impl Fn(Path) -> Array) -> Result<(), TestCaseError> {
        let reference = self.on(Path::Reference);
        let largest = self.exact().iter().fold(smallest_normal(reference.dtype()), |max, v| max.max(v.abs()));
        let unit = epsilon(reference.dtype()) * 2f64.powf(largest.log2().floor());
        let elsewhere = alike.map_or(0.0, |case| case.error(&case.on(Path::Reference)));
        let allowed = 2.0 * self.error(&reference).max(elsewhere) + unit;
        for path in fast_paths() {
            let y = on(path);
            prop_assert_eq!(y.shape(), reference.shape());
            prop_assert_eq!(y.dtype(), reference.dtype());
            let found = self.error(&y);
            prop_assert!(found <= allowed, "{path} {:?}: {found:e} > {allowed:e}", self.how);
        }
        Ok(())
    }
}

fn smallest_normal(dtype: Dtype) -> f64 {
    2f64.powi(if dtype == Dtype::Float16 { -14 } else { -126 })
}

fn unit_values(random: &mut Numbers) -> f64 {
    random.values(1)[0]
}

proptest! {
    #![proptest_config(crate::config(64))]

    #[test]
    fn every_path_is_as_exact_as_the_reference(
        how in prop::sample::select(quantizations()),
        x_dtype in prop::sample::select(&FLOATS[..]),
        scale_dtype in prop::sample::select(&FLOATS[..]),
        x_shape in prop::sample::select(vec![
            vec![], vec![1], vec![2], vec![3], vec![4], vec![6], vec![17], vec![0], vec![2, 3], vec![2, 0], vec![1, 1, 5],
        ]),
        n in prop::sample::select(vec![0, 1, 2, 3, 4, 7, 13, 32]),
        groups in 0..10i32,
        seed: u64,
    ) {
        let of = |n| Case::new(how, [x_dtype, scale_dtype], &x_shape, n, groups, seed, unit_values);
        of(n).check(Some(&of(64)))?;
    }
}

/// Three matrices of the same kind, and batches of `x` for them.
struct Several {
    transpose: bool,
    cases: Vec<Case>,
    w: Array,
    scales: Array,
    biases: Option<Array>,
}

impl Several {
    fn new(how: Quantization, dtype: Dtype, transpose: bool, n: i32, groups: i32, seed: u64) -> Self {
        let case = |i| Case::new(how, [dtype; 2], &[1], n, groups, seed.wrapping_add(i), unit_values);
        let cases: Vec<Case> = (0..3).map(case).collect();
        let stack = |part: fn(&Case) -> &Array| ops::stack(cases.iter().map(part), 0).unwrap();
        let biases = cases[0].biases.is_some().then(|| stack(|case| case.biases.as_ref().unwrap()));
        Self { transpose, w: stack(|case| &case.w), scales: stack(|case| &case.scales), biases, cases }
    }

    /// What meets a row of `x`, and what a row gives.
    fn sizes(&self) -> [i32; 2] {
        let case = &self.cases[0];
        let [n, k] = [case.w.shape()[0], case.x.shape()[1]];
        if self.transpose { [k, n] } else { [n, k] }
    }

    /// `x @ w`, with matrix `i`.
    fn exact(&self, x: &[f64], i: usize) -> Vec<f64> {
        let [k, n] = self.sizes().map(|size| size as usize);
        let w = &self.cases[i].decoded;
        let dot = |x: &[f64], c: usize| {
            let w = |j: usize| if self.transpose { w[c * k + j] } else { w[j * n + c] };
            x.iter().enumerate().map(|(j, x)| x * w(j)).sum::<f64>()
        };
        x.chunks_exact(k).flat_map(|x| (0..n).map(move |c| dot(x, c))).collect()
    }

    /// How large a sum of magnitudes may be.
    fn scale(&self) -> f64 {
        let largest = self.cases.iter().flat_map(|c| &c.decoded).fold(0.0, |max, v| f64::max(max, v.abs()));
        largest * f64::from(self.sizes()[0]).sqrt()
    }
}

proptest! {
    #![proptest_config(crate::config(48))]

    #[test]
    fn picked_and_untransposed_products_are_as_exact_as_the_reference(
        how in prop::sample::select(quantizations()),
        dtype in prop::sample::select(&FLOATS[..]),
        transpose: bool,
        m in prop::sample::select(vec![1, 2, 13, 20]),
        n in prop::sample::select(vec![1, 5, 16, 40]),
        groups in prop::sample::select(vec![1, 2, 3]),
        picks in prop::collection::vec((0..2u32, 0..3u32), 1..8),
        seed: u64,
    ) {
        let all = Several::new(how, dtype, transpose, n, groups, seed);
        let (w, scales, biases, rows) = (&all.w, &all.scales, all.biases.as_ref(), all.sizes()[0]);
        let numbers = &mut Numbers(seed ^ 1);
        let mut x = |batch: i32| {
            let values = numbers.values((batch * m * rows) as usize);
            rounded(&values, &[batch, m, rows], dtype)
        };
        let size = (m * rows) as usize;
        let (two, values) = x(2);
        let of = |f: fn(&(u32, u32)) -> u32| {
            Array::from_slice(&picks.iter().map(f).collect::<Vec<_>>(), &[picks.len() as i32]).unwrap()
        };
        let (lhs, rhs) = (of(|p| p.0), of(|p| p.1));
        let pick = |p: &(u32, u32)| all.exact(&values[p.0 as usize * size..][..size], p.1 as usize);
        let expected: Vec<f64> = picks.iter().flat_map(pick).collect();
        let f = || ops::gather_qmm(&two, w, scales, biases, Some(&lhs), Some(&rhs), transpose, how, false);
        check(&expected, all.scale(), f, f)?;

        let (three, values) = x(3);
        let batch = values.chunks_exact(size).enumerate();
        let expected: Vec<f64> = batch.flat_map(|(i, x)| all.exact(x, i)).collect();
        let f = || ops::quantized_matmul(&three, w, scales, biases, transpose, how);
        check(&expected, all.scale(), f, f)?;

        let one = &all.cases[1];
        let expected = all.exact(&values, 1);
        let f = || ops::quantized_matmul(&three, &one.w, &one.scales, one.biases.as_ref(), transpose, how);
        check(&expected, all.scale(), f, f)?;
    }
}

#[test]
fn every_quantization_is_computed_for_long_rows() {
    for (i, how) in quantizations().into_iter().enumerate() {
        for dtype in FLOATS {
            // More groups than are decoded at a time; a last block that is full, and one that is not.
            for (rows, groups) in [(1, 67), (1, 72), (2, 72), (5, 67)] {
                let of = |n| Case::new(how, [dtype; 2], &[rows], n, groups, i as u64, unit_values);
                of(6).check(Some(&of(30))).unwrap();
            }
        }
    }
}

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    let before = kernels::threads();
    let how = Quantization::affine(64, 4);
    let case = Case::new(how, [Dtype::Bfloat16; 2], &[3], 1001, 16, 1, unit_values);
    for path in fast_paths() {
        let mut seen = Vec::new();
        for threads in [1, 2, 3, 7] {
            kernels::set_threads(threads).unwrap();
            assert_eq!(kernels::threads(), threads);
            seen.push(bits(&case.on(path)));
            seen.push(bits(&case.on(path)));
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{path}");
    }
    kernels::set_threads(before).unwrap();
    assert!(kernels::set_threads(0).is_err());
}

/// As long as they are at most 2, 3 to 12, or more.
#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    for (i, how) in quantizations().into_iter().flat_map(|how| [how; 2]).enumerate() {
        let dtype = [Dtype::Float32, Dtype::Bfloat16][i % 2];
        for (rows, fewer, groups) in [(2, 1, 5), (2, 1, 24), (12, 3, 5), (30, 13, 5)] {
            // Some rows are tiny, some large.
            let (mut at, k) = (0, groups * how.group_size);
            let value = |random: &mut Numbers| {
                at += 1;
                unit_values(random) * 2f64.powi([0, -70, 70][((at - 1) / k % 3) as usize])
            };
            let case = Case::new(how, [dtype; 2], &[rows], 6, groups, i as u64, value);
            for path in fast_paths() {
                let all = to_f64(&case.on(path));
                for m in [0, (rows - fewer) / 2, rows - fewer] {
                    let k = case.x.shape()[1];
                    let x = ops::slice(&case.x, &[m, 0], &[m + fewer, k], &[1, 1]).unwrap();
                    let alone =
                        || ops::quantized_matmul(&x, &case.w, &case.scales, case.biases.as_ref(), true, how);
                    let alone = to_f64(&kernels::force(path, alone).unwrap().unwrap());
                    let beside = &all[m as usize * 6..][..fewer as usize * 6];
                    assert_eq!(alone, beside, "{path} {how:?} row {m} of {rows}");
                }
            }
        }
    }
}

#[test]
fn operands_may_be_strided() {
    let how = Quantization::affine(32, 4);
    let case = Case::new(how, [Dtype::Float32; 2], &[6], 8, 4, 3, unit_values);
    let again = |a: &Array| {
        let turned = ops::transpose(&ops::contiguous(&ops::transpose(a, ..).unwrap(), false).unwrap(), ..);
        turned.unwrap()
    };
    let [x, w, scales] = [&case.x, &case.w, &case.scales].map(again);
    let biases = case.biases.as_ref().map(again);
    for path in fast_paths() {
        let y = kernels::force(path, || ops::quantized_matmul(&x, &w, &scales, biases.as_ref(), true, how));
        assert_eq!(bits(&y.unwrap().unwrap()), bits(&case.on(path)));
    }
}

#[test]
fn rows_are_looked_up() {
    for (i, how) in quantizations().into_iter().enumerate() {
        for dtype in FLOATS {
            let case = Case::new(how, [dtype; 2], &[1], 7, 3, i as u64, unit_values);
            let k = case.x.shape()[1] as usize;
            let ids = [0i32, 6, -1, 3, 7, 3];
            let at = |id: &i32| id.rem_euclid(7) as usize * k;
            let expected: Vec<f64> = ids.iter().flat_map(|id| case.decoded[at(id)..][..k].to_vec()).collect();
            let ids = Array::from_slice(&ids, &[2, 3]).unwrap();
            let weight = case.weight();
            check(&expected, 0.0, || weight.rows(&ids), || weight.rows(&ids)).unwrap();
        }
    }
}

#[test]
fn what_is_no_case_for_a_kernel_is_as_before() {
    let how = Quantization::affine(64, 4);
    let case = Case::new(how, [Dtype::Float32; 2], &[2], 64, 2, 5, unit_values);
    let (scales, biases) = (&case.scales, case.biases.as_ref());
    let refused = |x: &Array, scales: &Array, biases: Option<&Array>| {
        ops::quantized_matmul(x, &case.w, scales, biases, true, how).unwrap_err();
    };
    refused(&ops::slice(&case.x, &[0, 0], &[2, 64], &[1, 1]).unwrap(), scales, biases);
    refused(&case.x, scales, None);
    // MLX promotes integers.
    let whole = ops::astype(scales, Dtype::Int32).unwrap();
    ops::quantized_matmul(&case.x, &case.w, &whole, biases, true, how).unwrap().eval().unwrap();
    // Not transposed: `[2, 64] @ [64, 128]`.
    let x = ops::slice(&case.x, &[0, 0], &[2, 64], &[1, 1]).unwrap();
    let y = ops::quantized_matmul(&x, &case.w, scales, biases, false, how).unwrap();
    assert_eq!(y.shape(), [2, 128]);
    y.eval().unwrap();
}

#[test]
fn a_path_is_pinned_for_a_scope() {
    let before = kernels::active();
    kernels::force(Path::Portable, || assert_eq!(kernels::active(), Path::Portable)).unwrap();
    assert_eq!(kernels::active(), before);
    for path in Path::ALL {
        assert_eq!(path.name().parse::<Path>().unwrap(), path);
        assert_eq!(kernels::force(path, || ()).is_ok(), path.is_available());
    }
}

#[test]
fn many_rows_are_computed_piece_by_piece() {
    // More than are worth another thread, and more rows of `x` than are converted at a time.
    let how = Quantization::affine(32, 4);
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        Case::new(how, [dtype; 2], &[530], 70, 1, 5, unit_values).check(None).unwrap();
        // More than stay in a cache.
        Case::new(how, [dtype; 2], &[140], 40, 32, 5, unit_values).check(None).unwrap();
        let case = Case::new(how, [dtype; 2], &[1], 600, 4, 6, unit_values);
        let ids: Vec<i32> = (0..900).map(|i| i * 37 % 600).collect();
        let expected: Vec<f64> =
            ids.iter().flat_map(|&id| case.decoded[id as usize * 128..][..128].to_vec()).collect();
        let ids = Array::from_slice(&ids, &[900]).unwrap();
        check(&expected, 0.0, || case.weight().rows(&ids), || case.weight().rows(&ids)).unwrap();
    }
}

#[test]
fn many_columns_of_one_row_are_computed_piece_by_piece() {
    for how in [Quantization::affine(64, 4), Quantization::affine(32, 3), QuantizationMode::Mxfp4.into()] {
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            // More than are worth another thread to store.
            let groups = 64 / how.group_size;
            Case::new(how, [dtype; 2], &[1], 33_003, groups, 7, unit_values).check(None).unwrap();
        }
    }
}

#[test]
fn they_map_over_an_axis() {
    for how in quantizations() {
        let all = Several::new(how, Dtype::Float32, true, 6, 2, 3);
        let [k, n] = all.sizes();
        let (x, _) = Numbers(1).array(&[3, 2, k]);
        let (turned, _) = Numbers(2).array(&[2, n, 3]);
        let (w, scales, biases) = (&all.w, &all.scales, all.biases.as_ref());
        let one = &all.cases[0];
        // The rows alone, by matrices turned or not.
        let product = |x: &Array, transpose| {
            ops::quantized_matmul(x, &one.w, &one.scales, one.biases.as_ref(), transpose, how)
        };
        assert_maps(&[&x], &[Some(0)], |args| Ok(vec![product(&args[0], true)?]));
        assert_maps(&[&turned], &[Some(2)], |args| Ok(vec![product(&args[0], false)?]));
        // Each with its own matrix.
        let zeros = ops::zeros(&[3], Dtype::Float32).unwrap();
        let biases_or = biases.unwrap_or(&zeros);
        assert_maps(&[&x, w, scales, biases_or], &[Some(0); 4], |args| {
            let [x, w, scales, rest] = args else { unreachable!() };
            let biases = biases.is_some().then_some(rest);
            Ok(vec![ops::quantized_matmul(x, w, scales, biases, true, how)?])
        });
        // Picked matrices of a batch.
        let picks = Array::from_slice(&[2u32, 0, 1, 1, 0, 2], &[3, 2]).unwrap();
        assert_maps(&[&x, &picks], &[Some(0); 2], |args| {
            let x = ops::expand_dims(&args[0], 1)?;
            Ok(vec![ops::gather_qmm(&x, w, scales, biases, None, Some(&args[1]), true, how, false)?])
        });
        // Rows that are looked up.
        let ids = Array::from_slice(&[0i32, 5, 3, 1, 2, 2], &[2, 3]).unwrap();
        let weight = one.weight();
        assert_maps(&[&ids], &[Some(1)], |args| Ok(vec![weight.rows(&args[0])?]));
    }
}

#[test]
fn every_product_repeats_and_does_not_depend_on_the_threads() {
    for (i, how) in quantizations().into_iter().enumerate().step_by(4) {
        let all = Several::new(how, Dtype::Bfloat16, true, 130, 512 / how.group_size, i as u64);
        let (one, numbers) = (&all.cases[0], &mut Numbers(1));
        let mut x = |rows: i32| {
            rounded(
                &numbers.values((rows * all.sizes()[0]) as usize),
                &[rows, all.sizes()[0]],
                Dtype::Bfloat16,
            )
            .0
        };
        let (few, many) = (x(4), x(20));
        let right = Array::from_slice(&[2u32, 0, 2], &[3]).unwrap();
        let ids = Array::from_slice(&[3i32, 129, 0].repeat(30), &[90]).unwrap();
        assert_repeats(|| {
            let product =
                |x: &Array, w: &Case| ops::quantized_matmul(x, &w.w, &w.scales, w.biases.as_ref(), true, how);
            let picked = |x: &Array| {
                ops::gather_qmm(
                    x,
                    &all.w,
                    &all.scales,
                    all.biases.as_ref(),
                    None,
                    Some(&right),
                    true,
                    how,
                    false,
                )
            };
            let rows = one.weight().rows(&ids)?;
            Ok(vec![product(&few, one)?, product(&many, one)?, picked(&few)?, picked(&many)?, rows])
        });
    }
}
