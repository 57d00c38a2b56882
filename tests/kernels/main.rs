//! Kernels of ours in MLX's graph, and what they compute.

mod attention;
mod causal_conv;
mod chain;
mod custom;
mod matmul;
mod quantized_matmul;
mod recurrence;
mod rows;
mod select;
mod selective_scan;
mod ternary_matmul;

use half::{bf16, f16};
use mlxport::kernels::{self, Path};
use mlxport::{Array, Dtype, ops, transforms};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use self::matmul::{Lies, laid_out};
use support::{Numbers, REDUCTION, SOLVER, assert_close, difference, epsilon, f32_array, to_f64};

const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

/// An array of `dtype`, and the values that it really holds.
fn rounded(values: &[f64], shape: &[i32], dtype: Dtype) -> (Array, Vec<f64>) {
    let single: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let array = match dtype {
        Dtype::Float32 => Array::from_slice(&single, shape),
        Dtype::Float16 => {
            Array::from_slice(&single.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>(), shape)
        }
        _ => Array::from_slice(&single.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>(), shape),
    }
    .unwrap();
    let values = to_f64(&array);
    (array, values)
}

/// The paths that this machine has besides the reference; of those, the ones that `MLXPORT_TEST_PATHS` names if
/// it is set, for machines that are slow.
fn fast_paths() -> Vec<Path> {
    let named = std::env::var("MLXPORT_TEST_PATHS").ok();
    let wanted = |p: &Path| named.as_ref().is_none_or(|names| names.split(',').any(|name| name == p.name()));
    Path::ALL[1..].iter().copied().filter(|p| p.is_available() && wanted(p)).collect()
}

/// `count` cases for a property, or `PROPTEST_CASES` if that is less. They are the same in every run:
/// `PROPTEST_RNG_SEED` draws others.
fn config(count: u32) -> ProptestConfig {
    let mut config = ProptestConfig::default();
    config.cases = count.min(config.cases);
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x6d6c_7870_6f72_7400);
    }
    config
}

/// Random numbers that `f` makes of those between -1 and 1, and their array in memory as `lies` says.
fn drawn(
    numbers: &mut Numbers,
    shape: &[i32],
    dtype: Dtype,
    lies: Lies,
    f: impl Fn(f64) -> f64,
) -> (Array, Vec<f64>) {
    let count: i32 = shape.iter().product();
    let values: Vec<f64> =
        (0..count).map(|_| f((numbers.bits() >> 11) as f64 / 2f64.powi(52) - 1.0)).collect();
    let (array, values) = rounded(&values, shape, dtype);
    let as_row = || ops::squeeze(&laid_out(&ops::expand_dims(&array, 0).unwrap(), lies), 0).unwrap();
    (if shape.len() > 1 { laid_out(&array, lies) } else { as_row() }, values)
}

/// Central differences of `f` by each element of each input.
fn differences(inputs: &[Vec<f64>], f: impl Fn(&[Vec<f64>]) -> f64) -> Vec<Vec<f64>> {
    const STEP: f64 = 1e-5;
    let by = |i: usize, j: usize| {
        let at = |step: f64| {
            let mut inputs = inputs.to_vec();
            inputs[i][j] += step;
            f(&inputs)
        };
        (at(STEP) - at(-STEP)) / (2.0 * STEP)
    };
    (0..inputs.len()).map(|i| (0..inputs[i].len()).map(|j| by(i, j)).collect()).collect()
}

/// Fails unless on every path the two outputs of `f` have the gradients of those of `exact`, the same in `f64`:
/// by central differences of the sum of all numbers of both, which have different weights.
fn assert_gradients(
    inputs: &[Array],
    values: &[Vec<f64>],
    f: impl Fn(&[Array]) -> mlxport::Result<(Array, Array)>,
    exact: impl Fn(&[Vec<f64>]) -> (Vec<f64>, Vec<f64>),
) {
    let weights = |n: usize| (0..n).map(|i| 1.0 + (i % 5) as f64 / 4.0).collect::<Vec<_>>();
    let weighted = |x: &[f64]| x.iter().zip(weights(x.len())).map(|(x, w)| x * w).sum::<f64>();
    let expected = differences(values, |values| {
        let (first, second) = exact(values);
        weighted(&first) + weighted(&second)
    });
    let loss = |args: &[Array]| {
        let (first, second) = f(args)?;
        let sum = |x: &Array| ops::sum(&(x * f32_array(&weights(x.size()), x.shape()))?, .., false);
        sum(&first)? + sum(&second)?
    };
    for path in fast_paths() {
        let found = kernels::force(path, || transforms::value_and_grad(loss, inputs)).unwrap().unwrap().1;
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, SOLVER);
        }
    }
}

