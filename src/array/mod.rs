//! [`Array`]: a lazy, n-dimensional array.

mod dtype;
mod host;
pub mod indexing;
mod operand;
mod operators;

use std::cell::OnceCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

pub use dtype::{Dtype, Element};
pub use host::HostTensor;
pub(crate) use host::element_count;
pub use indexing::{At, Index, Indices, Slice, strided};
pub(crate) use operand::operands;
pub use operand::{Arg, Operand};

use crate::error::{Error, Result};
use crate::ffi::{self, ArrayHandle, Fixed};

/// A node of MLX's lazy computation graph: a shape, a dtype, and either data or how to compute it.
///
/// Operations build the graph; [`eval`](Array::eval), or reading values, computes it. A clone refers
/// to the same node. An array belongs to its thread: it is neither `Send` nor `Sync`; to move values
/// to another thread, take a [`HostTensor`].
///
/// ```compile_fail
/// fn needs_send<T: Send>(_: T) {}
/// needs_send(mlxport::Array::from(1.0f32));
/// ```
#[derive(Clone)]
pub struct Array {
    pub(crate) handle: ArrayHandle,
    /// Once somebody has asked for it.
    fixed: OnceCell<Arc<Fixed>>,
    not_send: PhantomData<*mut ()>,
}

impl Array {
    pub(crate) fn from_handle(handle: ArrayHandle) -> Self {
        Self { handle, fixed: OnceCell::new(), not_send: PhantomData }
    }

    /// Where it is in memory, if it is computed and stays there.
    pub(crate) fn fixed(&self) -> Option<&Arc<Fixed>> {
        if self.fixed.get().is_none()
            && let Some(fixed) = Fixed::of(self)
        {
            let _ = self.fixed.set(fixed);
        }
        self.fixed.get()
    }

    /// An array with a copy of `values`, row-major. Fails unless `shape` has as many elements.
    pub fn from_slice<T: Element>(values: &[T], shape: &[i32]) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice(values), shape, T::DTYPE)
    }

    /// An array with a copy of a host tensor.
    pub fn from_host(tensor: &HostTensor) -> Result<Self> {
        Self::from_bytes(tensor.bytes(), tensor.shape(), tensor.dtype())
    }

    fn from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Self> {
        if element_count(shape).and_then(|n| n.checked_mul(dtype.size())) != Some(bytes.len()) {
            return Err(Error::argument(
                "from_slice",
                format!("{} elements of {dtype} for shape {shape:?}", bytes.len() / dtype.size()),
            ));
        }
        ffi::array_from_bytes(bytes, shape, dtype)
    }

    /// Size of each dimension.
    pub fn shape(&self) -> &[i32] {
        self.fixed.get().map_or_else(|| ffi::array_shape(self), |fixed| &fixed.spec().shape)
    }

    /// Size of dimension `axis`; negative axes count from the last.
    pub fn dim(&self, axis: i32) -> Result<i32> {
        let shape = self.shape();
        let ndim = shape.len() as i32;
        let at = if axis < 0 { axis + ndim } else { axis };
        let size = usize::try_from(at).ok().and_then(|at| shape.get(at));
        size.copied().ok_or_else(|| Error::argument("dim", format!("axis {axis} of shape {shape:?}")))
    }

    /// Number of dimensions.
    pub fn ndim(&self) -> usize {
        self.shape().len()
    }

    /// Number of elements.
    pub fn size(&self) -> usize {
        self.shape().iter().map(|&d| d as usize).product()
    }

    /// Bytes that the elements take.
    pub fn nbytes(&self) -> usize {
        self.size() * self.dtype().size()
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.fixed.get().map_or_else(|| ffi::array_dtype(self), |fixed| fixed.spec().dtype)
    }

    /// Computes this array and waits for it.
    ///
    /// An error raised on a stream comes back here, and the stream can be used again.
    pub fn eval(&self) -> Result<()> {
        crate::transforms::eval([self])
    }

    /// The elements, row-major. Computes the array; fails if `T` is not its dtype.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect_dtype::<T>("to_vec")?;
        let bytes = ffi::array_bytes(self)?;
        let chunks = bytes.chunks_exact(size_of::<T>());
        chunks
            .map(|chunk| bytemuck::checked::try_pod_read_unaligned(chunk))
            .collect::<Result<_, _>>()
            .map_err(|e| Error::argument("to_vec", e.to_string()))
    }

    /// The only element. Computes the array; fails if it has another size, or `T` is not its dtype.
    pub fn item<T: Element>(&self) -> Result<T> {
        if self.size() != 1 {
            return Err(Error::argument(
                "item",
                format!("an array of shape {:?} has not one element", self.shape()),
            ));
        }
        Ok(self.to_vec::<T>()?[0])
    }

    /// A copy of the values in ordinary memory. Computes the array.
    pub fn to_host(&self) -> Result<HostTensor> {
        HostTensor::new(ffi::array_bytes(self)?, self.shape(), self.dtype())
    }

    fn expect_dtype<T: Element>(&self, op: &'static str) -> Result<()> {
        let found = self.dtype();
        if T::DTYPE == found {
            return Ok(());
        }
        Err(Error::Dtype { op, expected: T::DTYPE, found })
    }
}

impl<T: Element> From<T> for Array {
    /// A scalar: an array without dimensions.
    fn from(value: T) -> Self {
        Self::from_slice(&[value], &[]).expect("one element fits a scalar")
    }
}

impl From<Array> for Vec<Array> {
    /// A list of one: what a function with one output returns to a transform.
    fn from(array: Array) -> Self {
        vec![array]
    }
}

impl fmt::Debug for Array {
    /// Shape and dtype; computes nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({:?}, {})", self.shape(), self.dtype())
    }
}

impl fmt::Display for Array {
    /// The values as MLX prints them. Computes the array; an error is printed in its place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ffi::array_text(self) {
            Ok(text) => f.write_str(&text),
            Err(e) => write!(f, "<{e}>"),
        }
    }
}
