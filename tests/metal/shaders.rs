//! Our shaders, started by the kernels that have them, on the CPU: every thread of a group in several orders, with each
//! access checked.

use std::cell::Cell;
use std::rc::Rc;

use half::{bf16, f16};
use metal_host::{Grid, Shader};
use mlxport::fast::{Mask, TemplateArg};
use mlxport::kernels::metal::{Launch, SHADERS, with_runner};
use mlxport::kernels::{self, Path};
use mlxport::models::blocks::{Sequence, gated_delta, linear_attention};
use mlxport::ops::{Quantization, Quantized};
use mlxport::{Array, Dtype, Error, HostTensor, Result, fast, nn, ops, transforms};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use support::{Numbers, REDUCTION, difference, epsilon, to_f64};

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
}

pub const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

/// Runs a launch as the GPU would. Inputs that may be strided lie in memory by their last axis first, with gaps.
fn on_host(launch: &Launch<'_>) -> Result<Vec<Array>> {
    LAUNCHES.set(LAUNCHES.get() + 1);
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

/// What `f`, which starts a shader, gives with it on the CPU.
pub fn emulated<R>(f: impl FnOnce() -> R) -> R {
    let before = LAUNCHES.get();
    let result = with_runner(Rc::new(on_host), f);
    assert!(LAUNCHES.get() > before, "no shader was started");
    result
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

/// So many cases, the same in every run: `PROPTEST_RNG_SEED` draws others.
fn cases(count: u32) -> ProptestConfig {
    let mut config = ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x6d6c_7870_6f72_7400);
    }
    config
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
        // No sum is beyond `float16`.
        let size = 2f64.powi(if dtype == Dtype::Float16 { power.min(8) } else { power });
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
    fn gated_units(
        dtype in dtype(),
        (rows, width) in (1..=3i32, prop_oneof![4 => size(40), 1 => Just(1100)]),
        power in prop::sample::select(vec![0, -10, 3]),
        special: bool,
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let (count, shape) = ((rows * width) as usize, [rows, width]);
        let mut values = || numbers.values(count).iter().map(|v| v * 2f64.powi(power)).collect::<Vec<_>>();
        let (mut gates, xs) = (values(), values());
        if special {
            let specials = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.0, -0.0, 1e-42, -200.0];
            gates.iter_mut().step_by(5).zip(specials.iter().cycle()).for_each(|(gate, special)| *gate = *special);
        }
        let ((gate, g), (x, v)) = (rounded(&gates, &shape, dtype), rounded(&xs, &shape, dtype));
        let silu: Vec<f64> = g.iter().zip(&v).map(|(g, v)| g / (1.0 + (-g).exp()) * v).collect();
        check(&[&silu], 0.0, || Ok(vec![nn::activations::swiglu(&gate, &x)?]));
    }

    #[test]
    fn sums_with_their_norms(
        dtype in dtype(),
        (rows, width) in (1..=3i32, prop_oneof![4 => size(40), 1 => 1000..1100i32]),
        power in prop::sample::select(vec![0, -10, 6]),
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let (count, shape) = ((rows * width) as usize, [rows, width]);
        let mut values = || numbers.values(count).iter().map(|v| v * 2f64.powi(power)).collect::<Vec<_>>();
        let ((x, x_values), (y, y_values)) =
            (rounded(&values(), &shape, dtype), rounded(&values(), &shape, dtype));
        let (weight, w) = rounded(&numbers.values(width as usize), &[width], dtype);
        let sum: Vec<f64> = x_values.iter().zip(&y_values).map(|(x, y)| x + y).collect();
        let normed = rms_norm(&sum, &w, 1e-5);
        check(&[&sum, &normed], 0.0, || Ok(fast::add_rms_norm(&x, &y, &weight, 1e-5)?.into()));
    }

    #[test]
    fn norms_with_their_positions(
        dtype in dtype(),
        [batch, heads, length] in [1..=2i32, 1..=3i32, 1..=9i32],
        (pairs, rest) in (prop_oneof![1..=40i32, Just(16)], 0..=5i32),
        (traditional, by_periods, each) in any::<(bool, bool, bool)>(),
        offset in 0..64i32,
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let width = 2 * pairs + rest;
        let shape = [batch, heads, length, width];
        let (x, values) = rounded(&numbers.values(shape.iter().product::<i32>() as usize), &shape, dtype);
        let (weight, w) = rounded(&numbers.values(width as usize), &[width], dtype);
        let periods: Vec<f32> = (0..pairs).map(|i| 100f32.powf(i as f32 / pairs as f32)).collect();
        let period = |i: usize| match by_periods {
            true => f64::from(periods[i]),
            false => 100f64.powf(i as f64 / f64::from(pairs)),
        };
        let offsets: Vec<i32> = (0..batch).map(|b| offset + if each { 7 * b } else { 0 }).collect();
        let mut expected = rms_norm(&values, &w, 1e-6);
        for (row, values) in expected.chunks_exact_mut(width as usize).enumerate() {
            let position = offsets[row / (heads * length) as usize] + row as i32 % length;
            for i in 0..pairs as usize {
                let (a, b) = if traditional { (2 * i, 2 * i + 1) } else { (i, i + pairs as usize) };
                let (sin, cos) = (f64::from(position) * 0.5 / period(i)).sin_cos();
                (values[a], values[b]) = (values[a] * cos - values[b] * sin, values[a] * sin + values[b] * cos);
            }
        }
        let each_offset = Array::from_slice(&offsets, &[batch]).unwrap();
        let periods = Array::from_slice(&periods, &[pairs]).unwrap();
        let turned = || {
            let frequencies: fast::RopeFrequencies = if by_periods { (&periods).into() } else { 100.0.into() };
            let offset: fast::RopeOffset = if each { (&each_offset).into() } else { offset.into() };
            fast::rms_norm_rope(&x, &weight, 1e-6, 2 * pairs, traditional, frequencies, 0.5, offset)
        };
        // An angle is off by as many units as its position says.
        check(&[&expected], f64::from(offset + 32), || Ok(vec![turned()?]));
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

proptest! {
    // Most cases are a shader of their own to compile.
    #![proptest_config(cases(10))]

    #[test]
    fn attention_to_codes(
        dtype in dtype(),
        (bits, group) in (prop::sample::select(vec![2, 3, 4, 5, 6, 8]), prop::sample::select(vec![32, 64, 128])),
        [batch, kv_heads, shared, length, more] in [1..=2i32, 1..=2i32, 1..=3i32, 1..=3i32, 0..=40i32],
        [k_groups, v_groups] in [1..=2i32, 1..=2i32],
        (kind, sinks) in (0..4, any::<bool>()),
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let (heads, keys) = (kv_heads * shared, length + more);
        let [dims, value_dims] = [k_groups * group, v_groups * group];
        let mut coded = |dims: i32| {
            let rows = batch * kv_heads * keys;
            let words: Vec<u32> = (0..rows * dims * bits / 32).map(|_| numbers.bits() as u32).collect();
            let shape = |n: i32| [batch, kv_heads, keys, n];
            let largest = f64::from((1 << bits) - 1);
            let scales: Vec<f64> = numbers.values((rows * dims / group) as usize).iter().map(|v| v / largest).collect();
            let (scales, s) = rounded(&scales, &shape(dims / group), dtype);
            let (biases, b) = rounded(&numbers.values((rows * dims / group) as usize), &shape(dims / group), dtype);
            let weight = Array::from_slice(&words, &shape(dims * bits / 32)).unwrap();
            let values: Vec<f64> = (0..(rows * dims) as usize)
                .map(|i| {
                    let bit = i * bits as usize;
                    let next = words.get(bit / 32 + 1).copied().unwrap_or(0);
                    let both = u64::from(words[bit / 32]) | u64::from(next) << 32;
                    let code = both >> (bit % 32) & ((1 << bits) - 1);
                    code as f64 * s[i / group as usize] + b[i / group as usize]
                })
                .collect();
            (Quantized { weight, scales, biases: Some(biases) }, values)
        };
        let ((k, k_values), (v, v_values)) = (coded(dims), coded(value_dims));
        let (q, q_values) =
            rounded(&numbers.values((batch * heads * length * dims) as usize), &[batch, heads, length, dims], dtype);
        let (sink, sink_values) = rounded(&numbers.values(heads as usize), &[heads], dtype);
        let seen: Vec<bool> = (0..length * keys).map(|_| numbers.below(3) > 0).collect();
        let seen_array = Array::from_slice(&seen, &[1, 1, length, keys]).unwrap();
        let (added_array, added) = rounded(&numbers.values((heads * length * keys) as usize), &[heads, length, keys], dtype);

        let scale = 0.25;
        let line = |of: &[f64], row: i32, n: i32| of[(row * n) as usize..][..n as usize].to_vec();
        let mut expected = Vec::new();
        for row in 0..batch * heads * length {
            let (place, head, b) = (row % length, row / length % heads, row / length / heads);
            let query = line(&q_values, row, dims);
            let first = (b * kv_heads + head / shared) * keys;
            let score = |i: i32| {
                let key = line(&k_values, first + i, dims);
                let score = query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>() * scale;
                match kind {
                    1 if i > keys - length + place => f64::MIN,
                    2 if !seen[(place * keys + i) as usize] => f64::MIN,
                    3 => score + added[((head * length + place) * keys + i) as usize],
                    _ => score,
                }
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let sink = sinks.then(|| sink_values[head as usize]);
            let highest = scores.iter().chain(&sink).copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - highest).exp());
            expected.extend((0..value_dims).map(|d| {
                let value = |i: i32| v_values[((first + i) * value_dims + d) as usize];
                (0..keys).map(|i| weights[i as usize] * value(i)).sum::<f64>() / total
            }));
        }
        let how = Quantization::affine(group, bits);
        let mask = match kind {
            0 => Mask::None,
            1 => Mask::Causal,
            2 => Mask::Array(&seen_array),
            _ => Mask::Array(&added_array),
        };
        let sinks = sinks.then_some(&sink);
        check(&[&expected], 4.0, || {
            Ok(vec![fast::quantized_attention(&q, &k, &v, how, scale as f32, mask, sinks)?])
        });
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn recurrences(
        dtype in dtype(),
        [batch, length, key_heads, shared] in [1..=2i32, 1..=4i32, 1..=2i32, 1..=3i32],
        (key_dim, value_dim) in (prop_oneof![Just(1), Just(31), Just(32), Just(33), Just(100)], 1..=9i32),
        (by_column, delta, begun) in (prop::bool::weighted(0.2), any::<bool>(), any::<bool>()),
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let heads = key_heads * shared;
        let mut draw = |shape: &[i32], dtype, f: &dyn Fn(f64) -> f64| {
            let values = numbers.values(shape.iter().product::<i32>() as usize);
            rounded(&values.into_iter().map(f).collect::<Vec<_>>(), shape, dtype)
        };
        let plain = |v: f64| v;
        let (queries, q) = draw(&[batch, length, key_heads, key_dim], dtype, &plain);
        let (keys, k) = draw(&[batch, length, key_heads, key_dim], dtype, &|v| v / f64::from(key_dim).sqrt());
        let (values, v) = draw(&[batch, length, heads, value_dim], dtype, &plain);
        let decays = [batch, length, heads, key_dim];
        let decays = if by_column { &decays[..] } else { &decays[..3] };
        let (log_decay, d) = draw(decays, Dtype::Float32, &|v| -v.abs());
        let (beta, b) = draw(&[batch, length, heads], dtype, &|v| v.abs());
        let (state, s) = draw(&[batch, heads, value_dim, key_dim], Dtype::Float32, &plain);

        let width = key_dim as usize;
        let mut outputs = vec![0.0; (batch * length * heads * value_dim) as usize];
        let mut states = if begun { s } else { vec![0.0; s.len()] };
        for (row, state) in states.chunks_exact_mut(width).enumerate() {
            let row = row as i32;
            let (r, head, sequence) = (row % value_dim, row / value_dim % heads, row / value_dim / heads);
            for position in sequence * length..(sequence + 1) * length {
                let of_head = (position * heads + head) as usize;
                let of_key = (position * key_heads + head / shared) as usize * width;
                let (key, query) = (&k[of_key..][..width], &q[of_key..][..width]);
                for (c, state) in state.iter_mut().enumerate() {
                    *state *= if by_column { d[of_head * width + c] } else { d[of_head] }.exp();
                }
                let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                let at = of_head * value_dim as usize + r as usize;
                let change = if delta { (v[at] - dot(state, key)) * b[of_head] } else { v[at] };
                state.iter_mut().zip(key).for_each(|(state, key)| *state += change * key);
                outputs[at] = dot(state, query);
            }
        }
        let sequence = Sequence {
            queries: &queries,
            keys: &keys,
            values: &values,
            log_decay: &log_decay,
            state: begun.then_some(&state),
        };
        check(&[&outputs, &states], 4.0 * f64::from(key_dim).sqrt(), || {
            let (out, state) = if delta { gated_delta(&sequence, &beta)? } else { linear_attention(&sequence)? };
            Ok(vec![out, state])
        });
    }
}

/// The root-mean-square norm of rows as wide as `weight`.
fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let norm = |row: &[f64]| {
        let factor = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + eps).sqrt();
        row.iter().zip(weight).map(|(x, w)| x * factor * w).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(norm).collect()
}

