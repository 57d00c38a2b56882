//! The decode loop.

use std::collections::VecDeque;

use super::choose::{Choice, Chooser};
use super::constraint::{Allowed, Constraint};
use super::forward::{forward, ids, last_position, position};
use super::prefix::thin;
use super::speculate::{Draft, Rewind};
use super::stats::Clock;
use super::{Cancel, FinishReason, Options, Stats, Token};
use crate::array::Array;
use crate::cache::{Cache, QuantizedKvCache, Snapshot};
use crate::error::{Error, Result};
use crate::models::{LanguageModel, check_tokens};
use crate::{memory, ops, transforms};

type Progress<'a> = Box<dyn FnMut(usize, usize) -> Result<()> + 'a>;

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

    /// Remembers the states of layers without a past at positions that `every` divides, and before the last
    /// token of the prompt: at most 16, the farther from the end the fewer. See
    /// [`Remembered`](super::Remembered).
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
                thin(taken);
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
