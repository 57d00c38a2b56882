//! Choosing a token from a distribution.

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::{ops, random};

/// How a token is chosen. What is cut off is decided in the order of the fields `top_p`, `min_p`,
/// `top_k`, before the temperature, as mlx-lm does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Log probabilities are divided by it. At 0 the likeliest token is taken, and nothing else counts.
    pub temperature: f32,
    /// The likeliest tokens are kept that make up this much of the probability. 1 keeps all.
    pub top_p: f32,
    /// Tokens are kept that are at least this much as likely as the likeliest. 0 keeps all.
    pub min_p: f32,
    /// So many of the likeliest tokens are kept. 0 keeps all.
    pub top_k: i32,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0, seed: 0 }
    }
}

impl Sampling {
    /// Fails for values outside their range.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: &dyn std::fmt::Display, range: &str| {
            Err(Error::argument("sampling", format!("{name} is {value}, and not {range}")))
        };
        let &Self { temperature, top_p, min_p, top_k, .. } = self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return wrong("temperature", &temperature, "0 or more");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return wrong("top_p", &top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return wrong("min_p", &min_p, "from 0 to 1");
        }
        if top_k < 0 {
            return wrong("top_k", &top_k, "0 or more");
        }
        Ok(())
    }
}

/// Draws tokens.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    key: Array,
}

impl Sampler {
    /// Fails for settings outside their range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        Ok(Self { sampling, key: random::key(sampling.seed)? })
    }

    /// One token for each row of `logprobs`, log probabilities `[batch, vocabulary]`: `uint32`, `[batch]`.
    pub fn sample(&mut self, logprobs: &Array) -> Result<Array> {
        let Sampling { temperature, top_p, min_p, top_k, .. } = self.sampling;
        if temperature == 0.0 {
            return ops::argmax(logprobs, -1, false);
        }
        let mut kept = logprobs.clone();
        if top_p < 1.0 {
            kept = keep_top_p(&kept, top_p)?;
        }
        if min_p > 0.0 {
            kept = keep_min_p(&kept, min_p)?;
        }
        if 0 < top_k && top_k < kept.dim(-1)? {
            kept = keep_top_k(&kept, top_k)?;
        }
        let (key, next) = random::split(&self.key)?;
        self.key = next;
        random::categorical(&(kept * (1.0 / f64::from(temperature)))?, -1, Some(&key))
    }
}

/// Nucleus sampling (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020): drops what
/// comes after more likely tokens that make up `top_p` already.
fn keep_top_p(logprobs: &Array, top_p: f32) -> Result<Array> {
    let sorted = ops::sort(logprobs, -1)?;
    let probs = ops::exp(&ops::astype(&sorted, Dtype::Float32)?)?;
    let above = ops::cumsum(&probs, -1, true, false)?;
    let total = ops::sum(&probs, -1, true)?;
    let dropped = ops::greater_equal(&above, (total * f64::from(top_p))?)?;
    let dropped = ops::sum(&ops::astype(&dropped, Dtype::Int32)?, -1, true)?;
    let threshold = ops::take_along_axis(&sorted, &dropped, -1)?;
    ops::where_(&ops::less(logprobs, &threshold)?, f32::NEG_INFINITY, logprobs)
}

fn keep_min_p(logprobs: &Array, min_p: f32) -> Result<Array> {
    let threshold = (ops::max(logprobs, -1, true)? + f64::from(min_p).ln())?;
    ops::where_(&ops::less(logprobs, &threshold)?, f32::NEG_INFINITY, logprobs)
}

fn keep_top_k(logprobs: &Array, top_k: i32) -> Result<Array> {
    let order = ops::argpartition(&(-logprobs)?, top_k - 1, -1)?;
    let rest = ops::split(&order, [top_k], -1)?.swap_remove(1);
    let none = ops::full(&[1], f32::NEG_INFINITY, logprobs.dtype())?;
    ops::put_along_axis(logprobs, &rest, &none, -1)
}