/// Those whose reference MLX neither maps nor has forward derivatives of.
const LACKS: [&str; 1] = ["quantized_attention"];

type Kernel = Box<dyn Fn(&[Array]) -> Result<Vec<Array>>>;

/// Every kernel with a shader that has derivatives: its name, the arguments that have them, and itself.
fn differentiable() -> Vec<(&'static str, Vec<Array>, Kernel)> {
    let mut numbers = Numbers(7);
    let mut draw = |shape: &[i32]| {
        let values = numbers.values(shape.iter().product::<i32>() as usize);
        rounded(&values, shape, Dtype::Float32).0
    };
    let how = Quantization::affine(32, 4);
    let coded = |x: Array| ops::quantize(&x, how, None).unwrap();
    let (k, v) = (coded(draw(&[1, 1, 32, 32])), coded(draw(&[1, 1, 32, 32])));
    let words =
        |n: u32| Array::from_slice(&[0x1248_1248u32, 0x0521_8421].repeat(n as usize / 2), &[n as i32 / 2, 2]);
    let codes = words(6).unwrap();
    vec![
        (
            "gated",
            vec![draw(&[3, 4]), draw(&[3, 4])],
            Box::new(|args| Ok(vec![nn::activations::swiglu(&args[0], &args[1])?])),
        ),
        (
            "add_rms_norm",
            vec![draw(&[3, 8]), draw(&[3, 8]), draw(&[8])],
            Box::new(|args| Ok(fast::add_rms_norm(&args[0], &args[1], &args[2], 1e-5)?.to_vec())),
        ),
        (
            "rms_norm_rope",
            vec![draw(&[1, 2, 3, 8]), draw(&[8])],
            Box::new(|args| {
                Ok(vec![fast::rms_norm_rope(&args[0], &args[1], 1e-5, 8, false, 100.0, 1.0, 3)?])
            }),
        ),
        (
            "ternary_matmul",
            vec![draw(&[2, 32]), draw(&[3, 1])],
            Box::new(move |args| Ok(vec![kernels::ternary_matmul(&args[0], &codes, &args[1], 2)?])),
        ),
        (
            "quantized_attention",
            vec![draw(&[1, 2, 3, 32])],
            Box::new(move |args| {
                Ok(vec![fast::quantized_attention(&args[0], &k, &v, how, 0.2, Mask::Causal, None)?])
            }),
        ),
        (
            "gated_delta",
            vec![
                draw(&[1, 3, 1, 4]),
                draw(&[1, 3, 1, 4]),
                draw(&[1, 3, 2, 3]),
                ops::negative(&ops::abs(&draw(&[1, 3, 2])).unwrap()).unwrap(),
                draw(&[1, 3, 2]),
                draw(&[1, 2, 3, 4]),
            ],
            Box::new(|args| {
                let [queries, keys, values, log_decay, beta, state] = args else { unreachable!() };
                let (out, state) =
                    gated_delta(&Sequence { queries, keys, values, log_decay, state: Some(state) }, beta)?;
                Ok(vec![out, state])
            }),
        ),
    ]
}

