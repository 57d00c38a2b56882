//! Quantized matrices against the definitions of their formats, decoded here bit by bit.

use mlxport::ops::{self, Quantization, QuantizationMode, Quantized};
use mlxport::{Array, Dtype};
use proptest::prelude::*;
use support::codes::{code, minifloat};
use support::element::{self, FLOATS, from_bits, reals};
use support::strategy::{self, MODERATE};
use support::{Expected, Nd, Tolerance, assert_matches, check};

const HALVES: &[Dtype] = &[Dtype::Float16, Dtype::Bfloat16, Dtype::Float32];

/// Every combination that MLX has.
fn formats() -> impl Strategy<Value = Quantization> {
    use QuantizationMode::{Mxfp4, Mxfp8, Nvfp4};
    let affine = (prop::sample::select(vec![32, 64, 128]), prop::sample::select(vec![2, 3, 4, 5, 6, 8]))
        .prop_map(|(group_size, bits)| Quantization::affine(group_size, bits));
    prop_oneof![3 => affine, 2 => prop::sample::select(vec![Mxfp4, Mxfp8, Nvfp4]).prop_map(Quantization::from)]
}

/// MLX takes rows of nvfp4 in whole pairs of groups.
fn whole(groups: usize, how: Quantization) -> usize {
    if how.mode == QuantizationMode::Nvfp4 { groups * 2 } else { groups }
}

fn e4m3(code: u32) -> f64 {
    if code & 0x7f == 0x7f { f64::NAN } else { minifloat(code, 4, 3) }
}

/// A matrix, and the sum of the magnitudes that each of its elements is made of.
fn decode(q: &Quantized, how: Quantization) -> (Nd<f64>, Nd<f64>) {
    let (words, scales) = (q.weight.to_host().unwrap(), q.scales.to_host().unwrap());
    let (bits, group) = (how.bits as usize, how.group_size as usize);
    let mut shape = element::bits(&words).shape;
    let columns = shape.last().unwrap() * 32 / bits;
    *shape.last_mut().unwrap() = columns;
    let scale_bits = element::bits(&scales).data;
    let biases = q.biases.as_ref().map(|b| reals(&b.to_host().unwrap()).data);
    let affine_scales = reals(&scales).data;
    let number = |at: usize| {
        let (code, group) = (code(words.bytes(), bits, at), at / group);
        let scale = scale_bits[group] as u32;
        match how.mode {
            QuantizationMode::Affine => {
                let (product, bias) =
                    (f64::from(code) * affine_scales[group], biases.as_ref().unwrap()[group]);
                (product + bias, product.abs() + bias.abs())
            }
            mode => {
                let scale = match mode {
                    QuantizationMode::Nvfp4 => e4m3(scale),
                    _ => 2f64.powi(scale as i32 - 127),
                };
                let value = if bits == 4 { minifloat(code, 2, 1) } else { e4m3(code) } * scale;
                (value, value.abs())
            }
        }
    };
    let all: Vec<_> = (0..shape.iter().product()).map(number).collect();
    let part = |f: fn(&(f64, f64)) -> f64| Nd::new(&shape, all.iter().map(f).collect());
    (part(|n| n.0), part(|n| n.1))
}

/// A quantized matrix of any codes and scales, `rows` by `groups` groups, or a batch of them.
fn matrix(how: Quantization, shape: Vec<usize>, dtype: Dtype) -> impl Strategy<Value = Host> {
    let [batch @ .., groups] = &shape[..] else { unreachable!("a matrix has groups") };
    let words = [batch, &[groups * how.group_size as usize * how.bits as usize / 32]].concat();
    let affine = how.mode == QuantizationMode::Affine;
    let scale = match how.mode {
        QuantizationMode::Affine => strategy::element(dtype, MODERATE),
        QuantizationMode::Nvfp4 => (0x20..0x60u64).boxed(),
        _ => (120..133u64).boxed(),
    };
    // 0x7f and 0xff are NaN in 8-bit floats.
    let byte =
        (0..=255u8).prop_map(move |b| if how.bits == 8 && b & 0x7f == 0x7f && !affine { b ^ 1 } else { b });
    let word = prop::array::uniform4(byte).prop_map(|b| u32::from_le_bytes(b).into());
    let fill = |of: BoxedStrategy<u64>, shape: &[usize]| {
        let shape = shape.to_vec();
        prop::collection::vec(of, shape.iter().product::<usize>()).prop_map(move |data| Nd::new(&shape, data))
    };
    let biases = fill(strategy::element(dtype, MODERATE), &shape);
    (fill(word.boxed(), &words), fill(scale, &shape), biases).prop_map(move |(weight, scales, biases)| Host {
        weight,
        scales,
        biases: affine.then_some(biases),
        dtype: if affine { dtype } else { Dtype::Uint8 },
        float: dtype,
    })
}

