//! Keys and values of the last positions.

use super::batch::{keeps, right_aligned, rows_from};
use super::mask::{self, Mask};
use super::{check_fits, grow, positions, put};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops;

/// Positions by which a cache grows.
const STEP: i32 = 256;

/// Keys and values of the last `size` positions, of which the first `keep` of the sequence never go.
///
/// Single positions are written into a ring, in place. Several at once are put behind the others in
/// order of time, so that each of them sees `size` positions; what is too old goes at the next call.
#[derive(Debug, Clone)]
pub struct RotatingKvCache {
    store: Option<[Array; 2]>,
    /// Positions seen.
    offset: i32,
    /// Behind the newest position in `store`. It is `offset` as long as no position was lost.
    next: i32,
    size: i32,
    keep: i32,
}

impl RotatingKvCache {
    /// For `size` positions (at least 1), including the first `keep` (less than `size`).
    pub fn new(size: i32, keep: i32) -> Self {
        let size = size.max(1);
        Self { store: None, offset: 0, next: 0, size, keep: keep.clamp(0, size - 1) }
    }

    /// Positions seen.
    pub fn offset(&self) -> i32 {
        self.offset
    }

    /// Adds keys and values of new positions, `[batch, kv_heads, length, dims]`, and returns those to
    /// attend to: in any order for a single position, else in order of time.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let length = keys.dim(2)?;
        let store = self.store.take();
        let old = store.as_ref().map_or([None, None], |[k, v]| [Some(k), Some(v)]);
        let [k, v] = if length == 1 {
            [self.write(old[0], keys)?, self.write(old[1], values)?]
        } else {
            [self.append(old[0], keys)?, self.append(old[1], values)?]
        };
        // The old handles go before anything is computed, so that MLX may write in place.
        drop(store);
        self.next = if length == 1 { self.slot() + 1 } else { k.dim(2)? };
        self.offset += length;
        let filled = k.dim(2)?.min(self.offset);
        let seen = (positions(&k, 0, filled)?, positions(&v, 0, filled)?);
        self.store = Some([k, v]);
        Ok(seen)
    }

    /// Which of the positions that the next [`update`](Self::update) returns its `length` new ones see:
    /// the last `window` (by default as many as are kept), counted among what is kept: of several positions
    /// that come together only the first ones see the first `keep`, as in mlx-lm.
    pub(super) fn mask(&self, length: i32, window: Option<i32>) -> Result<Mask> {
        let window = window.unwrap_or(self.size);
        if length > 1 {
            let before = self.offset.min(self.size - 1);
            return match before + length <= window {
                true => Ok(Mask::Causal),
                false => mask::windowed(length, before, window).map(Mask::Array),
            };
        }
        let filled = (self.offset + 1).min(self.size);
        if filled <= window {
            return Ok(Mask::None);
        }
        let sees: Vec<bool> = self.next_keys(1).into_iter().map(|key| self.offset - key < window).collect();
        Array::from_slice(&sees, &[filled]).map(Mask::Array)
    }

    pub(super) fn size(&self) -> i32 {
        self.size
    }

    pub(super) fn keeps(&self) -> i32 {
        self.keep
    }

    /// The positions of the keys that the next [`update`](Self::update), by `length`, returns.
    pub(super) fn next_keys(&self, length: i32) -> Vec<i32> {
        let (keep, end) = (self.keep, self.offset + length);
        if length > 1 {
            let recent = (self.offset - (self.size - 1 - keep)).max(keep);
            return (0..keep.min(self.offset)).chain(recent.min(self.offset)..end).collect();
        }
        // The ring ends at the slot that will be written, and begins behind it.
        let (slot, filled) = (self.slot(), end.min(self.size));
        let at = |at: i32| match at < keep {
            true => at,
            false => self.offset - (slot - at).rem_euclid(filled - keep),
        };
        (0..filled).map(at).collect()
    }

    /// The sequences of `rows`, which all end at position `end`.
    pub(super) fn merge(rows: &[&Self], end: i32) -> Result<Self> {
        let size = rows.first().map_or(1, |row| row.size);
        if rows.iter().any(|row| row.size != size) {
            return Err(Error::argument("merge", "caches of different windows"));
        }
        if rows.iter().any(|row| row.keep > 0) {
            return Err(keeps());
        }
        let stores = rows.iter().map(|row| row.in_order()).collect::<Result<Vec<_>>>()?;
        let lengths = stores.iter().flatten().map(|parts| parts[0].dim(2));
        let length = lengths.collect::<Result<Vec<i32>>>()?.into_iter().max().unwrap_or(0);
        Self::from_parts(right_aligned(&stores, length)?, end, length, size, 0)
    }

    /// Sequence number `row` from position `begin` on.
    pub(super) fn row(&self, row: i32, begin: i32) -> Result<Self> {
        if begin > 0 && self.keep > 0 {
            return Err(keeps());
        }
        let (parts, offset) = (self.in_order()?, self.offset - begin);
        let length = parts.as_ref().map_or(Ok(0), |parts| parts[0].dim(2))?;
        let cut = (length - offset).max(0);
        Self::from_parts(rows_from(parts, row, cut)?, offset, length - cut, self.size, self.keep)
    }

    /// The kept keys and values in order of time, if there are any.
    fn in_order(&self) -> Result<Option<Vec<Array>>> {
        let part = |part: &Array| ops::concatenate(&self.newest(part, self.size)?, 2);
        self.store.as_ref().map(|store| store.iter().map(part).collect()).transpose()
    }

    /// What mlx-lm saves: keys and values, and `offset`, `keep`, `size`, `next`.
    pub(super) fn state(&self) -> Result<(Option<Vec<Array>>, [i32; 4])> {
        let numbers = [self.offset, self.keep, self.size, self.next];
        Ok((self.store.as_ref().map(|store| store.to_vec()), numbers))
    }

    pub(super) fn from_parts(
        parts: Option<Vec<Array>>,
        offset: i32,
        next: i32,
        size: i32,
        keep: i32,
    ) -> Result<Self> {
        let wrong = |parts: Vec<Array>| Error::argument("cache", format!("{} arrays", parts.len()));
        let store = parts.map(|parts| parts.try_into().map_err(wrong)).transpose()?;
        Ok(Self { store, offset, next, size, keep })
    }

    /// Whether the last `count` positions can be forgotten: only as long as no position was lost.
    pub(super) fn is_trimmable(&self, count: i32) -> bool {
        count == 0 || (count <= self.offset && self.next == self.offset)
    }

    pub(super) fn trim(&mut self, count: i32) {
        self.offset -= count;
        self.next -= count;
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.store.iter().flatten()
    }

    /// Where a single position is written.
    fn slot(&self) -> i32 {
        if self.next < self.size { self.next } else { self.keep }
    }

    /// `store` with one position in its slot.
    fn write(&self, store: Option<&Array>, new: &Array) -> Result<Array> {
        let Some(store) = store else {
            return grow(new, STEP.min(self.size) - 1);
        };
        check_fits(store, new)?;
        let store = match store.dim(2)? {
            longer if longer > self.size => ops::concatenate(&self.newest(store, self.size)?, 2)?,
            _ => store.clone(),
        };
        let capacity = store.dim(2)?;
        let store = match self.slot() < capacity {
            true => store,
            false => grow(&store, STEP.min(self.size - capacity))?,
        };
        put(&store, new, self.slot())
    }

    /// What of `store` the new positions see, and they behind it.
    fn append(&self, store: Option<&Array>, new: &Array) -> Result<Array> {
        let Some(store) = store else {
            return Ok(new.clone());
        };
        check_fits(store, new)?;
        let mut parts = self.newest(store, self.size - 1)?;
        parts.push(new.clone());
        ops::concatenate(&parts, 2)
    }

    /// The first `keep` positions of `store` and the newest others, `count` in all, in order of time.
    fn newest(&self, store: &Array, count: i32) -> Result<Vec<Array>> {
        let (end, next) = (store.dim(2)?, self.next);
        let spans = match next < end && next < self.offset {
            true => vec![(0, self.keep), (next, end), (self.keep, next)],
            false => vec![(0, self.keep.min(next)), (self.keep.min(next), next)],
        };
        let mut surplus = (spans.iter().map(|(start, stop)| stop - start).sum::<i32>() - count).max(0);
        let mut parts = Vec::new();
        for (i, (start, stop)) in spans.into_iter().enumerate() {
            let cut = if i == 0 { 0 } else { surplus.min(stop - start) };
            surplus -= cut;
            if start + cut < stop {
                parts.push(positions(store, start + cut, stop)?);
            }
        }
        Ok(parts)
    }
}
