//! Fused operations against their definitions in `f64`.

use half::bf16;
use mlxport::fast::{
    Mask, RopeFrequencies, RopeOffset, cross_entropy, layer_norm, rms_norm, rope,
    scaled_dot_product_attention,
};
use mlxport::{Array, Dtype};

use support::{Numbers, REDUCTION, assert_close, epsilon, f32_array, to_f64};

fn mean(row: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = row.len() as f64;
    row.sum::<f64>() / n
}

#[test]
fn norms_are_their_definitions() {
    let mut numbers = Numbers(1);
    let (x, xs) = numbers.array(&[3, 5, 24]);
    let (weight, w) = numbers.array(&[24]);
    let (bias, b) = numbers.array(&[24]);
    let eps = 1e-3f32;
    let rows = |f: &dyn Fn(&[f64]) -> Vec<f64>| xs.chunks(24).flat_map(f).collect::<Vec<f64>>();
    let rms = |row: &[f64]| {
        let scale = 1.0 / (mean(row.iter().map(|v| v * v)) + f64::from(eps)).sqrt();
        row.iter().map(|v| v * scale).collect::<Vec<f64>>()
    };
    let layer = |row: &[f64]| {
        let mu = mean(row.iter().copied());
        let scale = 1.0 / (mean(row.iter().map(|v| (v - mu).powi(2))) + f64::from(eps)).sqrt();
        row.iter().map(|v| (v - mu) * scale).collect::<Vec<f64>>()
    };
    let times = |row: Vec<f64>| row.iter().zip(&w).map(|(v, w)| v * w).collect::<Vec<f64>>();
    let plus = |row: Vec<f64>| row.iter().zip(&b).map(|(v, b)| v + b).collect::<Vec<f64>>();

    assert_close(&rms_norm(&x, None, eps).unwrap(), &rows(&rms), REDUCTION);
    let expected = rows(&|row| times(rms(row)));
    assert_close(&rms_norm(&x, Some(&weight), eps).unwrap(), &expected, REDUCTION);
    assert_close(&layer_norm(&x, None, None, eps).unwrap(), &rows(&layer), REDUCTION);
    let expected = rows(&|row| times(layer(row)));
    assert_close(&layer_norm(&x, Some(&weight), None, eps).unwrap(), &expected, REDUCTION);
    let expected = rows(&|row| plus(layer(row)));
    assert_close(&layer_norm(&x, None, Some(&bias), eps).unwrap(), &expected, REDUCTION);
    let expected = rows(&|row| plus(times(layer(row))));
    assert_close(&layer_norm(&x, Some(&weight), Some(&bias), eps).unwrap(), &expected, REDUCTION);
}

#[test]
fn norms_promote_dtypes_and_refuse_what_does_not_fit() {
    let half = Array::from_slice(&[bf16::ONE; 6], &[2, 3]).unwrap();
    let w = f32_array(&[1.0, 2.0, 3.0], &[3]);
    assert_eq!(rms_norm(&half, None, 1e-6).unwrap().dtype(), Dtype::Bfloat16);
    assert_eq!(rms_norm(&half, Some(&w), 1e-6).unwrap().dtype(), Dtype::Float32);
    assert_eq!(layer_norm(&half, Some(&w), None, 1e-6).unwrap().dtype(), Dtype::Float32);
    let wrong = f32_array(&[1.0, 2.0], &[2]);
    let square = f32_array(&[1.0; 9], &[3, 3]);
    let ints = Array::from_slice(&[1i32, 2, 3], &[1, 3]).unwrap();
    for (x, w) in [(&half, Some(&wrong)), (&half, Some(&square)), (&ints, None), (&Array::from(1.0f32), None)]
    {
        assert!(rms_norm(x, w, 1e-6).is_err(), "{x:?} {w:?}");
        assert!(layer_norm(x, w, None, 1e-6).is_err(), "{x:?} {w:?}");
        assert!(w.is_none() || layer_norm(x, None, w, 1e-6).is_err(), "{x:?} {w:?}");
    }
}

