//! A head's state through a few positions, row by row.
//!
//! What a position finds in the state and adds to it differs between the recurrences only by the vectors
//! that it is done with, so they share one text:
//!
//! ```text
//! found = state find
//! state <- state * decay + (value + found) key^T      (the delta rule, with find = -decay * key)
//! state <- state * decay + value key^T + found other^T  (RWKV-7)
//! output = state query
//! ```

use crate::kernels::lanes::{LANES, Lane, Simd, Task, lanes};

/// Positions whose vectors are in the nearest cache at once.
pub(super) const STEPS: usize = 16;
/// Rows of the state that go through them together.
pub(super) const ROWS: usize = 8;

/// What a position does besides writing its value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Nothing.
    Linear,
    /// Corrects what the state has for its key.
    Delta,
    /// Moves what it finds with one vector to another.
    Wkv,
}

/// The vectors of at most [`STEPS`] positions, each of `width` lanes with zeros behind its end.
pub(super) struct Steps {
    pub count: usize,
    pub width: usize,
    pub decay: Vec<Lane>,
    pub key: Vec<Lane>,
    pub query: Vec<Lane>,
    pub find: Vec<Lane>,
    pub other: Vec<Lane>,
    /// For each position and [`ROWS`] rows of the state.
    pub values: Vec<[f32; ROWS]>,
    pub outputs: Vec<[f32; ROWS]>,
    /// Groups of rows.
    pub groups: usize,
}

impl Steps {
    /// Room for `count` positions of a state of `[value_dim, key_dim]`.
    pub fn new(rule: Rule, count: usize, value_dim: usize, key_dim: usize) -> Self {
        let (width, groups) = (lanes(key_dim), value_dim.div_ceil(ROWS));
        let vectors = |used: bool| vec![[0.0; LANES]; if used { count * width } else { 0 }];
        Self {
            count,
            width,
            decay: vectors(true),
            key: vectors(true),
            query: vectors(true),
            find: vectors(rule != Rule::Linear),
            other: vectors(rule == Rule::Wkv),
            values: vec![[0.0; ROWS]; count * groups],
            outputs: vec![[0.0; ROWS]; count * groups],
            groups,
        }
    }
}

/// Takes one group of rows of the state through the positions.
pub(super) struct Group<'a> {
    pub rule: Rule,
    pub steps: &'a mut Steps,
    pub group: usize,
    /// By lane of the key and row.
    pub state: &'a mut [[Lane; ROWS]],
}

impl Task for Group<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.rule {
            Rule::Linear => self.steps::<S, false, false>(simd),
            Rule::Delta => self.steps::<S, true, false>(simd),
            Rule::Wkv => self.steps::<S, true, true>(simd),
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn steps<S: Simd, const FINDS: bool, const MOVES: bool>(self, simd: S) {
        let Self { steps, group, state, .. } = self;
        let width = steps.width;
        for t in 0..steps.count {
            let at = t * width..(t + 1) * width;
            let mut found = [0.0; ROWS];
            if FINDS {
                let mut sums = [simd.splat(0.0); ROWS];
                for (state, find) in state.iter().zip(&steps.find[at.clone()]) {
                    let find = simd.load(find);
                    for r in 0..ROWS {
                        sums[r] = simd.mul_add(simd.load(&state[r]), find, sums[r]);
                    }
                }
                for r in 0..ROWS {
                    found[r] = simd.sum(sums[r]);
                }
            }
            let mut added = steps.values[t * steps.groups + group];
            if FINDS && !MOVES {
                for r in 0..ROWS {
                    added[r] += found[r];
                }
            }
            let mut sums = [simd.splat(0.0); ROWS];
            let vectors = steps.decay[at.clone()].iter().zip(&steps.key[at.clone()]);
            let vectors = vectors.zip(&steps.query[at.clone()]);
            for (j, (state, ((decay, key), query))) in state.iter_mut().zip(vectors).enumerate() {
                let (decay, key, query) = (simd.load(decay), simd.load(key), simd.load(query));
                let other = if MOVES { simd.load(&steps.other[at.start + j]) } else { key };
                for r in 0..ROWS {
                    let mut new = simd.mul(simd.splat(added[r]), key);
                    if MOVES {
                        new = simd.mul_add(simd.splat(found[r]), other, new);
                    }
                    new = simd.mul_add(simd.load(&state[r]), decay, new);
                    simd.store(new, &mut state[r]);
                    sums[r] = simd.mul_add(new, query, sums[r]);
                }
            }
            let outputs = &mut steps.outputs[t * steps.groups + group];
            for r in 0..ROWS {
                outputs[r] = simd.sum(sums[r]);
            }
        }
    }
}