#[derive(Debug, Clone)]
struct Host {
    weight: Nd<u64>,
    scales: Nd<u64>,
    biases: Option<Nd<u64>>,
    dtype: Dtype,
    float: Dtype,
}

impl Host {
    fn quantized(&self) -> Quantized {
        let array = |bits: &Nd<u64>, dtype| Array::from_host(&from_bits(bits, dtype)).unwrap();
        Quantized {
            weight: array(&self.weight, Dtype::Uint32),
            scales: array(&self.scales, self.dtype),
            biases: self.biases.as_ref().map(|b| array(b, self.dtype)),
        }
    }
}

#[test]
fn minifloats_are_those_of_the_standard() {
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6, 7].map(|c| minifloat(c, 2, 1)),
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    );
    assert_eq!(minifloat(0xf, 2, 1), -6.0);
    assert_eq!([0x38, 0x7e, 0x01, 0x08, 0xb8].map(e4m3), [1.0, 448.0, 2f64.powi(-9), 2f64.powi(-6), -1.0]);
    assert!(e4m3(0x7f).is_nan());
}

#[test]
fn dequantize_follows_the_format() {
    let cases = (formats(), strategy::dtype(HALVES), 1..4usize, 1..4usize).prop_flat_map(
        |(how, dtype, rows, groups)| (Just(how), matrix(how, vec![rows, whole(groups, how)], dtype)),
    );
    check(96, cases, |_, (how, host)| {
        let q = host.quantized();
        let (values, magnitudes) = decode(&q, *how);
        let found =
            ops::dequantize(&q.weight, &q.scales, q.biases.as_ref(), *how, None, Some(host.float)).unwrap();
        assert_matches(&found, &Expected::sums(&values, &magnitudes, host.float), Tolerance::Strict);
    });
}

#[test]
fn quantize_stays_within_a_step() {
    let cases = (formats(), strategy::dtype(HALVES), 1..4usize, 1..3usize).prop_flat_map(
        |(how, dtype, rows, groups)| {
            (
                Just(how),
                strategy::input(dtype, &[rows, whole(groups, how) * how.group_size as usize], MODERATE),
            )
        },
    );
    check(64, cases, |_, (how, input)| {
        let x = reals(&input.tensor);
        let q = ops::quantize(&input.array(), *how, None).unwrap();
        let (values, _) = decode(&q, *how);
        assert_eq!(values.shape, x.shape);
        for (x, values) in
            x.data.chunks(how.group_size as usize).zip(values.data.chunks(how.group_size as usize))
        {
            let (low, high) = x.iter().fold((0f64, 0f64), |(l, h), &v| (l.min(v), h.max(v)));
            let largest = high.max(-low);
            let step = match (how.mode, how.bits) {
                (QuantizationMode::Affine, bits) => (high - low) / f64::from((1 << bits) - 1),
                (_, 4) => largest / 3.0, // between 4 and 6
                _ => largest / 7.0,      // between 384 and 448
            };
            let slack = element::round(1.0, input.tensor.dtype())
                * Tolerance::Balanced.relative(input.tensor.dtype());
            for (x, value) in x.iter().zip(values) {
                assert!((x - value).abs() <= step + slack * 4.0, "{x} became {value} in steps of {step}");
            }
        }
    });
}

/// `x @ w` in f64, with the sum of the magnitudes of its terms.
fn product(x: &Nd<f64>, w: &Nd<f64>, transpose: bool) -> (Nd<f64>, Nd<f64>) {
    let (rows, depth) = (x.shape[0], x.shape[1]);
    let columns = w.shape[usize::from(!transpose)];
    let term = |i, j, k: usize| x.at(&[i, k]) * if transpose { w.at(&[j, k]) } else { w.at(&[k, j]) };
    let sum = |f: fn(f64) -> f64| {
        Nd::from_fn(&[rows, columns], |at| (0..depth).map(|k| f(term(at[0], at[1], k))).sum::<f64>())
    };
    (sum(|v| v), sum(f64::abs))
}

