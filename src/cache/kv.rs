//! Keys and values of all positions.

use super::batch::{right_aligned, rows_from};
use super::{check_fits, grow, positions, put};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::kernels::{Chain, Node, joined};

/// Positions by which a cache grows.
const STEP: i32 = 256;

/// Keys and values with new positions in a chain, which a cache is to keep.
#[derive(Debug, Clone, Copy)]
pub struct Appended {
    /// Outputs of the chain.
    pub(crate) parts: [Node; 2],
    /// Positions in all.
    pub(super) end: i32,
}

/// Keys and values of all positions, in arrays that grow in steps and are updated in place.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// Keys and values, with room at the end.
    store: Option<[Array; 2]>,
    offset: i32,
}

impl KvCache {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions seen.
    pub fn offset(&self) -> i32 {
        self.offset
    }

    /// Adds keys and values of new positions, `[batch, kv_heads, length, dims]`, and returns all.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let (offset, end) = (self.offset, self.offset + keys.dim(2)?);
        let store = self.store.take();
        let [k, v] = match &store {
            Some([k, v]) => [append(Some(k), keys, offset)?, append(Some(v), values, offset)?],
            None => [append(None, keys, 0)?, append(None, values, 0)?],
        };
        // The old handles go before anything is computed, so that MLX may write in place.
        drop(store);
        let seen = (positions(&k, 0, end)?, positions(&v, 0, end)?);
        self.store = Some([k, v]);
        self.offset = end;
        Ok(seen)
    }

    /// [`update`](Self::update) in a chain, if there is room: the keys and values to attend to, and what is to be
    /// [`kept`](Self::keep).
    pub(super) fn record(
        &self,
        chain: &mut Chain,
        keys: Node,
        values: Node,
    ) -> Result<Option<([Node; 2], Appended)>> {
        let Some(store) = &self.store else { return Ok(None) };
        let end = self.offset + chain.spec(keys).shape.get(2).copied().unwrap_or(0);
        let mut parts = [keys, values];
        let mut seen = parts;
        for ((part, seen), store) in parts.iter_mut().zip(&mut seen).zip(store) {
            let room = chain.input(store);
            match chain.append(room, *part, self.offset)? {
                Some(grown) => *part = grown,
                None => return Ok(None),
            }
            *seen = chain.slice(*part, 2, [0, end])?;
        }
        Ok(Some((seen, Appended { parts, end })))
    }

    /// Takes what [`record`](Self::record) has promised: keys and values with room, of so many positions.
    pub(super) fn keep(&mut self, parts: [Array; 2], end: i32) {
        (self.store, self.offset) = (Some(parts), end);
    }

    /// Keys and values of all positions. Fails if there are none.
    pub(super) fn seen(&self) -> Result<(Array, Array)> {
        let none = || Error::argument("cache", "no keys yet");
        let [k, v] = self.store.as_ref().ok_or_else(none)?;
        Ok((positions(k, 0, self.offset)?, positions(v, 0, self.offset)?))
    }

    /// Forgets the last `count` positions.
    pub(super) fn trim(&mut self, count: i32) {
        self.offset -= count;
    }

    /// The sequences of `rows`, which all end at position `end`.
    pub(super) fn merge(rows: &[&Self], end: i32) -> Result<Self> {
        let stores = rows.iter().map(|row| row.parts()).collect::<Result<Vec<_>>>()?;
        Self::from_parts(right_aligned(&stores, end)?, end)
    }

    /// Sequence number `row` from position `start` on.
    pub(super) fn row(&self, row: i32, start: i32) -> Result<Self> {
        Self::from_parts(rows_from(self.parts()?, row, start)?, self.offset - start)
    }

    /// Keys and values of all positions, if there are any.
    pub(super) fn parts(&self) -> Result<Option<Vec<Array>>> {
        match &self.store {
            None => Ok(None),
            Some(_) => self.seen().map(|(keys, values)| Some(vec![keys, values])),
        }
    }

    /// A cache of these keys and values.
    pub(super) fn from_parts(parts: Option<Vec<Array>>, offset: i32) -> Result<Self> {
        let wrong = |parts: Vec<Array>| Error::argument("cache", format!("{} arrays", parts.len()));
        let store = parts.map(|parts| parts.try_into().map_err(wrong)).transpose()?;
        Ok(Self { store, offset })
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.store.iter().flatten()
    }
}

/// `store` with `new` at position `offset`, grown if it must be.
pub(super) fn append(store: Option<&Array>, new: &Array, offset: i32) -> Result<Array> {
    let end = offset + new.dim(2)?;
    let capacity = end.div_euclid(STEP) * STEP + if end % STEP == 0 { 0 } else { STEP };
    let Some(store) = store else { return grow(new, capacity - end) };
    check_fits(store, new)?;
    match store.dim(2)? >= end {
        true => put(store, new, offset),
        false => joined(&[&positions(store, 0, offset)?, new], capacity),
    }
}
