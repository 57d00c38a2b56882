//! Batches of sequences that began at different times.
//!
//! The sequences end together: the shorter ones have padding before them. A batch counts positions from
//! the beginning of the longest, and each sequence its own from the end of its padding.

use super::mask::{Mask, padded};
use super::{
    ArraysCache, Cache, ChunkedKvCache, KvCache, LayerCache, Offset, QuantizedKvCache, RotatingKvCache,
};
use super::{not_keys, positions};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops;

/// How many positions of padding are before each sequence of a batch.
#[derive(Debug, Clone)]
pub struct Padding {
    rows: Vec<i32>,
    /// `int32`, `[batch]`.
    array: Array,
}

impl Padding {
    pub(super) fn new(rows: &[i32]) -> Result<Self> {
        if let Some(wrong) = rows.iter().find(|&&count| !(0..=1 << 28).contains(&count)) {
            return Err(Error::argument("padding", format!("{wrong} positions before a sequence")));
        }
        let count = i32::try_from(rows.len()).unwrap_or(i32::MAX);
        Ok(Self { rows: rows.to_vec(), array: Array::from_slice(rows, &[count])? })
    }

    /// The next position of each sequence, where that of the batch is `position`.
    pub(super) fn offset(&self, position: i32) -> Result<Offset> {
        Ok(Offset::Each(((-&self.array)? + position)?))
    }

    /// Which keys the next `length` positions of each sequence see: those of itself, and of their own `chunk`.
    pub(super) fn mask(
        &self,
        cache: &LayerCache,
        length: i32,
        window: Option<i32>,
        chunk: Option<i32>,
    ) -> Result<Mask> {
        let position = cache.position();
        let (keys, window, chunk) = match cache {
            LayerCache::Rotating(cache) => {
                let size = cache.size();
                let keys = cache.next_keys(length);
                let count = keys.len() as i32;
                (Array::from_slice(&keys, &[count])?, Some(window.unwrap_or(size).min(size)), chunk)
            }
            LayerCache::Chunked(cache) => {
                (range(cache.next_start(), position + length)?, None, Some(cache.size()))
            }
            _ => (range(0, position + length)?, window, chunk),
        };
        padded(&range(position, position + length)?, &keys, &self.array, window, chunk).map(Mask::Array)
    }

    /// Which of the positions from `position` on are tokens: `bool`, `[batch, length]`; `None` if all are.
    pub(super) fn tokens(&self, position: i32, length: i32) -> Result<Option<Array>> {
        if self.rows.iter().all(|&count| count <= position) {
            return Ok(None);
        }
        let at = range(position, position + length)?;
        ops::greater_equal(&at, ops::expand_dims(&self.array, 1)?).map(Some)
    }
}

impl Cache {
    /// An empty cache for a batch with this much padding before each of its sequences, whose tokens
    /// are then given with anything in place of the padding. Fails if it is not empty.
    pub fn pad_left(self, padding: &[i32]) -> Result<Self> {
        if self.offset() > 0 {
            return Err(Error::argument("padding", "it belongs before a sequence, and this one has begun"));
        }
        let layers = self.layers.into_iter().map(|layer| layer.pad(padding));
        Ok(Self { layers: layers.collect::<Result<_>>()?, ..self })
    }

    /// One cache of several sequences, each of a cache of the same model, which may be of different
    /// lengths. Fails for caches that keep the first positions in a window.
    pub fn merge<'a>(rows: impl IntoIterator<Item = &'a Cache>) -> Result<Self> {
        let rows: Vec<&Cache> = rows.into_iter().collect();
        let Some(layers) = rows.first().map(|row| row.layers.len()) else {
            return Err(Error::argument("merge", "no caches"));
        };
        if rows.iter().any(|row| row.layers.len() != layers) {
            return Err(Error::argument("merge", "the caches are of different models"));
        }
        let layer = |i: usize| LayerCache::merge(&rows.iter().map(|row| &row.layers[i]).collect::<Vec<_>>());
        let expected = rows.iter().map(|row| row.expected.iter().copied().max().unwrap_or(0)).collect();
        Ok(Self { layers: (0..layers).map(layer).collect::<Result<_>>()?, expected })
    }

    /// The cache of sequence number `row` alone, without padding.
    pub fn row(&self, row: i32) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| layer.row(row, 0));
        let at = usize::try_from(row).unwrap_or(0).min(self.expected.len().saturating_sub(1));
        Ok(Self { layers: layers.collect::<Result<_>>()?, expected: self.expected[at..=at].to_vec() })
    }
}

