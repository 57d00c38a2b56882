//! Caches against attention over the whole sequence.

use mlxport::cache::{Cache, KvCache, LayerCache, Mask, QuantizedKvCache, RotatingKvCache};
use mlxport::models::blocks::attend;
use mlxport::ops::{Quantization, QuantizationMode};
use mlxport::{Array, ops, random};
use proptest::prelude::*;

use super::{Fixture, LOGITS, columns, error};

const LENGTH: i32 = 40;

/// Positions `start..stop` of `[1, 2, LENGTH, 4]`.
fn positions(x: &Array, start: i32, stop: i32) -> Array {
    ops::slice(x, &[0, 0, start, 0], &[1, 2, stop, 4], &[1; 4]).unwrap()
}

/// Queries, keys and values.
fn inputs() -> [Array; 3] {
    let draw = |seed| {
        let key = random::key(seed).unwrap();
        random::normal(0.0, 1.0, &[1, 2, LENGTH, 4], mlxport::Dtype::Float32, Some(&key)).unwrap()
    };
    [0, 1, 2].map(draw)
}

/// Attention where a query sees the last `window` keys and the first `keep`, in f64.
fn reference([queries, keys, values]: &[Array; 3], window: i32, keep: i32) -> Vec<f32> {
    let [queries, keys, values] = [queries, keys, values].map(|x| x.to_vec::<f32>().unwrap());
    let row = |x: &[f32], head: i32, at: i32| -> Vec<f64> {
        let start = ((head * LENGTH + at) * 4) as usize;
        x[start..start + 4].iter().map(|&x| f64::from(x)).collect()
    };
    let mut out = Vec::new();
    for head in 0..2 {
        for at in 0..LENGTH {
            let query = row(&queries, head, at);
            let seen: Vec<i32> = (0..=at).filter(|&k| k < keep || at - k < window).collect();
            let score = |k| row(&keys, head, k).iter().zip(&query).map(|(a, b)| a * b * 0.5).sum::<f64>();
            let weights: Vec<f64> = seen.iter().map(|&k| score(k).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..4 {
                let of = |(&k, w): (&i32, &f64)| row(&values, head, k)[d] * w / total;
                out.push(seen.iter().zip(&weights).map(of).sum::<f64>() as f32);
            }
        }
    }
    out
}

/// Attention over `LENGTH` positions that come in pieces.
fn attended(mut cache: LayerCache, [q, k, v]: &[Array; 3], lengths: &[i32], window: Option<i32>) -> Vec<f32> {
    let (mut start, mut parts) = (0, Vec::new());
    for length in lengths.iter().copied().chain([LENGTH]) {
        let stop = (start + length).min(LENGTH);
        if start == stop {
            break;
        }
        let mask = cache.mask(stop - start, window).unwrap();
        let [q, k, v] = [q, k, v].map(|x| positions(x, start, stop));
        let seen = cache.update(&k, &v).unwrap();
        parts.push(attend(&q, &seen, 0.5, &mask, None).unwrap());
        start = stop;
    }
    assert_eq!(cache.position(), LENGTH);
    ops::concatenate(&parts, 2).unwrap().to_vec().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn pieces_of_any_length_attend_as_the_whole_does(
        lengths in prop::collection::vec(1..9i32, 0..40),
        size in 1..12i32,
        kept in 0..12i32,
        narrow in 0..4i32,
    ) {
        let inputs = inputs();
        let keep = kept % size;
        let window = (size - narrow).max(1);
        let full = attended(LayerCache::Kv(KvCache::new()), &inputs, &lengths, None);
        prop_assert!(error(&full, &reference(&inputs, LENGTH, 0)) < 1e-5);
        let windowed = attended(LayerCache::Kv(KvCache::new()), &inputs, &lengths, Some(window));
        prop_assert!(error(&windowed, &reference(&inputs, window, 0)) < 1e-5);
        let rotating = LayerCache::Rotating(RotatingKvCache::new(size, 0));
        let rotating = attended(rotating, &inputs, &lengths, Some(window));
        prop_assert!(error(&rotating, &reference(&inputs, window, 0)) < 1e-5);
        // With kept positions the ring holds fewer of the last ones, and a piece sees some more.
        let singly = attended(LayerCache::Rotating(RotatingKvCache::new(size, keep)), &inputs, &[1; 40], None);
        prop_assert!(error(&singly, &reference(&inputs, size - keep, keep)) < 1e-5);
    }
}

#[test]
fn quantized_keys_share_their_attention_with_sinks() {
    let [heads, kv_heads, keys, dims] = [4usize, 2, 9, 32];
    let draw = |seed, shape: &[usize]| {
        let shape: Vec<i32> = shape.iter().map(|&n| n as i32).collect();
        let key = random::key(seed).unwrap();
        random::normal(0.0, 1.0, &shape, mlxport::Dtype::Float32, Some(&key)).unwrap()
    };
    let how = Quantization { group_size: 32, bits: 8, mode: QuantizationMode::Affine };
    let sinks = draw(4, &[heads]);
    for length in [1, 3] {
        let mut cache = LayerCache::Quantized(QuantizedKvCache::new(how).unwrap());
        let before = keys - length;
        cache.update(&draw(1, &[1, kv_heads, before, dims]), &draw(2, &[1, kv_heads, before, dims])).unwrap();
        let mask = cache.mask(length as i32, None).unwrap();
        let new = |seed| draw(seed, &[1, kv_heads, length, dims]);
        let seen = cache.update(&new(5), &new(6)).unwrap();
        let queries = draw(3, &[1, heads, length, dims]);
        let [q, k, v] = [&queries, &seen.keys, &seen.values].map(|x| x.to_vec::<f32>().unwrap());
        let logits = sinks.to_vec::<f32>().unwrap();
        for sinks in [None, Some(&sinks)] {
            let mut expected = Vec::new();
            for (head, &logit) in logits.iter().enumerate() {
                for query in 0..length {
                    let q = &q[(head * length + query) * dims..][..dims];
                    let row = |key: usize| (head / (heads / kv_heads) * keys + key) * dims;
                    let weight = |key: usize| {
                        let product =
                            q.iter().zip(&k[row(key)..]).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                        (product * 0.2).exp()
                    };
                    let weights: Vec<f64> = (0..=before + query).map(weight).collect();
                    let sink = if sinks.is_some() { f64::from(logit).exp() } else { 0.0 };
                    let total = weights.iter().sum::<f64>() + sink;
                    for d in 0..dims {
                        let value =
                            |(key, weight): (usize, &f64)| weight / total * f64::from(v[row(key) + d]);
                        expected.push(weights.iter().enumerate().map(value).sum::<f64>() as f32);
                    }
                }
            }
            let found = attend(&queries, &seen, 0.2, &mask, sinks).unwrap().to_vec().unwrap();
            assert!(error(&found, &expected) < 1e-5, "{length} queries, sinks: {}", sinks.is_some());
        }
    }
}

#[test]
fn a_cache_grows_in_steps_and_holds_what_it_was_given() {
    let mut cache = KvCache::new();
    let piece = |length, value: f64| ops::full(&[1, 1, length, 2], value, mlxport::Dtype::Float32).unwrap();
    let mut expected = Vec::new();
    for (i, length) in [255, 1, 1, 300, 1, 256].into_iter().enumerate() {
        let x = piece(length, i as f64);
        let (keys, values) = cache.update(&x, &x).unwrap();
        expected.extend(std::iter::repeat_n(i as f32, 2 * length as usize));
        assert_eq!(keys.to_vec::<f32>().unwrap(), expected);
        assert_eq!(values.to_vec::<f32>().unwrap(), expected);
        let held = Cache::new([LayerCache::Kv(cache.clone())]).nbytes();
        assert_eq!(held % (2 * 2 * 4 * 256), 0, "steps of 256 positions");
    }
    let other_batch = ops::full(&[2, 1, 1, 2], 0.0, mlxport::Dtype::Float32).unwrap();
    assert!(cache.update(&other_batch, &other_batch).is_err());
}

#[test]
fn what_was_trimmed_can_be_replaced() {
    for name in ["llama", "mistral", "q4"] {
        let fixture = Fixture::load(name);
        let (ids, expected) = fixture.rows(1);
        let mut cache = fixture.model.make_cache();
        fixture.model.forward(&columns(&ids, 0, 5), &mut cache).unwrap();
        let wrong = Array::from_slice(&[1i32, 2, 3], &[1, 3]).unwrap();
        fixture.model.forward(&columns(&wrong, 0, 1), &mut cache).unwrap();
        cache.trim(1).unwrap();
        fixture.model.forward(&wrong, &mut cache).unwrap();
        cache.trim(3).unwrap();
        assert_eq!(cache.offset(), 5);
        let rest = fixture.model.forward(&columns(&ids, 5, 20), &mut cache).unwrap();
        let error = error(&rest.to_vec().unwrap(), &expected[5 * 40..]);
        assert!(error < LOGITS, "{name}: {error:.1e}");
        assert!(cache.trim(21).is_err() && cache.trim(-1).is_err());
    }
}

#[test]
fn a_rotating_cache_that_lost_positions_refuses_to_trim() {
    let fixture = Fixture::load("sliding");
    let mut cache = fixture.model.make_cache();
    for at in 0..8 {
        fixture.model.forward(&columns(&fixture.ids, at, at + 1), &mut cache).unwrap();
    }
    assert!(cache.trim(1).is_err());
    assert_eq!(cache.offset(), 8);
}

#[test]
fn single_positions_need_a_mask_only_where_a_window_is_narrower() {
    let wide = RotatingKvCache::new(8, 0);
    assert!(matches!(LayerCache::Rotating(wide).mask(1, Some(8)).unwrap(), Mask::None));
    assert!(matches!(LayerCache::Kv(KvCache::new()).mask(1, None).unwrap(), Mask::None));
    assert!(matches!(LayerCache::Stateless.mask(5, None).unwrap(), Mask::Causal));
    assert!(matches!(LayerCache::Stateless.mask(5, Some(3)).unwrap(), Mask::Array(_)));
}
