//! Samplers on distributions that are known.

use mlxport::generate::{Sampler, Sampling};
use mlxport::{Array, ops};

const DRAWS: i32 = 4000;
const PROBABILITIES: [f64; 6] = [0.05, 0.4, 0.2, 0.02, 0.3, 0.03];

/// How often each token is drawn.
fn frequencies(sampling: Sampling) -> Vec<f64> {
    let logprobs: Vec<f32> = PROBABILITIES.iter().map(|p| p.ln() as f32).collect();
    let row = Array::from_slice(&logprobs, &[1, 6]).unwrap();
    let rows = ops::broadcast_to(&row, &[DRAWS, 6]).unwrap();
    let mut sampler = Sampler::new(sampling).unwrap();
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
    for (id, found) in frequencies(sampling).into_iter().enumerate() {
        let expected = weight(id) / total;
        let deviation = (expected * (1.0 - expected) / f64::from(DRAWS)).sqrt();
        assert!((found - expected).abs() <= 5.0 * deviation, "{sampling:?}: {id} {found} for {expected}");
    }
}

#[test]
fn tokens_are_drawn_as_often_as_they_should_be() {
    let all = [0, 1, 2, 3, 4, 5];
    let hot = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
    assert_draws(hot, &all);
    assert_draws(Sampling { temperature: 0.5, ..hot }, &all);
    assert_draws(Sampling { temperature: 2.0, ..hot }, &all);
    // 0.4 + 0.3 make up 0.7: the next one comes after enough.
    assert_draws(Sampling { top_p: 0.69, ..hot }, &[1, 4]);
    assert_draws(Sampling { top_p: 0.71, ..hot }, &[1, 2, 4]);
    assert_draws(Sampling { top_p: 1e-6, ..hot }, &[1]);
    assert_draws(Sampling { top_k: 1, ..hot }, &[1]);
    assert_draws(Sampling { top_k: 3, temperature: 1.5, ..hot }, &[1, 2, 4]);
    assert_draws(Sampling { top_k: 6, ..hot }, &all);
    // A tenth of 0.4 is 0.04.
    assert_draws(Sampling { min_p: 0.1, ..hot }, &[0, 1, 2, 4]);
    assert_draws(Sampling { min_p: 1.0, ..hot }, &[1]);
    assert_draws(Sampling { min_p: 0.1, top_k: 2, top_p: 0.99, ..hot }, &[1, 4]);
}

#[test]
fn a_seed_decides_and_no_temperature_takes_the_likeliest() {
    let hot = Sampling { temperature: 1.0, ..Sampling::default() };
    assert_eq!(frequencies(hot), frequencies(hot));
    assert_ne!(frequencies(hot), frequencies(Sampling { seed: 1, ..hot }));
    assert_eq!(frequencies(Sampling { seed: 3, ..Sampling::default() })[1], 1.0);
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
        Sampling { temperature: -1.0, ..greedy },
        Sampling { temperature: f32::NAN, ..greedy },
        Sampling { top_p: 0.0, ..greedy },
        Sampling { top_p: 1.1, ..greedy },
        Sampling { min_p: -0.1, ..greedy },
        Sampling { top_k: -1, ..greedy },
    ] {
        assert!(Sampler::new(wrong).is_err(), "{wrong:?}");
    }
}
