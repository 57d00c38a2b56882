//! `scaled_dot_product_attention` against the formula in `f64`.

use mlxport::fast::{Mask, quantized_attention, scaled_dot_product_attention, soft_capped_attention};
use mlxport::ops::{Quantization, Quantized};
use mlxport::{Array, Dtype, kernels, ops, transforms};
use proptest::prelude::*;

use crate::matmul::{LIES, Lies};
use crate::{FLOATS, assert_maps, assert_repeats, check, differences, fast_paths, laid_out, rounded};
use support::{Numbers, REDUCTION, SOLVER, assert_close, to_f64};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Masked {
    No,
    Causal,
    /// The last so many keys up to the query's own, as `bool`.
    Window(i32),
    /// Any keys, also none, as `bool`.
    Any,
    /// The same with keys of its own for each head.
    AnyOfHead,
    /// The same keys for all queries.
    Keys,
    /// All keys or none, for each query.
    Queries,
    /// All keys or none, as one `bool`.
    One(bool),
    /// Added, the same for all heads; some are minus infinity.
    Added,
    /// Added, the same for all of a batch.
    AddedOfHead,
    /// Added, the same for all queries; what is added is up to the test.
    AddedOfKeys,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: i32,
    kv_heads: i32,
    group: i32,
    length: i32,
    keys: i32,
    dims: i32,
    value_dims: i32,
}

struct Case {
    sizes: Sizes,
    masked: Masked,
    q: (Array, Vec<f64>),
    k: (Array, Vec<f64>),
    v: (Array, Vec<f64>),
    mask: Option<(Array, Vec<f64>)>,
    sinks: Option<(Array, Vec<f64>)>,
    cap: Option<f32>,
    /// In place of `k` and `v`.
    quantized: Option<(Quantization, [Quantized; 2])>,
}

const SCALE: f32 = 0.25;

impl Case {
    /// Keys and values lie as in a cache: with room behind the last position, or heads within positions.
    fn new(sizes: Sizes, dtype: Dtype, masked: Masked, sinks: bool, by_position: bool, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let Sizes { batch, kv_heads, group, length, keys, dims, value_dims } = sizes;
        let heads = kv_heads * group;
        let mut values = |shape: &[i32], scale: f64| {
            let values: Vec<f64> = numbers
                .values(shape.iter().map(|&d| d as usize).product())
                .iter()
                .map(|v| v * scale)
                .collect();
            rounded(&values, shape, dtype)
        };
        let mut in_cache = |dims: i32| {
            let (all, numbers) = values(&[batch, kv_heads, keys, dims], 2.0);
            let lies = if by_position {
                let turned = ops::contiguous(&ops::transpose(&all, [0, 2, 1, 3]).unwrap(), false).unwrap();
                ops::transpose(&turned, [0, 2, 1, 3]).unwrap()
            } else {
                let room = ops::zeros(&[batch, kv_heads, 5, dims], dtype).unwrap();
                let long = ops::concatenate([&all, &room], 2).unwrap();
                ops::slice(&long, &[0; 4], all.shape(), &[1; 4]).unwrap()
            };
            (lies, numbers)
        };
        let (k, v) = (in_cache(dims), in_cache(value_dims));
        let q = values(&[batch, heads, length, dims], 2.0);
        let sinks = sinks.then(|| values(&[heads], 3.0));
        let pairs = || (0..length).flat_map(|i| (0..keys).map(move |j| (i + keys - length, j)));
        let bool_mask = |seen: Vec<bool>| {
            let array = Array::from_slice(&seen, &[length, keys]).unwrap();
            (array, seen.iter().map(|&s| f64::from(u8::from(s))).collect())
        };
        let mask = match masked {
            Masked::No | Masked::Causal | Masked::AddedOfKeys => None,
            Masked::Window(window) => {
                Some(bool_mask(pairs().map(|(i, j)| j <= i && i < j + window).collect()))
            }
            Masked::Any => Some(bool_mask(pairs().map(|_| numbers.below(3) == 0).collect())),
            Masked::AnyOfHead => {
                let seen: Vec<bool> =
                    (0..batch * heads * length * keys).map(|_| numbers.below(3) == 0).collect();
                let array = Array::from_slice(&seen, &[batch, heads, length, keys]).unwrap();
                Some((array, seen.iter().map(|&s| f64::from(u8::from(s))).collect()))
            }
            Masked::Keys => {
                let seen: Vec<bool> = (0..keys).map(|_| numbers.below(3) == 0).collect();
                let array = Array::from_slice(&seen, &[keys]).unwrap();
                Some((array, seen.iter().map(|&s| f64::from(u8::from(s))).collect()))
            }
            Masked::Queries => {
                let seen: Vec<bool> = (0..length).map(|_| numbers.below(3) > 0).collect();
                let array = Array::from_slice(&seen, &[length, 1]).unwrap();
                Some((array, seen.iter().map(|&s| f64::from(u8::from(s))).collect()))
            }
            Masked::One(seen) => {
                let array = ops::full(&[], f64::from(u8::from(seen)), Dtype::Bool).unwrap();
                Some((array, vec![f64::from(u8::from(seen))]))
            }
            Masked::AddedOfHead => {
                let values = numbers.values((heads * length * keys) as usize);
                Some(rounded(&values, &[heads, length, keys], dtype))
            }
            Masked::Added => {
                let mut values = numbers.values((batch * length * keys) as usize);
                values.iter_mut().skip(1).step_by(3).for_each(|v| *v = f64::NEG_INFINITY);
                // Every query sees a key: otherwise its result is no number.
                values.iter_mut().step_by(keys as usize).for_each(|v| *v = 0.5);
                Some(rounded(&values, &[batch, 1, length, keys], dtype))
            }
        };
        Self { sizes, masked, q, k, v, mask, sinks, cap: None, quantized: None }
    }

