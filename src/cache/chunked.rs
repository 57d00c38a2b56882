//! Keys and values of the chunk that a position is in, and of the one before.

use super::mask::{self, Mask};
use super::{KvCache, positions};
use crate::array::Array;
use crate::error::{Error, Result};

/// Keys and values for attention within chunks of the sequence (Llama 4): a position sees those before
/// it that are in its own chunk of `size`. Positions more than one chunk back are forgotten.
#[derive(Debug, Clone)]
pub struct ChunkedKvCache {
    kept: KvCache,
    /// Positions that were forgotten.
    start: i32,
    size: i32,
}

impl ChunkedKvCache {
    /// For chunks of `size` positions (at least 1).
    pub fn new(size: i32) -> Self {
        Self { kept: KvCache::new(), start: 0, size: size.max(1) }
    }

    /// Positions seen.
    pub fn offset(&self) -> i32 {
        self.start + self.kept.offset()
    }

    /// Adds keys and values of new positions, `[batch, kv_heads, length, dims]`, and returns those to
    /// attend to, in order of time.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let surplus = self.surplus();
        if surplus > 0 {
            let (k, v) = self.kept.seen()?;
            let mut kept = KvCache::new();
            let end = self.kept.offset();
            kept.update(&positions(&k, surplus, end)?, &positions(&v, surplus, end)?)?;
            (self.kept, self.start) = (kept, self.start + surplus);
        }
        self.kept.update(keys, values)
    }

    /// Which of the positions that the next [`update`](Self::update) returns its `length` new ones see.
    pub(super) fn mask(&self, length: i32) -> Result<Mask> {
        let offset = self.offset();
        mask::chunked(length, offset, self.next_start(), self.size)
    }

    /// The position of the first key that the next [`update`](Self::update) returns.
    pub(super) fn next_start(&self) -> i32 {
        self.start + self.surplus()
    }

    pub(super) fn size(&self) -> i32 {
        self.size
    }

    /// The sequences of `rows`, which all end at position `end`.
    pub(super) fn merge(rows: &[&Self], end: i32) -> Result<Self> {
        let size = rows.first().map_or(1, |row| row.size);
        if rows.iter().any(|row| row.size != size) {
            return Err(Error::argument("merge", "caches of different chunks"));
        }
        let length = rows.iter().map(|row| row.kept.offset()).max().unwrap_or(0);
        let kept: Vec<&KvCache> = rows.iter().map(|row| &row.kept).collect();
        Ok(Self { kept: KvCache::merge(&kept, length)?, start: end - length, size })
    }

    /// Sequence number `row` from position `begin` on.
    pub(super) fn row(&self, row: i32, begin: i32) -> Result<Self> {
        let cut = (begin - self.start).max(0);
        Ok(Self { kept: self.kept.row(row, cut)?, start: (self.start - begin).max(0), size: self.size })
    }

    /// What mlx-lm saves: keys and values, and `offset`, `size`, `start`.
    pub(super) fn state(&self) -> Result<(Option<Vec<Array>>, [i32; 3])> {
        Ok((self.kept.parts()?, [self.offset(), self.size, self.start]))
    }

    pub(super) fn from_parts(store: Option<Vec<Array>>, offset: i32, size: i32, start: i32) -> Result<Self> {
        Ok(Self { kept: KvCache::from_parts(store, offset - start)?, start, size })
    }

    pub(super) fn is_trimmable(&self, count: i32) -> bool {
        count <= self.kept.offset()
            && (self.start == 0 || (self.offset() - count) / self.size * self.size >= self.start)
    }

    pub(super) fn trim(&mut self, count: i32) {
        self.kept.trim(count);
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.kept.arrays()
    }

    /// Kept positions that no new one sees: all beyond the last `size`.
    fn surplus(&self) -> i32 {
        (self.kept.offset() - self.size).max(0)
    }
}
