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

use crate::kernels::lanes::{LANES, Lane, lanes};
use crate::kernels::math::{Lanes, Loop};

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

impl Loop for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        match self.rule {
            Rule::Linear => self.steps::<L, false, false>(),
            Rule::Delta => self.steps::<L, true, false>(),
            Rule::Wkv => self.steps::<L, true, true>(),
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn steps<L: Lanes, const FINDS: bool, const MOVES: bool>(self) {
        let Self { steps, group, state, .. } = self;
        let width = steps.width;
        for t in 0..steps.count {
            let at = t * width..(t + 1) * width;
            let mut found = [0.0; ROWS];
            if FINDS {
                let mut sums = [L::splat(0.0); ROWS];
                for (state, find) in state.iter().zip(&steps.find[at.clone()]) {
                    let find = L::load(find);
                    for r in 0..ROWS {
                        sums[r] = L::load(&state[r]).mul_add(find, sums[r]);
                    }
                }
                for r in 0..ROWS {
                    found[r] = sums[r].sum();
                }
            }
            let mut added = steps.values[t * steps.groups + group];
            if FINDS && !MOVES {
                for r in 0..ROWS {
                    added[r] += found[r];
                }
            }
            let mut sums = [L::splat(0.0); ROWS];
            let vectors = steps.decay[at.clone()].iter().zip(&steps.key[at.clone()]);
            let vectors = vectors.zip(&steps.query[at.clone()]);
            for (j, (state, ((decay, key), query))) in state.iter_mut().zip(vectors).enumerate() {
                let (decay, key, query) = (L::load(decay), L::load(key), L::load(query));
                let other = if MOVES { L::load(&steps.other[at.start + j]) } else { key };
                for r in 0..ROWS {
                    let mut new = L::splat(added[r]).mul(key);
                    if MOVES {
                        new = L::splat(found[r]).mul_add(other, new);
                    }
                    new = L::load(&state[r]).mul_add(decay, new);
                    new.store(&mut state[r]);
                    sums[r] = new.mul_add(query, sums[r]);
                }
            }
            let outputs = &mut steps.outputs[t * steps.groups + group];
            for r in 0..ROWS {
                outputs[r] = sums[r].sum();
            }
        }
    }
}
