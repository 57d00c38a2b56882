//! Step 4: the rungs of parity, from the weights up to decoding with a cache.

use serde::{Deserialize, Serialize};

use super::compare::Deviation;
use super::oracle::{Ids, Oracle};
use crate::array::{Array, HostTensor};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::models::{LanguageModel, check_tokens, probe};
use crate::ops;

/// The largest deviation that passes, relative to the standard deviation of the reference: float32
/// rounding of another order of summation stays well below it, a wrong formula does not.
pub const TOLERANCE: f64 = 1e-4;

/// How far the climb went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Parity {
    /// In order; none after the first that failed.
    pub rungs: Vec<Rung>,
}

/// One rung.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rung {
    /// `weights`, `stages`, `logits`, `greedy`, `batch` or `cache`.
    pub name: String,
    /// How it came out.
    pub outcome: Outcome,
    /// What was compared, or what went wrong.
    pub detail: String,
    /// What was measured, in the order of the computation.
    pub measured: Vec<Measured>,
}

/// How a rung came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Within the tolerance.
    Passed,
    /// Not.
    Failed,
    /// The oracle has nothing to compare with.
    Skipped,
}

/// A named deviation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Which stage, or which way of running.
    pub name: String,
    /// Its deviation; `None` if the shapes differ.
    pub deviation: Option<Deviation>,
}

impl Measured {
    fn new(name: impl Into<String>, found: &Array, expected: &HostTensor) -> Result<Self> {
        let deviation = Deviation::between(&float32(found)?, expected)?;
        Ok(Self { name: name.into(), deviation })
    }

    /// Whether it is within the tolerance.
    pub fn passes(&self) -> bool {
        self.deviation.as_ref().is_some_and(|d| d.relative <= TOLERANCE)
    }
}

impl Parity {
    /// Whether no rung failed.
    pub fn passed(&self) -> bool {
        self.rungs.iter().all(|rung| rung.outcome != Outcome::Failed)
    }

    /// The rung that failed.
    pub fn failure(&self) -> Option<&Rung> {
        self.rungs.iter().find(|rung| rung.outcome == Outcome::Failed)
    }
}

impl Rung {
    fn skipped(name: &str, what: &str) -> Self {
        Self::new(name, Outcome::Skipped, format!("the oracle has no {what}"), Vec::new())
    }

    fn new(name: &str, outcome: Outcome, detail: String, measured: Vec<Measured>) -> Self {
        Self { name: name.into(), outcome, detail, measured }
    }

    /// Passes if all of `measured` do; the detail names the first that does not.
    fn of(name: &str, measured: Vec<Measured>) -> Self {
        match measured.iter().find(|m| !m.passes()) {
            None => {
                let worst = measured.iter().filter_map(|m| m.deviation.as_ref()).map(|d| d.relative);
                let worst = worst.fold(0.0, f64::max);
                Self::new(name, Outcome::Passed, format!("worst {worst:.1e}"), measured)
            }
            Some(first) => {
                let detail = match &first.deviation {
                    Some(d) => format!(
                        "`{}` is the first to diverge: {:.1e} of a standard deviation at {:?}, {} instead of {}",
                        first.name, d.relative, d.at, d.found, d.expected
                    ),
                    None => format!("`{}` has another shape than the oracle's", first.name),
                };
                Self::new(name, Outcome::Failed, detail, measured)
            }
        }
    }

    /// The largest deviation that was measured.
    pub fn worst(&self) -> Option<f64> {
        self.measured.iter().filter_map(|m| Some(m.deviation.as_ref()?.relative)).reduce(f64::max)
    }
}

/// Climbs until a rung fails. `model` computes in float32.
pub(super) fn climb(model: &dyn LanguageModel, oracle: &Oracle) -> Result<Parity> {
    let mut parity = Parity { rungs: Vec::new() };
    let weights = |detail| Rung::new("weights", Outcome::Passed, detail, Vec::new());
    parity.rungs.push(weights("every tensor and every parameter is accounted for".into()));
    for rung in [stages, logits, greedy, batch, cache] {
        let rung = rung(model, oracle)?;
        let failed = rung.outcome == Outcome::Failed;
        parity.rungs.push(rung);
        if failed {
            break;
        }
    }
    Ok(parity)
}