#[test]
fn quantized_products_are_products_with_the_decoded_matrix() {
    let cases = (formats(), strategy::dtype(HALVES), any::<bool>(), 1..4usize, 1..3usize);
    let cases = cases.prop_flat_map(|(how, dtype, transpose, rows, groups)| {
        let groups = whole(groups, how);
        let (w_rows, depth) = (8, groups * how.group_size as usize);
        let x = strategy::input(dtype, &[rows, if transpose { depth } else { w_rows }], MODERATE);
        (Just(how), Just(transpose), x, matrix(how, vec![w_rows, groups], dtype))
    });
    check(96, cases, |_, (how, transpose, x, host)| {
        let q = host.quantized();
        let (w, w_magnitudes) = decode(&q, *how);
        let x_values = reals(&x.tensor);
        let (values, _) = product(&x_values, &w, *transpose);
        let (_, magnitudes) = product(&x_values.map(|v| v.abs()), &w_magnitudes, *transpose);
        let found =
            ops::quantized_matmul(&x.array(), &q.weight, &q.scales, q.biases.as_ref(), *transpose, *how)
                .unwrap();
        assert_matches(&found, &Expected::sums(&values, &magnitudes, host.float), Tolerance::Balanced);
    });
}

#[test]
fn a_gathered_product_picks_its_matrices() {
    let cases = (formats(), any::<[prop::sample::Index; 3]>()).prop_flat_map(|(how, picks)| {
        let x = strategy::input(Dtype::Float32, &[2, 1, how.group_size as usize], MODERATE);
        (
            Just(how),
            Just(picks.map(|p| (p.index(2), p.index(4)))),
            x,
            matrix(how, vec![4, 8, 1], Dtype::Float32),
        )
    });
    check(48, cases, |_, (how, picks, x, host)| {
        let q = host.quantized();
        let (w, w_magnitudes) = decode(&q, *how);
        let x_values = reals(&x.tensor);
        let one = |from: &Nd<f64>, at: usize| {
            let shape = &from.shape[1..];
            let size = shape.iter().product::<usize>();
            Nd::new(shape, from.data[at * size..(at + 1) * size].to_vec())
        };
        let (mut values, mut magnitudes) = (vec![], vec![]);
        for &(l, r) in picks {
            let x = one(&x_values, l);
            values.extend(product(&x, &one(&w, r), true).0.data);
            magnitudes.extend(product(&x.map(|v| v.abs()), &one(&w_magnitudes, r), true).1.data);
        }
        let index = |f: fn(&(usize, usize)) -> usize| {
            Array::from_slice(&picks.iter().map(|p| f(p) as u32).collect::<Vec<_>>(), &[3]).unwrap()
        };
        let (l, r) = (index(|p| p.0), index(|p| p.1));
        let found = ops::gather_qmm(
            &x.array(),
            &q.weight,
            &q.scales,
            q.biases.as_ref(),
            Some(&l),
            Some(&r),
            true,
            *how,
            false,
        );
        let of = |data| Nd::new(&[3, 1, 8], data);
        let expected = Expected::sums(&of(values), &of(magnitudes), Dtype::Float32);
        assert_matches(&found.unwrap(), &expected, Tolerance::Balanced);
    });
}

#[test]
fn eight_bit_floats() {
    let codes: Vec<u8> = (0..=255).filter(|c| c & 0x7f != 0x7f).collect();
    let array = Array::from_slice(&codes, &[codes.len() as i32]).unwrap();
    let values = Nd::new(&[codes.len()], codes.iter().map(|&c| e4m3(c.into())).collect());
    for &dtype in FLOATS.iter().filter(|&&d| d != Dtype::Float64) {
        let found = ops::from_fp8(&array, dtype).unwrap();
        assert_matches(&found, &Expected::reals(&values, dtype), Tolerance::Exact);
        assert_eq!(ops::to_fp8(&found).unwrap().to_vec::<u8>().unwrap(), codes, "{dtype}");
    }
}
