//! Kernels of ours in MLX's graph (`native/primitive.h`).
//!
//! A kernel runs on the thread of its MLX stream, while the evaluating thread waits and holds the lock.
//! Anything that would take the lock there would wait for ever, so [`enter`](super::enter) panics on
//! such a thread instead ([`without_arrays`]), and the panic comes back as an error like any other.

use std::cell::Cell;
use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{VectorArray, call, closure, sys};
use crate::array::{Array, Dtype, element_count};
use crate::error::{Error, Result};
use crate::kernels::{CustomKernel, Spec, View, ViewMut};

thread_local! {
    static WITHOUT_ARRAYS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread must not use arrays now.
pub(super) fn must_not_enter() -> bool {
    WITHOUT_ARRAYS.get()
}

/// Runs `f`, in which every use of an array panics.
fn without_arrays<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            WITHOUT_ARRAYS.set(self.0);
        }
    }
    let _restore = Restore(WITHOUT_ARRAYS.replace(true));
    f()
}

/// Bars this thread from using arrays: it works for kernels only.
pub(crate) fn bar_from_arrays() {
    WITHOUT_ARRAYS.set(true);
}

struct Payload {
    kernel: Box<dyn CustomKernel>,
    name: CString,
    /// The input that each output begins as, or -1.
    in_place: Vec<c_int>,
}

/// Adds `kernel` to the graph.
pub(crate) fn apply_kernel(kernel: Box<dyn CustomKernel>, inputs: &[&Array]) -> Result<Vec<Array>> {
    let name = CString::new(kernel.name())
        .map_err(|_| Error::argument("kernel", format!("the name {:?}", kernel.name())))?;
    let strided = (0..inputs.len().min(64)).filter(|&i| kernel.takes_strided(i));
    let strided = strided.fold(0, |bits, i| bits | 1 << i);
    let fills = kernel.fills();
    let mut in_place = Vec::new();
    for (output, input) in kernel.in_place() {
        in_place.resize(in_place.len().max(output + 1), -1);
        in_place[output] = c_int::try_from(input).map_err(|e| Error::argument("kernel", e.to_string()))?;
    }
    let inputs = VectorArray::new(inputs.iter().copied());
    let payload = Box::new(Payload { kernel, name, in_place });
    let (name, in_place) = (payload.name.as_ptr(), payload.in_place.as_ptr());
    let in_place_count = payload.in_place.len();
    let raw = sys::mlxport_kernel {
        payload: Box::into_raw(payload).cast(),
        name,
        strided,
        fills,
        in_place,
        in_place_count,
        outputs: Some(outputs),
        run: Some(run),
        reference: Some(reference),
        vjp: Some(vjp),
        vmap: Some(vmap),
        release: Some(release),
    };
    let mut out = VectorArray::empty();
    call!(mlxport_kernel_apply; out.0; inputs, raw, stream)?;
    out.to_arrays()
}

impl super::CArg for sys::mlxport_kernel {
    type C = Self;
    fn c(&self) -> Self {
        *self
    }
}

/// # Safety
/// `payload` must be what [`apply_kernel`] made, and not yet released.
unsafe fn kernel_of<'a>(payload: *mut c_void) -> &'a dyn CustomKernel {
    // SAFETY: the caller vouches for it; a kernel is `Sync`.
    unsafe { &*(*payload.cast::<Payload>()).kernel }
}

