//! Choosing a token from a distribution.

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::{kernels, ops, random};

/// How a token is chosen. The filters work in the order of the fields, on log probabilities; the
/// temperature comes after them. Order and meaning are those of mlx-lm.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Log probabilities are divided by it. At 0 the likeliest token is taken, and nothing else counts.
    pub temperature: f32,
    /// The likeliest tokens are kept that make up this much of the probability. 0 or 1 keep all.
    pub top_p: f32,
    /// Tokens are kept that are at least this much as likely as the likeliest. 0 keeps all.
    pub min_p: f32,
    /// So many of the likeliest are kept by `min_p` in any case; at least 1.
    pub min_tokens_to_keep: i32,
    /// How often [`xtc_threshold`](Self::xtc_threshold) is applied, from 0 to 1.
    pub xtc_probability: f32,
    /// Of the tokens above this probability only the least likely is kept ("exclude top choices"), at
    /// most 0.5.
    pub xtc_threshold: f32,
    /// Tokens that XTC never drops.
    pub xtc_special_tokens: Vec<i32>,
    /// So many of the likeliest tokens are kept. 0 keeps all.
    pub top_k: i32,
    /// The same seed gives the same tokens: those of mlx-lm after `mx.random.seed`.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            min_tokens_to_keep: 1,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            xtc_special_tokens: Vec::new(),
            top_k: 0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Fails for values outside their range.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: &dyn std::fmt::Display, range: &str| {
            Err(Error::argument("sampling", format!("{name} is {value}, and not {range}")))
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", &self.temperature, "0 or more");
        }
        for (name, value, most) in [
            ("top_p", self.top_p, 1.0),
            ("min_p", self.min_p, 1.0),
            ("xtc_probability", self.xtc_probability, 1.0),
            ("xtc_threshold", self.xtc_threshold, 0.5),
        ] {
            if !(0.0..=most).contains(&value) {
                return wrong(name, &value, &format!("from 0 to {most}"));
            }
        }
        if self.min_tokens_to_keep < 1 {
            return wrong("min_tokens_to_keep", &self.min_tokens_to_keep, "1 or more");
        }
        if self.top_k < 0 {
            return wrong("top_k", &self.top_k, "0 or more");
        }
        Ok(())
    }
}

/// Draws tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    key: Array,
}

impl Sampler {
    /// Fails for settings outside their range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        let key = random::key(sampling.seed)?;
        Ok(Self { sampling, key })
    }

    /// One token for each row of `logprobs`, log probabilities `[batch, vocabulary]`: `uint32`, `[batch]`.
    pub fn sample(&mut self, logprobs: &Array) -> Result<Array> {
        if self.sampling.temperature == 0.0 {
            return ops::argmax(logprobs, -1, false);
        }
        let scale = 1.0 / f64::from(self.sampling.temperature);
        let kept = (self.filter(logprobs)? * scale)?;
        kernels::categorical(&kept, &self.next_key()?)
    }

    /// What the filters leave of `logprobs`, `[batch, vocabulary]`: dropped tokens are at minus infinity.
    pub fn filter(&mut self, logprobs: &Array) -> Result<Array> {
        let vocabulary = logprobs.dim(-1)?;
        let mut kept = logprobs.clone();
        let Sampling { top_p, min_p, min_tokens_to_keep, xtc_probability, top_k, .. } = self.sampling;
        if 0.0 < top_p && top_p < 1.0 {
            kept = kernels::keep_top_p(&kept, top_p)?;
        }
        if min_p > 0.0 && min_tokens_to_keep < vocabulary {
            kept = keep_min_p(&kept, min_p, min_tokens_to_keep)?;
        }
        if xtc_probability > 0.0 {
            kept = self.exclude_top(&kept)?;
        }
        if 0 < top_k && top_k < vocabulary {
            kept = kernels::keep_top_k(&kept, top_k)?;
        }
        Ok(kept)
    }

    fn next_key(&mut self) -> Result<Array> {
        let (next, drawn) = random::split(&self.key)?;
        self.key = next;
        Ok(drawn)
    }

    fn exclude_top(&mut self, logprobs: &Array) -> Result<Array> {
        let &[rows, vocabulary] = logprobs.shape() else {
            let message = format!("log probabilities of shape {:?}", logprobs.shape());
            return Err(Error::argument("sampling", message));
        };
        let key = self.next_key()?;
        let Sampling { xtc_probability, xtc_threshold, ref xtc_special_tokens, .. } = self.sampling;
        let probs = ops::softmax(logprobs, -1, false)?;
        let above = ops::where_(&ops::greater(&probs, xtc_threshold)?, &probs, f32::INFINITY)?;
        let mut dropped = ops::greater(&probs, ops::min(&above, -1, true)?)?;
        if !xtc_special_tokens.is_empty() {
            let special = |id: i32| !xtc_special_tokens.contains(&id);
            let others: Vec<bool> = (0..vocabulary).map(special).collect();
            dropped = ops::logical_and(&dropped, &Array::from_slice(&others, &[1, vocabulary])?)?;
        }
        let draw = random::uniform(0.0, 1.0, &[rows, 1], Dtype::Float32, Some(&key))?;
        let applied = ops::less_equal(&draw, xtc_probability)?;
        let dropped = ops::logical_and(&dropped, &applied)?;
        ops::where_(&dropped, f32::NEG_INFINITY, logprobs)
    }
}

fn keep_min_p(logprobs: &Array, min_p: f32, least: i32) -> Result<Array> {
    let threshold = (ops::max(logprobs, -1, true)? + f64::from(min_p).ln())?;
    let mut dropped = ops::less(logprobs, &threshold)?;
    if least > 1 {
        let top = kernels::top(logprobs, least)?;
        dropped = ops::put_along_axis(&dropped, &top, &ops::zeros(&[1, 1], Dtype::Bool)?, -1)?;
    }
    ops::where_(&dropped, f32::NEG_INFINITY, logprobs)
}
