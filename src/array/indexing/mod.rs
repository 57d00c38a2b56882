//! `x.index((.., 0, 1..-1))`: parts of an array, by NumPy's rules.
//!
//! | index | takes |
//! | --- | --- |
//! | `3`, `-1` | one position; the axis goes. Outside of the axis it is an error |
//! | `..`, `1..`, `..-1`, `2..5`, `0..=3`, [`strided`]`(.., -1)` | a range, cut to the axis |
//! | [`Index::Ellipsis`] | as many whole axes as are left |
//! | [`Index::NewAxis`] | nothing: puts in an axis of size 1 |
//! | `[0, 2]`, a `Vec<i32>` | these positions. Outside of the axis they are an error |
//! | an integer array | the positions it names, in its shape |
//!
//! Several arrays, lists and positions broadcast together and name one element each. Their shape takes
//! the place of their axes if those are side by side, else it comes first.
//!
//! What an index array holds is known only when it is computed, so it can't be an error: its positions
//! count modulo the size of the axis, as those of [`ops::take`](crate::ops::take) do.
//!
//! ```
//! use mlxport::Array;
//! use mlxport::array::{Index::{Ellipsis, NewAxis}, strided};
//!
//! let x = Array::from_slice(&[0i32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[3, 4])?;
//! assert_eq!(x.index(-1)?.to_vec::<i32>()?, [8, 9, 10, 11]);
//! assert_eq!(x.index((.., 1..-1))?.shape(), [3, 2]);
//! assert_eq!(x.index((Ellipsis, strided(.., -2), NewAxis))?.shape(), [3, 2, 1]);
//! assert_eq!(x.index(([0, 2], [1, 3]))?.to_vec::<i32>()?, [1, 11]);
//! assert_eq!(x.set_index((0, 2..), 7)?.index(0)?.to_vec::<i32>()?, [0, 1, 7, 7]);
//! assert_eq!(x.at([0, 0]).add(1)?.index(0)?.to_vec::<i32>()?, [2, 3, 4, 5]);
//! # Ok::<(), mlxport::Error>(())
//! ```

mod plan;
mod update;

use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

pub use update::At;

use super::{Array, Operand};
use crate::error::Result;
use crate::ffi::{VectorArray, op};
use plan::Plan;

/// What is taken along one axis.
#[derive(Debug, Clone)]
pub enum Index {
    /// One position; negative ones count from the end.
    At(i32),
    /// A range.
    Slice(Slice),
    /// These positions.
    List(Vec<i32>),
    /// The positions that an integer array names.
    Array(Array),
    /// A new axis of size 1.
    NewAxis,
    /// As many whole axes as the other indices leave.
    Ellipsis,
}

/// A range of an axis, as Python's `start:stop:step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// First position; `None`: the first, or the last if the step is negative.
    pub start: Option<i32>,
    /// The position before which it ends; `None`: after the end that it moves to.
    pub stop: Option<i32>,
    /// From one position to the next; not 0.
    pub step: i32,
}

/// Every `step`-th position of a range: `strided(1.., 2)`; `strided(.., -1)` is the axis reversed.
pub fn strided(range: impl Into<Slice>, step: i32) -> Slice {
    Slice { step, ..range.into() }
}

macro_rules! ranges {
    ($($t:ty: |$r:ident| $start:expr, $stop:expr;)*) => { $(
        impl From<$t> for Slice {
            fn from($r: $t) -> Self {
                Slice { start: $start, stop: $stop, step: 1 }
            }
        }
    )* };
}

ranges! {
    RangeFull: |_r| None, None;
    Range<i32>: |r| Some(r.start), Some(r.end);
    RangeFrom<i32>: |r| Some(r.start), None;
    RangeTo<i32>: |r| None, Some(r.end);
    RangeInclusive<i32>: |r| Some(*r.start()), after(*r.end());
    RangeToInclusive<i32>: |r| None, after(r.end);
}

/// The stop of a range that ends with `last`.
fn after(last: i32) -> Option<i32> {
    last.checked_add(1).filter(|&stop| stop != 0)
}

