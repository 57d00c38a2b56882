//! Text from ids, as they come.

use super::Tokenizer;
use super::tokenizer::NEWLINE;
use crate::error::Result;

/// What decoders put for bytes that are not a character, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// Turns ids into text as they come, in whole characters: a character whose bytes are spread over
/// several tokens appears with the last of them. Special tokens are left out, unless they are asked for.
///
/// What [`push`](Self::push) and [`finish`](Self::finish) return, put together, is the text of all ids.
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// The last ids: those of the text that was returned last, which decide how the next ones read (a
    /// decoder may drop the first space), and those that were not returned yet.
    ids: Vec<i32>,
    /// How many of them were returned.
    returned: usize,
    skip_special_tokens: bool,
}

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), returned: 0, skip_special_tokens: true }
    }

    /// Keeps special tokens, which may begin a tool call or a thought.
    pub fn with_special_tokens(self) -> Self {
        Self { skip_special_tokens: false, ..self }
    }

    /// The text that `id` completes; empty as long as a character is not complete.
    pub fn push(&mut self, id: i32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        // What may become a line break stays until that is known.
        let mut open = (1..NEWLINE.len()).filter(|_| self.tokenizer.newline).map(|end| &NEWLINE[..end]);
        if text.is_empty() || text.ends_with(REPLACEMENT) || open.any(|start| text.ends_with(start)) {
            return Ok(String::new());
        }
        self.ids.drain(..self.returned);
        self.returned = self.ids.len();
        Ok(text)
    }

    /// What is left at the end: characters that never were completed, as U+FFFD.
    pub fn finish(mut self) -> Result<String> {
        let text = self.pending()?;
        self.ids.clear();
        Ok(text)
    }

    /// The text of the ids that were not returned yet.
    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.returned], self.skip_special_tokens)?;
        let mut all = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        let shared = before.bytes().zip(all.bytes()).take_while(|(a, b)| a == b).count();
        let at = (0..=shared).rev().find(|&at| all.is_char_boundary(at)).unwrap_or(0);
        Ok(all.split_off(at))
    }
}
