//! Generation of text.

use std::collections::BTreeSet;

use super::{FinishReason, Stats, Token, Tokens};
use crate::array::Array;
use crate::cache::Snapshot;
use crate::error::Result;
use crate::text::{Detokenizer, Tokenizer};

/// One token, and the text that it completes.
#[derive(Debug, Clone)]
pub struct Response {
    /// Whole characters; empty where the token ends inside one, or where the text may still become one
    /// that stops the generation.
    pub text: String,
    /// The token.
    pub token: i32,
    /// The logarithm of its probability: see [`Token::logprob`].
    pub logprob: f32,
    /// Those of all tokens, `[vocab_size]`.
    pub logprobs: Array,
    /// Whether it was guessed before the model was asked.
    pub from_draft: bool,
    /// Set on the last response.
    pub finish_reason: Option<FinishReason>,
    /// Counts and times so far.
    pub stats: Stats,
}

/// The text of [`Tokens`], as it comes. The texts of all responses, put together, are the text of all
/// tokens, without special ones and those that end it, up to the first of the stop strings.
pub struct Text<'a> {
    tokens: Tokens<'a>,
    /// Tokens that have no text.
    silent: BTreeSet<i32>,
    /// Taken at the end.
    detokenizer: Option<Detokenizer<'a>>,
    stops: StopStrings,
}

impl<'a> Text<'a> {
    /// The text of `tokens`, by the tokenizer of their model.
    pub fn new(tokens: Tokens<'a>, tokenizer: &'a Tokenizer) -> Self {
        let silent = tokens.stop_tokens().iter().copied().collect();
        let detokenizer = Some(tokenizer.detokenizer());
        Self { tokens, silent, detokenizer, stops: StopStrings::new([]) }
    }

    /// Keeps the special tokens that mark the parts of an answer, for a [`text::Response`].
    ///
    /// [`text::Response`]: crate::text::Response
    pub fn marked(mut self, tokenizer: &'a Tokenizer) -> Self {
        let format = tokenizer.response_format();
        let is_mark = |id: &i32| tokenizer.token_of(*id).is_some_and(|token| format.knows(&token));
        self.silent.extend(tokenizer.special_ids().into_iter().filter(|id| !is_mark(id)));
        self.detokenizer = self.detokenizer.map(Detokenizer::with_special_tokens);
        self
    }

    /// Ends before any of these strings, however tokens divide it. Empty ones don't count.
    pub fn stop_at(mut self, strings: impl IntoIterator<Item = String>) -> Self {
        self.stops = StopStrings::new(strings);
        self
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.tokens.stats()
    }

    /// See [`Tokens::take_boundaries`].
    pub fn take_boundaries(&mut self) -> Vec<Snapshot> {
        self.tokens.take_boundaries()
    }

    fn respond(&mut self, token: Token) -> Result<Response> {
        let Token { id, logprob, logprobs, from_draft, mut finish_reason } = token;
        let mut decoded = String::new();
        if let Some(detokenizer) = &mut self.detokenizer
            && !self.silent.contains(&id)
        {
            decoded = detokenizer.push(id)?;
        }
        if finish_reason.is_some()
            && let Some(detokenizer) = self.detokenizer.take()
        {
            decoded += &detokenizer.finish()?;
        }
        let (mut text, stopped) = self.stops.push(&decoded);
        if stopped {
            finish_reason = Some(FinishReason::Stop);
            self.detokenizer = None;
        } else if finish_reason.is_some() {
            text += &self.stops.finish();
        }
        let stats = self.tokens.stats();
        Ok(Response { text, token: id, logprob, logprobs, from_draft, finish_reason, stats })
    }
}

impl Iterator for Text<'_> {
    type Item = Result<Response>;

    fn next(&mut self) -> Option<Result<Response>> {
        self.detokenizer.as_ref()?;
        let token = self.tokens.next()?;
        Some(token.and_then(|token| self.respond(token)))
    }
}

/// Looks for strings in a text that comes in pieces.
#[derive(Debug, Clone)]
pub(super) struct StopStrings {
    strings: Vec<String>,
    /// The end of the text, which may be the beginning of one of them.
    held: String,
}

impl StopStrings {
    pub(super) fn new(strings: impl IntoIterator<Item = String>) -> Self {
        let strings = strings.into_iter().filter(|string| !string.is_empty()).collect();
        Self { strings, held: String::new() }
    }

    /// What of the text can be let go, and whether it has reached one of the strings.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held += piece;
        if let Some(at) = self.strings.iter().filter_map(|string| self.held.find(string.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: &usize| self.strings.iter().any(|string| string.starts_with(&self.held[*at..]));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let at = starts.into_iter().find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back at the end.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::StopStrings;

    #[test]
    fn strings_are_found_wherever_pieces_divide_them() {
        let text = "aa<en<end of it> aé<end>b";
        let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        for &one in &cuts {
            for &two in cuts.iter().filter(|&&two| two >= one) {
                let mut stops = StopStrings::new(["é<end>".to_owned(), String::new(), "<end>".to_owned()]);
                let (mut found, mut ended) = (String::new(), false);
                for piece in [&text[..one], &text[one..two], &text[two..]] {
                    let (let_go, stop) = stops.push(piece);
                    found += &let_go;
                    if stop {
                        ended = true;
                        break;
                    }
                }
                assert_eq!((found.as_str(), ended), ("aa<en<end of it> a", true), "{one} {two}");
            }
        }
        let mut stops = StopStrings::new(["xyz".to_owned()]);
        assert_eq!(stops.push("axxy"), ("ax".to_owned(), false));
        assert_eq!(stops.finish(), "xy");
    }
}
