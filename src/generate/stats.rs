//! Counts and times of a generation.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::memory;

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
