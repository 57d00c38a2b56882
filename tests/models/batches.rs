//! Batches of sequences of different lengths against each alone.

use std::collections::BTreeMap;

use mlxport::cache::{ArraysCache, Cache, ChunkedKvCache, LayerCache, Offset, RotatingKvCache};
use mlxport::fast::scaled_dot_product_attention;
use mlxport::generate::{Batch, FinishReason, Options, Penalties, Request, Sampling, Tokens};
use mlxport::models::LanguageModel;
use mlxport::nn::{Rope, RopeConfig};
use mlxport::{Array, Dtype, ops, random};
use proptest::prelude::*;

use super::{Fixture, LOGITS, error};

/// One of each kind of cache: all positions, a window, both, quantized weights.
const NAMES: [&str; 5] = ["llama", "mistral", "qwen3_sliding", "sliding", "q4"];

fn ids(tokens: &[i32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32]).unwrap()
}

/// A prompt of any length.
fn prompt(seed: i32, length: i32) -> Vec<i32> {
    (0..length).map(|i| (seed * 17 + i * i * 7 + i * 3) % 40).collect()
}

fn options(max_tokens: usize) -> Options {
    Options { max_tokens, ..Options::default() }
}

fn alone(model: &dyn LanguageModel, prompt: &[i32], options: Options) -> Vec<i32> {
    let mut cache = model.make_cache();
    Tokens::new(model, &mut cache, prompt, options).unwrap().map(|token| token.unwrap().id).collect()
}

#[test]
fn requests_that_join_and_leave_get_the_tokens_that_they_would_get_alone() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        let model = &*fixture.model;
        let sampling = Sampling { temperature: 0.9, top_k: 10, seed: 4, ..Sampling::default() };
        let penalties = Penalties { repetition: 1.3, ..Penalties::default() };
        let stop = alone(model, &prompt(5, 9), options(7))[6];
        // (joins before this step, prompt, options)
        let requests = [
            (0, prompt(1, 3), options(14)),
            (0, prompt(2, 19), Options { sampling, ..options(9) }),
            (1, prompt(3, 1), Options { penalties, ..options(1) }),
            (3, prompt(4, 11), Options { prefill_step: 4, ..options(6) }),
            (4, prompt(5, 9), Options { stop: vec![stop], ..options(20) }),
            (9, prompt(6, 30), options(5)),
        ];
        let mut batch = Batch::new(model);
        let mut found: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        let (mut step, mut ends, mut left) = (0, BTreeMap::new(), None);
        while step < 10 || !batch.is_empty() {
            for (_, prompt, options) in requests.iter().filter(|(at, ..)| *at == step) {
                let (prompt, options, cache) = (prompt.clone(), options.clone(), model.make_cache());
                batch.join(Request { prompt, options, cache, constraint: None }).unwrap();
            }
            for output in batch.step().unwrap() {
                found.entry(output.request).or_default().push(output.token.id);
                assert_eq!(output.cache.is_some(), output.token.finish_reason.is_some());
                if let Some(reason) = output.token.finish_reason {
                    ends.insert(output.request, reason);
                    left = output.cache;
                }
            }
            step += 1;
            assert!(step < 99, "{name}: it never ends");
        }
        for (i, (_, prompt, options)) in requests.iter().enumerate() {
            assert_eq!(found[&i], alone(model, prompt, options.clone()), "{name}: request {i}");
        }
        assert_eq!(ends[&4], FinishReason::Stop);
        assert!([0, 1, 2, 3, 5].iter().all(|i| ends[i] == FinishReason::Length));
        // What the last one left goes on as if it had been alone.
        let (mut left, all) = (left.unwrap(), [&requests[5].1[..], &found[&5]].concat());
        assert_eq!(left.offset() as usize, all.len() - 1);
        let more = Tokens::new(model, &mut left, &all[all.len() - 1..], options(4)).unwrap();
        let more: Vec<i32> = more.map(|token| token.unwrap().id).collect();
        assert_eq!(more, alone(model, &all, options(4)), "{name}");
    }
}

#[test]
fn a_request_can_be_taken_out() {
    let fixture = Fixture::load("sliding");
    let model = &*fixture.model;
    let request = |seed, length| {
        let (prompt, cache) = (prompt(seed, length), model.make_cache());
        Request { prompt, options: options(8), cache, constraint: None }
    };
    let mut batch = Batch::new(model);
    let numbers: Vec<usize> = [5, 12, 2].into_iter().map(|n| batch.join(request(n, n)).unwrap()).collect();
    let mut found = BTreeMap::<usize, Vec<i32>>::new();
    for step in 0..20 {
        if step == 5 {
            batch.leave(numbers[1]).unwrap();
            batch.leave(77).unwrap();
        }
        for output in batch.step().unwrap() {
            found.entry(output.request).or_default().push(output.token.id);
        }
    }
    assert!(batch.is_empty() && found[&numbers[1]].len() < 8);
    for (number, n) in [(numbers[0], 5), (numbers[2], 2)] {
        assert_eq!(found[&number], alone(model, &prompt(n, n), options(8)));
    }
    // One whose prompt is not read yet; one whose last token ends its text.
    let (waiting, whole) = (batch.join(request(9, 30)).unwrap(), alone(model, &prompt(5, 5), options(8)));
    let first = whole.iter().position(|id| *id == whole[7]).unwrap();
    let ends = Options { stop: vec![whole[7]], ..options(first + 1) };
    let last = batch.join(Request { options: ends, ..request(5, 5) }).unwrap();
    batch.leave(waiting).unwrap();
    assert_eq!(batch.len(), 1);
    let outputs: Vec<_> =
        std::iter::repeat_with(|| batch.step().unwrap()).take(first + 1).flatten().collect();
    assert!(outputs.iter().all(|output| output.request == last) && batch.is_empty());
    assert_eq!(outputs.last().unwrap().token.finish_reason, Some(FinishReason::Stop));
    assert!(batch.join(request(1, 0)).is_err());
    assert!(batch.join(Request { options: options(0), ..request(1, 3) }).is_err());
    assert!(batch.join(Request { prompt: vec![40], ..request(1, 3) }).is_err());
}

