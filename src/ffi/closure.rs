//! Rust closures that MLX calls.
//!
//! MLX calls them on the thread that made the call, under the lock. Errors and panics are kept in a
//! thread-local slot while C++ unwinds its own frames, and come out of the call that started it all.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{VectorArray, call, check, enter, keep_closure_error, sys};
use crate::array::Array;
use crate::error::{Error, Result};

/// A function of arrays.
pub(crate) type Function<'a> = dyn Fn(&[Array]) -> Result<Vec<Array>> + 'a;
type Vjp = dyn Fn(&[Array], &[Array], &[Array]) -> Result<Vec<Array>>;
type Jvp = dyn Fn(&[Array], &[Array], &[i32]) -> Result<Vec<Array>>;
type Vmap = dyn Fn(&[Array], &[i32]) -> Result<(Vec<Array>, Vec<i32>)>;
type Keyword<'a> = dyn Fn(&[Array], &BTreeMap<String, Array>) -> Result<Vec<Array>> + 'a;

/// A kind of function that C++ holds: `$fun` is the Rust side, `$call` what C calls. Where MLX keeps
/// one beyond the call (in a graph, in the compile cache), it must be `'static`.
macro_rules! closure {
    ($(#[$doc:meta])* $name:ident($c:ident), $new:ident, $free:ident, $fun:ty, $call:ident) => {
        $(#[$doc])*
        pub(crate) struct $name<'a> {
            pub(crate) raw: sys::$c,
            borrows: PhantomData<&'a ()>,
        }

        impl<'a> $name<'a> {
            pub(crate) fn new(f: Box<$fun>) -> Self {
                let payload = Box::into_raw(Box::new(f)).cast::<c_void>();
                let _guard = enter();
                // SAFETY: both callbacks take the pointer for what it is here, and MLX calls `release`
                // once, with the last copy of the closure.
                let raw = unsafe { sys::$new(Some($call), payload, Some(release::<Box<$fun>>)) };
                Self { raw, borrows: PhantomData }
            }
        }

        /// An empty closure, for C to fill.
        impl Default for $name<'_> {
            fn default() -> Self {
                Self { raw: sys::$c { ctx: std::ptr::null_mut() }, borrows: PhantomData }
            }
        }

        impl super::CArg for $name<'_> {
            type C = sys::$c;
            fn c(&self) -> sys::$c {
                self.raw
            }
        }

        impl Drop for $name<'_> {
            fn drop(&mut self) {
                if !self.raw.ctx.is_null() {
                    let _guard = enter();
                    // SAFETY: this value owns the handle.
                    unsafe { sys::$free(self.raw) };
                }
            }
        }
    };
}

closure!(
    /// Arrays to arrays.
    Closure(mlx_closure), mlx_closure_new_func_payload, mlx_closure_free,
    Function<'a>, call_function
);
closure!(
    /// Arrays, and arrays by name, to arrays.
    KeywordClosure(mlx_closure_kwargs), mlx_closure_kwargs_new_func_payload, mlx_closure_kwargs_free,
    Keyword<'a>, call_keyword
);
closure!(
    /// Primals, cotangents and outputs to cotangents of the primals.
    VjpClosure(mlx_closure_custom), mlx_closure_custom_new_func_payload, mlx_closure_custom_free,
    Vjp, call_vjp
);
closure!(
    /// Primals, tangents, and which primals these belong to, to tangents of the outputs.
    JvpClosure(mlx_closure_custom_jvp), mlx_closure_custom_jvp_new_func_payload, mlx_closure_custom_jvp_free,
    Jvp, call_jvp
);
closure!(
    /// Inputs and their mapped axes (-1: none) to outputs and theirs.
    VmapClosure(mlx_closure_custom_vmap), mlx_closure_custom_vmap_new_func_payload,
    mlx_closure_custom_vmap_free, Vmap, call_vmap
);

impl Closure<'_> {
    pub(crate) fn apply(&self, inputs: &VectorArray) -> Result<Vec<Array>> {
        let mut out = VectorArray::empty();
        call!(mlx_closure_apply; out.0; self, inputs)?;
        out.to_arrays()
    }
}

// In the callbacks below `payload` is the box that `new` made, which lives as long as the closure that
// runs; the lists are live and lent by MLX; `res` is MLX's own.

