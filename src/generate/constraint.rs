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
    /// The tokens that may come now: `bool`, `[1, vocab_size]`; `None` if there are none.
    fn allowed(&mut self, vocab_size: i32) -> Result<Option<Array>>;

    /// Takes the token that came, which was allowed and does not end the generation by itself.
    fn push(&mut self, token: i32) -> Result<Allowed>;
}