/// All rows as caches of one kind.
macro_rules! rows_of {
    ($kind:ident, $rows:expr) => {
        $rows
            .iter()
            .map(|row| match row {
                LayerCache::$kind(cache) => Ok(cache),
                _ => Err(Error::argument("merge", "the caches are of different kinds")),
            })
            .collect::<Result<Vec<_>>>()
    };
}

impl LayerCache {
    fn pad(self, padding: &[i32]) -> Result<Self> {
        match self {
            LayerCache::Stateless => Ok(self),
            LayerCache::List(parts) => {
                parts.into_iter().map(|part| part.pad(padding)).collect::<Result<_>>().map(LayerCache::List)
            }
            LayerCache::Padded(_, _) => Err(Error::argument("padding", "the batch has some already")),
            LayerCache::Rotating(cache) if cache.keeps() > 0 => Err(keeps()),
            other => Ok(LayerCache::Padded(Box::new(other), Padding::new(padding)?)),
        }
    }

    fn merge(rows: &[&LayerCache]) -> Result<Self> {
        // A sequence that is not quantized yet goes along with one that is.
        let how =
            rows.iter().find_map(|row| if let LayerCache::Quantized(c) = row { Some(c.how) } else { None });
        if let Some(how) = how
            && rows.iter().any(|row| matches!(row, LayerCache::Kv(_)))
        {
            let quantized = |row: &&LayerCache| match row {
                LayerCache::Kv(cache) => QuantizedKvCache::of(cache, how).map(LayerCache::Quantized),
                other => Ok((*other).clone()),
            };
            let rows = rows.iter().map(quantized).collect::<Result<Vec<Self>>>()?;
            return Self::merge(&rows.iter().collect::<Vec<_>>());
        }
        let end = rows.iter().map(|row| row.position()).max().unwrap_or(0);
        let padding: Vec<i32> = rows.iter().map(|row| end - row.position()).collect();
        let merged = match rows[0] {
            LayerCache::Stateless => return Ok(LayerCache::Stateless),
            LayerCache::List(parts) => {
                let lists = rows_of!(List, rows)?;
                if lists.iter().any(|list| list.len() != parts.len()) {
                    return Err(Error::argument("merge", "lists of different lengths"));
                }
                let part = |i: usize| Self::merge(&lists.iter().map(|list| &list[i]).collect::<Vec<_>>());
                return (0..parts.len()).map(part).collect::<Result<_>>().map(LayerCache::List);
            }
            LayerCache::Padded(_, _) => {
                return Err(Error::argument("merge", "take the rows of a batch before merging them"));
            }
            LayerCache::Kv(_) => LayerCache::Kv(KvCache::merge(&rows_of!(Kv, rows)?, end)?),
            LayerCache::Quantized(first) => {
                let rows = rows_of!(Quantized, rows)?;
                if rows.iter().any(|row| row.how != first.how) {
                    return Err(Error::argument("merge", "caches that are quantized in different ways"));
                }
                let stores: Vec<_> = rows.iter().map(|row| row.seen()).collect::<Result<_>>()?;
                LayerCache::Quantized(QuantizedKvCache {
                    store: right_aligned(&stores, end)?,
                    offset: end,
                    how: first.how,
                })
            }
            LayerCache::Rotating(_) => {
                LayerCache::Rotating(RotatingKvCache::merge(&rows_of!(Rotating, rows)?, end)?)
            }
            LayerCache::Chunked(_) => {
                LayerCache::Chunked(ChunkedKvCache::merge(&rows_of!(Chunked, rows)?, end)?)
            }
            LayerCache::Arrays(_) => LayerCache::Arrays(ArraysCache::merge(&rows_of!(Arrays, rows)?, end)?),
        };
        match padding.iter().all(|&count| count == 0) {
            true => Ok(merged),
            false => merged.pad(&padding),
        }
    }

    /// Sequence number `row`, behind `padding` positions.
    fn row(&self, row: i32, padding: i32) -> Result<Self> {
        Ok(match self {
            LayerCache::Stateless => LayerCache::Stateless,
            LayerCache::Padded(cache, padding) => {
                let count = usize::try_from(row).ok().and_then(|row| padding.rows.get(row));
                let missing = || Error::argument("cache", format!("no sequence {row} in the batch"));
                cache.row(row, (*count.ok_or_else(missing)?).min(cache.position()))?
            }
            LayerCache::List(parts) => {
                LayerCache::List(parts.iter().map(|part| part.row(row, padding)).collect::<Result<_>>()?)
            }
            LayerCache::Kv(cache) => LayerCache::Kv(cache.row(row, padding)?),
            LayerCache::Quantized(cache) => LayerCache::Quantized(QuantizedKvCache {
                store: rows_from(cache.seen()?, row, padding)?,
                offset: cache.offset - padding,
                how: cache.how,
            }),
            LayerCache::Rotating(cache) => LayerCache::Rotating(cache.row(row, padding)?),
            LayerCache::Chunked(cache) => LayerCache::Chunked(cache.row(row, padding)?),
            LayerCache::Arrays(cache) => LayerCache::Arrays(cache.row(row, padding)?),
        })
    }
}

