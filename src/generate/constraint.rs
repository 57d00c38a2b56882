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

    /// Takes the token that came, which was allowed and does not end the generation by itself.
    /// Meanwhile the model reads it.
    fn push(&mut self, token: i32) -> Result<Allowed>;
}
