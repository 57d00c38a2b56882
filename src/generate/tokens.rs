//! The decode loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::constraint::{Allowed, Constraint};
use super::{Draft, Penalizer, Penalties, Sampler, Sampling};
use crate::array::{Array, Dtype};
use crate::cache::{Cache, LayerCache, QuantizedKvCache, Snapshot};
use crate::error::{Error, Result};
use crate::kernels;
use crate::models::{LanguageModel, check_tokens};
use crate::ops::Quantization;
use crate::{memory, ops, transforms};

/// What to generate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// What is changed in their logits before.
    pub penalties: Penalties,
    /// Tokens that end the generation; they are returned too.
    pub stop: Vec<i32>,
    /// Tokens of the prompt that go through the model at a time.
    pub prefill_step: usize,
    /// Whether keys and values are quantized, and from where on.
    pub kv_quantization: Option<KvQuantization>,
}

/// When the keys and values of a cache are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvQuantization {
    /// How: affine.
    pub how: Quantization,
    /// Once the cache has seen so many tokens.
    pub start: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            penalties: Penalties::default(),
            stop: Vec::new(),
            prefill_step: 512,
            kv_quantization: None,
        }
    }
}

/// Ends a generation from outside: clones share it, also with other threads.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the generations that watch it: after the token, or the piece of the prompt, at work.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a generation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// A token or a text that ends it, or a constraint that lets nothing follow.
    Stop,
    /// As many tokens as were asked for.
    Length,
}

/// One token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its id.
    pub id: i32,
    /// The logarithm of its probability, after penalties and constraints, before anything was cut off
    /// and at temperature 1.
    pub logprob: f32,
    /// Those of all tokens, `[vocab_size]`. It stays on the device until it is read.
    pub logprobs: Array,
    /// Whether it was guessed before the model was asked.
    pub from_draft: bool,
    /// Set on the last token.
    pub finish_reason: Option<FinishReason>,
}

impl Token {
    /// The `count` likeliest tokens with their log probabilities, likeliest first.
    pub fn top(&self, count: usize) -> Result<Vec<(i32, f32)>> {
        let count = i32::try_from(count).unwrap_or(i32::MAX).min(self.logprobs.dim(0)?);
        if count == 0 {
            return Ok(Vec::new());
        }
        let ids = ops::astype(&kernels::top(&self.logprobs, count)?, Dtype::Int32)?;
        let logprobs = ops::astype(&ops::take(&self.logprobs, &ids, 0)?, Dtype::Float32)?;
        Ok(ids.to_vec()?.into_iter().zip(logprobs.to_vec()?).collect())
    }
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
    /// Tokens that were guessed.
    pub draft_tokens: usize,
    /// Those of them that the model chose too.
    pub accepted_tokens: usize,
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

    /// How much of what was guessed was right, from 0 to 1.
    pub fn acceptance(&self) -> f64 {
        self.accepted_tokens as f64 / self.draft_tokens.max(1) as f64
    }
}

/// [`Stats`] as they grow.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    pub(super) stats: Stats,
    start: Option<Instant>,
    first: Option<Instant>,
}

impl Clock {
    pub(super) fn new(prompt_tokens: usize) -> Self {
        Self { stats: Stats { prompt_tokens, ..Stats::default() }, ..Self::default() }
    }

    /// Notes that work begins, if it has not begun yet.
    pub(super) fn start(&mut self) {
        self.start.get_or_insert_with(Instant::now);
    }

    /// Counts a token that is there; whether it is the first.
    pub(super) fn tick(&mut self) -> Result<bool> {
        let stats = &mut self.stats;
        match self.first {
            None => {
                self.first = Some(Instant::now());
                stats.prompt_time = self.start.map(|start| start.elapsed()).unwrap_or_default();
            }
            Some(first) => stats.generation_time = first.elapsed(),
        }
        stats.generated_tokens += 1;
        stats.peak_memory = memory::peak_memory()?;
        Ok(stats.generated_tokens == 1)
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

type Progress<'a> = Box<dyn FnMut(usize, usize) -> Result<()> + 'a>;

/// What chooses tokens: its clones choose the same.
#[derive(Debug, Clone)]
pub(super) struct Chooser {
    pub(super) penalizer: Penalizer,
    pub(super) sampler: Sampler,
}

/// A token that was chosen, perhaps not computed yet.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// `[1]`.
    pub(super) token: Array,
    /// `[1, 1]`.
    pub(super) logprob: Array,
    /// `[1, vocab_size]`.
    pub(super) logprobs: Array,
}

impl Chooser {
    pub(super) fn new(options: &Options, model: &dyn LanguageModel) -> Result<Self> {
        let penalizer = Penalizer::new(options.penalties.clone(), model.vocab_size())?;
        Ok(Self { penalizer, sampler: Sampler::new(options.sampling.clone())? })
    }