impl QuantizedKvCache {
    pub(super) fn seen(&self) -> Result<Option<Vec<Array>>> {
        let seen = |store: &Vec<Array>| store.iter().map(|part| positions(part, 0, self.offset)).collect();
        self.store.as_ref().map(seen).transpose()
    }
}

impl ArraysCache {
    fn merge(rows: &[&Self], end: i32) -> Result<Self> {
        let merge = |i: usize| -> Result<Option<Array>> {
            let states: Vec<Option<&Array>> = rows.iter().map(|row| row.arrays.get(i)?.as_ref()).collect();
            let Some(like) = states.iter().flatten().next() else {
                return Ok(None);
            };
            // A sequence that has not begun has states of zeros.
            let state =
                |state: &Option<&Array>| state.map_or_else(|| ops::zeros_like(like), |s| Ok(s.clone()));
            let states = states.iter().map(state).collect::<Result<Vec<Array>>>()?;
            ops::concatenate(&level(states)?, 0).map(Some)
        };
        let count = rows.iter().map(|row| row.arrays.len()).max().unwrap_or(0);
        Ok(Self { arrays: (0..count).map(merge).collect::<Result<_>>()?, offset: end })
    }

    fn row(&self, row: i32, padding: i32) -> Result<Self> {
        let take = |state: &Option<Array>| state.as_ref().map(|state| take_row(state, row)).transpose();
        Ok(Self {
            arrays: self.arrays.iter().map(take).collect::<Result<_>>()?,
            offset: self.offset - padding,
        })
    }
}

/// States of one length: those that grow with their sequence, along axis 1, get zeros behind them.
fn level(states: Vec<Array>) -> Result<Vec<Array>> {
    let length = |state: &Array| state.shape().get(1).copied().unwrap_or(0);
    let longest = states.iter().map(length).max().unwrap_or(0);
    let fill = |state: Array| {
        if length(&state) == longest {
            return Ok(state);
        }
        let mut widths = vec![(0, 0); state.ndim()];
        widths[1].1 = longest - length(&state);
        ops::pad(&state, &widths, ops::PadMode::Constant, 0.0)
    };
    states.into_iter().map(fill).collect()
}

pub(super) fn keeps() -> Error {
    Error::unsupported("a batch of caches that keep the first positions", "padding would be among them")
}

/// One array of the parts of several sequences, `[1, heads, length, dims]` each, or nothing, which get
/// zeros before them up to `length`.
pub(super) fn right_aligned(rows: &[Option<Vec<Array>>], length: i32) -> Result<Option<Vec<Array>>> {
    let Some(like) = rows.iter().flatten().next() else {
        return Ok(None);
    };
    let part = |i: usize| {
        let &[_, heads, _, dims] = like[i].shape() else {
            return Err(not_keys(&like[i]));
        };
        let row = |row: &Option<Vec<Array>>| {
            let Some(part) = row.as_ref().map(|parts| &parts[i]) else {
                return ops::zeros(&[1, heads, length, dims], like[i].dtype());
            };
            let zeros = ops::zeros(&[1, heads, length - part.dim(2)?, dims], part.dtype())?;
            ops::concatenate([&zeros, part], 2)
        };
        ops::concatenate(&rows.iter().map(row).collect::<Result<Vec<Array>>>()?, 0)
    };
    (0..like.len()).map(part).collect::<Result<_>>().map(Some)
}

/// Sequence number `row` of each array, from position `start` on.
pub(super) fn rows_from(store: Option<Vec<Array>>, row: i32, start: i32) -> Result<Option<Vec<Array>>> {
    let take = |part: &Array| positions(&take_row(part, row)?, start, part.dim(2)?);
    store.map(|store| store.iter().map(take).collect()).transpose()
}

/// `x[row..row + 1]`.
fn take_row(x: &Array, row: i32) -> Result<Array> {
    if !(0..x.dim(0)?).contains(&row) {
        return Err(Error::argument("cache", format!("no sequence {row} in a batch of {}", x.dim(0)?)));
    }
    let (mut start, mut stop) = (vec![0; x.ndim()], x.shape().to_vec());
    (start[0], stop[0]) = (row, row + 1);
    ops::slice(x, &start, &stop, &vec![1; x.ndim()])
}

fn range(start: i32, stop: i32) -> Result<Array> {
    ops::arange(start, stop, 1, Dtype::Int32)
}
