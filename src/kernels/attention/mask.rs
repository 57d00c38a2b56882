//! Which keys a query sees, and how much.

use std::ops::Range;

use crate::array::Dtype;
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

    /// So many elements from key `first` on: as they lie, or one by one.
    fn row<'a>(
        &self,
        all: &'a [bool],
        index: [usize; 3],
        first: usize,
        count: usize,
    ) -> Result<&'a [bool], impl DoubleEndedIterator<Item = bool> + ExactSizeIterator + use<'a>> {
        let (at, step) = (self.at(index, first), self.step());
        match step {
            1 => Ok(&all[at..at + count]),
            _ => Err((0..count).map(move |key| all[at.wrapping_add_signed(key as isize * step)])),
        }
    }
}

impl<'a> Visible<'a> {
    /// A mask of shape `[batch, heads, length, keys]`.
    pub fn array(view: &View<'a>) -> crate::error::Result<Self> {
        let strides = view.strides().iter().map(|&s| s as isize).collect();
        if view.dtype() == Dtype::Bool {
            let (all, origin) = view.strided::<bool>()?;
            return Ok(Self::Bool { all, place: Place { origin, strides } });
        }
        let (all, origin) = Numbers::of(view)?;
        Ok(Self::Added { all, place: Place { origin, strides } })
    }

    /// A range that holds every key that a query sees, or all keys where it sees none.
    pub fn range(&self, keys: usize, index: [usize; 3]) -> Range<usize> {
        match self {
            Self::All | Self::Added { .. } => 0..keys,
            Self::Causal { before } => match usize::try_from(before + index[2] as isize + 1) {
                Ok(end) if end > 0 => 0..end.min(keys),
                _ => 0..keys,
            },
            Self::Bool { all, place } => match place.row(all, index, 0, keys) {
                Ok(seen) => first_to_last(keys, seen.iter().copied()),
                Err(seen) => first_to_last(keys, seen),
            },
        }
    }

    /// Masks the scores of the keys from `first` on. As in MLX a key that is not seen has the least finite
    /// score, so a query that sees none sees all alike.
    pub fn apply(&self, index: [usize; 3], first: usize, scores: &mut [f32]) {
        let hide = |(score, sees): (&mut f32, bool)| {
            *score = if sees { *score } else { f32::MIN };
        };
        match self {
            Self::All => {}
            Self::Causal { before } => {
                let seen = usize::try_from(before + index[2] as isize + 1).unwrap_or(0).saturating_sub(first);
                scores.iter_mut().skip(seen).for_each(|score| *score = f32::MIN);
            }
            Self::Bool { all, place } => match place.row(all, index, first, scores.len()) {
                Ok(seen) => scores.iter_mut().zip(seen.iter().copied()).for_each(hide),
                Err(seen) => scores.iter_mut().zip(seen).for_each(hide),
            },
            Self::Added { all, place } => {
                let at = place.at(index, first);
                for (key, score) in scores.iter_mut().enumerate() {
                    *score += all.get(at.wrapping_add_signed(key as isize * place.step()));
                }
            }
        }
    }
}

/// From the first to the last that is seen, or all where none is.
fn first_to_last(
    keys: usize,
    seen: impl DoubleEndedIterator<Item = bool> + ExactSizeIterator,
) -> Range<usize> {
    let mut seen = seen.enumerate();
    match seen.find(|(_, sees)| *sees) {
        Some((first, _)) => first..seen.rfind(|(_, sees)| *sees).map_or(first, |(last, _)| last) + 1,
        None => 0..keys,
    }
}