fn stages(model: &dyn LanguageModel, oracle: &Oracle) -> Result<Rung> {
    if oracle.stages.is_empty() {
        return Ok(Rung::skipped("stages", "intermediate results"));
    }
    let (logits, stages) = probe::record(|| full(model, &oracle.input_ids));
    logits?;
    let mut measured = Vec::new();
    for (name, expected) in &oracle.stages {
        let Some((_, found)) = stages.iter().find(|(stage, _)| stage == name) else {
            let known: Vec<&str> = stages.iter().map(|(name, _)| name.as_str()).collect();
            let message = format!("stage `{name}` is none of the model's: {}", known.join(", "));
            return Err(Error::invalid(&oracle.path, message));
        };
        measured.push(Measured::new(name, found, expected)?);
    }
    Ok(Rung::of("stages", measured))
}

fn logits(model: &dyn LanguageModel, oracle: &Oracle) -> Result<Rung> {
    let found = full(model, &oracle.input_ids)?;
    Ok(Rung::of("logits", vec![Measured::new("logits", &found, &oracle.logits)?]))
}

fn greedy(model: &dyn LanguageModel, oracle: &Oracle) -> Result<Rung> {
    if oracle.greedy.is_empty() {
        return Ok(Rung::skipped("greedy", "greedy tokens"));
    }
    let mut cache = model.make_cache();
    let mut last = model.forward(&tokens(model, &oracle.input_ids)?, &mut cache)?;
    let mut found = Vec::with_capacity(oracle.greedy.len());
    for _ in &oracle.greedy {
        let length = last.dim(1)?;
        let next = ops::argmax(
            &ops::slice(&last, &[0, length - 1, 0], &[1, length, model.vocab_size()], &[1; 3])?,
            -1,
            false,
        )?;
        let next = ops::astype(&next, crate::Dtype::Int32)?;
        found.push(next.item::<i32>()?);
        last = model.forward(&next, &mut cache)?;
    }
    let outcome = if found == oracle.greedy { Outcome::Passed } else { Outcome::Failed };
    let detail = match found.iter().zip(&oracle.greedy).position(|(a, b)| a != b) {
        None => format!("{} tokens equal", found.len()),
        Some(at) => format!("token {at} is {} instead of {}", found[at], oracle.greedy[at]),
    };
    Ok(Rung::new("greedy", outcome, detail, Vec::new()))
}

fn batch(model: &dyn LanguageModel, oracle: &Oracle) -> Result<Rung> {
    let Some((ids, expected)) = &oracle.batch else {
        return Ok(Rung::skipped("batch", "batch"));
    };
    let name = format!("{} prompts", ids.shape[0]);
    Ok(Rung::of("batch", vec![Measured::new(name, &full(model, ids)?, expected)?]))
}

/// The prompt through a cache, token by token and in uneven pieces, against the logits of one pass.
fn cache(model: &dyn LanguageModel, oracle: &Oracle) -> Result<Rung> {
    let length = oracle.input_ids.shape[1];
    let half = (length / 2).max(1);
    let one_by_one: Vec<i32> = std::iter::once(half).chain((half..length).map(|_| 1)).collect();
    let uneven: Vec<i32> =
        [5, 7, 1, 3].into_iter().chain(std::iter::repeat(11)).take(length as usize).collect();
    let mut measured = Vec::new();
    for (name, pieces) in [("prefill, then token by token", one_by_one), ("uneven pieces", uneven)] {
        let found = in_pieces(model, &oracle.input_ids, &pieces)?;
        measured.push(Measured::new(name, &found, &oracle.logits)?);
    }
    Ok(Rung::of("cache", measured))
}

/// How far the logits are from the oracle's in the dtype that the model will be used in.
pub(super) fn as_used(model: &dyn LanguageModel, oracle: &Oracle) -> Result<Measured> {
    Measured::new("logits", &full(model, &oracle.input_ids)?, &oracle.logits)
}

fn full(model: &dyn LanguageModel, ids: &Ids) -> Result<Array> {
    model.forward(&tokens(model, ids)?, &mut model.make_cache())
}

fn in_pieces(model: &dyn LanguageModel, ids: &Ids, pieces: &[i32]) -> Result<Array> {
    let [batch, length] = ids.shape;
    let all = tokens(model, ids)?;
    let mut cache: Cache = model.make_cache();
    let (mut start, mut logits) = (0, Vec::new());
    for piece in pieces {
        let stop = (start + piece).min(length);
        if start < stop {
            let part = ops::slice(&all, &[0, start], &[batch, stop], &[1, 1])?;
            logits.push(model.forward(&part, &mut cache)?);
        }
        start = stop;
    }
    ops::concatenate(&logits, 1)
}

fn tokens(model: &dyn LanguageModel, ids: &Ids) -> Result<Array> {
    check_tokens(model, &ids.values)?;
    Array::from_slice(&ids.values, &ids.shape)
}

fn float32(x: &Array) -> Result<HostTensor> {
    ops::astype(x, crate::Dtype::Float32)?.to_host()
}