/// One index, or several as a tuple, a slice or a vector of [`Index`].
pub trait Indices {
    /// The indices, one per axis.
    fn indices(self) -> Vec<Index>;
}

macro_rules! single {
    ($($t:ty: |$i:ident| $index:expr;)*) => { $(
        impl From<$t> for Index {
            fn from($i: $t) -> Self {
                $index
            }
        }
        impl Indices for $t {
            fn indices(self) -> Vec<Index> {
                vec![self.into()]
            }
        }
    )* };
}

single! {
    i32: |i| Index::At(i);
    Slice: |i| Index::Slice(i);
    RangeFull: |i| Index::Slice(i.into());
    Range<i32>: |i| Index::Slice(i.into());
    RangeFrom<i32>: |i| Index::Slice(i.into());
    RangeTo<i32>: |i| Index::Slice(i.into());
    RangeInclusive<i32>: |i| Index::Slice(i.into());
    RangeToInclusive<i32>: |i| Index::Slice(i.into());
    Vec<i32>: |i| Index::List(i);
    Array: |i| Index::Array(i);
    &Array: |i| Index::Array(i.clone());
}

impl<const N: usize> From<[i32; N]> for Index {
    fn from(list: [i32; N]) -> Self {
        Index::List(list.into())
    }
}

impl<const N: usize> Indices for [i32; N] {
    fn indices(self) -> Vec<Index> {
        vec![self.into()]
    }
}

impl Indices for Index {
    fn indices(self) -> Vec<Index> {
        vec![self]
    }
}

impl Indices for Vec<Index> {
    fn indices(self) -> Vec<Index> {
        self
    }
}

impl Indices for &[Index] {
    fn indices(self) -> Vec<Index> {
        self.to_vec()
    }
}

macro_rules! tuples {
    ($($($t:ident)*;)*) => { $(
        impl<$($t: Into<Index>),*> Indices for ($($t,)*) {
            fn indices(self) -> Vec<Index> {
                #[allow(non_snake_case)]
                let ($($t,)*) = self;
                vec![$($t.into()),*]
            }
        }
    )* };
}

tuples! {
    ;
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
}

impl Array {
    /// The part of the array that the indices name; see [`array::indexing`](crate::array::indexing).
    ///
    /// Ranges and positions make a view; index arrays gather. Fails on a boolean array: the shape of
    /// the result would depend on its values.
    pub fn index(&self, indices: impl Indices) -> Result<Array> {
        Plan::new(self, indices.indices())?.get(self)
    }

    /// A copy of the array in which the part that the indices name is `value`, cast to the array's
    /// dtype and broadcast to the shape of the part.
    ///
    /// Where index arrays name an element more than once, one of the values is kept: the last on the
    /// CPU, any on a GPU. The indices may also be one boolean array that has the leading dimensions of
    /// this array: then `value` is either broadcast to the elements where it is true, or has one row
    /// for each of them, in their order (evaluation fails if there are too few, further ones are unused).
    pub fn set_index(&self, indices: impl Indices, value: impl Operand) -> Result<Array> {
        update::set(self, indices.indices(), value)
    }

    /// The part that the indices name, to be combined with other values: `x.at((.., 0)).add(&y)`.
    pub fn at(&self, indices: impl Indices) -> At<'_> {
        At::new(self, indices.indices())
    }
}

/// The elements that `arrays` name together along `axes`: `[...shape of the arrays, ...other axes]`.
fn gather(a: &Array, arrays: &[Array], axes: &[i32]) -> Result<Array> {
    let mut sizes = a.shape().to_vec();
    for &axis in axes {
        sizes[axis as usize] = 1;
    }
    let list = VectorArray::new(arrays);
    let taken = op!(mlx_gather(a, list, [axes], [sizes]))?;
    let leading = (taken.ndim() - a.ndim()) as i32;
    let used: Vec<i32> = axes.iter().map(|axis| axis + leading).collect();
    op!(mlx_squeeze_axes(taken, [used]))
}
