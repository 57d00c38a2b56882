//! Which positions see which.

use crate::array::{Array, Dtype};
use crate::cache::LayerCache;
use crate::error::Result;
use crate::{fast, ops};

/// Which keys the queries of a layer see.
#[derive(Debug, Clone)]
pub enum Mask {
    /// All.
    None,
    /// Those up to their own position, where the last query is at the last key.
    Causal,
    /// Those where it is true: `bool`, broadcasts to `[batch, heads, query_length, key_length]`.
    Array(Array),
}

impl<'a> From<&'a Mask> for fast::Mask<'a> {
    fn from(mask: &'a Mask) -> Self {
        match mask {
            Mask::None => fast::Mask::None,
            Mask::Causal => fast::Mask::Causal,
            Mask::Array(array) => fast::Mask::Array(array),
        }
    }
}

/// The masks of one forward pass: layers with the same window share one.
#[derive(Debug)]
pub struct Masks {
    length: i32,
    made: Vec<(Option<i32>, Mask)>,
}

impl Masks {
    /// For so many new positions.
    pub fn new(length: i32) -> Self {
        Self { length, made: Vec::new() }
    }

    /// The mask of a layer with this window, or none. All layers of a pass are at the same position.
    pub fn of(&mut self, cache: &LayerCache, window: Option<i32>) -> Result<Mask> {
        if let Some((_, mask)) = self.made.iter().find(|(made_for, _)| *made_for == window) {
            return Ok(mask.clone());
        }
        let mask = cache.mask(self.length, window)?;
        self.made.push((window, mask.clone()));
        Ok(mask)
    }
}

/// The mask of `length` positions after `offset` others, each seeing at most the last `window`.
pub(super) fn causal(length: i32, offset: i32, window: Option<i32>) -> Result<Mask> {
    match window {
        Some(window) if window < offset + length => windowed(length, offset, window, 0).map(Mask::Array),
        _ if length == 1 => Ok(Mask::None),
        _ => Ok(Mask::Causal),
    }
}

/// True where a query sees a key, `[length, offset + length]`: the last `window` and the first `keep`.
pub(super) fn windowed(length: i32, offset: i32, window: i32, keep: i32) -> Result<Array> {
    let keys = ops::arange(0, offset + length, 1, Dtype::Int32)?;
    let queries = ops::expand_dims(&ops::arange(offset, offset + length, 1, Dtype::Int32)?, 1)?;
    let mut recent = ops::less(&queries, (&keys + window)?)?;
    if keep > 0 {
        recent = ops::logical_or(&recent, ops::less(&keys, keep)?)?;
    }
    ops::logical_and(ops::greater_equal(&queries, &keys)?, &recent)
}