fn assert_near(name: &str, found: &[Array], expected: &[Array]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.shape(), expected.shape(), "{name}");
        let wrong = difference(&to_f64(found), &to_f64(expected), epsilon(found.dtype()), REDUCTION);
        assert!(wrong.is_none(), "{name}: {wrong:?}");
    }
}

#[test]
fn shaders_have_the_derivatives_of_the_reference() {
    for (name, args, f) in differentiable() {
        let loss = |args: &[Array]| {
            let sums =
                f(args)?.iter().map(|y| ops::sum(&ops::square(y)?, .., false)).collect::<Result<Vec<_>>>()?;
            ops::sum(&ops::stack(&sums, 0)?, .., false)
        };
        let transformed = || {
            let (value, gradients) = transforms::value_and_grad(loss, &args).unwrap();
            let along = match LACKS.contains(&name) {
                true => Vec::new(),
                false => transforms::jvp(|args| f(args), &args, &args).unwrap().1,
            };
            let all = [vec![value], gradients, along].concat();
            all.iter().for_each(|x| x.eval().unwrap());
            all
        };
        let expected = kernels::force(Path::Reference, transformed).unwrap();
        assert_near(name, &emulated(transformed), &expected);
    }
}

/// The reference is mapped: nothing is there yet that a shader could run on, so zeros stand for what it gives.
#[test]
fn shaders_map_over_an_axis_as_the_reference() {
    let zeros: Rc<kernels::metal::Runner> = Rc::new(|launch: &Launch<'_>| {
        launch.outputs.iter().map(|spec| ops::zeros(&spec.shape, spec.dtype)).collect()
    });
    let row = |x: &Array, i: i32| ops::take(x, &Array::from(i), 0).unwrap();
    for (name, args, f) in differentiable().into_iter().filter(|(name, ..)| !LACKS.contains(name)) {
        let three = |x: &Array| ops::stack([x, &(x * 0.5).unwrap(), &(x * 0.25).unwrap()], 0).unwrap();
        let args: Vec<Array> = args.iter().map(three).collect();
        let mapped = with_runner(zeros.clone(), || transforms::vmap(&f, &args)).unwrap();
        for i in 0..3 {
            let alone: Vec<Array> = args.iter().map(|x| row(x, i)).collect();
            let expected = kernels::force(Path::Reference, || f(&alone)).unwrap().unwrap();
            let found: Vec<Array> = mapped.iter().map(|y| row(y, i)).collect();
            assert_near(name, &found, &expected);
        }
    }
}
