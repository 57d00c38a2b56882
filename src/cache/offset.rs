//! Where in their sequences the next tokens are.

use crate::array::{Array, Dtype};
use crate::error::Result;
use crate::{fast, ops};

/// The position of the next token of each sequence of a batch.
#[derive(Debug, Clone)]
pub enum Offset {
    /// The same for all.
    All(i32),
    /// One for each, `int32` `[batch]`.
    Each(Array),
}

impl Offset {
    /// The positions of the next `length` tokens, `int32`: `[length]`, or `[batch, length]` where they
    /// differ.
    pub fn positions(&self, length: i32) -> Result<Array> {
        match self {
            Offset::All(offset) => ops::arange(*offset, offset + length, 1, Dtype::Int32),
            Offset::Each(offsets) => ops::expand_dims(offsets, 1)? + ops::arange(0, length, 1, Dtype::Int32)?,
        }
    }
}

impl From<i32> for Offset {
    fn from(offset: i32) -> Self {
        Offset::All(offset)
    }
}

impl<'a> From<&'a Offset> for fast::RopeOffset<'a> {
    fn from(offset: &'a Offset) -> Self {
        match offset {
            Offset::All(offset) => Self::All(*offset),
            Offset::Each(offsets) => Self::Each(offsets),
        }
    }
}
