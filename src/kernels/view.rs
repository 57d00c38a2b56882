//! What a kernel sees of an array: memory, shape, strides, dtype.

use smallvec::{SmallVec, smallvec};

use crate::array::{Dtype, Element};
use crate::error::{Error, Result};

/// Size of each dimension.
pub type Shape = SmallVec<[i32; 4]>;
/// Elements from one index of each dimension to the next.
pub(crate) type Strides = SmallVec<[i64; 4]>;

/// The shape and dtype of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Size of each dimension.
    pub shape: Shape,
    /// Type of the elements.
    pub dtype: Dtype,
}

impl Spec {
    /// Those two.
    pub fn new(shape: &[i32], dtype: Dtype) -> Self {
        Self { shape: Shape::from_slice(shape), dtype }
    }
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

    /// Whether the elements of each index of the first two axes lie together, row-major.
    pub(crate) fn is_together_within(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(self.strides).skip(2).rev().all(|(&size, &stride)| {
            let together = size == 1 || stride == expected;
            expected *= i64::from(size);
            together
        })
    }

    /// The memory from the lowest element to the highest.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// A copy, row-major.
    pub(crate) fn gathered(&self) -> Gathered {
        let (size, count) = (self.dtype.size(), self.size());
        let mut memory = vec![0u64; (count * size).div_ceil(8)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        for (i, out) in bytes.chunks_exact_mut(size).take(count).enumerate() {
            let (at, _) =
                self.shape.iter().zip(self.strides).rev().fold((self.origin, i), |(at, rest), axis| {
                    let (size, index) = (*axis.0 as usize, rest % *axis.0 as usize);
                    (at.wrapping_add_signed(index as isize * *axis.1 as isize), rest / size)
                });
            out.copy_from_slice(&self.bytes[at * size..][..size]);
        }
        Gathered { memory, strides: row_major(self.shape) }
    }

    /// The rows along its last axis. Fails if `T` is not the dtype, and for scalars and empty arrays.
    pub(crate) fn rows<T: Element>(&self) -> Result<ViewRows<'a, T>> {
        let (memory, origin) = self.strided()?;
        let (Some(&len), Some(&step)) = (self.shape.last(), self.strides.last()) else {
            return Err(Error::argument("rows", "a scalar"));
        };
        if self.size() == 0 {
            return Err(Error::argument("rows", format!("shape {:?}", self.shape)));
        }
        let step = if len == 1 { 1 } else { step };
        Ok(ViewRows { memory, origin, shape: self.shape, strides: self.strides, len: len as usize, step })
    }

    fn memory<T: Element>(&self) -> Result<&'a [T]> {
        expect::<T>("as_slice", self.dtype)?;
        if self.bytes.is_empty() {
            return Ok(&[]);
        }
        bytemuck::checked::try_cast_slice(self.bytes).map_err(|e| Error::argument("as_slice", e.to_string()))
    }
}

/// The strides of an array whose elements lie row by row.
pub(crate) fn row_major(shape: &[i32]) -> Strides {
    let mut strides: Strides = smallvec![1; shape.len()];
    for i in (1..strides.len()).rev() {
        strides[i - 1] = strides[i] * i64::from(shape[i]);
    }
    strides
}

/// The elements of a view, row-major.
pub(crate) struct Gathered {
    memory: Vec<u64>,
    strides: Strides,
}

impl Gathered {
    /// `of`, which was copied here.
    pub fn view<'a>(&'a self, of: &View<'a>) -> View<'a> {
        let bytes = &bytemuck::cast_slice(&self.memory)[..of.size() * of.dtype.size()];
        View { bytes, origin: 0, strides: &self.strides, ..*of }
    }
}

/// What lies along the last axis of a view of at least one axis and element, row after row.
pub(crate) struct ViewRows<'a, T> {
    memory: &'a [T],
    origin: usize,
    shape: &'a [i32],
    strides: &'a [i64],
    len: usize,
    step: i64,
}

impl<'a, T: Element> ViewRows<'a, T> {
    /// Elements of a row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.shape.iter().rev().skip(1).map(|&size| size as usize).product()
    }

    /// Where row number `index` begins.
    fn first(&self, index: usize) -> usize {
        let mut rest = index;
        let outer = self.shape.iter().zip(self.strides).rev().skip(1);
        outer.fold(self.origin, |at, (&size, &stride)| {
            let index = rest % size as usize;
            rest /= size as usize;
            at.wrapping_add_signed(index as isize * stride as isize)
        })
    }

    /// Row number `index`, if there is one and its elements lie together.
    pub fn lying(&self, index: usize) -> Option<&'a [T]> {
        let there = self.are_together() && index < self.count();
        there.then(|| &self.memory[self.first(index)..][..self.len])
    }

    /// Whether the elements of each row lie together.
    pub fn are_together(&self) -> bool {
        self.step == 1
    }

    /// Row number `index` and those after it along the second axis from the end, of rows that are [together](Self::are_together).
    pub fn line(&self, index: usize) -> Line<'a, T> {
        let stride = self.strides.iter().nth_back(1).map_or(0, |&stride| stride as isize);
        Line { memory: self.memory, at: self.first(index), stride, len: self.len }
    }

    /// Row number `index`: as it lies, or in `room` where its elements do not lie together.
    pub fn get<'b>(&'b self, index: usize, room: &'b mut Vec<T>) -> &'b [T] {
        let first = self.first(index);
        if self.are_together() {
            return &self.memory[first..first + self.len];
        }
        room.clear();
        room.extend(
            (0..self.len).map(|i| self.memory[first.wrapping_add_signed(i as isize * self.step as isize)]),
        );
        room
    }
}

/// Rows of a view that are equally far apart.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a, T> {
    memory: &'a [T],
    at: usize,
    stride: isize,
    len: usize,
}

impl<'a, T> Line<'a, T> {
    /// A single row.
    pub fn one(row: &'a [T]) -> Self {
        Self { memory: row, at: 0, stride: 0, len: row.len() }
    }

    /// Row `i`.
    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [T] {
        &self.memory[self.at.wrapping_add_signed(i as isize * self.stride)..][..self.len]
    }
}

/// An output of a kernel: plain memory, row-major and, unless it is in the place of an input or the kernel
/// [fills](crate::kernels::CustomKernel::fills) it, zero at first.
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

    /// The bytes of the elements.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
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
