//! Guessing tokens, so that the model can check several at once (Leviathan et al., "Fast Inference from
//! Transformers via Speculative Decoding", 2022).

use super::forward::{ids, position};
use crate::array::{Array, Dtype};
use crate::cache::{Cache, LayerCache};
use crate::error::{Error, Result};
use crate::models::{LanguageModel, check_tokens};
use crate::ops;

/// Where guesses come from.
pub struct Draft<'a> {
    source: Source<'a>,
    /// Guesses at a time.
    count: usize,
    /// The text so far.
    text: Vec<i32>,
}

enum Source<'a> {
    Model {
        model: &'a dyn LanguageModel,
        cache: Cache,
        /// Tokens of the text that are in the cache.
        read: usize,
        prefill_step: usize,
    },
    Lookup {
        /// Tokens that must agree with the end of the text, at most.
        longest: usize,
    },
}

impl<'a> Draft<'a> {
    /// The likeliest tokens of a smaller model with the same vocabulary, `count` at a time.
    ///
    /// It reads the whole text, so the cache of the generation must be empty at the start.
    pub fn model(model: &'a dyn LanguageModel, count: usize) -> Self {
        let source = Source::Model { model, cache: model.make_cache(), read: 0, prefill_step: 512 };
        Self { source, count, text: Vec::new() }
    }

    /// What followed the last tokens where they stood before in the text, `count` at a time: of the
    /// longest match, up to `longest` tokens, the latest (Saxena, "Prompt Lookup Decoding", 2023).
    pub fn lookup(longest: usize, count: usize) -> Self {
        Self { source: Source::Lookup { longest: longest.max(1) }, count, text: Vec::new() }
    }

    /// Adds tokens to the text.
    pub(super) fn push(&mut self, tokens: &[i32]) {
        self.text.extend_from_slice(tokens);
    }

    /// Guesses at most `most` tokens that follow the text, all of a vocabulary of `vocab_size`.
    pub(super) fn guess(&mut self, most: usize, vocab_size: i32) -> Result<Vec<i32>> {
        let count = self.count.min(most);
        if count == 0 {
            return Ok(Vec::new());
        }
        match &mut self.source {
            Source::Lookup { longest } => Ok(follow(&self.text, *longest, count).to_vec()),
            Source::Model { model, cache, read, prefill_step } => {
                let mut rest = &self.text[*read..];
                check_tokens(*model, rest)?;
                while rest.len() > *prefill_step {
                    let (chunk, after) = rest.split_at(*prefill_step);
                    model.forward(&ids(chunk)?, cache)?;
                    cache.eval()?;
                    rest = after;
                }
                let mut guesses = vec![likeliest(&model.forward(&ids(rest)?, cache)?)?];
                let rewind = Rewind::before(cache);
                while guesses.len() < count {
                    let last = guesses.last().expect("there is one");
                    let token = ops::reshape(last, &[1, 1])?;
                    guesses.push(likeliest(&model.forward(&token, cache)?)?);
                }
                let all = ops::astype(&ops::concatenate(&guesses, 0)?, Dtype::Int32)?;
                let guesses: Vec<i32> = all.to_vec()?;
                rewind.to(cache, *model, &guesses[..count - 1], 0)?;
                *read = self.text.len();
                // A wider vocabulary may guess what the model does not know.
                Ok(guesses.into_iter().take_while(|id| (0..vocab_size).contains(id)).collect())
            }
        }
    }
}

/// The likeliest token after the last position: `[1]`.
fn likeliest(logits: &Array) -> Result<Array> {
    ops::argmax(&position(logits, -1)?, -1, false)
}

/// What followed the latest earlier occurrence of the longest end of `text` that has one: at most
/// `count` tokens.
fn follow(text: &[i32], longest: usize, count: usize) -> &[i32] {
    for length in (1..=longest.min(text.len().saturating_sub(1))).rev() {
        let (before, end) = (&text[..text.len() - 1], &text[text.len() - length..]);
        let found = before.windows(length).rposition(|window| window == end);
        if let Some(at) = found {
            let follows = &text[at + length..];
            return &follows[..count.min(follows.len())];
        }
    }
    &[]
}

/// A cache before tokens that may have to go again.
pub(super) struct Rewind {
    /// Where layers can't forget: sharing the arrays costs a copy of them when they are written.
    before: Option<Cache>,
}

impl Rewind {
    pub(super) fn before(cache: &Cache) -> Self {
        let all = cache.layers().iter().all(LayerCache::forgets);
        Self { before: (!all).then(|| cache.clone()) }
    }

    /// Leaves the first `kept` of the tokens that were `fed` since in the cache.
    pub(super) fn to(
        self,
        cache: &mut Cache,
        model: &dyn LanguageModel,
        fed: &[i32],
        kept: usize,
    ) -> Result<()> {
        let back = fed.len() - kept;
        if back == 0 || cache.trim(back as i32).is_ok() {
            return Ok(());
        }
        let Some(before) = self.before else {
            return Err(Error::argument("generate", "the cache can't forget wrong guesses"));
        };
        *cache = before;
        if kept > 0 {
            model.forward(&ids(&fed[..kept])?, cache)?;
            cache.eval()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::follow;

    #[test]
    fn the_latest_longest_match_is_followed() {
        let text = [1, 2, 3, 4, 2, 3, 5, 9, 2, 3];
        assert_eq!(follow(&text, 3, 2), [5, 9]);
        assert_eq!(follow(&text, 1, 9), [5, 9, 2, 3]);
        assert_eq!(follow(&[7, 7, 7], 2, 5), [7]);
        assert_eq!(follow(&[1, 2, 3], 2, 5), [0; 0]);
        assert_eq!(follow(&[1], 2, 5), [0; 0]);
    }
}