    fn with_cap(self, cap: Option<f32>) -> Self {
        Self { cap, ..self }
    }

    /// With queries, keys and values, and the mask in memory so; row-major leaves keys and values as they are.
    fn lying(mut self, [q, kv, mask]: [Lies; 3]) -> Self {
        self.q.0 = laid_out(&self.q.0, q);
        if !matches!(kv, Lies::RowMajor) {
            for (array, _) in [&mut self.k, &mut self.v] {
                *array = laid_out(array, kv);
            }
        }
        if let Some((array, _)) = self.mask.as_mut().filter(|(array, _)| array.ndim() > 1) {
            *array = laid_out(array, mask);
        }
        self
    }

    /// With keys and values quantized, as they lie in a cache with room behind the last position, or with heads
    /// within positions.
    fn quantized(mut self, how: Quantization, by_position: bool) -> Self {
        let parts = [&mut self.k, &mut self.v].map(|(array, exact)| {
            let room = ops::zeros(
                &[array.dim(0).unwrap(), array.dim(1).unwrap(), 3, array.dim(3).unwrap()],
                array.dtype(),
            );
            let long = ops::concatenate([&*array, &room.unwrap()], 2).unwrap();
            let positions = array.dim(2).unwrap();
            let cut = |x: &Array| {
                let mut shape = x.shape().to_vec();
                shape[2] = positions;
                let cut = ops::slice(x, &[0; 4], &shape, &[1; 4]).unwrap();
                if !by_position {
                    return cut;
                }
                let turned = ops::contiguous(&ops::swapaxes(&cut, 1, 2).unwrap(), false).unwrap();
                ops::swapaxes(&turned, 1, 2).unwrap()
            };
            let coded = ops::quantize(&long, how, None).unwrap();
            let (weight, scales) = (cut(&coded.weight), cut(&coded.scales));
            let coded = Quantized { weight, scales, biases: coded.biases.as_ref().map(cut) };
            *exact = decoded(&coded, how);
            coded
        });
        self.quantized = Some((how, parts));
        self
    }

