//! Tokens into a model, logits out.

use super::{KvQuantization, Options};
use crate::array::Array;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::models::LanguageModel;
use crate::ops;

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
