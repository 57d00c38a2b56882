//! What a list of indices means for an array of a given shape.

use super::{Index, Slice, gather};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ffi::{VectorArray, op, ops_vec};
use crate::ops;

/// The steps of indexing: a strided block, positions within it, and the order of the result's axes.
#[derive(Debug)]
pub(super) struct Plan {
    /// The block, as MLX's `slice` takes it.
    pub(super) start: Vec<i32>,
    pub(super) stop: Vec<i32>,
    pub(super) step: Vec<i32>,
    /// Whether the block is the whole array, as it is.
    pub(super) whole: bool,
    /// The axes that an integer takes away; the block has size 1 there.
    pub(super) positions: Vec<i32>,
    /// The axes that index arrays take away.
    pub(super) axes: Vec<i32>,
    /// The index arrays, broadcast together.
    pub(super) arrays: Vec<Array>,
    /// Before which of the remaining axes the dimensions of the index arrays go.
    pub(super) group_at: usize,
    /// Shape of the result without new axes.
    pub(super) shape: Vec<i32>,
    /// Where the new axes are in the result.
    pub(super) new_axes: Vec<i32>,
}

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::argument("index", message))
}

/// A range over an axis of `size`: start, stop and step for MLX, and the number of positions.
fn resolve(slice: Slice, size: i32) -> Result<(i32, i32, i32, i32)> {
    let (n, step) = (i64::from(size), i64::from(slice.step));
    if step == 0 {
        return fail("a range with a step of 0");
    }
    // The positions just outside at both ends.
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let end = |bound: Option<i32>, default: i64| {
        let bound = bound.map_or(default, |b| i64::from(b) + if b < 0 { n } else { 0 });
        bound.clamp(low, high)
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let (start, stop) = (end(slice.start, first), end(slice.stop, last));
    let count = if step > 0 { (stop - start + step - 1) / step } else { (start - stop - step - 1) / -step };
    if count <= 0 {
        return Ok((0, 0, 1, 0));
    }
    let step = if count == 1 { step.signum() } else { step };
    let stop = start + (count - 1) * step + step.signum();
    // MLX reads a negative stop as one from the end; before the first position is one further.
    let stop = if stop < 0 { -n - 1 } else { stop };
    Ok((start as i32, stop as i32, step as i32, count as i32))
}

/// The place of a position in an axis of `size`.
fn resolve_position(at: i32, axis: usize, size: i32) -> Result<i32> {
    let place = i64::from(at) + if at < 0 { i64::from(size) } else { 0 };
    if (0..i64::from(size)).contains(&place) {
        return Ok(place as i32);
    }
    fail(format!("position {at} of axis {axis}, which has size {size}"))
}

impl Plan {
    pub(super) fn new(a: &Array, mut indices: Vec<Index>) -> Result<Self> {
        let shape = a.shape();
        let named = indices.iter().filter(|i| !matches!(i, Index::NewAxis | Index::Ellipsis)).count();
        let Some(left) = shape.len().checked_sub(named) else {
            return fail(format!("{named} indices for an array of shape {shape:?}"));
        };
        let mut ellipses = indices.iter().filter(|i| matches!(i, Index::Ellipsis));
        if ellipses.next().is_none() {
            indices.push(Index::Ellipsis);
        } else if ellipses.next().is_some() {
            return fail("more than one ellipsis");
        }

        let ndim = shape.len();
        let mut plan = Plan {
            start: Vec::with_capacity(ndim),
            stop: Vec::with_capacity(ndim),
            step: Vec::with_capacity(ndim),
            whole: true,
            positions: Vec::new(),
            axes: Vec::new(),
            arrays: Vec::new(),
            group_at: 0,
            shape: Vec::new(),
            new_axes: Vec::new(),
        };
        // The index arrays come before the `group`-th remaining axis; `apart` once they are separated.
        let (mut group, mut closed, mut apart) = (None, false, false);
        let mut new_axes = Vec::new();
        for index in indices {
            let axis = plan.start.len();
            // An integer counts as an index array where it decides what is side by side.
            if matches!(index, Index::At(_) | Index::List(_) | Index::Array(_)) {
                apart |= closed;
                group.get_or_insert((plan.shape.len(), new_axes.len()));
            } else {
                closed |= group.is_some();
            }
            match index {
                Index::NewAxis => new_axes.push(plan.shape.len()),
                Index::Ellipsis => {
                    for &size in &shape[axis..axis + left] {
                        plan.push((0, size, 1));
                        plan.shape.push(size);
                    }
                }
                Index::Slice(slice) => {
                    let (start, stop, step, count) = resolve(slice, shape[axis])?;
                    plan.whole &= count == shape[axis] && step > 0;
                    plan.push((start, stop, step));
                    plan.shape.push(count);
                }
                Index::At(at) => {
                    let at = resolve_position(at, axis, shape[axis])?;
                    plan.whole &= shape[axis] == 1;
                    plan.push((at, at + 1, 1));
                    plan.positions.push(axis as i32);
                }
                Index::List(list) => {
                    for &at in &list {
                        resolve_position(at, axis, shape[axis])?;
                    }
                    plan.push_array(a, &Array::from_slice(&list, &[list.len() as i32])?)?;
                }
                Index::Array(array) => plan.push_array(a, &array)?,
            }
        }
        let (group_at, new_before) = if apart { (0, 0) } else { group.unwrap_or_default() };
        plan.place(group_at, new_before, &new_axes)?;
        Ok(plan)
    }

    fn push(&mut self, (start, stop, step): (i32, i32, i32)) {
        self.start.push(start);
        self.stop.push(stop);
        self.step.push(step);
    }

    fn push_array(&mut self, a: &Array, array: &Array) -> Result<()> {
        let axis = self.start.len() as i32;
        self.axes.push(axis);
        self.arrays.push(ops::wrapped("index", a, array, Some(axis))?);
        self.push((0, a.dim(axis)?, 1));
        Ok(())
    }

    /// Puts the dimensions of the index arrays into the shape, before axis `group_at` and after the
    /// first `new_before` new axes, and finds where the new axes are, which come before the axes given.
    fn place(&mut self, group_at: usize, new_before: usize, new_axes: &[usize]) -> Result<()> {
        let mut group = Vec::new();
        if self.arrays.len() > 1 {
            // Some integer dtypes promote to none that is an integer.
            let dtype = Dtype::Int32;
            let narrow = self.arrays.iter().map(|array| op!(mlx_astype(array, dtype)));
            let list = VectorArray::new(&narrow.collect::<Result<Vec<Array>>>()?);
            self.arrays = ops_vec!(mlx_broadcast_arrays(list))?;
        }
        if let Some(array) = self.arrays.first() {
            group = array.shape().to_vec();
            self.group_at = group_at;
        }
        let dims = group.len();
        self.shape.splice(self.group_at..self.group_at, group);
        let place = |(i, &before): (usize, &usize)| {
            let after_group = before > self.group_at || (before == self.group_at && i >= new_before);
            (i + before + if after_group { dims } else { 0 }) as i32
        };
        self.new_axes = new_axes.iter().enumerate().map(place).collect();
        Ok(())
    }

    /// Dimensions of the index arrays.
    pub(super) fn group_dims(&self) -> usize {
        self.arrays.first().map_or(0, Array::ndim)
    }

    /// The order of axes that moves the dimensions of the index arrays from the front to their place.
    fn order(&self) -> Vec<i32> {
        let (dims, ndim) = (self.group_dims() as i32, self.shape.len() as i32);
        let mut order: Vec<i32> = (dims..ndim).collect();
        order.splice(self.group_at..self.group_at, 0..dims);
        order
    }

    /// The order of axes that moves them to the front.
    pub(super) fn inverse_order(&self) -> Vec<i32> {
        let (at, dims) = (self.group_at as i32, self.group_dims() as i32);
        (at..at + dims).chain(0..at).chain(at + dims..self.shape.len() as i32).collect()
    }

    /// The strided block.
    pub(super) fn block(&self, a: &Array) -> Result<Array> {
        if self.whole {
            return Ok(a.clone());
        }
        let (start, stop, step) = (&self.start, &self.stop, &self.step);
        op!(mlx_slice(a, [start], [stop], [step]))
    }

    pub(super) fn get(&self, a: &Array) -> Result<Array> {
        let mut out = self.block(a)?;
        if !self.positions.is_empty() {
            let axes = &self.positions;
            out = op!(mlx_squeeze_axes(out, [axes]))?;
        }
        if !self.arrays.is_empty() {
            let before = |axis: i32| self.positions.iter().filter(|&&p| p < axis).count() as i32;
            let axes: Vec<i32> = self.axes.iter().map(|&axis| axis - before(axis)).collect();
            out = gather(&out, &self.arrays, &axes)?;
            if self.group_at > 0 && self.group_dims() > 0 {
                let order = self.order();
                out = op!(mlx_transpose_axes(out, [order]))?;
            }
        }
        if !self.new_axes.is_empty() {
            let axes = &self.new_axes;
            out = op!(mlx_expand_dims_axes(out, [axes]))?;
        }
        Ok(out)
    }
}
