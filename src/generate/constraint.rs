//! Generations that may not say everything.

use crate::array::Array;
use crate::error::Result;

/// What may follow a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Other tokens.
    More,
    /// Nothing: the text is complete.
    Nothing,
}

/// Decides, token by token, what may come next.
pub trait Constraint {
    /// The tokens that may come now, at least one: `bool`, `[1, vocab_size]`.
    fn allowed(&mut self) -> Result<Array>;

    /// The tokens that may come now, as [`allowed`](Self::allowed), and after each of `tokens` in turn: up to
    /// the first that may not come or that ends the text. Nothing is taken.
    ///
    /// Without an implementation nothing is known ahead, and no guess is used.
    fn look_ahead(&mut self, tokens: &[i32]) -> Result<Vec<Array>> {
        let _ = tokens;
        Ok(vec![self.allowed()?])
    }

    /// Takes the token that came, which was allowed and does not end the generation by itself.
    /// Meanwhile the model reads it.
    fn push(&mut self, token: i32) -> Result<Allowed>;
}
