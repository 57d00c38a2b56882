//! Which positions see which.

use crate::array::{Array, Dtype};
use crate::cache::{LayerCache, Offset};
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

impl Mask {
    /// The mask as an array for `queries` new positions that see the last of `keys`, `bool`; `None` if
    /// all see all.
    pub fn to_array(&self, queries: i32, keys: i32) -> Result<Option<Array>> {
        match self {
            Mask::None => Ok(None),
            Mask::Causal => windowed(queries, keys - queries, keys).map(Some),
            Mask::Array(array) => Ok(Some(array.clone())),
        }
    }
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

/// The masks of one forward pass: layers of one kind with the same window share one.
#[derive(Debug)]
pub struct Masks {
    length: i32,
    expected: Offset,
    made: Vec<((Kind, Option<i32>, Option<i32>), Mask)>,
    /// Positions, `[batch, 1, length, count]`, that a layer has chosen to see, for those after it that see
    /// the same.
    pub chosen: Option<Array>,
    /// Keys and values of new positions, `[batch, kv_heads, length, dims]`, that a layer has made for those
    /// after it that have none of their own.
    pub shared: Option<[Array; 2]>,
}

/// What the mask of a layer depends on, besides the window, the chunk, and the position and the padding, which
/// all layers share.
type Kind = std::mem::Discriminant<LayerCache>;

impl Masks {
    /// For so many new positions.
    pub fn new(length: i32) -> Self {
        Self { length, expected: Offset::All(0), made: Vec::new(), chosen: None, shared: None }
    }

    /// In sequences that will have so many positions or more.
    pub fn expecting(self, expected: Offset) -> Self {
        Self { expected, ..self }
    }

    /// How many positions the sequences will have at least, as far as the caller has said.
    pub fn expected(&self) -> &Offset {
        &self.expected
    }

    /// The new positions.
    pub fn length(&self) -> i32 {
        self.length
    }

    /// The mask of an attention layer with this window, or none. All layers of a pass are at the same
    /// position.
    pub fn of(&mut self, cache: &LayerCache, window: Option<i32>) -> Result<Mask> {
        self.once(cache, [window, None], |length| cache.mask(length, window))
    }

    /// The mask of an attention layer whose positions see their own chunk of `size`.
    pub fn within_chunks(&mut self, cache: &LayerCache, size: i32) -> Result<Mask> {
        self.once(cache, [None, Some(size)], |length| cache.chunk_mask(length, size))
    }

    fn once(
        &mut self,
        cache: &LayerCache,
        [window, chunk]: [Option<i32>; 2],
        make: impl FnOnce(i32) -> Result<Mask>,
    ) -> Result<Mask> {
        let key = (std::mem::discriminant(cache.unpadded()), window, chunk);
        if let Some((_, mask)) = self.made.iter().find(|(made_for, _)| *made_for == key) {
            return Ok(mask.clone());
        }
        let mask = make(self.length)?;
        self.made.push((key, mask.clone()));
        Ok(mask)
    }
}

/// The mask of `length` positions after `offset` others, each seeing at most the last `window`.
pub(super) fn causal(length: i32, offset: i32, window: Option<i32>) -> Result<Mask> {
    match window {
        Some(window) if window < offset + length => windowed(length, offset, window).map(Mask::Array),
        _ if length == 1 => Ok(Mask::None),
        _ => Ok(Mask::Causal),
    }
}

/// True where a query sees a key, `[length, offset + length]`: the last `window`.
pub(super) fn windowed(length: i32, offset: i32, window: i32) -> Result<Array> {
    let keys = ops::arange(0, offset + length, 1, Dtype::Int32)?;
    let queries = ops::expand_dims(&ops::arange(offset, offset + length, 1, Dtype::Int32)?, 1)?;
    let recent = ops::less(&queries, (&keys + window)?)?;
    ops::logical_and(ops::greater_equal(&queries, &keys)?, &recent)
}

/// The mask of `length` positions after `offset` others, each seeing its own chunk of `size`. The keys
/// are those from position `start` on.
pub(super) fn chunked(length: i32, offset: i32, start: i32, size: i32) -> Result<Mask> {
    if start == 0 && offset + length <= size {
        return causal(length, offset, None);
    }
    let size = Array::from(size);
    let keys = ops::arange(start, offset + length, 1, Dtype::Int32)?;
    let queries = ops::expand_dims(&ops::arange(offset, offset + length, 1, Dtype::Int32)?, 1)?;
    let same = ops::equal(&ops::floor_divide(&queries, &size)?, &ops::floor_divide(&keys, &size)?)?;
    ops::logical_and(ops::greater_equal(&queries, &keys)?, &same).map(Mask::Array)
}

/// The mask of a batch, `bool` `[batch, 1, queries, keys]`: `queries`, `[queries]`, and `keys`, `[keys]`,
/// are positions of the batch, and `padding`, `[batch]`, says where each sequence begins. A query sees
/// keys of its sequence up to itself, of the last `window`, or of its own `chunk`.
pub(super) fn padded(
    queries: &Array,
    keys: &Array,
    padding: &Array,
    window: Option<i32>,
    chunk: Option<i32>,
) -> Result<Array> {
    let queries = ops::expand_dims(queries, 1)?;
    let begin = ops::expand_dims(padding, [1, 2, 3])?;
    let mut sees = ops::greater_equal(&queries, keys)?;
    if let Some(window) = window {
        sees = ops::logical_and(&sees, ops::less(&queries, (keys + window)?)?)?;
    }
    sees = ops::logical_and(&sees, ops::greater_equal(keys, &begin)?)?;
    if let Some(size) = chunk {
        let chunk = |x: &Array| ops::floor_divide(&(x - &begin)?, Array::from(size));
        sees = ops::logical_and(&sees, ops::equal(&chunk(&queries)?, &chunk(keys)?)?)?;
    }
    // Padding sees itself: a softmax over nothing would be no number.
    ops::logical_or(&sees, ops::equal(&queries, keys)?)
}