    /// The token after the text so far, by its `logits`, `[1, vocab_size]`.
    pub(super) fn choose(&mut self, logits: &Array, allowed: Option<&Array>) -> Result<Choice> {
        let mut logits = self.penalizer.apply(logits)?;
        if let Some(allowed) = allowed {
            logits = ops::where_(allowed, &logits, f32::NEG_INFINITY)?;
        }
        let logprobs = (&logits - ops::logsumexp(&logits, -1, true)?)?;
        let token = self.sampler.sample(&logprobs)?;
        let logprob = ops::take_along_axis(&logprobs, &ops::expand_dims(&token, 1)?, -1)?;
        Ok(Choice { token, logprob, logprobs })
    }
}

impl Choice {
    pub(super) fn start(&self) -> Result<()> {
        transforms::async_eval([&self.token, &self.logprob, &self.logprobs])
    }

    /// Waits for it.
    pub(super) fn token(&self, from_draft: bool) -> Result<Token> {
        Ok(Token {
            id: ops::astype(&self.token, Dtype::Int32)?.item::<i32>()?,
            logprob: ops::astype(&self.logprob, Dtype::Float32)?.item::<f32>()?,
            logprobs: ops::squeeze(&self.logprobs, 0)?,
            from_draft,
            finish_reason: None,
        })
    }
}

/// What the next token comes from.
enum Next {
    /// Nothing yet.
    Prompt,
    /// A token that is being computed.
    Choice(Choice),
    /// Logits `[1, vocab_size]`, which wait for a constraint.
    Logits(Array),
    /// This token, which the model has not seen.
    Seen(i32),
}

/// The tokens that follow a prompt. An error ends the iteration.
///
/// While a token is with the caller, the next one is being computed; not so with a [`Draft`], where the
/// guess needs the token.
pub struct Tokens<'a> {
    model: &'a dyn LanguageModel,
    cache: &'a mut Cache,
    options: Options,
    chooser: Chooser,
    /// The prompt, until it is read.
    prompt: Vec<i32>,
    progress: Option<Progress<'a>>,
    constraint: Option<Box<dyn Constraint + 'a>>,
    draft: Option<Draft<'a>>,
    cancel: Option<Cancel>,
    /// How far boundaries are apart, and those that were reached.
    boundaries: Option<(usize, Vec<Snapshot>)>,
    next: Next,
    /// Tokens that were guessed rightly, and the one after them.
    ready: VecDeque<Token>,
    clock: Clock,
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
        if let Some(kv) = options.kv_quantization {
            QuantizedKvCache::new(kv.how)?;
        }
        cache.expect(last_position(cache, prompt, &options));
        Ok(Self {
            model,
            cache,
            chooser: Chooser::new(&options, model)?,
            done: options.max_tokens == 0,
            options,
            prompt: prompt.to_vec(),
            progress: None,
            constraint: None,
            draft: None,
            cancel: None,
            boundaries: None,
            next: Next::Prompt,
            ready: VecDeque::new(),
            clock: Clock::new(prompt.len()),
        })
    }

    /// Calls `f` with the tokens of the prompt that were read, and all of them, as they are read. If it
    /// fails, the generation ends with its error.
    pub fn on_prefill(mut self, f: impl FnMut(usize, usize) -> Result<()> + 'a) -> Self {
        self.progress = Some(Box::new(f));
        self
    }

    /// Lets only those tokens come that `constraint` allows.
    pub fn constrained(mut self, constraint: impl Constraint + 'a) -> Self {
        self.constraint = Some(Box::new(constraint));
        self
    }

    /// Guesses tokens, and lets the model check several at once. The tokens are the same as without.
    pub fn speculative(mut self, draft: Draft<'a>) -> Self {
        self.draft = Some(draft);
        self
    }

    /// Ends when `cancel` is cancelled: without another token and without an error.
    pub fn cancelled_by(mut self, cancel: &Cancel) -> Self {
        self.cancel = Some(cancel.clone());
        self
    }

    /// Remembers the states of layers without a past at every position that `every` divides, and before
    /// the last token of the prompt: see [`Remembered`](super::Remembered).
    pub fn with_boundaries(mut self, every: usize) -> Self {
        self.boundaries = Some((every.max(1), Vec::new()));
        self
    }

    /// The states that were remembered since.
    pub fn take_boundaries(&mut self) -> Vec<Snapshot> {
        self.boundaries.as_mut().map(|(_, taken)| std::mem::take(taken)).unwrap_or_default()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.clock.stats
    }

    /// The tokens that end it.
    pub fn stop_tokens(&self) -> &[i32] {
        &self.options.stop
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }

    /// Reads the prompt. Only its last token needs logits; those of the others are never computed.
    fn prefill(&mut self) -> Result<()> {
        memory::reset_peak_memory()?;
        let prompt = std::mem::take(&mut self.prompt);
        if let Some(draft) = &mut self.draft {
            draft.push(&prompt);
        }
        let (last, before) = prompt.split_last().expect("checked by `new`");
        let mut read = 0;
        while read < before.len() {
            let mut end = before.len().min(read + self.options.prefill_step.max(1));
            if let Some((every, _)) = &self.boundaries {
                let position = usize::try_from(self.cache.offset()).unwrap_or(0);
                end = end.min(read + every - position % every);
            }
            let tokens = ids(&before[read..end])?;
            forward(self.model, &tokens, self.cache, &self.options)?;
            self.chooser.penalizer.push(&tokens)?;
            self.cache.eval()?;
            memory::clear_cache()?;
            read = end;
            self.note_boundary(read == before.len());
            self.report(read)?;
            if self.is_cancelled() {
                return Ok(());
            }
        }
        self.step(&ids(&[*last])?)
    }

    fn note_boundary(&mut self, always: bool) {
        if let Some((every, taken)) = &mut self.boundaries {
            let position = usize::try_from(self.cache.offset()).unwrap_or(0);
            if always || position.is_multiple_of(*every) {
                taken.push(self.cache.snapshot());
            }
        }
    }

    fn report(&mut self, read: usize) -> Result<()> {
        self.progress.as_mut().map_or(Ok(()), |progress| progress(read, self.clock.stats.prompt_tokens))
    }

    /// Starts to compute what comes after `tokens`, `[1, length]`.
    fn step(&mut self, tokens: &Array) -> Result<()> {
        self.chooser.penalizer.push(tokens)?;
        let logits = forward(self.model, tokens, self.cache, &self.options)?;
        let logits = position(&logits, -1)?;
        self.next = if self.constraint.is_some() {
            transforms::async_eval([&logits])?;
            Next::Logits(logits)
        } else {
            let choice = self.chooser.choose(&logits, None)?;
            choice.start()?;
            Next::Choice(choice)
        };
        Ok(())
    }

    /// The next token; `None` if the prompt was not read to its end.
    fn advance(&mut self) -> Result<Option<Token>> {
        self.clock.start();
        if matches!(self.next, Next::Prompt) {
            self.prefill()?;
        }
        let left = self.options.max_tokens - self.clock.stats.generated_tokens;
        let Some(mut token) = self.take(left == 1)? else {
            return Ok(None);
        };
        if self.clock.tick()? {
            self.report(self.clock.stats.prompt_tokens)?;
        }
        if self.clock.stats.generated_tokens.is_multiple_of(256) {
            memory::clear_cache()?;
        }
        let mut stopped = self.options.stop.contains(&token.id);
        if let Some(constraint) = &mut self.constraint
            && !stopped
        {
            stopped = constraint.push(token.id)? == Allowed::Nothing;
        }
        token.finish_reason = match stopped {
            true => Some(FinishReason::Stop),
            false => (left == 1).then_some(FinishReason::Length),
        };
        self.done = token.finish_reason.is_some();
        Ok(Some(token))
    }

    /// Waits for the next token, and has the one after it started unless it is the `last`.
    fn take(&mut self, last: bool) -> Result<Option<Token>> {
        if self.ready.is_empty()
            && let Next::Seen(before) = self.next
        {
            self.speculate(before)?;
        }
        if let Some(token) = self.ready.pop_front() {
            return Ok(Some(token));
        }
        let choice = match std::mem::replace(&mut self.next, Next::Prompt) {
            Next::Choice(choice) => choice,
            Next::Logits(logits) => {
                let constraint = self.constraint.as_mut().expect("it made the logits wait");
                let allowed = constraint.allowed()?;
                let choice = self.chooser.choose(&logits, Some(&allowed))?;
                choice.start()?;
                choice
            }
            // Cancelled while the prompt was read.
            Next::Prompt | Next::Seen(_) => return Ok(None),
        };
        if !last && self.draft.is_none() {
            self.step(&ops::expand_dims(&choice.token, 0)?)?;
        }
        let token = choice.token(false)?;
        if let Some(draft) = &mut self.draft {
            draft.push(&[token.id]);
            self.next = Next::Seen(token.id);
        }
        Ok(Some(token))
    }

    /// Guesses what follows `before`, the last token so far, and lets the model choose at all of these
    /// positions at once: what it chose up to the first wrong guess becomes `ready`.
    fn speculate(&mut self, before: i32) -> Result<()> {
        let left = self.options.max_tokens - self.clock.stats.generated_tokens;
        let draft = self.draft.as_mut().expect("only a draft leaves a token that was not seen");
        let mut guesses = draft.guess(left - 1, self.model.vocab_size())?;
        let mut allowed = Vec::new();
        if let Some(constraint) = &mut self.constraint {
            allowed = constraint.look_ahead(&guesses)?;
            guesses.truncate(allowed.len() - 1);
        }
        let fed: Vec<i32> = std::iter::once(before).chain(guesses.iter().copied()).collect();
        let rewind = Rewind::before(self.cache);
        let tokens = ids(&fed)?;
        let logits = forward(self.model, &tokens, self.cache, &self.options)?;
        let (mut choices, mut after) = (Vec::new(), Vec::new());
        for (i, &id) in fed.iter().enumerate() {
            self.chooser.penalizer.push(&ids(&[id])?)?;
            choices.push(self.chooser.choose(&position(&logits, i as i32)?, allowed.get(i))?);
            after.push(self.chooser.clone());
        }
        transforms::async_eval(choices.iter().flat_map(|c| [&c.token, &c.logprob]))?;
        let (mut accepted, mut kept) = (0, 1);
        for (i, choice) in choices.iter().enumerate() {
            let mut token = choice.token(false)?;
            token.from_draft = guesses.get(i) == Some(&token.id);
            accepted += usize::from(token.from_draft);
            let go_on = token.from_draft && !self.options.stop.contains(&token.id);
            kept += usize::from(go_on);
            self.next = Next::Seen(token.id);
            draft.push(&[token.id]);
            self.ready.push_back(token);
            if !go_on {
                break;
            }
        }
        self.chooser = after.swap_remove(kept - 1);
        rewind.to(self.cache, self.model, &fed, kept)?;
        self.clock.stats.draft_tokens += guesses.len();
        self.clock.stats.accepted_tokens += accepted;
        Ok(())
    }
}

