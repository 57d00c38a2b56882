//! Arrays with a part replaced or combined with other values.

use super::{Index, Plan};
use crate::array::{Array, Dtype, Operand};
use crate::error::{Error, Result};
use crate::ffi::{VectorArray, op};

/// A part of an array, which the methods combine with other values; made by [`Array::at`].
///
/// The value is cast to the array's dtype and broadcast to the shape of the part. Each method gives a new
/// array. Where index arrays name an element more than once, every value counts:
/// `x.at([0, 0]).add(1)` adds 2. Boolean arrays are not accepted.
#[derive(Debug)]
pub struct At<'a> {
    array: &'a Array,
    indices: Vec<Index>,
}

#[derive(Clone, Copy, PartialEq)]
enum Update {
    Set,
    Add,
    Multiply,
    Maximum,
    Minimum,
}

impl<'a> At<'a> {
    pub(super) fn new(array: &'a Array, indices: Vec<Index>) -> Self {
        Self { array, indices }
    }

    /// The array with `value` added to the part.
    #[expect(clippy::should_implement_trait, reason = "the name that MLX's users know")]
    pub fn add(self, value: impl Operand) -> Result<Array> {
        self.apply(Update::Add, value, Ok)
    }

    /// The array with `value` subtracted from the part.
    pub fn subtract(self, value: impl Operand) -> Result<Array> {
        self.apply(Update::Add, value, |v| op!(mlx_negative(v)))
    }

    /// The array with the part multiplied by `value`.
    pub fn multiply(self, value: impl Operand) -> Result<Array> {
        self.apply(Update::Multiply, value, Ok)
    }

    /// The array with the part multiplied by the reciprocal of `value`. Fails unless it is floating or
    /// complex.
    pub fn divide(self, value: impl Operand) -> Result<Array> {
        let dtype = self.array.dtype();
        if !dtype.is_inexact() {
            return Err(Error::argument("divide", format!("a part of an array of {dtype}")));
        }
        self.apply(Update::Multiply, value, |v| op!(mlx_reciprocal(v)))
    }

    /// The array with the larger of the part and `value` in its place.
    pub fn maximum(self, value: impl Operand) -> Result<Array> {
        self.apply(Update::Maximum, value, Ok)
    }

    /// The array with the smaller of the part and `value` in its place.
    pub fn minimum(self, value: impl Operand) -> Result<Array> {
        self.apply(Update::Minimum, value, Ok)
    }

    fn apply(
        self,
        update: Update,
        value: impl Operand,
        prepare: impl FnOnce(Array) -> Result<Array>,
    ) -> Result<Array> {
        let value = prepare(cast(value, self.array.dtype())?)?;
        Plan::new(self.array, self.indices)?.update(self.array, &value, update)
    }
}

pub(super) fn set(a: &Array, indices: Vec<Index>, value: impl Operand) -> Result<Array> {
    let value = cast(value, a.dtype())?;
    if let [Index::Array(mask)] = &indices[..]
        && mask.dtype() == Dtype::Bool
    {
        let value = without_leading_ones(value, a.ndim().saturating_sub(mask.ndim()))?;
        return op!(mlx_masked_scatter(a, mask, value));
    }
    Plan::new(a, indices)?.update(a, &value, Update::Set)
}

fn cast(value: impl Operand, dtype: Dtype) -> Result<Array> {
    let value = value.to_arg(Some(dtype))?;
    op!(mlx_astype(value, dtype))
}

/// `value` without the leading dimensions of size 1 that it has beyond `ndim`.
fn without_leading_ones(value: Array, ndim: usize) -> Result<Array> {
    let extra = value.ndim().saturating_sub(ndim);
    let ones = value.shape().iter().take(extra).take_while(|&&d| d == 1).count();
    if ones == 0 {
        return Ok(value);
    }
    let axes: Vec<i32> = (0..ones as i32).collect();
    op!(mlx_squeeze_axes(value, [axes]))
}

impl Plan {
    fn update(&self, a: &Array, value: &Array, update: Update) -> Result<Array> {
        let mut shape = self.shape.clone();
        for &axis in &self.new_axes {
            shape.insert(axis as usize, 1);
        }
        let value = without_leading_ones(value.clone(), shape.len())?;
        let mut value = op!(mlx_broadcast_to(value, [shape]))?;
        if value.size() == 0 {
            return Ok(a.clone());
        }
        if !self.new_axes.is_empty() {
            let axes = &self.new_axes;
            value = op!(mlx_squeeze_axes(value, [axes]))?;
        }
        if self.arrays.is_empty() {
            return self.update_block(a, &self.with_axes(value, 0, &self.positions)?, update);
        }

        let order = self.inverse_order();
        value = op!(mlx_transpose_axes(value, [order]))?;
        let mut indexed = [&self.positions[..], &self.axes[..]].concat();
        indexed.sort_unstable();
        let value = self.with_axes(value, self.group_dims() as i32, &indexed)?;
        let (block, list, axes) = (self.block(a)?, VectorArray::new(&self.arrays), &self.axes);
        let block = match update {
            Update::Set => op!(mlx_scatter(block, list, value, [axes])),
            Update::Add => op!(mlx_scatter_add(block, list, value, [axes])),
            Update::Multiply => op!(mlx_scatter_prod(block, list, value, [axes])),
            Update::Maximum => op!(mlx_scatter_max(block, list, value, [axes])),
            Update::Minimum => op!(mlx_scatter_min(block, list, value, [axes])),
        }?;
        if self.whole { Ok(block) } else { self.update_block(a, &block, Update::Set) }
    }

    /// `value` with axes of size 1 put in at `axes`, which count from `first`.
    fn with_axes(&self, value: Array, first: i32, axes: &[i32]) -> Result<Array> {
        if axes.is_empty() {
            return Ok(value);
        }
        let axes: Vec<i32> = axes.iter().map(|axis| first + axis).collect();
        op!(mlx_expand_dims_axes(value, [axes]))
    }

    fn update_block(&self, a: &Array, value: &Array, update: Update) -> Result<Array> {
        let (start, stop, step) = (&self.start, &self.stop, &self.step);
        match update {
            Update::Set => op!(mlx_slice_update(a, value, [start], [stop], [step])),
            Update::Add => op!(mlx_slice_update_add(a, value, [start], [stop], [step])),
            Update::Multiply => op!(mlx_slice_update_prod(a, value, [start], [stop], [step])),
            Update::Maximum => op!(mlx_slice_update_max(a, value, [start], [stop], [step])),
            Update::Minimum => op!(mlx_slice_update_min(a, value, [start], [stop], [step])),
        }
    }
}
