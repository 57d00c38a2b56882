//! Generation of text.

use super::{FinishReason, Stats, Tokens};
use crate::error::Result;
use crate::text::{Detokenizer, Tokenizer};

/// One token, and the text that it completes.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Whole characters; empty where the token ends inside one.
    pub text: String,
    /// The token.
    pub token: i32,
    /// The logarithm of its probability.
    pub logprob: f32,
    /// Set on the last response.
    pub finish_reason: Option<FinishReason>,
    /// Counts and times so far.
    pub stats: Stats,
}

/// The text of [`Tokens`], as it comes. The texts of all responses, put together, are the text of all
/// tokens, without special ones.
pub struct Text<'a> {
    tokens: Tokens<'a>,
    /// Taken at the end.
    detokenizer: Option<Detokenizer<'a>>,
}

impl<'a> Text<'a> {
    /// The text of `tokens`, by the tokenizer of their model.
    pub fn new(tokens: Tokens<'a>, tokenizer: &'a Tokenizer) -> Self {
        Self { tokens, detokenizer: Some(tokenizer.detokenizer()) }
    }

    fn respond(&mut self, token: super::Token) -> Result<Response> {
        let mut text = String::new();
        if let Some(detokenizer) = &mut self.detokenizer {
            text = detokenizer.push(token.id)?;
        }
        if token.finish_reason.is_some()
            && let Some(detokenizer) = self.detokenizer.take()
        {
            text += &detokenizer.finish()?;
        }
        let super::Token { id: token, logprob, finish_reason } = token;
        Ok(Response { text, token, logprob, finish_reason, stats: self.tokens.stats() })
    }
}

impl Iterator for Text<'_> {
    type Item = Result<Response>;

    fn next(&mut self) -> Option<Result<Response>> {
        let token = self.tokens.next()?;
        Some(token.and_then(|token| self.respond(token)))
    }
}
