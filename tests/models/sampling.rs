//! Samplers against mlx-lm, and on distributions that are known.

use std::collections::BTreeMap;

use mlxport::generate::{Penalizer, Penalties, Sampler, Sampling};
use mlxport::{Array, ops};
use serde::Deserialize;

const DRAWS: i32 = 4000;
const PROBABILITIES: [f64; 6] = [0.05, 0.4, 0.2, 0.02, 0.3, 0.03];

/// How often each token is drawn.
fn frequencies(sampling: &Sampling) -> Vec<f64> {
    let logprobs: Vec<f32> = PROBABILITIES.iter().map(|p| p.ln() as f32).collect();
    let row = Array::from_slice(&logprobs, &[1, 6]).unwrap();
    let rows = ops::broadcast_to(&row, &[DRAWS, 6]).unwrap();
    let mut sampler = Sampler::new(sampling.clone()).unwrap();
    let drawn = sampler.sample(&rows).unwrap().to_vec::<u32>().unwrap();
    let count = |id| drawn.iter().filter(|&&d| d == id).count();
    (0..6).map(|id| count(id) as f64 / f64::from(DRAWS)).collect()
}

/// Fails unless the frequencies are those of `kept` tokens at a temperature: nothing else is drawn, and
/// the rest within five standard deviations.
fn assert_draws(sampling: Sampling, kept: &[usize]) {
    let weight = |id: usize| {
        let weight = PROBABILITIES[id].powf(1.0 / f64::from(sampling.temperature));
        if kept.contains(&id) { weight } else { 0.0 }
    };
    let total: f64 = (0..6).map(weight).sum();
    for (id, found) in frequencies(&sampling).into_iter().enumerate() {
        let expected = weight(id) / total;
        let deviation = (expected * (1.0 - expected) / f64::from(DRAWS)).sqrt();
        assert!((found - expected).abs() <= 5.0 * deviation, "{sampling:?}: {id} {found} for {expected}");
    }
}

#[test]
fn tokens_are_drawn_as_often_as_they_should_be() {
    let all = [0, 1, 2, 3, 4, 5];
    let hot = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
    assert_draws(hot.clone(), &all);
    assert_draws(Sampling { temperature: 0.5, ..hot.clone() }, &all);
    assert_draws(Sampling { temperature: 2.0, ..hot.clone() }, &all);
    // 0.4 + 0.3 make up 0.7: the next one comes after enough.
    assert_draws(Sampling { top_p: 0.69, ..hot.clone() }, &[1, 4]);
    assert_draws(Sampling { top_p: 0.71, ..hot.clone() }, &[1, 2, 4]);
    assert_draws(Sampling { top_p: 1e-6, ..hot.clone() }, &[1]);
    assert_draws(Sampling { top_k: 1, ..hot.clone() }, &[1]);
    assert_draws(Sampling { top_k: 3, temperature: 1.5, ..hot.clone() }, &[1, 2, 4]);
    assert_draws(Sampling { top_k: 6, ..hot.clone() }, &all);
    // A tenth of 0.4 is 0.04.
    assert_draws(Sampling { min_p: 0.1, ..hot.clone() }, &[0, 1, 2, 4]);
    assert_draws(Sampling { min_p: 1.0, ..hot.clone() }, &[1]);
    assert_draws(Sampling { min_p: 0.1, top_k: 2, top_p: 0.99, ..hot.clone() }, &[1, 4]);
    assert_draws(Sampling { min_p: 1.0, min_tokens_to_keep: 3, ..hot.clone() }, &[1, 2, 4]);
    // Above 0.1 are 0.4, 0.3 and 0.2.
    let xtc = Sampling { xtc_probability: 1.0, xtc_threshold: 0.1, ..hot.clone() };
    assert_draws(xtc.clone(), &[0, 2, 3, 5]);
    assert_draws(Sampling { xtc_special_tokens: vec![4], ..xtc.clone() }, &[0, 2, 3, 4, 5]);
    assert_draws(Sampling { xtc_threshold: 0.45, ..xtc.clone() }, &all);
    // A third of the draws leave the top out.
    let found = frequencies(&Sampling { xtc_probability: 1.0 / 3.0, ..xtc });
    for id in 0..6 {
        let rest = if [1, 4].contains(&id) { 0.0 } else { PROBABILITIES[id] / 0.3 };
        let expected = PROBABILITIES[id] * 2.0 / 3.0 + rest / 3.0;
        let deviation = (expected * (1.0 - expected) / f64::from(DRAWS)).sqrt();
        assert!((found[id] - expected).abs() <= 5.0 * deviation, "{id}: {} for {expected}", found[id]);
    }
}

