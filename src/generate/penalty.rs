//! Changing logits by what was said before.

use std::collections::BTreeMap;

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops;

/// What is added to logits, and what is taken from those of tokens in the text before, prompt included.
/// Applied in the order of the fields; meaning and defaults are those of mlx-lm.
#[derive(Debug, Clone, PartialEq)]
pub struct Penalties {
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<i32, f32>,
    /// Divides positive logits and multiplies negative ones (Keskar et al., "CTRL", 2019). 0 and 1 do
    /// nothing.
    pub repetition: f32,
    /// So many of the last tokens count for `repetition`; 0 for all.
    pub repetition_context: usize,
    /// Taken from the logits of tokens that have occurred. 0 does nothing.
    pub presence: f32,
    /// So many of the last tokens count for `presence`; 0 for all.
    pub presence_context: usize,
    /// Taken from the logit of a token as often as it has occurred. 0 does nothing.
    pub frequency: f32,
    /// So many of the last tokens count for `frequency`; 0 for all.
    pub frequency_context: usize,
}

impl Default for Penalties {
    /// None, with contexts of 20 tokens.
    fn default() -> Self {
        Self {
            logit_bias: BTreeMap::new(),
            repetition: 0.0,
            repetition_context: 20,
            presence: 0.0,
            presence_context: 20,
            frequency: 0.0,
            frequency_context: 20,
        }
    }
}

/// Applies [`Penalties`] to a text as it grows. The text stays on the device.
#[derive(Debug, Clone)]
pub struct Penalizer {
    penalties: Penalties,
    /// Ids and values of the logit bias, `[1, count]`.
    bias: Option<(Array, Array)>,
    /// Tokens that may count, `int32` `[1, length]`.
    text: Option<Array>,
}

impl Penalizer {
    /// For logits of `vocab_size` tokens. Fails for values outside their range, and for biases of tokens
    /// that are not in the vocabulary.
    pub fn new(penalties: Penalties, vocab_size: i32) -> Result<Self> {
        let Penalties { repetition, presence, frequency, .. } = penalties;
        if !(repetition >= 0.0 && repetition.is_finite()) {
            let message = format!("the repetition penalty is {repetition}, and not 0 or more");
            return Err(Error::argument("penalties", message));
        }
        let values = penalties.logit_bias.values().copied().chain([presence, frequency]);
        if let Some(wrong) = values.into_iter().find(|value| value.is_nan()) {
            return Err(Error::argument("penalties", format!("{wrong} is not a number to add to logits")));
        }
        if let Some(id) = penalties.logit_bias.keys().find(|id| !(0..vocab_size).contains(id)) {
            let message = format!("a bias for id {id}, which is not in the vocabulary of {vocab_size}");
            return Err(Error::argument("penalties", message));
        }
        let shape = [1, penalties.logit_bias.len() as i32];
        let bias = match penalties.logit_bias.is_empty() {
            true => None,
            false => {
                let ids: Vec<i32> = penalties.logit_bias.keys().copied().collect();
                let values: Vec<f32> = penalties.logit_bias.values().copied().collect();
                Some((Array::from_slice(&ids, &shape)?, Array::from_slice(&values, &shape)?))
            }
        };
        Ok(Self { penalties, bias, text: None })
    }

    /// Adds tokens to the text: integers, `[1, length]`.
    pub fn push(&mut self, tokens: &Array) -> Result<()> {
        let contexts = self.active();
        let Some(longest) = contexts.iter().map(|&(_, context)| context).max() else {
            return Ok(());
        };
        let tokens = ops::astype(tokens, Dtype::Int32)?;
        let text = match &self.text {
            Some(text) => ops::concatenate([text, &tokens], 1)?,
            None => tokens,
        };
        self.text = Some(last(&text, longest)?);
        Ok(())
    }

    /// The penalties in use, each with how many tokens count for it.
    fn active(&self) -> Vec<(Penalty, usize)> {
        let p = &self.penalties;
        let all = |context| if context == 0 { usize::MAX } else { context };
        let mut active = Vec::new();
        if p.repetition != 0.0 && p.repetition != 1.0 {
            active.push((Penalty::Repetition(p.repetition), all(p.repetition_context)));
        }
        if p.presence != 0.0 {
            active.push((Penalty::Presence(p.presence), all(p.presence_context)));
        }
        if p.frequency != 0.0 {
            active.push((Penalty::Frequency(p.frequency), all(p.frequency_context)));
        }
        active
    }

    /// `logits`, `[1, vocabulary]`, of what follows the text, with biases and penalties.
    pub fn apply(&self, logits: &Array) -> Result<Array> {
        let mut out = logits.clone();
        if let Some((ids, values)) = &self.bias {
            out = ops::scatter_add_axis(&out, ids, &ops::astype(values, logits.dtype())?, 1)?;
        }
        let Some(text) = &self.text else {
            return Ok(out);
        };
        for (penalty, context) in self.active() {
            let ids = last(text, context)?;
            let seen = ops::take_along_axis(&out, &ids, 1)?;
            out = match penalty {
                Penalty::Repetition(factor) => {
                    let (low, high) = ((&seen * f64::from(factor))?, (&seen / f64::from(factor))?);
                    let penalized = ops::where_(&ops::less(&seen, 0.0)?, &low, &high)?;
                    ops::put_along_axis(&out, &ids, &penalized, 1)?
                }
                Penalty::Presence(taken) => ops::put_along_axis(&out, &ids, &(&seen - f64::from(taken))?, 1)?,
                Penalty::Frequency(taken) => {
                    let each = ops::full(ids.shape(), -taken, logits.dtype())?;
                    ops::scatter_add_axis(&out, &ids, &each, 1)?
                }
            };
        }
        Ok(out)
    }
}

#[derive(Debug, Clone, Copy)]
enum Penalty {
    Repetition(f32),
    Presence(f32),
    Frequency(f32),
}

/// The last `count` columns of `[1, length]`.
fn last(text: &Array, count: usize) -> Result<Array> {
    let length = text.dim(1)?;
    match i32::try_from(count) {
        Ok(count) if count < length => ops::slice(text, &[0, length - count], &[1, length], &[1, 1]),
        _ => Ok(text.clone()),
    }
}
