//! Which keys a query sees, and how much.

use std::ops::Range;

use crate::array::Dtype;
use crate::error::Result;
use crate::kernels::View;
use crate::kernels::product::Numbers;

/// As [`crate::fast::Mask`].
pub(super) enum Visible<'a> {
    All,
    /// Query `i` sees the keys up to `before + i`.
    Causal {
        before: isize,
    },
    Bool {
        all: &'a [bool],
        place: Place,
    },
    Added {
        all: Numbers<'a>,
        place: Place,
    },
}

/// Where the element of a batch, head, query and key is.
pub(super) struct Place {
    origin: usize,
    strides: Vec<isize>,
    keys: usize,
}

impl Place {
    fn at(&self, index: [usize; 3], key: usize) -> usize {
        let [b, h, i] = index;
        let offset: isize = [b, h, i, key].iter().zip(&self.strides).map(|(&i, s)| i as isize * s).sum();
        self.origin.wrapping_add_signed(offset)
    }

    fn step(&self) -> isize {
        self.strides[3]
    }
}

impl<'a> Visible<'a> {
    /// A mask of shape `[batch, heads, length, keys]`.
    pub fn array(view: &View<'a>, keys: usize) -> Result<Self> {
        let strides = view.strides().iter().map(|&s| s as isize).collect();
        if view.dtype() == Dtype::Bool {
            let (all, origin) = view.strided::<bool>()?;
            return Ok(Self::Bool { all, place: Place { origin, strides, keys } });
        }
        let (all, origin) = Numbers::of(view)?;
        Ok(Self::Added { all, place: Place { origin, strides, keys } })
    }

    /// A range that holds every key that a query sees, or all keys where it sees none.
    pub fn range(&self, keys: usize, [batch, head, i]: [usize; 3]) -> Range<usize> {
        match self {
            Self::All | Self::Added { .. } => 0..keys,
            Self::Causal { before } => match usize::try_from(before + i as isize + 1) {
                Ok(end) if end > 0 => 0..end.min(keys),
                _ => 0..keys,
            },
            Self::Bool { all, place } => {
                let sees = |key: &usize| all[place.at([batch, head, i], *key)];
                match (0..place.keys).find(sees) {
                    Some(first) => first..(first..place.keys).rev().find(sees).map_or(keys, |last| last + 1),
                    None => 0..keys,
                }
            }
        }
    }

    /// Masks the scores of the keys from `first` on. As in MLX a key that is not seen has the least finite
    /// score, so a query that sees none sees all alike.
    pub fn apply(&self, batch: usize, head: usize, i: usize, first: usize, scores: &mut [f32]) {
        let index = [batch, head, i];
        match self {
            Self::All => {}
            Self::Causal { before } => {
                let seen = usize::try_from(before + i as isize + 1).unwrap_or(0).saturating_sub(first);
                scores.iter_mut().skip(seen).for_each(|score| *score = f32::MIN);
            }
            Self::Bool { all, place } => {
                for (key, score) in scores.iter_mut().enumerate() {
                    if !all[place.at(index, first + key)] {
                        *score = f32::MIN;
                    }
                }
            }
            Self::Added { all, place } => {
                let at = place.at(index, first);
                for (key, score) in scores.iter_mut().enumerate() {
                    *score += all.get(at.wrapping_add_signed(key as isize * place.step()));
                }
            }
        }
    }
}
