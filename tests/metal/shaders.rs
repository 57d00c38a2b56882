//! Our shaders, started by the kernels that have them, on the CPU: every thread of a group in several orders, with each
//! access checked.

use std::rc::Rc;

use half::{bf16, f16};
use metal_host::{Grid, Shader};
use mlxport::fast::TemplateArg;
use mlxport::kernels::metal::{Launch, SHADERS, with_runner};
use mlxport::kernels::{self, Path};
use mlxport::{Array, Dtype, Error, HostTensor, Result};
use proptest::prelude::*;

use super::support::{Numbers, epsilon, to_f64};

pub const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

/// Runs a launch as the GPU would. Inputs that may be strided lie in memory by their last axis first, with gaps.
fn on_host(launch: &Launch<'_>) -> Result<Vec<Array>> {
    let parts = launch.shader.parts()?;
    let fail = |e: metal_host::Error| Error::argument("runner", e.to_string());
    let template: Vec<String> = launch.template.iter().map(|(_, arg)| in_metal(*arg)).collect();
    let template: Vec<&str> = template.iter().map(String::as_str).collect();
    let shader = Shader::from_source(launch.shader.name, launch.shader.source);
    let mut kernel = shader.kernel(launch.shader.name, &template).map_err(fail)?;
    for (name, input) in parts.inputs.iter().zip(launch.inputs) {
        let host = input.to_host()?;
        let mentions = |what: &str| parts.body.contains(&format!("{name}_{what}"));
        if launch.shader.strided && input.ndim() > 0 && mentions("strides") {
            let (bytes, strides) = spread(&host);
            kernel = kernel.input(&bytes);
            kernel = if mentions("shape") { kernel.input(input.shape()) } else { kernel };
            kernel = kernel.input(&strides);
        } else {
            kernel = kernel.input(host.bytes());
            kernel = if mentions("shape") { kernel.input(input.shape()) } else { kernel };
        }
    }
    let sizes =
        launch.outputs.iter().map(|spec| spec.shape.iter().product::<i32>() as usize * spec.dtype.size());
    let kernel = sizes.fold(kernel, |kernel, size| kernel.output::<u8>(size));
    let positive = |sizes: [i32; 3]| sizes.map(|n| u32::try_from(n).unwrap());
    let threads = launch.thread_group.iter().product::<i32>();
    assert!(threads <= 1024 && launch.thread_group[0] % 32 == 0, "{launch:?}");
    let grid = Grid::Threads(positive(launch.grid));
    let outputs = kernel.launch_every_order(grid, positive(launch.thread_group)).map_err(fail)?;
    let array = |(k, spec): (usize, &kernels::Spec)| {
        Array::from_host(&HostTensor::new(outputs.bytes(k).to_vec(), &spec.shape, spec.dtype)?)
    };
    launch.outputs.iter().enumerate().map(array).collect()
}

/// A template's argument as Metal spells it.
fn in_metal(arg: TemplateArg) -> String {
    match arg {
        TemplateArg::Int(value) => value.to_string(),
        TemplateArg::Bool(value) => value.to_string(),
        TemplateArg::Dtype(Dtype::Float32) => "float".into(),
        TemplateArg::Dtype(Dtype::Float16) => "half".into(),
        TemplateArg::Dtype(Dtype::Bfloat16) => "bfloat".into(),
        TemplateArg::Dtype(other) => panic!("a template with {other}"),
    }
}

/// The elements with their last axis outermost and gaps between them, and their strides.
fn spread(host: &HostTensor) -> (Vec<u8>, Vec<i64>) {
    let (shape, size) = (host.shape(), host.dtype().size());
    let mut step = 1;
    let strides: Vec<i64> = shape
        .iter()
        .map(|&n| {
            let stride = step;
            step *= i64::from(n) + 1;
            stride
        })
        .collect();
    let mut bytes = vec![0xff; step as usize * size];
    for (i, element) in host.bytes().chunks_exact(size).enumerate() {
        let mut rest = i as i64;
        let at = shape.iter().zip(&strides).rev().fold(0, |at, (&n, stride)| {
            let index = rest % i64::from(n);
            rest /= i64::from(n);
            at + index * stride
        });
        bytes[at as usize * size..][..size].copy_from_slice(element);
    }
    (bytes, strides)
}

/// What `f` gives with its shaders on the CPU.
pub fn emulated<R>(f: impl FnOnce() -> R) -> R {
    with_runner(Rc::new(on_host), f)
}

/// An array of `dtype`, and the values that it really holds.
pub fn rounded(values: &[f64], shape: &[i32], dtype: Dtype) -> (Array, Vec<f64>) {
    let single = values.iter().map(|&v| v as f32);
    let array = match dtype {
        Dtype::Float32 => Array::from_slice(&single.collect::<Vec<_>>(), shape),
        Dtype::Float16 => Array::from_slice(&single.map(f16::from_f32).collect::<Vec<_>>(), shape),
        _ => Array::from_slice(&single.map(bf16::from_f32).collect::<Vec<_>>(), shape),
    }
    .unwrap();
    let values = to_f64(&array);
    (array, values)
}

