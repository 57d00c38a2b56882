//! The state of a layer that has no keys: convolutions, state-space models, linear attention.

use crate::array::Array;

/// Arrays whose size does not grow with the sequence, each absent until the layer sets it.
#[derive(Debug, Clone, Default)]
pub struct ArraysCache {
    pub(super) arrays: Vec<Option<Array>>,
    pub(super) offset: i32,
}

impl ArraysCache {
    /// Room for `count` arrays.
    pub fn new(count: usize) -> Self {
        Self { arrays: vec![None; count], offset: 0 }
    }

    /// Positions seen.
    pub fn offset(&self) -> i32 {
        self.offset
    }
}
