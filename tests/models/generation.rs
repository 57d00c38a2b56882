//! The decode loop: what comes with a token, guesses, and ends.

use mlxport::generate::{
    Allowed, Cancel, Constraint, Draft, FinishReason, Options, Penalties, Sampling, Token, Tokens,
};
use mlxport::{Array, ops};

use super::Fixture;

const MAX_TOKENS: usize = 24;

/// A prompt that repeats itself, so that guesses from it are sometimes right.
const PROMPT: [i32; 12] = [7, 3, 21, 9, 7, 3, 21, 9, 30, 7, 3, 21];

fn generate(
    fixture: &Fixture,
    options: Options,
    draft: Option<Draft>,
) -> (Vec<Token>, mlxport::generate::Stats, i32) {
    let mut cache = fixture.model.make_cache();
    let mut tokens = Tokens::new(&*fixture.model, &mut cache, &PROMPT, options).unwrap();
    if let Some(draft) = draft {
        tokens = tokens.speculative(draft);
    }
    let generated: Vec<Token> = tokens.by_ref().map(Result::unwrap).collect();
    let stats = tokens.stats();
    drop(tokens);
    (generated, stats, cache.offset())
}

/// Settings that choose in every way.
fn choices() -> [Options; 3] {
    let greedy = Options { max_tokens: MAX_TOKENS, ..Options::default() };
    let sampling = Sampling { temperature: 0.8, top_p: 0.9, seed: 5, ..Sampling::default() };
    let penalties = Penalties { repetition: 1.2, frequency: 0.3, ..Penalties::default() };
    let sampled = Options { sampling, ..greedy.clone() };
    [greedy, sampled.clone(), Options { penalties, ..sampled }]
}

#[test]
fn guesses_change_no_token() {
    let (mut drafted, mut accepted) = (0, 0);
    for (name, other) in
        [("llama", "sliding"), ("mistral", "mistral"), ("q4", "llama"), ("qwen3_sliding", "qwen3")]
    {
        let (fixture, small) = (Fixture::load(name), Fixture::load(other));
        for options in choices() {
            let (plain, _, _) = generate(&fixture, options.clone(), None);
            let ids = |tokens: &[Token]| tokens.iter().map(|token| token.id).collect::<Vec<i32>>();
            for draft in [
                Draft::model(&*small.model, 3),
                Draft::model(&*fixture.model, 5),
                Draft::lookup(3, 4),
                Draft::lookup(1, 9),
                Draft::lookup(2, 0),
            ] {
                let (tokens, stats, seen) = generate(&fixture, options.clone(), Some(draft));
                assert_eq!(ids(&tokens), ids(&plain), "{name}: {options:?}");
                for (token, plain) in tokens.iter().zip(&plain) {
                    assert!((token.logprob - plain.logprob).abs() < 1e-3, "{name}");
                }
                let guessed = tokens.iter().filter(|token| token.from_draft).count();
                assert_eq!(guessed, stats.accepted_tokens);
                assert!(stats.accepted_tokens <= stats.draft_tokens);
                assert_eq!(stats.generated_tokens, MAX_TOKENS);
                // Nothing stays in the cache that was guessed wrongly.
                assert_eq!(seen as usize, PROMPT.len() + MAX_TOKENS - 1, "{name}");
                drafted += stats.draft_tokens;
                accepted += stats.accepted_tokens;
            }
        }
    }
    assert!(accepted > 100 && accepted < drafted, "{accepted} of {drafted}");
}

/// Even tokens, and after the tenth of them nothing.
struct Even {
    left: usize,
    looks_ahead: bool,
}

impl Constraint for Even {
    fn allowed(&mut self) -> mlxport::Result<Array> {
        let even: Vec<bool> = (0..40).map(|id| id % 2 == 0).collect();
        Array::from_slice(&even, &[1, 40])
    }

    fn look_ahead(&mut self, tokens: &[i32]) -> mlxport::Result<Vec<Array>> {
        let known = tokens.iter().take(self.left - 1).take_while(|&&id| id % 2 == 0);
        let known = if self.looks_ahead { known.count() } else { 0 };
        (0..=known).map(|_| self.allowed()).collect()
    }

    fn push(&mut self, token: i32) -> mlxport::Result<Allowed> {
        assert_eq!(token % 2, 0);
        self.left -= 1;
        Ok(if self.left == 0 { Allowed::Nothing } else { Allowed::More })
    }
}