/// Holds the shader to at most twice the reference's error and one unit in the last place of the largest result; where
/// the expected is not finite, to that. `scale` is how large a term of a sum is: the reference may be lucky.
pub fn check(expected: &[&[f64]], scale: f64, f: impl Fn() -> Result<Vec<Array>>) {
    let reference = kernels::force(Path::Reference, &f).unwrap().unwrap();
    let found = emulated(&f).unwrap();
    assert_eq!((found.len(), reference.len()), (expected.len(), expected.len()));
    for ((found, reference), expected) in found.iter().zip(&reference).zip(expected) {
        assert_eq!((found.shape(), found.dtype()), (reference.shape(), reference.dtype()));
        assert_eq!(found.size(), expected.len());
        let values = [to_f64(found), to_f64(reference)];
        let [error, of_reference] = [0, 1].map(|i| {
            let pairs =
                values[i].iter().zip(*expected).filter(|(y, e)| e.is_finite() && (i == 0 || y.is_finite()));
            // A NaN must not pass for a small error.
            pairs.map(|(y, e)| (y - e).abs()).fold(0.0, |max, e| if e > max || e.is_nan() { e } else { max })
        });
        let largest =
            expected.iter().filter(|e| e.is_finite()).fold(f64::MIN_POSITIVE, |max, v| max.max(v.abs()));
        let unit = epsilon(found.dtype()) * 2f64.powf(largest.log2().floor());
        let allowed = 2.0 * of_reference + unit + 2.0 * scale * f64::from(f32::EPSILON);
        assert!(error <= allowed, "{found:?}: {error:e} > {allowed:e}, the reference {of_reference:e}");
        for (y, e) in values[0].iter().zip(*expected).filter(|(_, e)| !e.is_finite()) {
            assert!(y == e || y.is_nan() && e.is_nan(), "{y} where {e} is expected");
        }
    }
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(&FLOATS[..])
}

/// Sizes at and around the widths of simdgroups.
fn size(most: i32) -> impl Strategy<Value = i32> {
    prop_oneof![2 => Just(1), 4 => 2..=most, 1 => Just(31), 1 => Just(32), 1 => Just(33)]
        .prop_map(move |n| n.min(most))
}

#[test]
fn every_file_asks_for_its_kernels_itself() {
    // Which is what a Mac compiles ahead of time.
    for shader in SHADERS {
        let host = Shader::from_source(shader.name, shader.source);
        host.kernel(&format!("{}_float", shader.name), &[]).unwrap();
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn ternary_products(
        bits in 1..=2i32,
        dtype in dtype(),
        m in prop_oneof![3 => 1..=8i32, 2 => 9..=40i32],
        n in size(70),
        (groups, of_group) in (1..=3i32, 1..=2i32),
        power in prop::sample::select(vec![0, -12, 12]),
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let k = groups * of_group * 32;
        let size = 2f64.powi(power);
        let values: Vec<f64> = numbers.values((m * k) as usize).iter().map(|v| v * size).collect();
        let (x, x_values) = rounded(&values, &[m, k], dtype);
        let (scales, s) = rounded(&numbers.values((n * groups) as usize), &[n, groups], dtype);
        // Also the code that stands for nothing.
        let words: Vec<u32> = (0..n * k * bits / 32).map(|_| numbers.bits() as u32).collect();
        let w = Array::from_slice(&words, &[n, k * bits / 32]).unwrap();
        let weight = |row: i32, column: i32| {
            let bit = (row * k + column) * bits;
            let code = f64::from(words[bit as usize / 32] >> (bit % 32) & ((1 << bits) - 1));
            let code = if bits == 1 { 2.0 * code - 1.0 } else { code - 1.0 };
            code * s[(row * groups + column / (32 * of_group)) as usize]
        };
        let product = |i: i32| {
            let (row, column) = (i / n, i % n);
            (0..k).map(|d| x_values[(row * k + d) as usize] * weight(column, d)).sum::<f64>()
        };
        let expected: Vec<f64> = (0..m * n).map(product).collect();
        check(&[&expected], size * 2.0, || Ok(vec![kernels::ternary_matmul(&x, &w, &scales, bits)?]));
    }

    #[test]
    fn draws_from_the_largest(
        dtype in dtype(),
        rows in 1..=3i32,
        (width, k) in prop_oneof![3 => size(40), 1 => 900..1100i32].prop_flat_map(|w| (Just(w), 1..=w)),
        coarse: bool,
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let count = (rows * width) as usize;
        let mut values = numbers.values(count);
        if coarse {
            values.iter_mut().for_each(|v| *v = (*v * 3.0).round());
        }
        let special = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -0.0, 1e-40];
        for _ in 0..count / 8 {
            values[numbers.below(count)] = special[numbers.below(5)];
        }
        let (logits, _) = rounded(&values, &[rows, width], dtype);
        let noise = numbers.values(count).iter().map(|v| *v as f32).collect::<Vec<_>>();
        let noise = Array::from_slice(&noise, &[rows, width]).unwrap();
        let draw = || kernels::top_k_sample(&logits, &noise, k, 0.75);
        let expected = kernels::force(Path::Reference, draw).unwrap().unwrap();
        let found = emulated(draw).unwrap();
        let (found, expected) = (found.to_vec::<u32>().unwrap(), expected.to_vec::<u32>().unwrap());
        let logits = to_f64(&logits);
        for (row, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let at = |i: u32| logits[row * width as usize + i as usize];
            // Where everything that is left is infinitely unlikely, any will do.
            let alike = at(found) == f64::NEG_INFINITY || at(found).is_nan();
            prop_assert!(found == expected || alike && at(expected).is_nan() | (at(expected) == f64::NEG_INFINITY));
        }
    }
}
