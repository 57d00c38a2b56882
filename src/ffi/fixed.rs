//! Arrays whose memory stays as it is.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::sync::Arc;

use super::{ArrayHandle, CArg, enter, kernel, sys};
use crate::array::Array;
use crate::kernels::{Spec, Strides, View, row_major};

/// An array that is computed, row-major and not followed by a transformation, such as a weight: kernels read it without a
/// question to MLX. Its memory stays as long as this does.
pub(crate) struct Fixed {
    array: sys::mlx_array,
    spec: Spec,
    strides: Strides,
    data: *const u8,
    bytes: usize,
}

// SAFETY: it is read only, and MLX counts the references to an array atomically.
unsafe impl Send for Fixed {}
// SAFETY: as above.
unsafe impl Sync for Fixed {}

impl Fixed {
    /// `None` for an array that is not such.
    pub fn of(array: &Array) -> Option<Arc<Self>> {
        let _guard = enter();
        let mut view = MaybeUninit::uninit();
        // SAFETY: the handle is live, and `view` is there to be written to.
        if !unsafe { sys::mlxport_fixed(view.as_mut_ptr(), array.c()) } {
            return None;
        }
        // SAFETY: the call has written it.
        let view = unsafe { view.assume_init() };
        // SAFETY: shape and memory live as long as the array.
        let view = unsafe { kernel::view_of(&view) };
        Some(Arc::new(Self {
            spec: Spec::new(view.shape(), view.dtype()),
            strides: row_major(view.shape()),
            data: view.bytes().as_ptr(),
            bytes: view.bytes().len(),
            array: ManuallyDrop::new(array.handle.clone()).0,
        }))
    }

    /// Shape and dtype.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its elements.
    pub fn view(&self) -> View<'_> {
        // SAFETY: these are the bytes of an array of which this holds a reference, and nobody writes to one that has several.
        let bytes = unsafe { std::slice::from_raw_parts(self.data, self.bytes) };
        View::new(bytes, 0, &self.spec.shape, &self.strides, self.spec.dtype)
    }

    /// Another reference to it.
    pub fn array(&self) -> Array {
        let _guard = enter();
        let mut copy = ArrayHandle::empty();
        // SAFETY: both handles are live.
        unsafe { sys::mlx_array_set(&mut copy.0, self.array) };
        Array::from_handle(copy)
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        // Without the lock: a kernel may have the last reference, and threads of streams must not wait for it. MLX's own threads
        // free arrays as well.
        // SAFETY: this owns the handle, and it is not used again.
        unsafe { sys::mlx_array_free(self.array) };
    }
}