#[test]
fn guesses_change_no_token_under_a_constraint() {
    let mut accepted = [0, 0];
    for name in ["llama", "qwen3_sliding"] {
        let fixture = Fixture::load(name);
        for options in choices() {
            let run = |draft: Option<Draft>, looks_ahead| {
                let mut cache = fixture.model.make_cache();
                let tokens = Tokens::new(&*fixture.model, &mut cache, &PROMPT, options.clone()).unwrap();
                let mut tokens = tokens.constrained(Even { left: 10, looks_ahead });
                if let Some(draft) = draft {
                    tokens = tokens.speculative(draft);
                }
                let ids: Vec<i32> = tokens.by_ref().map(|token| token.unwrap().id).collect();
                (ids, tokens.stats().accepted_tokens)
            };
            let (plain, _) = run(None, false);
            assert_eq!(plain.len(), 10);
            for looks_ahead in [false, true] {
                for draft in [Draft::model(&*fixture.model, 4), Draft::lookup(1, 5)] {
                    let (ids, right) = run(Some(draft), looks_ahead);
                    assert_eq!(ids, plain, "{name}: {options:?}");
                    accepted[usize::from(looks_ahead)] += right;
                }
            }
        }
    }
    assert!(accepted[0] == 0 && accepted[1] > 5, "{accepted:?}");
}

#[test]
fn guesses_end_with_a_token_that_ends_the_text() {
    for name in ["llama", "qwen3_sliding"] {
        let fixture = Fixture::load(name);
        let [greedy, ..] = choices();
        let (all, _, _) = generate(&fixture, greedy.clone(), None);
        for stop in [all[3].id, all[6].id, all[9].id] {
            let options = Options { stop: vec![stop], ..greedy.clone() };
            let (plain, _, _) = generate(&fixture, options.clone(), None);
            let (tokens, _, seen) = generate(&fixture, options, Some(Draft::model(&*fixture.model, 5)));
            let ids = |tokens: &[Token]| tokens.iter().map(|token| token.id).collect::<Vec<i32>>();
            assert_eq!(ids(&tokens), ids(&plain), "{name}");
            assert_eq!(tokens.last().unwrap().finish_reason, Some(FinishReason::Stop));
            assert_eq!(
                seen as usize,
                PROMPT.len() + tokens.len() - 1,
                "{name}: nothing behind the end is kept"
            );
        }
    }
}

#[test]
fn a_model_guesses_itself_rightly() {
    let fixture = Fixture::load("llama");
    let [greedy, ..] = choices();
    let (_, stats, _) = generate(&fixture, greedy, Some(Draft::model(&*fixture.model, 4)));
    assert_eq!(stats.acceptance(), 1.0);
    assert!(stats.accepted_tokens >= MAX_TOKENS * 3 / 4, "{stats:?}");
}

#[test]
fn tokens_come_with_the_probabilities_of_all() {
    let fixture = Fixture::load("llama");
    let [greedy, ..] = choices();
    for token in generate(&fixture, greedy, None).0 {
        assert_eq!(token.logprobs.shape(), [40]);
        let total = ops::sum(&ops::exp(&token.logprobs).unwrap(), .., false).unwrap();
        assert!((total.item::<f32>().unwrap() - 1.0).abs() < 1e-5);
        let top = token.top(3).unwrap();
        assert_eq!(top[0], (token.id, token.logprob));
        assert!(top[0].1 >= top[1].1 && top[1].1 >= top[2].1);
        assert_eq!((token.top(99).unwrap().len(), token.top(0).unwrap().len()), (40, 0));
    }
}

#[test]
fn a_generation_ends_when_it_is_cancelled() {
    let fixture = Fixture::load("llama");
    let cancel = Cancel::default();
    let mut cache = fixture.model.make_cache();
    let tokens = Tokens::new(&*fixture.model, &mut cache, &PROMPT, Options::default()).unwrap();
    let mut tokens = tokens.cancelled_by(&cancel);
    assert!(tokens.next().is_some() && tokens.next().is_some());
    cancel.clone().cancel();
    assert!(tokens.next().is_none() && tokens.next().is_none());
    assert_eq!(tokens.stats().generated_tokens, 2);
    drop(tokens);

    let cancel = Cancel::default();
    let mut cache = fixture.model.make_cache();
    let options = Options { prefill_step: 4, ..Options::default() };
    let tokens = Tokens::new(&*fixture.model, &mut cache, &PROMPT, options).unwrap();
    let mut tokens = tokens.cancelled_by(&cancel).on_prefill(|_, _| {
        cancel.cancel();
        Ok(())
    });
    assert!(tokens.next().is_none());
    drop(tokens);
    assert_eq!(cache.offset(), 4);
}

#[test]
fn one_token_or_none_can_be_asked_for() {
    let fixture = Fixture::load("mistral");
    for draft in [None, Some(Draft::lookup(2, 3))] {
        let options = Options { max_tokens: 1, ..Options::default() };
        let (tokens, stats, seen) = generate(&fixture, options, draft);
        assert_eq!((tokens.len(), stats.generated_tokens, seen), (1, 1, PROMPT.len() as i32));
        assert_eq!(tokens[0].finish_reason, Some(FinishReason::Length));
    }
    let (tokens, _, seen) = generate(&fixture, Options { max_tokens: 0, ..Options::default() }, None);
    assert_eq!((tokens.len(), seen), (0, 0));
}