    fn mask(&self) -> Mask<'_> {
        match (&self.mask, self.masked) {
            (Some((mask, _)), _) => Mask::Array(mask),
            (_, Masked::Causal) => Mask::Causal,
            _ => Mask::None,
        }
    }

    fn attention(&self) -> mlxport::Result<Array> {
        let sinks = self.sinks.as_ref().map(|sinks| &sinks.0);
        let (q, k, v) = (&self.q.0, &self.k.0, &self.v.0);
        match (&self.quantized, self.cap) {
            (Some((how, [k, v])), _) => quantized_attention(q, k, v, *how, SCALE, self.mask(), sinks),
            (None, Some(cap)) => soft_capped_attention(q, k, v, SCALE, cap, self.mask(), sinks),
            (None, None) => scaled_dot_product_attention(q, k, v, SCALE, self.mask(), sinks),
        }
    }

    fn exact(&self) -> Vec<f64> {
        let Sizes { batch, kv_heads, group, length, keys, dims, value_dims } = self.sizes;
        let [kv_heads, group, length, keys, dims, value_dims] =
            [kv_heads, group, length, keys, dims, value_dims].map(|size| size as usize);
        let mut out = Vec::new();
        for row in 0..batch as usize * kv_heads * group * length {
            let (head, i) = (row / length % (kv_heads * group), row % length);
            let b = row / length / (kv_heads * group);
            let (kv, q) = (row / length / group, &self.q.1[row * dims..][..dims]);
            let score = |j: usize| {
                let key = &self.k.1[(kv * keys + j) * dims..][..dims];
                let score = f64::from(SCALE) * q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
                let score = self.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                let mask = |at: usize| self.mask.as_ref().unwrap().1[at];
                match self.masked {
                    Masked::Causal if j + length > i + keys => f64::from(f32::MIN),
                    Masked::Window(_) | Masked::Any if mask(i * keys + j) == 0.0 => f64::from(f32::MIN),
                    Masked::AnyOfHead if mask(row * keys + j) == 0.0 => f64::from(f32::MIN),
                    Masked::Keys if mask(j) == 0.0 => f64::from(f32::MIN),
                    Masked::Queries if mask(i) == 0.0 => f64::from(f32::MIN),
                    Masked::One(false) => f64::from(f32::MIN),
                    Masked::Added => score + mask((b * length + i) * keys + j),
                    Masked::AddedOfHead => score + mask((head * length + i) * keys + j),
                    Masked::AddedOfKeys => score + mask(j),
                    _ => score,
                }
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let sink = self.sinks.as_ref().map(|sinks| sinks.1[head]);
            let max = scores.iter().chain(&sink).copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - max).exp());
            for d in 0..value_dims {
                let value = |(j, w): (usize, &f64)| w * self.v.1[(kv * keys + j) * value_dims + d];
                out.push(weights.iter().enumerate().map(value).sum::<f64>() / sum);
            }
        }
        out
    }
}

/// What affine codes mean, in `f64`.
fn decoded(x: &Quantized, how: Quantization) -> Vec<f64> {
    decoded_by(x, how, [&to_f64(&x.scales), &to_f64(x.biases.as_ref().unwrap())])
}

/// The same with these scales and biases.
fn decoded_by(x: &Quantized, how: Quantization, [scales, biases]: [&[f64]; 2]) -> Vec<f64> {
    let words = x.weight.to_vec::<u32>().unwrap();
    let bits = how.bits as usize;
    let row = x.weight.dim(-1).unwrap() as usize;
    let dims = row * 32 / bits;
    let count = words.len() / row * dims;
    let code = |i: usize| {
        let (line, bit) = (&words[i / dims * row..][..row], i % dims * bits);
        let next = line.get(bit / 32 + 1).copied().unwrap_or(0);
        let both = u64::from(line[bit / 32]) | u64::from(next) << 32;
        (both >> (bit % 32)) & ((1 << bits) - 1)
    };
    let group = how.group_size as usize;
    (0..count).map(|i| scales[i / group] * code(i) as f64 + biases[i / group]).collect()
}