#[test]
fn a_seed_decides_and_no_temperature_takes_the_likeliest() {
    let hot = Sampling { temperature: 1.0, ..Sampling::default() };
    assert_eq!(frequencies(&hot), frequencies(&hot));
    assert_ne!(frequencies(&hot), frequencies(&Sampling { seed: 1, ..hot }));
    assert_eq!(frequencies(&Sampling { seed: 3, ..Sampling::default() })[1], 1.0);
}

#[test]
fn successive_draws_differ() {
    let mut sampler = Sampler::new(Sampling { temperature: 1.0, ..Sampling::default() }).unwrap();
    let uniform = ops::zeros(&[1, 1000], mlxport::Dtype::Float32).unwrap();
    let draw = |sampler: &mut Sampler| sampler.sample(&uniform).unwrap().to_vec::<u32>().unwrap()[0];
    let drawn: std::collections::BTreeSet<u32> = (0..50).map(|_| draw(&mut sampler)).collect();
    assert!(drawn.len() > 40, "{drawn:?}");
}

#[test]
fn settings_outside_their_range_are_refused() {
    let greedy = Sampling::default();
    for wrong in [
        Sampling { temperature: -1.0, ..greedy.clone() },
        Sampling { temperature: f32::NAN, ..greedy.clone() },
        Sampling { top_p: -0.1, ..greedy.clone() },
        Sampling { xtc_probability: 1.5, ..greedy.clone() },
        Sampling { xtc_threshold: 0.51, ..greedy.clone() },
        Sampling { min_tokens_to_keep: 0, ..greedy.clone() },
        Sampling { top_p: 1.1, ..greedy.clone() },
        Sampling { min_p: -0.1, ..greedy.clone() },
        Sampling { top_k: -1, ..greedy.clone() },
    ] {
        assert!(Sampler::new(wrong.clone()).is_err(), "{wrong:?}");
    }
}

/// What mlx-lm's samplers do (`tests/oracle/sampling.py`).
#[derive(Deserialize)]
struct Oracle {
    logits: Vec<Vec<f32>>,
    seed: u64,
    filters: Vec<Filter>,
    before: Vec<i32>,
    penalties: Vec<Penalized>,
}

#[derive(Deserialize)]
struct Filter {
    settings: FilterSettings,
    /// `None` where chance decides.
    kept: Option<Vec<Vec<Option<f32>>>>,
    drawn: Vec<u32>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, default)]
struct FilterSettings {
    temp: f32,
    top_p: f32,
    min_p: f32,
    min_tokens_to_keep: i32,
    xtc_probability: f32,
    xtc_threshold: f32,
    xtc_special_tokens: Vec<i32>,
    top_k: i32,
}

impl Default for FilterSettings {
    fn default() -> Self {
        let Sampling { top_p, min_p, min_tokens_to_keep, xtc_probability, xtc_threshold, top_k, .. } =
            Sampling::default();
        let (temp, xtc_special_tokens) = (1.0, Vec::new());
        Self {
            temp,
            top_p,
            min_p,
            min_tokens_to_keep,
            xtc_probability,
            xtc_threshold,
            xtc_special_tokens,
            top_k,
        }
    }
}

