//! One tensor in many memory layouts: an operation must not see the difference.

use std::fmt;

use mlxport::{Array, Dtype, HostTensor, Result, ops};

use super::element::{bits, complexes, from_bits, ints, mlx_shape, reals};
use super::nd::Nd;

/// How the elements lie in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Row-major.
    Contiguous,
    /// Column-major: the transpose of a row-major array.
    Transposed,
    /// Every second element along the last axis of a larger array; garbage lies between.
    Strided,
    /// Backwards along the first axis: a negative stride.
    Flipped,
    /// Behind other elements along the first axis of a larger array.
    Offset,
    /// Of size 1 along these axes, and repeated by a stride of zero. The tensor must be constant there.
    Broadcast(Vec<usize>),
}

/// A tensor and the layout that an operation is to see it in.
#[derive(Clone)]
pub struct Input {
    pub tensor: HostTensor,
    pub layout: Layout,
}

impl fmt::Debug for Input {
    /// In one line: failures are read by people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = self.tensor.dtype();
        write!(f, "{dtype} {:?} {:?} ", self.tensor.shape(), self.layout)?;
        match dtype.is_floating() {
            true => write!(f, "{:?}", reals(&self.tensor).data),
            false if dtype == Dtype::Complex64 => write!(f, "{:?}", complexes(&self.tensor).data),
            false => write!(f, "{:?}", ints(&self.tensor).data),
        }
    }
}

impl Input {
    pub fn array(&self) -> Array {
        lay_out(&self.tensor, &self.layout).expect("views can be built")
    }

    pub fn shape(&self) -> Vec<usize> {
        bits(&self.tensor).shape
    }
}

/// An array with the values of `tensor` in `layout`.
pub fn lay_out(tensor: &HostTensor, layout: &Layout) -> Result<Array> {
    let values = bits(tensor);
    let make = |values: &Nd<u64>| Array::from_host(&from_bits(values, tensor.dtype()));
    let (ndim, zeros) = (values.shape.len(), vec![0; values.shape.len()]);
    let ones = vec![1; ndim];
    let garbage = super::element::encode(1.0, tensor.dtype());
    if ndim == 0 && *layout != Layout::Contiguous {
        // A scalar has no axis to play with; take it out of a vector instead.
        let around = make(&Nd::new(&[3], vec![garbage, values.data[0], garbage]))?;
        return ops::reshape(&ops::slice(&around, &[1], &[2], &[1])?, &[]);
    }
    match layout {
        Layout::Contiguous => make(&values),
        Layout::Transposed => {
            let axes: Vec<_> = (0..ndim).rev().collect();
            ops::transpose(&make(&values.permute(&axes))?, ..)
        }
        Layout::Strided => {
            let mut shape = values.shape.clone();
            shape[ndim - 1] *= 2;
            let spread = Nd::from_fn(&shape, |index| {
                let mut at = index.to_vec();
                at[ndim - 1] /= 2;
                if index[ndim - 1] % 2 == 0 { *values.at(&at) } else { garbage }
            });
            let mut strides = ones;
            strides[ndim - 1] = 2;
            ops::slice(&make(&spread)?, &zeros, &mlx_shape(&shape), &strides)
        }
        Layout::Flipped => {
            let rows = values.shape[0];
            let flipped = values.pick_along(0, &(0..rows).rev().collect::<Vec<_>>());
            let (mut start, mut stop, mut strides) = (zeros, mlx_shape(&values.shape), ones);
            (start[0], stop[0], strides[0]) = (rows as i32 - 1, -(rows as i32) - 1, -1);
            ops::slice(&make(&flipped)?, &start, &stop, &strides)
        }
        Layout::Offset => {
            let mut shape = values.shape.clone();
            shape[0] += 2;
            let behind = Nd::from_fn(&shape, |index| {
                let mut at = index.to_vec();
                let Some(row) = index[0].checked_sub(2) else { return garbage };
                at[0] = row;
                *values.at(&at)
            });
            let mut start = zeros;
            start[0] = 2;
            ops::slice(&make(&behind)?, &start, &mlx_shape(&shape), &ones)
        }
        Layout::Broadcast(axes) => {
            let first =
                |(axis, &n): (usize, &usize)| (0..if axes.contains(&axis) { n.min(1) } else { n }).collect();
            let picks: Vec<Vec<_>> = values.shape.iter().enumerate().map(first).collect();
            ops::broadcast_to(&make(&values.pick(&picks))?, &mlx_shape(&values.shape))
        }
    }
}