proptest! {
    #![proptest_config(crate::config(96))]

    #[test]
    fn every_path_is_as_exact_as_the_reference(
        batch in 1..3i32,
        kv_heads in 1..3i32,
        group in prop::sample::select(vec![1, 2, 3, 9]),
        length in prop::sample::select(vec![1, 2, 5, 26]),
        more_keys in prop::sample::select(vec![-3, 0, 1, 7, 16, 260, 600]),
        dims in prop::sample::select(vec![1, 4, 17, 64]),
        value_dims in prop::sample::select(vec![1, 8, 19, 64]),
        dtype in prop::sample::select(&FLOATS[..]),
        masked in prop::sample::select(vec![
            Masked::No, Masked::Causal, Masked::Window(1), Masked::Window(4), Masked::Any, Masked::AnyOfHead,
            Masked::Keys, Masked::Added, Masked::AddedOfHead, Masked::Queries, Masked::One(true),
            Masked::One(false),
        ]),
        sinks: bool,
        by_position: bool,
        cap in prop::sample::select(vec![None, None, Some(0.5), Some(30.0)]),
        lies in [(); 3].map(|()| prop::sample::select(&LIES[..])),
        seed: u64,
    ) {
        let keys = (length + more_keys).max(1);
        let sizes = Sizes { batch, kv_heads, group, length, keys, dims, value_dims };
        let case = Case::new(sizes, dtype, masked, sinks, by_position, seed).lying(lies);
        let case = case.with_cap(cap);
        check(&case.exact(), 8.0, || case.attention(), || case.attention())?;
    }

    #[test]
    fn quantized_keys_and_values_are_decoded_as_exactly_as_by_the_reference(
        batch in 1..3i32,
        group in prop::sample::select(vec![1, 2, 3]),
        length in prop::sample::select(vec![1, 2, 26]),
        more_keys in prop::sample::select(vec![-3, 0, 1, 33, 260, 600]),
        dims in prop::sample::select(vec![64, 96, 128]),
        value_dims in prop::sample::select(vec![64, 160, 192]),
        dtype in prop::sample::select(&FLOATS[..]),
        how in (prop::sample::select(vec![32, 64, 128]), prop::sample::select(vec![2, 3, 4, 5, 6, 8])),
        masked in prop::sample::select(vec![
            Masked::No, Masked::Causal, Masked::Window(4), Masked::AnyOfHead, Masked::Added, Masked::AddedOfHead,
        ]),
        sinks: bool,
        by_position: bool,
        seed: u64,
    ) {
        let keys = (length + more_keys).max(1);
        let [dims, value_dims] = [dims, value_dims].map(|dims: i32| (dims + how.0 - 1) / how.0 * how.0);
        let sizes = Sizes { batch, kv_heads: 2, group, length, keys, dims, value_dims };
        let how = Quantization::affine(how.0, how.1);
        let case = Case::new(sizes, dtype, masked, sinks, false, seed).quantized(how, by_position);
        check(&case.exact(), 32.0, || case.attention(), || case.attention())?;
    }
}

const SIZES: Sizes = Sizes { batch: 1, kv_heads: 2, group: 2, length: 3, keys: 40, dims: 16, value_dims: 16 };

#[test]
fn results_repeat_and_do_not_depend_on_the_threads() {
    for sizes in [SIZES, Sizes { length: 1, keys: 600, ..SIZES }, Sizes { length: 40, ..SIZES }] {
        let masks = [Masked::Causal, Masked::Window(9), Masked::Any, Masked::Added];
        let cases = masks.map(|masked| Case::new(sizes, Dtype::Bfloat16, masked, true, false, 3));
        let coded = |dims| Sizes { dims, value_dims: dims, ..sizes };
        let coded = Case::new(coded(64), Dtype::Bfloat16, Masked::Causal, true, false, 3)
            .quantized(Quantization::affine(32, 4), true);
        let capped = Case::new(sizes, Dtype::Bfloat16, Masked::Causal, false, true, 3).with_cap(Some(3.0));
        assert_repeats(|| cases.iter().chain([&coded, &capped]).map(Case::attention).collect());
    }
}