#[test]
fn sequences_of_a_batch_turn_as_they_do_alone() {
    let context = serde_json::json!({ "max_position_embeddings": 64, "original_max_position_embeddings": 8 });
    let factors = |factor: f64| (1..5).map(|i| factor + f64::from(i) / 8.0).collect::<Vec<f64>>();
    let scalings = [
        serde_json::json!({ "type": "dynamic", "factor": 2.0 }),
        serde_json::json!({ "type": "longrope", "short_factor": factors(1.0), "long_factor": factors(2.0) }),
    ];
    let key = random::key(3).unwrap();
    let x = random::normal(0.0, 1.0, &[4, 2, 3, 8], Dtype::Float32, Some(&key)).unwrap();
    for scaling in scalings {
        let mut config = context.clone();
        config["rope_scaling"] = scaling.clone();
        if scaling["type"] == "dynamic" {
            config["max_position_embeddings"] = 8.into();
        }
        let config: RopeConfig = serde_json::from_value(config).unwrap();
        let rope = Rope::new(8, &config, 10_000.0).unwrap();
        // Within the context, beyond it, within it and expected beyond, within it behind padding.
        let (offsets, expected) = ([2, 30, 4, -1], [6, 40, 20, 2]);
        let each = |numbers: &[i32; 4]| Offset::Each(Array::from_slice(numbers, &[4]).unwrap());
        let together = rope.forward_within(&x, &each(&offsets), &each(&expected)).unwrap();
        for row in 0..4usize {
            let at = row as i32;
            let alone = x.index(at..at + 1).unwrap();
            let alone = rope.forward_within(&alone, &offsets[row].into(), &expected[row].into()).unwrap();
            let found = together.index(at..at + 1).unwrap().to_vec::<f32>().unwrap();
            let error = error(&found, &alone.to_vec().unwrap());
            assert!(error < 1e-5, "{scaling}: row {row}: {error:.1e}");
        }
    }
}

#[test]
fn padding_before_a_prompt_changes_nothing() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        let (lengths, longest) = ([13, 4, 20, 1], 20);
        let padding: Vec<i32> = lengths.iter().map(|length| longest - length).collect();
        let rows: Vec<Vec<i32>> = (0..4).map(|i| prompt(i, lengths[i as usize])).collect();
        let padded: Vec<i32> =
            rows.iter().flat_map(|row| [&prompt(9, 20)[..20 - row.len()], row].concat()).collect();
        let batch = Array::from_slice(&padded, &[4, longest]).unwrap();
        for split in [&[20][..], &[7, 1, 12], &[19, 1], &[1; 20]] {
            let mut cache = fixture.model.make_cache().pad_left(&padding).unwrap();
            let (mut start, mut parts) = (0, Vec::new());
            for length in split {
                let piece = super::columns(&batch, start, start + length);
                parts.push(fixture.model.forward(&piece, &mut cache).unwrap());
                start += length;
            }
            let logits = ops::concatenate(&parts, 1).unwrap().to_vec::<f32>().unwrap();
            for (i, row) in rows.iter().enumerate() {
                let mut single = fixture.model.make_cache();
                let expected = fixture.model.forward(&ids(row), &mut single).unwrap();
                let found = &logits[(i * 20 + 20 - row.len()) * 40..(i + 1) * 800];
                let error = error(found, &expected.to_vec().unwrap());
                assert!(error < LOGITS, "{name}, row {i} in pieces of {split:?}: {error:.1e}");
            }
        }
        assert!(fixture.model.make_cache().pad_left(&[1, -1]).is_err());
    }
}

