//! Several generations at once.

use std::collections::VecDeque;

use super::choose::{Choice, Chooser};
use super::constraint::{Allowed, Constraint};
use super::forward::{forward, ids, last_position, position};
use super::stats::Clock;
use super::{FinishReason, Options, Stats, Token};
use crate::array::Array;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::models::{LanguageModel, check_tokens};
use crate::{memory, ops, transforms};

/// What to generate in a [`Batch`].
pub struct Request<'a> {
    /// Token ids, at least one.
    pub prompt: Vec<i32>,
    /// How; `max_tokens` is at least 1. Keys and values are quantized while the prompt is read, if they
    /// are, and caches that go together are quantized alike.
    pub options: Options,
    /// What the prompt continues: an empty cache of the model, or one that has seen tokens.
    pub cache: Cache,
    /// What the text must look like.
    pub constraint: Option<Box<dyn Constraint + 'a>>,
}

/// A token of one of the requests.
#[derive(Debug)]
pub struct Output {
    /// The number of the request.
    pub request: usize,
    /// The token.
    pub token: Token,
    /// Counts and times of the request so far: from when the first piece of its prompt was read.
    pub stats: Stats,
    /// With the last token, what the request leaves: a cache of as many tokens of prompt and text as its
    /// [`offset`](Cache::offset) says, from the first on.
    pub cache: Option<Cache>,
}

/// Generations that go through a model together, one token of each at a time. Requests may join and
/// leave at any time between two steps; each gets the tokens that it would get alone.
pub struct Batch<'a> {
    model: &'a dyn LanguageModel,
    /// Requests whose prompts are not read to the end.
    waiting: VecDeque<Waiting<'a>>,
    rows: Vec<Row<'a>>,
    /// The cache of `rows`; `None` without any.
    cache: Option<Cache>,
    requests: usize,
}

struct Waiting<'a> {
    number: usize,
    request: Request<'a>,
    chooser: Chooser,
    clock: Clock,
    /// Tokens of the prompt that are in the cache.
    read: usize,
}

struct Row<'a> {
    number: usize,
    options: Options,
    chooser: Chooser,
    constraint: Option<Box<dyn Constraint + 'a>>,
    clock: Clock,
    next: Next,
}

/// What the next token of a row comes from.
enum Next {
    /// It is being computed.
    Choice(Choice),
    /// Logits `[1, vocab_size]`, which wait for a constraint.
    Logits(Array),
}

impl<'a> Batch<'a> {
    /// No requests yet.
    pub fn new(model: &'a dyn LanguageModel) -> Self {
        Self { model, waiting: VecDeque::new(), rows: Vec::new(), cache: None, requests: 0 }
    }

    /// Adds a request, and returns its number. Fails for a prompt that is empty or that the model does
    /// not know, for settings outside their range, and for no tokens at all.
    pub fn join(&mut self, mut request: Request<'a>) -> Result<usize> {
        if request.prompt.is_empty() || request.options.max_tokens == 0 {
            return Err(Error::argument("batch", "a request has a prompt, and a token to generate"));
        }
        check_tokens(self.model, &request.prompt)?;
        let (number, chooser) = (self.requests, Chooser::new(&request.options, self.model)?);
        request.cache.expect(last_position(&request.cache, &request.prompt, &request.options));
        if self.is_empty() {
            memory::reset_peak_memory()?;
        }
        let clock = Clock::new(request.prompt.len());
        self.waiting.push_back(Waiting { number, request, chooser, clock, read: 0 });
        self.requests += 1;
        Ok(number)
    }

    /// Takes a request out. Nothing happens if it is not there any more.
    pub fn leave(&mut self, number: usize) -> Result<()> {
        self.waiting.retain(|waiting| waiting.number != number);
        match self.rows.iter().position(|row| row.number == number) {
            Some(at) => self.remove(&[at]).map(drop),
            None => Ok(()),
        }
    }

