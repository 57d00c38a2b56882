//! Tensors in ordinary memory.

use super::{Dtype, Element};
use crate::error::{Error, Result};

/// Owned bytes with a shape and a dtype, row-major. It is `Send`: this is how values cross threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTensor {
    bytes: Vec<u8>,
    shape: Vec<i32>,
    dtype: Dtype,
}

impl HostTensor {
    /// A tensor of `bytes` in the machine's byte order. Fails unless there are as many as the shape
    /// and dtype need, and unless every `bool` is 0 or 1.
    pub fn new(bytes: Vec<u8>, shape: &[i32], dtype: Dtype) -> Result<Self> {
        let expected = element_count(shape)
            .and_then(|n| n.checked_mul(dtype.size()))
            .ok_or_else(|| Error::argument("host_tensor", format!("impossible shape {shape:?}")))?;
        if bytes.len() != expected {
            return Err(Error::argument(
                "host_tensor",
                format!("{} bytes for shape {shape:?} of {dtype}, which needs {expected}", bytes.len()),
            ));
        }
        if dtype == Dtype::Bool && bytes.iter().any(|&b| b > 1) {
            return Err(Error::argument("host_tensor", "a bool that is neither 0 nor 1"));
        }
        Ok(Self { bytes, shape: shape.to_vec(), dtype })
    }

    /// A tensor with a copy of `values`.
    pub fn from_slice<T: Element>(values: &[T], shape: &[i32]) -> Result<Self> {
        Self::new(bytemuck::cast_slice(values).to_vec(), shape, T::DTYPE)
    }

    /// The elements; fails if `T` is not the tensor's dtype.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            return Err(Error::Dtype { op: "to_vec", expected: T::DTYPE, found: self.dtype });
        }
        let chunks = self.bytes.chunks_exact(size_of::<T>());
        chunks
            .map(|chunk| bytemuck::checked::try_pod_read_unaligned(chunk))
            .collect::<Result<_, _>>()
            .map_err(|e| Error::argument("to_vec", e.to_string()))
    }

    /// The raw bytes, row-major, in the machine's byte order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The raw bytes, taken out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Size of each dimension.
    pub fn shape(&self) -> &[i32] {
        &self.shape
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// Elements of an array of this shape, or `None` if it has a negative size or too many of them.
pub(crate) fn element_count(shape: &[i32]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| {
        n.checked_mul(usize::try_from(d).ok()?).filter(|&n| n <= isize::MAX as usize)
    })
}