/// Lengths that fill no tile, the sizes of heads of models, and caches of several pieces.
#[test]
fn heads_of_models_are_as_exact_as_the_reference() {
    let sizes = [
        ([65, 127], [72, 72], 1),
        ([127, 65], [80, 80], 1),
        ([33, 33], [96, 96], 2),
        ([1, 600], [256, 256], 3),
        ([1, 1030], [192, 128], 4),
        ([2, 800], [64, 64], 4),
        ([8, 43], [128, 128], 3),
        ([9, 9], [16, 16], 1),
        ([70, 301], [300, 40], 2),
    ];
    for (i, ([length, keys], [dims, value_dims], group)) in sizes.into_iter().enumerate() {
        let sizes = Sizes { batch: 1, kv_heads: 2, group, length, keys, dims, value_dims };
        let dtype = FLOATS[i % 3];
        for masked in [Masked::No, Masked::Causal, Masked::Window(20), Masked::AddedOfHead] {
            let case = Case::new(sizes, dtype, masked, i % 2 == 0, true, i as u64);
            check(&case.exact(), 8.0, || case.attention(), || case.attention()).unwrap();
        }
    }
}

#[test]
fn a_key_at_minus_infinity_has_no_weight() {
    for (length, dims) in [(1, 4), (1, 128), (8, 4), (8, 128)] {
        let sizes = Sizes { length, keys: 8, dims, value_dims: dims, ..SIZES };
        let mut case = Case::new(sizes, Dtype::Float32, Masked::No, false, false, 5);
        case.q = rounded(&vec![1.0; case.q.1.len()], case.q.0.shape(), Dtype::Float32);
        for (i, key) in case.k.1.iter_mut().enumerate() {
            *key = if (i / dims as usize).is_multiple_of(8) { f64::NEG_INFINITY } else { *key };
        }
        case.k = rounded(&case.k.1, case.k.0.shape(), Dtype::Float32);
        let expected = case.exact();
        assert!(expected.iter().all(|y| y.is_finite()));
        check(&expected, 8.0, || case.attention(), || case.attention()).unwrap();
    }
}

/// As many as are taken at a time, and more.
#[test]
fn many_keys_at_minus_infinity_have_no_weight() {
    let lengths = [(1, Dtype::Float32), (30, Dtype::Bfloat16)];
    for ((none, sinks), (length, dtype)) in [(0..256, false), (100..600, true), (256..512, false)]
        .into_iter()
        .flat_map(|keys| lengths.map(|length| (keys.clone(), length)))
    {
        let sizes = Sizes { length, keys: 600, ..SIZES };
        let mut case = Case::new(sizes, dtype, Masked::AddedOfKeys, sinks, false, 5);
        let added: Vec<f64> =
            (0..600).map(|j| if none.contains(&j) { f64::NEG_INFINITY } else { j as f64 / 600.0 }).collect();
        case.mask = Some(rounded(&added, &[1, 1, 1, 600], dtype));
        let expected = case.exact();
        assert!(expected.iter().all(|y| y.is_finite()));
        check(&expected, 8.0, || case.attention(), || case.attention()).unwrap();
    }
}