    /// Requests that are not finished.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.rows.len()
    }

    /// Whether all requests are finished.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a piece of the prompt of the request that waits longest, if any waits, and returns the next
    /// token of each request whose prompt was read. While these are with the caller, the next ones are
    /// being computed. After an error, drop the batch.
    pub fn step(&mut self) -> Result<Vec<Output>> {
        self.read()?;
        let mut choices = Vec::new();
        for row in &mut self.rows {
            choices.push(row.choose()?);
        }
        let mut outputs: Vec<Output> = Vec::new();
        let last = |row: &Row| row.clock.stats.generated_tokens + 1 == row.options.max_tokens;
        let full: Vec<usize> = (0..self.rows.len()).filter(|&at| last(&self.rows[at])).collect();
        let staying: Vec<usize> = (0..self.rows.len()).filter(|at| !full.contains(at)).collect();
        for (at, (mut row, cache)) in full.iter().copied().zip(self.remove(&full)?) {
            let mut token = choices[at].token(false)?;
            let reason = if row.stops(token.id)? { FinishReason::Stop } else { FinishReason::Length };
            token.finish_reason = Some(reason);
            row.clock.tick()?;
            let stats = row.clock.stats;
            outputs.push(Output { request: row.number, token, stats, cache: Some(cache) });
        }
        let tokens: Vec<&Array> = staying.iter().map(|&at| &choices[at].token).collect();
        if let (Some(cache), false) = (&mut self.cache, tokens.is_empty()) {
            let tokens = ops::expand_dims(&ops::concatenate(tokens, 0)?, 1)?;
            let logits = self.model.forward(&tokens, cache)?;
            for (at, row) in self.rows.iter_mut().enumerate() {
                let at = at as i32;
                let own = ops::slice(&tokens, &[at, 0], &[at + 1, 1], &[1, 1])?;
                row.start(&own, &row_of(&logits, at)?)?;
            }
        }
        let mut stopped = Vec::new();
        for (at, row) in self.rows.iter_mut().enumerate() {
            let mut token = choices[staying[at]].token(false)?;
            row.clock.tick()?;
            if row.stops(token.id)? {
                token.finish_reason = Some(FinishReason::Stop);
                stopped.push(at);
            }
            let stats = row.clock.stats;
            outputs.push(Output { request: row.number, token, stats, cache: None });
        }
        for (row, cache) in self.remove(&stopped)? {
            let output = outputs.iter_mut().find(|output| output.request == row.number);
            output.expect("it was pushed above").cache = Some(cache);
        }
        outputs.sort_by_key(|output| output.request);
        Ok(outputs)
    }

    /// Reads a piece of a prompt; after its last piece the request becomes a row.
    fn read(&mut self) -> Result<()> {
        let Some(waiting) = self.waiting.front_mut() else {
            return Ok(());
        };
        let Waiting { request, chooser, clock, read, .. } = waiting;
        clock.start();
        let (last, before) = request.prompt.split_last().expect("checked by `join`");
        let piece = &before[*read..];
        let piece = &piece[..piece.len().min(request.options.prefill_step.max(1))];
        if !piece.is_empty() {
            let tokens = ids(piece)?;
            forward(self.model, &tokens, &mut request.cache, &request.options)?;
            chooser.penalizer.push(&tokens)?;
            request.cache.eval()?;
            memory::clear_cache()?;
            *read += piece.len();
        }
        if *read < before.len() {
            return Ok(());
        }
        let tokens = ids(&[*last])?;
        let logits = forward(self.model, &tokens, &mut request.cache, &request.options)?;
        let Waiting { number, request, chooser, clock, .. } =
            self.waiting.pop_front().expect("it is the front");
        let Request { options, cache, constraint, .. } = request;
        let next = Next::Logits(position(&logits, -1)?);
        let mut row = Row { number, options, chooser, constraint, clock, next };
        row.start(&tokens, &position(&logits, -1)?)?;
        let mut caches = self.split()?;
        caches.push(cache);
        self.rows.push(row);
        self.merge(&caches)
    }

    /// The cache of each row.
    fn split(&self) -> Result<Vec<Cache>> {
        match &self.cache {
            None => Ok(Vec::new()),
            Some(cache) if self.rows.len() == 1 => Ok(vec![cache.clone()]),
            Some(cache) => (0..self.rows.len()).map(|at| cache.row(at as i32)).collect(),
        }
    }

    fn merge(&mut self, caches: &[Cache]) -> Result<()> {
        self.cache = match caches {
            [] => None,
            [one] => Some(one.clone()),
            many => {
                let merged = Cache::merge(many)?;
                merged.eval()?;
                Some(merged)
            }
        };
        Ok(())
    }

    /// Takes the rows at these ascending places out, with their caches.
    fn remove(&mut self, at: &[usize]) -> Result<Vec<(Row<'a>, Cache)>> {
        if at.is_empty() {
            return Ok(Vec::new());
        }
        let caches = self.split()?;
        let (mut removed, mut kept, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (row, cache)) in std::mem::take(&mut self.rows).into_iter().zip(caches).enumerate() {
            if at.contains(&i) {
                removed.push((row, cache));
            } else {
                kept.push(row);
                left.push(cache);
            }
        }
        self.rows = kept;
        self.merge(&left)?;
        Ok(removed)
    }
}

impl Row<'_> {
    /// Starts to compute what comes after `tokens`, `[1, length]`, by `logits`, `[1, vocab_size]`.
    fn start(&mut self, tokens: &Array, logits: &Array) -> Result<()> {
        self.chooser.penalizer.push(tokens)?;
        self.next = if self.constraint.is_some() {
            transforms::async_eval([logits])?;
            Next::Logits(logits.clone())
        } else {
            let choice = self.chooser.choose(logits, None)?;
            choice.start()?;
            Next::Choice(choice)
        };
        Ok(())
    }

    fn choose(&mut self) -> Result<Choice> {
        match &self.next {
            Next::Choice(choice) => Ok(choice.clone()),
            Next::Logits(logits) => {
                let allowed = self.constraint.as_mut().map(|constraint| constraint.allowed()).transpose()?;
                let choice = self.chooser.choose(logits, allowed.as_ref())?;
                choice.start()?;
                Ok(choice)
            }
        }
    }

    /// Whether the text ends with `token`.
    fn stops(&mut self, token: i32) -> Result<bool> {
        if self.options.stop.contains(&token) {
            return Ok(true);
        }
        let allowed = self.constraint.as_mut().map(|constraint| constraint.push(token)).transpose()?;
        Ok(allowed == Some(Allowed::Nothing))
    }
}

/// The logits of one sequence, `[1, vocab_size]` of `[batch, 1, vocab_size]`.
fn row_of(logits: &Array, row: i32) -> Result<Array> {
    let &[batch, 1, vocabulary] = logits.shape() else {
        return Err(Error::argument("batch", format!("logits of shape {:?}", logits.shape())));
    };
    if row >= batch {
        return Err(Error::argument("batch", format!("{batch} rows of logits for {} requests", row + 1)));
    }
    ops::squeeze(&ops::slice(logits, &[row, 0, 0], &[row + 1, 1, vocabulary], &[1, 1, 1])?, 1)
}