/// `rope` of `x`, `[batch, heads, length, head_dim]`, by its definition.
fn rope_f64(
    x: &[f64],
    [batch, heads, length, dim]: [usize; 4],
    dims: usize,
    traditional: bool,
    periods: &[f64],
    scale: f64,
    offsets: &[f64],
) -> Vec<f64> {
    let mut out = x.to_vec();
    for row in 0..batch * heads * length {
        let position = scale * ((row % length) as f64 + offsets[(row / length / heads) % offsets.len()]);
        for (i, period) in periods.iter().enumerate() {
            let (a, b) = if traditional { (2 * i, 2 * i + 1) } else { (i, i + dims / 2) };
            let (a, b) = (row * dim + a, row * dim + b);
            let (sin, cos) = (position / period).sin_cos();
            (out[a], out[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
    }
    out
}

#[test]
fn rope_turns_pairs() {
    let shape = [2, 3, 5, 16];
    let (x, xs) = Numbers(2).array(&shape.map(|d| d as i32));
    let each = Array::from_slice(&[7i32, 40], &[2]).unwrap();
    let one = Array::from(11i32);
    for (dims, traditional, scale) in
        [(16, false, 1.0f32), (8, false, 0.25), (16, true, 1.0), (12, true, 2.0)]
    {
        let base: Vec<f64> =
            (0..dims / 2).map(|i| 10000f64.powf(2.0 * f64::from(i) / f64::from(dims))).collect();
        let custom: Vec<f64> = (0..dims / 2).map(|i| 1.0 + f64::from(i) / 4.0).collect();
        let periods = f32_array(&custom, &[dims / 2]);
        for (frequencies, ps) in
            [(RopeFrequencies::Base(10000.0), &base), (RopeFrequencies::Periods(&periods), &custom)]
        {
            let offsets: [(RopeOffset, &[f64]); 4] = [
                (0.into(), &[0.0]),
                (9.into(), &[9.0]),
                ((&one).into(), &[11.0]),
                ((&each).into(), &[7.0, 40.0]),
            ];
            for (offset, at) in offsets {
                let found = rope(&x, dims, traditional, frequencies, scale, offset).unwrap();
                let expected = rope_f64(&xs, shape, dims as usize, traditional, ps, scale.into(), at);
                assert_eq!(found.shape(), x.shape());
                // Angles of up to 100 radians are rounded to float32 before their sine is taken.
                let largest_angle = 2.0 * 45.0;
                let tolerance = support::Ulps(largest_angle);
                assert_close(&found, &expected, tolerance);
            }
        }
    }
}

#[test]
fn rope_refuses_what_does_not_fit() {
    let (x, _) = Numbers(3).array(&[2, 1, 3, 8]);
    let (flat, _) = Numbers(3).array(&[3, 8]);
    let ints = Array::from_slice(&[0i32; 8], &[1, 1, 8]).unwrap();
    for (x, dims) in [(&x, 0), (&x, -2), (&x, 7), (&x, 10), (&flat, 8), (&ints, 8)] {
        assert!(rope(x, dims, false, 10000.0, 1.0, 0).is_err(), "{x:?} {dims}");
    }
    assert!(rope(&x, 8, false, &f32_array(&[1.0; 3], &[3]), 1.0, 0).is_err());
    assert!(rope(&x, 8, false, 10000.0, 1.0, &Array::from(0.5f32)).is_err());
    assert!(rope(&x, 8, false, 10000.0, 1.0, &Array::from_slice(&[1i32; 3], &[3]).unwrap()).is_err());
}

struct Attention {
    shape: [usize; 4], // batch, heads, query length, dims
    kv_heads: usize,
    keys: usize,
    scale: f64,
}

impl Attention {
    /// By its definition; `bias` gives what is added to the score of a query and key.
    fn f64(
        &self,
        [q, k, v]: [&[f64]; 3],
        bias: impl Fn(usize, usize, usize, usize) -> f64,
        sinks: &[f64],
    ) -> Vec<f64> {
        let [batch, heads, length, dims] = self.shape;
        let mut out = Vec::new();
        for row in 0..batch * heads * length {
            let (b, h, l) = (row / length / heads, row / length % heads, row % length);
            let kv = (b * self.kv_heads + h / (heads / self.kv_heads)) * self.keys;
            let query = &q[row * dims..][..dims];
            let score = |s: usize| {
                let key = &k[(kv + s) * dims..][..dims];
                let dot = query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
                (self.scale * dot + bias(b, h, l, s)).exp()
            };
            let weights: Vec<f64> = (0..self.keys).map(score).collect();
            let total = weights.iter().sum::<f64>() + sinks.get(h).map_or(0.0, |s| s.exp());
            let value = |d: usize| (0..self.keys).map(|s| weights[s] * v[(kv + s) * dims + d]).sum::<f64>();
            out.extend((0..dims).map(|d| value(d) / total));
        }
        out
    }
}

#[test]
fn attention_is_its_definition_under_every_mask() {
    let a = Attention { shape: [2, 6, 4, 16], kv_heads: 2, keys: 7, scale: 0.3 };
    let mut numbers = Numbers(4);
    let (q, qs) = numbers.array(&[2, 6, 4, 16]);
    let (k, ks) = numbers.array(&[2, 2, 7, 16]);
    let (v, vs) = numbers.array(&[2, 2, 7, 16]);
    let (sinks, sink_values) = numbers.array(&[6]);
    let (added, add) = numbers.array(&[6, 4, 7]);
    let seen: Vec<bool> = (0..2 * 4 * 7).map(|i| i % 7 == 0 || numbers.below(3) > 0).collect();
    let chosen = Array::from_slice(&seen, &[2, 1, 4, 7]).unwrap();
    let hide = |hidden: bool| if hidden { f64::NEG_INFINITY } else { 0.0 };
    type Bias<'a> = &'a dyn Fn(usize, usize, usize, usize) -> f64;
    let masks: [(Mask, Bias); 4] = [
        (Mask::None, &|_, _, _, _| 0.0),
        (Mask::Causal, &|_, _, l, s| hide(s > l + 3)),
        (Mask::Array(&chosen), &|b, _, l, s| hide(!seen[(b * 4 + l) * 7 + s])),
        (Mask::Array(&added), &|_, h, l, s| add[(h * 4 + l) * 7 + s]),
    ];
    for (mask, bias) in masks {
        for (sinks, sink_values) in [(None, &[][..]), (Some(&sinks), &sink_values[..])] {
            let found = scaled_dot_product_attention(&q, &k, &v, 0.3, mask, sinks).unwrap();
            assert_eq!(found.shape(), [2, 6, 4, 16]);
            assert_close(&found, &a.f64([&qs, &ks, &vs], bias, sink_values), REDUCTION);
        }
    }
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let zeros = |shape: &[i32]| f32_array(&vec![0.0; shape.iter().product::<i32>() as usize], shape);
    let (q, k) = (zeros(&[1, 4, 3, 8]), zeros(&[1, 2, 5, 8]));
    let attend = |q: &Array, k: &Array, v: &Array, mask: Option<&Array>, sinks: Option<&Array>| {
        scaled_dot_product_attention(q, k, v, 1.0, mask, sinks).and_then(|out| out.eval())
    };
    assert!(attend(&q, &k, &k, None, None).is_ok());
    for wrong in [&[1, 0, 5, 8][..], &[1, 3, 5, 8], &[2, 2, 5, 8], &[1, 2, 5, 9], &[2, 5, 8]] {
        let wrong = zeros(wrong);
        assert!(attend(&q, &wrong, &wrong, None, None).is_err(), "{wrong:?}");
    }
    assert!(attend(&q, &k, &zeros(&[1, 2, 6, 8]), None, None).is_err());
    assert!(attend(&q, &k, &k, Some(&zeros(&[3, 4])), None).is_err());
    assert!(attend(&q, &k, &k, None, Some(&zeros(&[2]))).is_err());
    let int = Array::from_slice(&[0i32; 8], &[1, 1, 1, 8]).unwrap();
    assert!(attend(&int, &int, &int, None, None).is_err());
    let half = Array::from_slice(&[bf16::ONE; 8], &[1, 1, 1, 8]).unwrap();
    assert!(attend(&half, &half, &half, Some(&zeros(&[1, 1])), None).is_err(), "a wider mask");
}

#[test]
fn attention_over_no_keys_is_zero() {
    let (q, _) = Numbers(5).array(&[1, 2, 3, 4]);
    let none = Array::from_slice::<f32>(&[], &[1, 1, 0, 4]).unwrap();
    let found = scaled_dot_product_attention(&q, &none, &none, 1.0, Mask::None, None).unwrap();
    assert_eq!(to_f64(&found), [0.0; 24]);
}

#[test]
fn cross_entropy_is_its_definition_and_nan_outside_of_the_classes() {
    let (logits, xs) = Numbers(6).array(&[2, 3, 11]);
    let targets = [0u32, 10, 3, 7, 7, 1];
    let expected: Vec<f64> = xs
        .chunks(11)
        .zip(targets)
        .map(|(row, t)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[t as usize])
        .collect();
    let found = cross_entropy(&logits, &Array::from_slice(&targets, &[2, 3]).unwrap()).unwrap();
    assert_eq!((found.shape(), found.dtype()), (&[2, 3][..], Dtype::Float32));
    assert_close(&found, &expected, REDUCTION);

    let outside = Array::from_slice(&[0i64, -1, 11, i64::MAX, i64::MIN, 10], &[2, 3]).unwrap();
    let nan: Vec<bool> =
        to_f64(&cross_entropy(&logits, &outside).unwrap()).iter().map(|v| v.is_nan()).collect();
    assert_eq!(nan, [false, true, true, true, true, false]);

    let float = f32_array(&[0.0; 6], &[2, 3]);
    let short = Array::from_slice(&[0i32; 3], &[3]).unwrap();
    for (logits, targets) in
        [(&logits, &float), (&logits, &short), (&short, &Array::from(0i32)), (&Array::from(0f32), &short)]
    {
        assert!(cross_entropy(logits, targets).is_err(), "{logits:?} {targets:?}");
    }
    assert_eq!(epsilon(Dtype::Int32), 0.0);
}