/// Sums of values with weights that do not add up to one yet may be too large for a number, and products of small ones
/// too small.
#[test]
fn large_and_tiny_values() {
    let tiny = f64::from(f32::MIN_POSITIVE);
    for (dtype, size) in
        [(Dtype::Bfloat16, 1e38), (Dtype::Bfloat16, tiny), (Dtype::Float32, 1e38), (Dtype::Float32, tiny)]
    {
        for length in [1, 30] {
            let sizes = Sizes { length, keys: 300, ..SIZES };
            let mut case = Case::new(sizes, dtype, Masked::Causal, false, false, 6);
            case.q = rounded(&vec![0.0; case.q.1.len()], case.q.0.shape(), dtype);
            let values: Vec<f64> = (0..case.v.1.len()).map(|i| size * (1.0 + (i % 7) as f64 / 4.0)).collect();
            case.v = rounded(&values, case.v.0.shape(), dtype);
            let expected = case.exact();
            for path in fast_paths() {
                let y = to_f64(&kernels::force(path, || case.attention()).unwrap().unwrap());
                let near = |(y, e): (&f64, &f64)| (y - e).abs() <= e / 128.0;
                assert!(y.iter().zip(&expected).all(near), "{path} {dtype} {size:e}, {length} queries");
            }
        }
    }
}

/// Products of codes with large queries may be too large for a number before a small scale makes them small.
#[test]
fn large_queries_of_small_quantized_keys() {
    let sizes = Sizes { length: 2, keys: 300, dims: 64, value_dims: 64, ..SIZES };
    let mut case = Case::new(sizes, Dtype::Float32, Masked::No, false, false, 8);
    for (both, size) in [(&mut case.q, 3e37), (&mut case.k, 1e-37)] {
        let scaled: Vec<f64> = both.1.iter().map(|value| size * value).collect();
        *both = rounded(&scaled, both.0.shape(), Dtype::Float32);
    }
    let case = case.quantized(Quantization::affine(32, 4), false);
    let expected = case.exact();
    for path in fast_paths() {
        let y = to_f64(&kernels::force(path, || case.attention()).unwrap().unwrap());
        let near = |(y, e): (&f64, &f64)| (y - e).abs() <= 1e-4 * (1.0 + e.abs());
        assert!(y.iter().zip(&expected).all(near), "{path}");
    }
}

