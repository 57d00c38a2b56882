//! What a kernel sees of an array: memory, shape, strides, dtype.

use crate::array::{Dtype, Element};
use crate::error::{Error, Result};

/// The shape and dtype of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Size of each dimension.
    pub shape: Vec<i32>,
    /// Type of the elements.
    pub dtype: Dtype,
}

/// An input of a kernel: plain memory, to be read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    bytes: &'a [u8],
    origin: usize,
    shape: &'a [i32],
    strides: &'a [i64],
    dtype: Dtype,
}

impl<'a> View<'a> {
    /// `bytes` spans all elements; the first of them is the `origin`th of the span.
    pub(crate) fn new(
        bytes: &'a [u8],
        origin: usize,
        shape: &'a [i32],
        strides: &'a [i64],
        dtype: Dtype,
    ) -> Self {
        Self { bytes, origin, shape, strides, dtype }
    }

    /// Size of each dimension.
    pub fn shape(&self) -> &'a [i32] {
        self.shape
    }

    /// Elements from one index of a dimension to the next: 0 where it is broadcast, negative where it
    /// is reversed.
    pub fn strides(&self) -> &'a [i64] {
        self.strides
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of elements.
    pub fn size(&self) -> usize {
        self.shape.iter().map(|&d| d as usize).product()
    }

    /// The elements, row-major. Fails if `T` is not the dtype, or if they do not lie so in memory.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T]> {
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(self.strides).rev() {
            if size > 1 && stride != expected && self.size() > 0 {
                let message = format!("shape {:?} has strides {:?}", self.shape, self.strides);
                return Err(Error::argument("as_slice", message));
            }
            expected *= i64::from(size);
        }
        self.memory()
    }

    /// The memory that the elements are spread over, and where in it the first one is. Element `[i, j]`
    /// is at that place plus `i * strides[0] + j * strides[1]`. Fails if `T` is not the dtype.
    pub fn strided<T: Element>(&self) -> Result<(&'a [T], usize)> {
        Ok((self.memory()?, self.origin))
    }

    fn memory<T: Element>(&self) -> Result<&'a [T]> {
        expect::<T>("as_slice", self.dtype)?;
        if self.bytes.is_empty() {
            return Ok(&[]);
        }
        bytemuck::checked::try_cast_slice(self.bytes).map_err(|e| Error::argument("as_slice", e.to_string()))
    }
}

/// An output of a kernel: plain memory, row-major and zero at first.
#[derive(Debug)]
pub struct ViewMut<'a> {
    bytes: &'a mut [u8],
    shape: &'a [i32],
    dtype: Dtype,
}

impl<'a> ViewMut<'a> {
    pub(crate) fn new(bytes: &'a mut [u8], shape: &'a [i32], dtype: Dtype) -> Self {
        Self { bytes, shape, dtype }
    }

    /// Size of each dimension.
    pub fn shape(&self) -> &'a [i32] {
        self.shape
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements, row-major. Fails if `T` is not the dtype.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        expect::<T>("as_mut_slice", self.dtype)?;
        if self.bytes.is_empty() {
            return Ok(&mut []);
        }
        bytemuck::checked::try_cast_slice_mut(self.bytes)
            .map_err(|e| Error::argument("as_mut_slice", e.to_string()))
    }
}

fn expect<T: Element>(op: &'static str, found: Dtype) -> Result<()> {
    if T::DTYPE == found {
        return Ok(());
    }
    Err(Error::Dtype { op, expected: T::DTYPE, found })
}
