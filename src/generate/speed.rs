//! How fast a model reads a prompt and generates.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Batch, Options, Request, Stats, Tokens};
use crate::error::{Error, Result};
use crate::models::{self, LanguageModel};
use crate::nn::Module;
use crate::{Dtype, memory, random, transforms};

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeedSettings {
    /// Tokens of the prompt, drawn at random; at least 1.
    pub prompt_tokens: i32,
    /// Tokens to generate, greedily; at least 2.
    pub generate_tokens: usize,
    /// Measured runs, after one that is not; at least 1.
    pub runs: usize,
    /// Requests at once, with the same prompt; at least 1. Speeds are those of all together.
    #[serde(default = "one")]
    pub batch_size: usize,
}

fn one() -> usize {
    1
}

/// One quantity over the runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle of them.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// How it was measured.
    #[serde(flatten)]
    pub settings: SpeedSettings,
    /// Tokens of the prompt per second, up to the first token generated.
    pub prompt_tps: Spread,
    /// Tokens generated per second, after the first.
    pub generation_tps: Spread,
    /// Seconds to the first token: the median.
    pub first_token_s: f64,
    /// Seconds until the weights were in memory.
    pub load_s: f64,
    /// The most memory that was active at once, in bytes.
    pub peak_memory_bytes: usize,
    /// Bytes of the weights.
    pub weight_bytes: usize,
}

/// Measures the model of a checkpoint directory. `check` runs after every token; its error ends it.
pub fn speed(dir: &Path, settings: SpeedSettings, check: &mut dyn FnMut() -> Result<()>) -> Result<Speed> {
    let SpeedSettings { prompt_tokens, generate_tokens, runs, batch_size } = settings;
    if runs == 0 || batch_size == 0 || prompt_tokens < 1 || generate_tokens < 2 {
        let message =
            "it takes a run, a request at a time, a prompt token and two tokens to generate, or more";
        return Err(Error::argument("bench", message));
    }
    let start = Instant::now();
    let model = models::load(dir)?;
    let weights = model.parameters();
    transforms::eval(weights.iter().map(|(_, array)| array))?;
    let load_s = start.elapsed().as_secs_f64();
    let key = random::key(0)?;
    let prompt = random::randint(0, model.vocab_size(), &[prompt_tokens], Dtype::Int32, Some(&key))?;
    let prompt = prompt.to_vec::<i32>()?;
    let mut stats = Vec::new();
    for run in 0..=runs {
        let figures = match batch_size {
            1 => measure(&*model, &prompt, generate_tokens, check)?,
            _ => measure_batch(&*model, &prompt, generate_tokens, batch_size, check)?,
        };
        if run > 0 {
            stats.push(figures);
        }
    }
    Ok(Speed {
        settings,
        prompt_tps: spread(stats.iter().map(Stats::prompt_tps)),
        generation_tps: spread(stats.iter().map(Stats::generation_tps)),
        first_token_s: spread(stats.iter().map(|s| s.prompt_time.as_secs_f64())).median,
        load_s,
        peak_memory_bytes: stats.iter().map(|s| s.peak_memory).max().unwrap_or(0),
        weight_bytes: model.nbytes(),
    })
}

fn measure(
    model: &dyn LanguageModel,
    prompt: &[i32],
    max_tokens: usize,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Stats> {
    let mut cache = model.make_cache();
    let options = Options { max_tokens, ..Options::default() };
    let mut tokens = Tokens::new(model, &mut cache, prompt, options)?;
    for token in tokens.by_ref() {
        token?;
        check()?;
    }
    Ok(tokens.stats())
}

/// Figures of a batch: the prompts count up to the first token of the last request, and what comes
/// after it as generated.
fn measure_batch(
    model: &dyn LanguageModel,
    prompt: &[i32],
    max_tokens: usize,
    batch_size: usize,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Stats> {
    memory::reset_peak_memory()?;
    let start = Instant::now();
    let mut batch = Batch::new(model);
    for _ in 0..batch_size {
        // The first ones generate while the others read, and are to be there until these have read.
        let options = Options { max_tokens: max_tokens + batch_size, ..Options::default() };
        let (prompt, cache) = (prompt.to_vec(), model.make_cache());
        batch.join(Request { prompt, options, cache, constraint: None })?;
    }
    let mut stats = Stats { prompt_tokens: prompt.len() * batch_size, ..Stats::default() };
    let mut first: Option<Instant> = None;
    loop {
        let outputs = batch.step()?;
        check()?;
        match first {
            Some(first) => {
                stats.generated_tokens += outputs.len();
                stats.generation_time = first.elapsed();
            }
            None if outputs.len() == batch_size => {
                stats.prompt_time = start.elapsed();
                stats.generated_tokens = 1;
                first = Some(Instant::now());
            }
            None => {}
        }
        if batch.is_empty() || stats.generated_tokens >= batch_size * (max_tokens - 1) {
            break;
        }
    }
    stats.peak_memory = memory::peak_memory()?;
    Ok(stats)
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    };
    Spread { median, min: values[0], max: values[values.len() - 1] }
}
