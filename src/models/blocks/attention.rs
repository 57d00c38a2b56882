//! What every attention layer does around its attention.

use serde::Deserialize;

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops;

/// What the layers of a config's `layer_types` attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All positions before.
    FullAttention,
    /// The last positions, as many as `sliding_window` says.
    SlidingAttention,
}

/// `[batch, length, heads * dims]` to `[batch, heads, length, dims]`.
pub fn split_heads(x: &Array, heads: i32) -> Result<Array> {
    let &[batch, length, width] = x.shape() else {
        return Err(Error::argument("split_heads", format!("shape {:?} has not three axes", x.shape())));
    };
    if heads <= 0 || width % heads != 0 {
        return Err(Error::argument("split_heads", format!("{width} features in {heads} heads")));
    }
    ops::transpose(&ops::reshape(x, &[batch, length, heads, width / heads])?, [0, 2, 1, 3])
}

/// `[batch, heads, length, dims]` to `[batch, length, heads * dims]`.
pub fn merge_heads(x: &Array) -> Result<Array> {
    let &[batch, heads, length, dims] = x.shape() else {
        return Err(Error::argument("merge_heads", format!("shape {:?} has not four axes", x.shape())));
    };
    ops::reshape(&ops::transpose(x, [0, 2, 1, 3])?, &[batch, length, heads * dims])
}