/// Attention of every position of a sequence, whose first `before` positions come alone and the others
/// in a batch with another sequence; within chunks of so many positions, or all.
fn attend(
    make: impl Fn() -> LayerCache,
    chunk: Option<i32>,
    lengths: [i32; 2],
    before: [i32; 2],
    steps: i32,
) -> [Vec<f32>; 2] {
    let draw = |seed: u64, length: i32| {
        let key = random::key(seed).unwrap();
        random::normal(0.0, 1.0, &[1, 2, length, 4], Dtype::Float32, Some(&key)).unwrap()
    };
    let at = |x: &Array, start: i32, stop: i32| {
        ops::slice(x, &[0, 0, start, 0], &[1, 2, stop, 4], &[1; 4]).unwrap()
    };
    let attend = |cache: &mut LayerCache, [q, k, v]: [Array; 3]| {
        let length = q.dim(2).unwrap();
        let mask =
            chunk.map_or_else(|| cache.mask(length, None), |size| cache.chunk_mask(length, size)).unwrap();
        let seen = cache.update(&k, &v).unwrap();
        scaled_dot_product_attention(&q, &seen.keys, &seen.values, 0.5, &mask, None).unwrap()
    };
    let inputs = [0, 1].map(|i| [0, 1, 2].map(|j| draw(10 * i + j, lengths[i as usize])));
    let mut rows = Vec::new();
    for (inputs, &before) in inputs.iter().zip(&before) {
        let mut cache = make();
        attend(&mut cache, [0, 1, 2].map(|j| at(&inputs[j], 0, before)));
        rows.push(Cache::new([cache]));
    }
    let mut batch = Cache::merge(&rows).unwrap();
    let mut found = [Vec::new(), Vec::new()];
    for step in 0..steps {
        let piece = |i: usize, j: usize| at(&inputs[i][j], before[i] + step, before[i] + step + 1);
        let piece = [0, 1, 2].map(|j| ops::concatenate(&[piece(0, j), piece(1, j)], 0).unwrap());
        let out = attend(&mut batch.layers_mut(1).unwrap()[0], piece).to_vec::<f32>().unwrap();
        found[0].extend(&out[..8]);
        found[1].extend(&out[8..]);
    }
    // Each alone, position by position.
    for i in 0..2 {
        let (mut cache, mut expected) = (make(), Vec::new());
        attend(&mut cache, [0, 1, 2].map(|j| at(&inputs[i][j], 0, before[i])));
        for step in before[i]..before[i] + steps {
            let out = attend(&mut cache, [0, 1, 2].map(|j| at(&inputs[i][j], step, step + 1)));
            expected.extend(out.to_vec::<f32>().unwrap());
        }
        let error = error(&found[i], &expected);
        assert!(error < 1e-5, "sequence {i}: {error:e}");
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn caches_of_every_kind_merge(before in [1..25i32, 1..25i32], steps in 1..14i32, size in 1..12i32) {
        let lengths = before.map(|before| before + steps);
        attend(LayerCache::kv, None, lengths, before, steps);
        attend(|| LayerCache::Rotating(RotatingKvCache::new(size, 0)), None, lengths, before, steps);
        let forgets = attend(|| LayerCache::Chunked(ChunkedKvCache::new(size)), None, lengths, before, steps);
        // A cache that keeps all positions, or enough of them, serves chunks as well.
        for all in [LayerCache::kv, || LayerCache::Rotating(RotatingKvCache::new(40, 0))] {
            let keeps = attend(all, Some(size), lengths, before, steps);
            for (keeps, forgets) in keeps.iter().zip(&forgets) {
                prop_assert!(error(keeps, forgets) < 1e-5);
            }
        }
    }
}

#[test]
fn states_merge_and_come_back() {
    let state = |value: f32| Array::from_slice(&[value, value + 1.0], &[1, 2]).unwrap();
    let cache = |value: Option<f32>, length: i32| {
        let mut cache = LayerCache::Arrays(ArraysCache::new(2));
        if let Some(value) = value {
            cache.set_state(1, state(value)).unwrap();
        }
        cache.advance(length);
        Cache::new([LayerCache::List(vec![cache, LayerCache::kv()])])
    };
    let batch = Cache::merge(&[cache(Some(3.0), 5), cache(None, 0)]).unwrap();
    assert_eq!(batch.offset(), 5);
    let row = |i| {
        let mut row = batch.row(i).unwrap();
        let part = row.layers_mut(1).unwrap()[0].part(0).unwrap();
        (part.position(), part.state(0).is_some(), part.state(1).unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(row(0), (5, false, vec![3.0, 4.0]));
    assert_eq!(row(1), (0, false, vec![0.0, 0.0]));
    let mut batch = batch.clone();
    let part = batch.layers_mut(1).unwrap()[0].part(0).unwrap();
    assert!(part.padding(3).unwrap().is_none(), "all positions to come are tokens");
    assert!(batch.row(2).is_err());
    let kept = Cache::new([LayerCache::Rotating(RotatingKvCache::new(8, 2))]);
    assert!(Cache::merge(&[kept.clone(), kept]).is_err());
    assert!(Cache::merge(&[cache(None, 0), Cache::new([LayerCache::kv()])]).is_err());
    assert!(Cache::merge(&Vec::<Cache>::new()).is_err());

    let padded = Cache::new([LayerCache::states(1)]).pad_left(&[2, 0, 5]).unwrap();
    let mask = padded.layers()[0].padding(4).unwrap().unwrap();
    let (f, t) = (false, true);
    assert_eq!(mask.to_vec::<bool>().unwrap(), [f, f, t, t, t, t, t, t, f, f, f, f]);
}