impl Iterator for Tokens<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.done || self.is_cancelled() {
            self.done = true;
            return None;
        }
        let token = self.advance();
        self.done |= !matches!(token, Ok(Some(_)));
        token.transpose()
    }
}

/// A cache before tokens that may have to go again.
pub(super) struct Rewind {
    /// Where layers can't forget: sharing the arrays costs a copy of them when they are written.
    before: Option<Cache>,
}

impl Rewind {
    pub(super) fn before(cache: &Cache) -> Self {
        let all = cache.layers().iter().all(LayerCache::forgets);
        Self { before: (!all).then(|| cache.clone()) }
    }

    /// Leaves the first `kept` of the tokens that were `fed` since in the cache.
    pub(super) fn to(
        self,
        cache: &mut Cache,
        model: &dyn LanguageModel,
        fed: &[i32],
        kept: usize,
    ) -> Result<()> {
        let back = fed.len() - kept;
        if back == 0 || cache.trim(back as i32).is_ok() {
            return Ok(());
        }
        let Some(before) = self.before else {
            return Err(Error::argument("generate", "the cache can't forget wrong guesses"));
        };
        *cache = before;
        if kept > 0 {
            model.forward(&ids(&fed[..kept])?, cache)?;
            cache.eval()?;
        }
        Ok(())
    }
}

