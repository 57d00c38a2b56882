//! Choosing the next token by its logits.

use serde::Serialize;

use super::{Options, Penalizer, Sampler};
use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::models::LanguageModel;
use crate::{kernels, ops, transforms};

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

/// What chooses tokens: its clones choose the same.
#[derive(Debug, Clone)]
pub(super) struct Chooser {
    pub(super) penalizer: Penalizer,
    pub(super) sampler: Sampler,
}

/// A token that was chosen, perhaps not computed yet.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// `int32` `[1]`.
    pub(super) token: Array,
    /// `float32` `[1, 1]`.
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
        // Nothing is left to compute for whoever takes them: it would wait behind the next token on the stream.
        let token = ops::astype(&self.sampler.sample(&logprobs)?, Dtype::Int32)?;
        let logprob = ops::take_along_axis(&logprobs, &ops::expand_dims(&token, 1)?, -1)?;
        let logprob = ops::astype(&logprob, Dtype::Float32)?;
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
            id: self.token.item::<i32>()?,
            logprob: self.logprob.item::<f32>()?,
            logprobs: ops::squeeze(&self.logprobs, 0)?,
            from_draft,
            finish_reason: None,
        })
    }
}