#[derive(Deserialize)]
struct Penalized {
    settings: PenaltySettings,
    logits: Vec<f32>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct PenaltySettings {
    #[serde(default)]
    logit_bias: BTreeMap<i32, f32>,
    repetition_penalty: Option<f32>,
    repetition_context_size: Option<usize>,
    presence_penalty: Option<f32>,
    presence_context_size: Option<usize>,
    frequency_penalty: Option<f32>,
    frequency_context_size: Option<usize>,
}

fn oracle() -> Oracle {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sampling.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn matrix(rows: &[Vec<f32>]) -> Array {
    Array::from_slice(&rows.concat(), &[rows.len() as i32, rows[0].len() as i32]).unwrap()
}

#[test]
fn filters_keep_and_seeds_draw_what_they_do_in_mlx_lm() {
    let oracle = oracle();
    let logits = matrix(&oracle.logits);
    let logprobs = (&logits - ops::logsumexp(&logits, -1, true).unwrap()).unwrap();
    let first = ops::slice(&logprobs, &[0, 0], &[1, 24], &[1, 1]).unwrap();
    for Filter { settings, kept, drawn } in &oracle.filters {
        let sampling = Sampling {
            temperature: settings.temp,
            top_p: settings.top_p,
            min_p: settings.min_p,
            min_tokens_to_keep: settings.min_tokens_to_keep,
            xtc_probability: settings.xtc_probability,
            xtc_threshold: settings.xtc_threshold,
            xtc_special_tokens: settings.xtc_special_tokens.clone(),
            top_k: settings.top_k,
            seed: oracle.seed,
        };
        if let Some(kept) = kept {
            let left = Sampler::new(sampling.clone()).unwrap().filter(&logprobs).unwrap();
            for (found, expected) in left.to_vec::<f32>().unwrap().iter().zip(kept.concat()) {
                let expected = expected.unwrap_or(f32::NEG_INFINITY);
                assert!(*found == expected || (found - expected).abs() < 1e-5, "{settings:?}");
            }
        }
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut draw = || sampler.sample(&first).unwrap().to_vec::<u32>().unwrap()[0];
        let found: Vec<u32> = drawn.iter().map(|_| draw()).collect();
        assert_eq!(&found, drawn, "{settings:?}");
    }
}

#[test]
fn penalties_change_logits_as_in_mlx_lm() {
    let oracle = oracle();
    let logits = matrix(&oracle.logits[..1]);
    for Penalized { settings, logits: expected } in &oracle.penalties {
        let none = Penalties::default();
        let penalties = Penalties {
            logit_bias: settings.logit_bias.clone(),
            repetition: settings.repetition_penalty.unwrap_or(none.repetition),
            repetition_context: settings.repetition_context_size.unwrap_or(none.repetition_context),
            presence: settings.presence_penalty.unwrap_or(none.presence),
            presence_context: settings.presence_context_size.unwrap_or(none.presence_context),
            frequency: settings.frequency_penalty.unwrap_or(none.frequency),
            frequency_context: settings.frequency_context_size.unwrap_or(none.frequency_context),
        };
        // The text comes in pieces, as it does when a model speaks.
        for cut in [1, 20, 31] {
            let mut penalizer = Penalizer::new(penalties.clone(), 24).unwrap();
            let (prompt, rest) = oracle.before.split_at(cut);
            penalizer.push(&Array::from_slice(prompt, &[1, cut as i32]).unwrap()).unwrap();
            for id in rest {
                penalizer.push(&Array::from_slice(&[*id], &[1, 1]).unwrap()).unwrap();
            }
            let found = penalizer.apply(&logits).unwrap().to_vec::<f32>().unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{settings:?}: {found} for {expected}");
            }
        }
    }
    let wrong = |penalties| Penalizer::new(penalties, 24).is_err();
    assert!(wrong(Penalties { repetition: -1.0, ..Penalties::default() }));
    assert!(wrong(Penalties { presence: f32::NAN, ..Penalties::default() }));
    assert!(wrong(Penalties { logit_bias: [(24, 1.0)].into(), ..Penalties::default() }));
}
