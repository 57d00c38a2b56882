//! The decode loop.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Sampler, Sampling};
use crate::array::Array;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::models::{LanguageModel, check_tokens};
use crate::{memory, ops, transforms};

/// What to generate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Tokens that end the generation; they are returned too.
    pub stop: Vec<i32>,
    /// Tokens of the prompt that go through the model at a time.
    pub prefill_step: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_tokens: 256, sampling: Sampling::default(), stop: Vec::new(), prefill_step: 512 }
    }
}

/// Why a generation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// A token that ends it.
    Stop,
    /// As many tokens as were asked for.
    Length,
}

/// One token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: i32,
    /// The logarithm of its probability, before anything was cut off and at temperature 1.
    pub logprob: f32,
    /// Set on the last token.
    pub finish_reason: Option<FinishReason>,
}

/// Counts and times.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the start to the first token.
    pub prompt_time: Duration,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// From the first token to the last.
    pub generation_time: Duration,
    /// The most memory that was active at once, in bytes.
    pub peak_memory: usize,
}

impl Stats {
    /// Prompt tokens per second up to the first token.
    pub fn prompt_tps(&self) -> f64 {
        per_second(self.prompt_tokens, self.prompt_time)
    }

    /// Tokens per second after the first one; 0 if there are none.
    pub fn generation_tps(&self) -> f64 {
        per_second(self.generated_tokens.saturating_sub(1), self.generation_time)
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

type Progress<'a> = Box<dyn FnMut(usize, usize) -> Result<()> + 'a>;

/// The tokens that follow a prompt. An error ends the iteration.
///
/// While a token is with the caller, the next one is being computed.
pub struct Tokens<'a> {
    model: &'a dyn LanguageModel,
    cache: &'a mut Cache,
    options: Options,
    sampler: Sampler,
    /// The prompt, until it is read.
    prompt: Vec<i32>,
    progress: Option<Progress<'a>>,
    /// Id and log probability of the next token, being computed.
    pending: Option<(Array, Array)>,
    first: Option<Instant>,
    stats: Stats,
    done: bool,
}

impl<'a> Tokens<'a> {
    /// Continues what is in `cache` with `prompt`, which must not be empty, and then with tokens of the
    /// model. Fails for ids that the model does not know, and settings outside their range.
    pub fn new(
        model: &'a dyn LanguageModel,
        cache: &'a mut Cache,
        prompt: &[i32],
        options: Options,
    ) -> Result<Self> {
        if prompt.is_empty() {
            return Err(Error::argument("generate", "the prompt is empty"));
        }
        check_tokens(model, prompt)?;
        Ok(Self {
            model,
            cache,
            sampler: Sampler::new(options.sampling)?,
            done: options.max_tokens == 0,
            options,
            prompt: prompt.to_vec(),
            progress: None,
            pending: None,
            first: None,
            stats: Stats { prompt_tokens: prompt.len(), ..Stats::default() },
        })
    }

    /// Calls `f` with the tokens of the prompt that were read, and all of them, as they are read. If it
    /// fails, the generation ends with its error.
    pub fn on_prefill(mut self, f: impl FnMut(usize, usize) -> Result<()> + 'a) -> Self {
        self.progress = Some(Box::new(f));
        self
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Reads the prompt. Only its last token needs logits; those of the others are never computed.
    fn prefill(&mut self) -> Result<()> {
        memory::reset_peak_memory()?;
        let prompt = std::mem::take(&mut self.prompt);
        let (last, before) = prompt.split_last().expect("checked by `new`");
        let mut read = 0;
        for chunk in before.chunks(self.options.prefill_step.max(1)) {
            self.forward(&ids(chunk)?)?;
            self.cache.eval()?;
            memory::clear_cache()?;
            read += chunk.len();
            self.report(read)?;
        }
        self.pending = Some(self.step(&ids(&[*last])?)?);
        Ok(())
    }

    fn report(&mut self, read: usize) -> Result<()> {
        self.progress.as_mut().map_or(Ok(()), |progress| progress(read, self.stats.prompt_tokens))
    }

    fn forward(&mut self, tokens: &Array) -> Result<Array> {
        self.model.forward(tokens, self.cache)
    }

    /// Starts to compute the token after `tokens`, `[1, length]`.
    fn step(&mut self, tokens: &Array) -> Result<(Array, Array)> {
        let logits = self.forward(tokens)?;
        let &[_, length, vocabulary] = logits.shape() else {
            return Err(Error::argument("generate", format!("logits of shape {:?}", logits.shape())));
        };
        let last = ops::slice(&logits, &[0, length - 1, 0], &[1, length, vocabulary], &[1, 1, 1])?;
        let logits = ops::squeeze(&last, 1)?;
        let logprobs = (&logits - ops::logsumexp(&logits, -1, true)?)?;
        let token = self.sampler.sample(&logprobs)?;
        let logprob = ops::take_along_axis(&logprobs, &ops::expand_dims(&token, 1)?, -1)?;
        transforms::async_eval([&token, &logprob])?;
        Ok((token, logprob))
    }

    fn advance(&mut self) -> Result<Token> {
        let start = Instant::now();
        if self.pending.is_none() {
            self.prefill()?;
        }
        let (token, logprob) = self.pending.take().expect("the step before has left one");
        let is_last = self.stats.generated_tokens + 1 == self.options.max_tokens;
        if !is_last {
            self.pending = Some(self.step(&ops::expand_dims(&token, 0)?)?);
        }
        let id = ops::astype(&token, crate::Dtype::Int32)?.item::<i32>()?;
        let logprob = ops::astype(&logprob, crate::Dtype::Float32)?.item::<f32>()?;
        match self.first {
            None => {
                self.first = Some(Instant::now());
                self.stats.prompt_time = start.elapsed();
                self.report(self.stats.prompt_tokens)?;
            }
            Some(first) => self.stats.generation_time = first.elapsed(),
        }
        self.stats.generated_tokens += 1;
        self.stats.peak_memory = memory::peak_memory()?;
        if self.stats.generated_tokens.is_multiple_of(256) {
            memory::clear_cache()?;
        }
        let stopped = self.options.stop.contains(&id).then_some(FinishReason::Stop);
        let finish_reason = stopped.or(is_last.then_some(FinishReason::Length));
        self.done = finish_reason.is_some();
        Ok(Token { id, logprob, finish_reason })
    }
}

impl Iterator for Tokens<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.done {
            return None;
        }
        let token = self.advance();
        self.done |= token.is_err();
        Some(token)
    }
}

/// Token ids as a batch of one.
fn ids(tokens: &[i32]) -> Result<Array> {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}