/// Fails unless every path computes the same bits on any number of threads, again and again.
fn assert_repeats(f: impl Fn() -> mlxport::Result<Vec<Array>>) {
    let before = kernels::threads();
    for path in fast_paths() {
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for threads in [1, 2, 3, 7, 1] {
            kernels::set_threads(threads).unwrap();
            let outputs = kernels::force(path, &f).unwrap().unwrap();
            seen.push(outputs.iter().flat_map(bits).collect());
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{path}");
    }
    kernels::set_threads(before).unwrap();
}

/// Fails unless `f`, mapped over these axes of its arguments, gives on every path what the reference gives for
/// each index alone.
fn assert_maps(args: &[&Array], axes: &[Option<i32>], f: impl Fn(&[Array]) -> mlxport::Result<Vec<Array>>) {
    let at = |x: &Array, i: i32, axis| ops::take(x, &Array::from(i), axis).unwrap();
    let count = args.iter().zip(axes).find_map(|(x, axis)| axis.map(|axis| x.dim(axis).unwrap())).unwrap();
    let alone = |i: i32| {
        let of = |(x, axis): (&&Array, &Option<i32>)| axis.map_or((*x).clone(), |axis| at(x, i, axis));
        let args: Vec<Array> = args.iter().zip(axes).map(of).collect();
        kernels::force(Path::Reference, || f(&args)).unwrap().unwrap()
    };
    let alone: Vec<Vec<Array>> = (0..count).map(alone).collect();
    for path in fast_paths() {
        let mapped = || transforms::vmap_with(&f, args.iter().copied(), axes, &vec![0; alone[0].len()]);
        let mapped = kernels::force(path, mapped).unwrap().unwrap();
        for (i, expected) in alone.iter().enumerate() {
            for (mapped, expected) in mapped.iter().zip(expected) {
                let found = at(mapped, i as i32, 0);
                assert_eq!((found.shape(), found.dtype()), (expected.shape(), expected.dtype()), "{path}");
                let unit = epsilon(expected.dtype());
                let wrong = difference(&to_f64(&found), &to_f64(expected), unit, REDUCTION);
                assert!(wrong.is_none(), "{path}, index {i}: {wrong:?}");
            }
        }
    }
}

fn bits(y: &Array) -> Vec<u8> {
    y.to_host().unwrap().into_bytes()
}

/// The largest error of `y`: infinite where a number should be that is none, or the other way round.
fn largest_error(y: &Array, expected: &[f64]) -> f64 {
    let same = |y: f64, e: f64| y == e || y.is_nan() && e.is_nan();
    let error = |(&y, &e): (&f64, &f64)| if same(y, e) { 0.0 } else { (y - e).abs() };
    let errors = to_f64(y).iter().zip(expected).map(error).collect::<Vec<_>>();
    errors.iter().fold(0.0, |max, &error| if error.is_nan() { f64::INFINITY } else { f64::max(max, error) })
}

/// Holds every path to at most twice the reference's error and one unit in the last place of the largest
/// result. Where results are few, the reference may be lucky: `scale` is how large a term of a sum is.
fn check(
    expected: &[f64],
    scale: f64,
    f: impl Fn() -> mlxport::Result<Array>,
    reference: impl Fn() -> mlxport::Result<Array>,
) -> Result<(), TestCaseError> {
    let on = |path| {
        let y = kernels::force(path, &f).unwrap().unwrap();
        y.eval().unwrap();
        y
    };
    let reference = kernels::force(Path::Reference, reference).unwrap().unwrap();
    let finite = expected.iter().filter(|v| v.is_finite());
    let largest = finite.fold(f64::MIN_POSITIVE, |max, v| f64::max(max, v.abs()));
    let unit = epsilon(reference.dtype()) * 2f64.powf(largest.log2().floor());
    let allowed = 2.0 * largest_error(&reference, expected) + unit + 2.0 * scale * f64::from(f32::EPSILON);
    for path in fast_paths() {
        let y = on(path);
        prop_assert_eq!(y.shape(), reference.shape());
        prop_assert_eq!(y.dtype(), reference.dtype());
        prop_assert_eq!(y.size(), expected.len());
        let found = largest_error(&y, expected);
        prop_assert!(found <= allowed, "{path}: {found:e} > {allowed:e}");
    }
    Ok(())
}

/// For `make test-sanitize`, which wants to see it fail.
#[test]
#[ignore = "reads beyond its memory"]
fn planted_overflow() {
    let values = std::hint::black_box(vec![1.0f32; 16]);
    // SAFETY: there is none; a sanitizer must stop here.
    let beyond = unsafe { std::hint::black_box(values.as_ptr()).add(16).read() };
    std::hint::black_box(beyond);
}