#[test]
fn nothing_attends_to_something() {
    for (q, kv) in [([1, 4, 0, 8], [1, 2, 5, 8]), ([0, 4, 3, 8], [0, 2, 5, 8])] {
        let [q, kv] = [q, kv].map(|shape| ops::zeros(&shape, Dtype::Float32).unwrap());
        for path in fast_paths() {
            let y = || scaled_dot_product_attention(&q, &kv, &kv, SCALE, Mask::Causal, None);
            let y = kernels::force(path, y).unwrap().unwrap();
            assert_eq!(y.shape(), q.shape());
            y.eval().unwrap();
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape: &[i32]| ops::zeros(shape, Dtype::Float32).unwrap();
    let attend = |q: &[i32], k: &[i32], v: &[i32], mask: Option<&[i32]>, sinks: Option<&[i32]>| {
        let (mask, sinks) = (mask.map(x), sinks.map(x));
        let mask = mask.as_ref().map_or(Mask::None, Mask::Array);
        scaled_dot_product_attention(&x(q), &x(k), &x(v), SCALE, mask, sinks.as_ref()).and_then(|y| y.eval())
    };
    let (q, kv) = (&[1, 4, 3, 8][..], &[1, 2, 5, 8][..]);
    attend(q, kv, kv, Some(&[4, 3, 5]), Some(&[4])).unwrap();
    attend(q, &[1, 3, 5, 8], &[1, 3, 5, 8], None, None).unwrap_err();
    attend(q, &[1, 2, 5, 7], kv, None, None).unwrap_err();
    attend(q, kv, kv, Some(&[4, 2, 5]), None).unwrap_err();
    attend(q, kv, kv, Some(&[2, 3, 5]), None).unwrap_err();
    attend(q, kv, kv, None, Some(&[5])).unwrap_err();
    attend(q, kv, kv, None, Some(&[])).unwrap_err();
}

#[test]
fn infinities_and_nans_stay_with_their_query() {
    for (length, special) in [(1, f32::NAN), (1, f32::INFINITY), (9, f32::NAN), (9, f32::INFINITY)] {
        let case = Case::new(Sizes { length, ..SIZES }, Dtype::Float32, Masked::No, false, false, 5);
        let mut q = case.q.0.to_vec::<f32>().unwrap();
        q[0] = special;
        let (q, plain) = (Array::from_slice(&q, case.q.0.shape()).unwrap(), case.exact());
        for path in fast_paths() {
            let y = || scaled_dot_product_attention(&q, &case.k.0, &case.v.0, SCALE, None, None);
            let y = to_f64(&kernels::force(path, y).unwrap().unwrap());
            assert!(y[..16].iter().all(|y| y.is_nan()), "{path} {special}");
            let near = |(y, e): (&f64, &f64)| (y - e).abs() < 1e-5;
            assert!(y[16..].iter().zip(&plain[16..]).all(near), "{path} {special}");
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let sizes = Sizes { keys: 5, dims: 4, value_dims: 3, ..SIZES };
    for (masked, cap) in [(Masked::Causal, None), (Masked::Any, Some(2.0)), (Masked::AddedOfHead, None)] {
        let mut case = Case::new(sizes, Dtype::Float32, masked, true, false, 8).with_cap(cap);
        // Queries, keys, values, sinks, and a mask that is added.
        fn parts(case: &mut Case) -> Vec<&mut (Array, Vec<f64>)> {
            let added = case.mask.as_mut().filter(|(mask, _)| mask.dtype() == Dtype::Float32);
            [&mut case.q, &mut case.k, &mut case.v].into_iter().chain(&mut case.sinks).chain(added).collect()
        }
        let (args, values): (Vec<_>, Vec<_>) = parts(&mut case).into_iter().map(|part| part.clone()).unzip();
        let expected = differences(&values, |values| {
            let mut moved = Case::new(sizes, Dtype::Float32, masked, true, false, 8).with_cap(cap);
            parts(&mut moved).into_iter().zip(values).for_each(|(part, x)| part.1 = x.clone());
            moved.exact().iter().map(|y| y * y).sum::<f64>()
        });
        let loss = |args: &[Array]| {
            let [q, k, v, sinks, added @ ..] = args else { unreachable!() };
            let mask = added.first().map_or(case.mask(), Mask::Array);
            let y = match cap {
                Some(cap) => soft_capped_attention(q, k, v, SCALE, cap, mask, Some(sinks))?,
                None => scaled_dot_product_attention(q, k, v, SCALE, mask, Some(sinks))?,
            };
            ops::sum(&ops::square(&y)?, .., false)
        };
        for path in fast_paths() {
            let grads = kernels::force(path, || transforms::value_and_grad(loss, &args)).unwrap().unwrap().1;
            for (found, expected) in grads.iter().zip(&expected) {
                assert_close(found, expected, REDUCTION);
            }
        }
    }
}

/// Of queries, sinks, an added mask, and of the scales and biases of keys and values.
#[test]
fn quantized_attention_has_the_gradients_of_finite_differences() {
    let how = Quantization::affine(32, 8);
    // With as many keys as dimensions, sums over the one are shaped like those over the other.
    for (keys, masked) in [(5, Masked::Causal), (32, Masked::AddedOfHead)] {
        let sizes = Sizes { keys, dims: 32, value_dims: 32, ..SIZES };
        let case = Case::new(sizes, Dtype::Float32, masked, true, false, 8).quantized(how, false);
        let (_, [k, v]) = case.quantized.as_ref().unwrap();
        let parts = [k, v].map(|x| [&x.scales, x.biases.as_ref().unwrap()]).concat();
        let mask = case.mask.as_ref().map(|(mask, _)| mask);
        let sinks = &case.sinks.as_ref().unwrap().0;
        let args: Vec<&Array> = [&case.q.0, sinks].into_iter().chain(parts).chain(mask).collect();
        let values: Vec<Vec<f64>> = args.iter().copied().map(to_f64).collect();
        let expected = differences(&values, |values| {
            let mut moved = Case::new(sizes, Dtype::Float32, masked, true, false, 8);
            moved.q.1 = values[0].clone();
            moved.sinks.as_mut().unwrap().1 = values[1].clone();
            moved.k.1 = decoded_by(k, how, [&values[2], &values[3]]);
            moved.v.1 = decoded_by(v, how, [&values[4], &values[5]]);
            if let Some((_, mask)) = &mut moved.mask {
                *mask = values[6].clone();
            }
            moved.exact().iter().map(|y| y * y).sum::<f64>()
        });
        let loss = |args: &[Array]| {
            let [q, sinks, parts @ ..] = args else { unreachable!() };
            let coded = |x: &Quantized, at: usize| Quantized {
                weight: x.weight.clone(),
                scales: parts[at].clone(),
                biases: Some(parts[at + 1].clone()),
            };
            let mask = parts.get(4).map_or(case.mask(), Mask::Array);
            let y = quantized_attention(q, &coded(k, 0), &coded(v, 2), how, SCALE, mask, Some(sinks))?;
            ops::sum(&ops::square(&y)?, .., false)
        };
        for path in fast_paths() {
            let found = kernels::force(path, || transforms::value_and_grad(loss, args.iter().copied()));
            for (found, expected) in found.unwrap().unwrap().1.iter().zip(&expected) {
                assert_close(found, expected, SOLVER);
            }
        }
    }
}

#[test]
fn it_maps_over_an_axis() {
    let spread = |x: &Array| ops::expand_dims(x, 0);
    for (masked, cap) in [(Masked::Causal, None), (Masked::Added, None), (Masked::Causal, Some(3.0))] {
        let case = Case::new(Sizes { batch: 2, ..SIZES }, Dtype::Float32, masked, true, false, 9);
        let zeros = ops::zeros(&[2, 1, 1, 1], Dtype::Float32).unwrap();
        let mask = case.mask.as_ref().map_or(&zeros, |(mask, _)| mask);
        let args = [&case.q.0, &case.k.0, &case.v.0, mask, &case.sinks.as_ref().unwrap().0];
        assert_maps(&args, &[Some(0), Some(0), Some(0), Some(0), None], |args| {
            let [q, k, v, mask, sinks] = args else { unreachable!() };
            let mask = if masked == Masked::Causal { Mask::Causal } else { Mask::Array(mask) };
            let (q, k, v) = (spread(q)?, spread(k)?, spread(v)?);
            Ok(vec![match cap {
                Some(cap) => soft_capped_attention(&q, &k, &v, SCALE, cap, mask, Some(sinks))?,
                None => scaled_dot_product_attention(&q, &k, &v, SCALE, mask, Some(sinks))?,
            }])
        });
    }
    let how = Quantization::affine(32, 4);
    let sizes = Sizes { batch: 2, dims: 32, value_dims: 64, ..SIZES };
    let case = Case::new(sizes, Dtype::Float32, Masked::Causal, false, false, 9).quantized(how, false);
    let (_, [k, v]) = case.quantized.as_ref().unwrap();
    let [k_biases, v_biases] = [k, v].map(|x| x.biases.as_ref().unwrap());
    let args = [&case.q.0, &k.weight, &k.scales, k_biases, &v.weight, &v.scales, v_biases];
    assert_maps(&args, &[Some(0); 7], |args| {
        let coded = |parts: &[Array]| {
            let [weight, scales, biases] = [0, 1, 2].map(|i| spread(&parts[i]));
            Ok::<_, mlxport::Error>(Quantized { weight: weight?, scales: scales?, biases: Some(biases?) })
        };
        let (k, v) = (coded(&args[1..4])?, coded(&args[4..7])?);
        Ok(vec![quantized_attention(&spread(&args[0])?, &k, &v, how, SCALE, Mask::Causal, None)?])
    });
}