/// The logits of `tokens`, after which keys and values are quantized if it is time.
pub(super) fn forward(
    model: &dyn LanguageModel,
    tokens: &Array,
    cache: &mut Cache,
    options: &Options,
) -> Result<Array> {
    let logits = model.forward(tokens, cache)?;
    if let Some(KvQuantization { how, start }) = options.kv_quantization
        && usize::try_from(cache.offset()).is_ok_and(|seen| seen >= start)
    {
        cache.quantize(how)?;
    }
    Ok(logits)
}

/// How long a sequence can become that continues `cache` with a prompt.
pub(super) fn last_position(cache: &Cache, prompt: &[i32], options: &Options) -> i32 {
    let length = prompt.len().saturating_add(options.max_tokens);
    cache.offset().saturating_add(i32::try_from(length).unwrap_or(i32::MAX))
}

/// Token ids as a batch of one.
pub(super) fn ids(tokens: &[i32]) -> Result<Array> {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

/// The logits of one position, counted from the end if negative: `[1, vocab_size]` of `[1, length,
/// vocab_size]`.
pub(super) fn position(logits: &Array, at: i32) -> Result<Array> {
    let &[1, length, vocabulary] = logits.shape() else {
        return Err(Error::argument("generate", format!("logits of shape {:?}", logits.shape())));
    };
    let at = if at < 0 { at + length } else { at };
    ops::squeeze(&ops::slice(logits, &[0, at, 0], &[1, at + 1, vocabulary], &[1, 1, 1])?, 1)
}