extern "C" fn outputs(
    payload: *mut c_void,
    inputs: *const sys::mlxport_spec,
    count: usize,
    out: *mut c_void,
) -> c_int {
    closure::guarded(|| {
        // SAFETY: MLX lends `count` specs for the length of the call, and holds the payload.
        let (kernel, inputs) = unsafe { (kernel_of(payload), lent(inputs, count)) };
        // SAFETY: as above.
        let inputs: Vec<Spec> = inputs.iter().map(|spec| unsafe { spec_of(spec) }).collect();
        let specs = kernel.outputs(&inputs)?;
        for (output, input) in kernel.in_place() {
            let (spec, of) = (specs.get(output), inputs.get(input));
            if spec.is_none() || spec != of {
                let message = format!("output {output}, {spec:?}, in the place of input {input}, {of:?}");
                return Err(Error::argument("kernel", message));
            }
        }
        for Spec { shape, dtype } in specs {
            if element_count(&shape).is_none() || shape.len() > i32::MAX as usize {
                return Err(Error::argument("kernel", format!("an output of shape {shape:?}")));
            }
            // SAFETY: `out` is the list that C++ fills here; the shape is copied.
            unsafe { sys::mlxport_push_spec(out, shape.as_ptr(), shape.len(), dtype.code()) };
        }
        Ok(())
    })
}

extern "C" fn run(
    payload: *mut c_void,
    inputs: *const sys::mlxport_view,
    input_count: usize,
    outputs: *const sys::mlxport_view,
    output_count: usize,
    message: *mut c_void,
) -> c_int {
    let body = || {
        // SAFETY: C++ lends live views for the length of the call, and holds the payload.
        let (kernel, inputs, outputs) =
            unsafe { (kernel_of(payload), lent(inputs, input_count), lent(outputs, output_count)) };
        // SAFETY: inputs are computed and nobody writes to them before this call returns.
        let inputs: Vec<View<'_>> = inputs.iter().map(|view| unsafe { view_of(view) }).collect();
        // SAFETY: outputs are memory of their own, row-contiguous, that only this call knows: the input that an output begins as
        // comes without its memory.
        let mut outputs: Vec<ViewMut<'_>> = outputs.iter().map(|view| unsafe { view_mut_of(view) }).collect();
        if cfg!(debug_assertions) && kernel.fills() {
            // Whoever says so and does not is found out.
            let in_place = kernel.in_place();
            let fresh = |i: &usize| in_place.iter().all(|(output, _)| output != i);
            (0..outputs.len()).filter(fresh).for_each(|i| outputs[i].bytes_mut().fill(0xff));
        }
        kernel.cpu(&inputs, &mut outputs)
    };
    let failed = match catch_unwind(AssertUnwindSafe(|| without_arrays(body))) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panicked: {}", closure::panic_text(panic)),
    };
    // SAFETY: `message` is a string of C++, which copies the text.
    unsafe { sys::mlxport_set_message(message, failed.as_ptr().cast(), failed.len()) };
    1
}

extern "C" fn reference(
    payload: *mut c_void,
    res: *mut sys::mlx_vector_array,
    inputs: sys::mlx_vector_array,
) -> c_int {
    closure::guarded(|| {
        // SAFETY: MLX lends a live list, and holds the payload.
        let (kernel, inputs) = unsafe { (kernel_of(payload), super::arrays_of(inputs)?) };
        let outputs = kernel.reference(&inputs)?;
        // SAFETY: `res` is a live list of C++.
        unsafe { closure::fill(res, &outputs) }
    })
}

extern "C" fn vjp(
    payload: *mut c_void,
    res: *mut sys::mlx_vector_array,
    primals: sys::mlx_vector_array,
    cotangents: sys::mlx_vector_array,
    argnums: *const c_int,
    count: usize,
) -> c_int {
    closure::guarded(|| {
        // SAFETY: MLX lends live lists and `count` integers, and holds the payload.
        let (kernel, primals, cotangents, argnums) = unsafe {
            (
                kernel_of(payload),
                super::arrays_of(primals)?,
                super::arrays_of(cotangents)?,
                lent(argnums, count),
            )
        };
        let Some(gradients) = kernel.vjp(&primals, &cotangents, argnums)? else { return Ok(()) };
        // SAFETY: `res` is a live list of C++.
        unsafe { closure::fill(res, &gradients) }
    })
}