extern "C" fn call_function(
    res: *mut sys::mlx_vector_array,
    inputs: sys::mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    guarded(|| {
        // SAFETY: see above.
        let (f, inputs) = unsafe { (&*payload.cast::<Box<Function<'_>>>(), super::arrays_of(inputs)?) };
        // SAFETY: see above.
        unsafe { fill(res, &f(&inputs)?) }
    })
}

extern "C" fn call_keyword(
    res: *mut sys::mlx_vector_array,
    inputs: sys::mlx_vector_array,
    named: sys::mlx_map_string_to_array,
    payload: *mut c_void,
) -> c_int {
    guarded(|| {
        // SAFETY: see above.
        let (f, inputs) = unsafe { (&*payload.cast::<Box<Keyword<'_>>>(), super::arrays_of(inputs)?) };
        // SAFETY: see above.
        let named = unsafe { super::named_arrays_of(named)? };
        // SAFETY: see above.
        unsafe { fill(res, &f(&inputs, &named)?) }
    })
}

extern "C" fn call_vjp(
    res: *mut sys::mlx_vector_array,
    primals: sys::mlx_vector_array,
    cotangents: sys::mlx_vector_array,
    outputs: sys::mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    guarded(|| {
        // SAFETY: see above.
        let f = unsafe { &*payload.cast::<Box<Vjp>>() };
        let read = super::arrays_of;
        // SAFETY: see above.
        let lists = unsafe { (read(primals)?, read(cotangents)?, read(outputs)?) };
        // SAFETY: see above.
        unsafe { fill(res, &f(&lists.0, &lists.1, &lists.2)?) }
    })
}

extern "C" fn call_jvp(
    res: *mut sys::mlx_vector_array,
    primals: sys::mlx_vector_array,
    tangents: sys::mlx_vector_array,
    argnums: *const c_int,
    len: usize,
    payload: *mut c_void,
) -> c_int {
    guarded(|| {
        // SAFETY: see above.
        let (f, argnums) = unsafe { (&*payload.cast::<Box<Jvp>>(), ints(argnums, len)) };
        // SAFETY: see above.
        let (primals, tangents) = unsafe { (super::arrays_of(primals)?, super::arrays_of(tangents)?) };
        // SAFETY: see above.
        unsafe { fill(res, &f(&primals, &tangents, argnums)?) }
    })
}

extern "C" fn call_vmap(
    res: *mut sys::mlx_vector_array,
    res_axes: *mut sys::mlx_vector_int,
    inputs: sys::mlx_vector_array,
    axes: *const c_int,
    len: usize,
    payload: *mut c_void,
) -> c_int {
    guarded(|| {
        // SAFETY: see above.
        let (f, axes) = unsafe { (&*payload.cast::<Box<Vmap>>(), ints(axes, len)) };
        // SAFETY: see above.
        let inputs = unsafe { super::arrays_of(inputs)? };
        let (outputs, mut out_axes) = f(&inputs, axes)?;
        // SAFETY: see above.
        unsafe {
            fill(res, &outputs)?;
            let code = sys::mlx_vector_int_set_data(res_axes, out_axes.as_mut_ptr(), out_axes.len());
            check("vector_int_set_data", code)
        }
    })
}

/// A list of integers that C lends; C++ may give none as null.
///
/// # Safety
/// `data` must point to `len` integers that outlive the use of the slice, unless `len` is 0.
unsafe fn ints<'a>(data: *const c_int, len: usize) -> &'a [i32] {
    // SAFETY: the caller vouches for it.
    if len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data, len) } }
}

extern "C" fn release<T>(payload: *mut c_void) {
    super::keeping_errors(|| {
        // SAFETY: the box of `new`, given back once.
        let boxed = unsafe { Box::from_raw(payload.cast::<T>()) };
        // What is captured may panic when dropped; that must not cross C either.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(boxed))) {
            discard(panic);
        }
    });
}

/// Puts `arrays` into a list that C owns.
///
/// # Safety
/// `list` must point to a live list.
pub(super) unsafe fn fill(list: *mut sys::mlx_vector_array, arrays: &[Array]) -> Result<()> {
    let raw: Vec<sys::mlx_array> = arrays.iter().map(|a| a.handle.0).collect();
    let _guard = enter();
    // SAFETY: the caller vouches for `list`; `raw` holds live handles, which MLX copies.
    let code = unsafe { sys::mlx_vector_array_set_data(list, raw.as_ptr(), raw.len()) };
    check("vector_array_set_data", code)
}

/// Runs the body of a callback: errors and panics are kept for the outer call, and C sees a code.
pub(super) fn guarded(body: impl FnOnce() -> Result<()>) -> c_int {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(panic) => Error::Panic { message: panic_text(panic) },
    };
    keep_closure_error(error);
    1
}

/// What a panic said.
pub(super) fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    discard(panic);
    text.unwrap_or_else(|| "no message".into())
}

/// Drops what a panic carried, which may panic in turn.
pub(super) fn discard(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
}

/// A function from a file.
pub(crate) struct Imported(sys::mlx_imported_function);
/// A file that traces of a function go to.
pub(crate) struct Exporter<'a>(sys::mlx_function_exporter, PhantomData<&'a ()>);

impl Imported {
    pub(crate) fn new(path: &CStr) -> Result<Self> {
        let _guard = enter();
        // SAFETY: a NUL-terminated path that MLX copies.
        let raw = unsafe { sys::mlx_imported_function_new(path.as_ptr()) };
        if raw.ctx.is_null() { Err(super::last_error("import_function")) } else { Ok(Self(raw)) }
    }
}

impl super::CArg for Imported {
    type C = sys::mlx_imported_function;
    fn c(&self) -> Self::C {
        self.0
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        let _guard = enter();
        // SAFETY: this value owns the handle.
        unsafe { sys::mlx_imported_function_free(self.0) };
    }
}

impl<'a> Exporter<'a> {
    pub(crate) fn new(path: &CStr, f: &KeywordClosure<'a>, shapeless: bool) -> Result<Self> {
        let _guard = enter();
        // SAFETY: a NUL-terminated path and a live closure, both of which MLX copies.
        let raw = unsafe { sys::mlxport_function_exporter_new(path.as_ptr(), f.raw, shapeless) };
        if raw.ctx.is_null() { Err(super::last_error("export_function")) } else { Ok(Self(raw, PhantomData)) }
    }
}

impl super::CArg for Exporter<'_> {
    type C = sys::mlx_function_exporter;
    fn c(&self) -> Self::C {
        self.0
    }
}

impl Drop for Exporter<'_> {
    fn drop(&mut self) {
        let _guard = enter();
        // SAFETY: this value owns the handle.
        unsafe { sys::mlx_function_exporter_free(self.0) };
    }
}
