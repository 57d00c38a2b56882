//! Which axes an operation works along.

use std::borrow::Cow;
use std::ops::RangeFull;

use crate::error::{Error, Result};

/// All axes, one, or several: `..`, `-1`, `[0, 1]` or a slice. Negative axes count from the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Axes<'a> {
    /// Every axis.
    All,
    /// One axis.
    One(i32),
    /// These axes, each at most once; none of them leaves the array as it is.
    Many(Cow<'a, [i32]>),
}

impl Axes<'_> {
    /// The axes one by one, for an array of `ndim` dimensions; negative ones stay negative.
    pub(crate) fn list(self, ndim: usize) -> Vec<i32> {
        match self {
            Axes::All => (0..ndim as i32).collect(),
            Axes::One(axis) => vec![axis],
            Axes::Many(axes) => axes.into_owned(),
        }
    }
}

impl From<RangeFull> for Axes<'_> {
    fn from(_: RangeFull) -> Self {
        Axes::All
    }
}

impl From<i32> for Axes<'_> {
    fn from(axis: i32) -> Self {
        Axes::One(axis)
    }
}

impl<const N: usize> From<[i32; N]> for Axes<'_> {
    fn from(axes: [i32; N]) -> Self {
        Axes::Many(Cow::Owned(axes.to_vec()))
    }
}

impl<'a, const N: usize> From<&'a [i32; N]> for Axes<'a> {
    fn from(axes: &'a [i32; N]) -> Self {
        Axes::Many(Cow::Borrowed(axes))
    }
}

impl<'a> From<&'a [i32]> for Axes<'a> {
    fn from(axes: &'a [i32]) -> Self {
        Axes::Many(Cow::Borrowed(axes))
    }
}

impl<'a> From<&'a Vec<i32>> for Axes<'a> {
    fn from(axes: &'a Vec<i32>) -> Self {
        Axes::Many(Cow::Borrowed(axes))
    }
}

/// `axis` counted from the first; fails if the array has no such axis.
pub(crate) fn axis_index(op: &'static str, axis: i32, ndim: usize) -> Result<usize> {
    let at = if axis < 0 { i64::from(axis) + ndim as i64 } else { i64::from(axis) };
    usize::try_from(at)
        .ok()
        .filter(|&at| at < ndim)
        .ok_or_else(|| Error::argument(op, format!("axis {axis} of an array with {ndim} dimensions")))
}