extern "C" fn vmap(
    payload: *mut c_void,
    res: *mut sys::mlx_vector_array,
    inputs: sys::mlx_vector_array,
    axes: *const c_int,
    count: usize,
) -> c_int {
    closure::guarded(|| {
        // SAFETY: MLX lends a live list and `count` integers, and holds the payload.
        let (kernel, inputs, axes) =
            unsafe { (kernel_of(payload), super::arrays_of(inputs)?, lent(axes, count)) };
        let axes: Vec<Option<i32>> = axes.iter().map(|&axis| (axis >= 0).then_some(axis)).collect();
        let Some(outputs) = kernel.vmap(&inputs, &axes)? else { return Ok(()) };
        // SAFETY: `res` is a live list of C++.
        unsafe { closure::fill(res, &outputs) }
    })
}

extern "C" fn release(payload: *mut c_void) {
    // SAFETY: the box of `apply_kernel`, given back once; a kernel is `Send`, so any thread may drop it.
    let payload = unsafe { Box::from_raw(payload.cast::<Payload>()) };
    // A panic of a kernel's `drop` must not cross C.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| without_arrays(|| drop(payload)))) {
        closure::discard(panic);
    }
}

/// # Safety
/// `data` must point to `count` live values, or `count` must be 0.
unsafe fn lent<'a, T>(data: *const T, count: usize) -> &'a [T] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(data, count) }
}

fn dtype_of(spec: &sys::mlxport_spec) -> Dtype {
    Dtype::from_code(spec.dtype).expect("MLX has no other dtypes")
}

/// # Safety
/// `spec` must be lent by C++.
unsafe fn spec_of(spec: &sys::mlxport_spec) -> Spec {
    // SAFETY: the caller vouches for it.
    let shape = unsafe { lent(spec.shape, spec.ndim) };
    Spec::new(shape, dtype_of(spec))
}

/// # Safety
/// `view` must be lent by C++, its memory, if it has any, alive and not written to for `'a`.
pub(super) unsafe fn view_of<'a>(view: &sys::mlxport_view) -> View<'a> {
    // SAFETY: the caller vouches for it.
    let (shape, strides) =
        unsafe { (lent::<i32>(view.spec.shape, view.spec.ndim), lent::<i64>(view.strides, view.spec.ndim)) };
    let dtype = dtype_of(&view.spec);
    let (before, after) = if view.data.is_null() { (0, 0) } else { extent(shape, strides) };
    let elements = if shape.contains(&0) || view.data.is_null() { 0 } else { before + after + 1 };
    let bytes: &[u8] = if elements == 0 {
        &[]
    } else {
        // SAFETY: the elements of the array lie between its lowest and its highest, in one allocation.
        unsafe {
            let first = view.data.cast::<u8>().sub(before * dtype.size());
            std::slice::from_raw_parts(first, elements * dtype.size())
        }
    };
    View::new(bytes, before, shape, strides, dtype)
}

/// # Safety
/// `view` must be lent by C++, row-contiguous, and its memory nobody else's for `'a`.
unsafe fn view_mut_of<'a>(view: &sys::mlxport_view) -> ViewMut<'a> {
    // SAFETY: the caller vouches for it.
    let shape = unsafe { lent::<i32>(view.spec.shape, view.spec.ndim) };
    let dtype = dtype_of(&view.spec);
    let nbytes = element_count(shape).expect("checked when it was made") * dtype.size();
    let bytes: &mut [u8] = if nbytes == 0 {
        &mut []
    } else {
        // SAFETY: the caller vouches for it.
        unsafe { std::slice::from_raw_parts_mut(view.data.cast(), nbytes) }
    };
    ViewMut::new(bytes, shape, dtype)
}

/// How many elements lie before the first and after it.
fn extent(shape: &[i32], strides: &[i64]) -> (usize, usize) {
    let (mut before, mut after) = (0, 0);
    for (&size, &stride) in shape.iter().zip(strides) {
        let reach = stride.unsigned_abs() as usize * (size.max(1) as usize - 1);
        *(if stride < 0 { &mut before } else { &mut after }) += reach;
    }
    (before, after)
}
