//! Rust closures that MLX calls.
//!
//! MLX calls them on the thread that made the call, under the lock. Errors and panics are kept in a
//! thread-local slot while C++ unwinds its own frames, and come out of the call that started it all.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{VectorArray, call, check, enter, keep_closure_error, sys};
use crate::array::Array;
use crate::error::{Error, Result};

type Boxed<'a> = Box<dyn Fn(&[Array]) -> Result<Vec<Array>> + 'a>;

/// A function of arrays that C++ holds. Where MLX keeps it beyond the call (in a graph, in the
/// compile cache), take a `Closure<'static>`.
pub(crate) struct Closure<'a> {
    pub(crate) raw: sys::mlx_closure,
    borrows: PhantomData<&'a ()>,
}

impl<'a> Closure<'a> {
    pub(crate) fn new(f: impl Fn(&[Array]) -> Result<Vec<Array>> + 'a) -> Self {
        let boxed: Boxed<'a> = Box::new(f);
        let payload = Box::into_raw(Box::new(boxed)).cast::<c_void>();
        let _guard = enter();
        // SAFETY: `call_boxed` and `drop_boxed` take the pointer for what it is here, and MLX calls
        // `drop_boxed` once, with the last copy of the closure.
        let raw = unsafe { sys::mlx_closure_new_func_payload(Some(call_boxed), payload, Some(drop_boxed)) };
        Self::from_raw(raw)
    }

    /// Takes over a closure that MLX made.
    pub(crate) fn from_raw(raw: sys::mlx_closure) -> Self {
        Self { raw, borrows: PhantomData }
    }

    /// An empty closure, for C to fill.
    pub(crate) fn empty() -> Self {
        Self::from_raw(sys::mlx_closure { ctx: std::ptr::null_mut() })
    }

    pub(crate) fn apply(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let inputs = VectorArray::new(inputs);
        let mut out = VectorArray::empty();
        call!(mlx_closure_apply; out.0; self, inputs)?;
        out.to_arrays()
    }
}

impl super::CArg for Closure<'_> {
    type C = sys::mlx_closure;
    fn c(&self) -> sys::mlx_closure {
        self.raw
    }
}

impl Drop for Closure<'_> {
    fn drop(&mut self) {
        if !self.raw.ctx.is_null() {
            let _guard = enter();
            // SAFETY: this value owns the handle.
            unsafe { sys::mlx_closure_free(self.raw) };
        }
    }
}

extern "C" fn call_boxed(
    res: *mut sys::mlx_vector_array,
    inputs: sys::mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    guarded(|| {
        // SAFETY: `payload` is the box of `Closure::new`, alive as long as the closure that runs.
        let f = unsafe { &*payload.cast::<Boxed<'_>>() };
        // SAFETY: MLX lends us a live list.
        let inputs = unsafe { super::arrays_of(inputs) }?;
        let outputs = f(&inputs)?;
        // SAFETY: `res` is MLX's own live list.
        unsafe { fill(res, &outputs) }
    })
}

extern "C" fn drop_boxed(payload: *mut c_void) {
    // SAFETY: the box of `Closure::new`, given back once.
    let boxed = unsafe { Box::from_raw(payload.cast::<Boxed<'_>>()) };
    // A captured value may panic when dropped; that must not cross C either.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(boxed)));
}

/// Puts `arrays` into a list that C owns.
///
/// # Safety
/// `list` must point to a live list.
pub(super) unsafe fn fill(list: *mut sys::mlx_vector_array, arrays: &[Array]) -> Result<()> {
    let raw: Vec<sys::mlx_array> = arrays.iter().map(|a| a.handle.0).collect();
    // SAFETY: the caller vouches for `list`; `raw` holds live handles, which MLX copies.
    let code = unsafe { sys::mlx_vector_array_set_data(list, raw.as_ptr(), raw.len()) };
    check("vector_array_set_data", code)
}

/// Runs the body of a callback: errors and panics are kept for the outer call, and C sees a code.
pub(super) fn guarded(body: impl FnOnce() -> Result<()>) -> c_int {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            let message = text.unwrap_or_else(|| "no message".into());
            Error::Panic { message }
        }
    };
    keep_closure_error(error);
    1
}
