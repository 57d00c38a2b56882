//! Owned C handles. Each frees what it holds once, under the lock.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};

use super::{CArg, call, enter, sys};
use crate::array::Array;
use crate::error::Result;

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident($c:ident), $free:ident $(, $empty:ident)?) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name(pub(crate) $crate::ffi::sys::$c);

        $(impl $name {
            /// An empty handle, for C to fill.
            pub(crate) fn $empty() -> Self {
                Self($crate::ffi::sys::$c { ctx: std::ptr::null_mut() })
            }
        })?

        impl Drop for $name {
            fn drop(&mut self) {
                if !self.0.ctx.is_null() {
                    let _guard = $crate::ffi::enter();
                    // SAFETY: this value owns the handle, and it is not used again.
                    unsafe { $crate::ffi::sys::$free(self.0) };
                }
            }
        }

        impl $crate::ffi::CArg for $name {
            type C = $crate::ffi::sys::$c;
            fn c(&self) -> $crate::ffi::sys::$c {
                self.0
            }
        }
    };
}

pub(super) use handle;

handle!(
    /// A reference to a node of MLX's graph.
    ArrayHandle(mlx_array), mlx_array_free, empty
);
handle!(
    /// A list of arrays.
    VectorArray(mlx_vector_array), mlx_vector_array_free, empty
);
handle!(
    /// A list of strings.
    VectorString(mlx_vector_string), mlx_vector_string_free, empty
);
handle!(
    /// A string that C++ owns.
    StringHandle(mlx_string), mlx_string_free, empty
);
handle!(
    /// Arrays by name.
    MapArrays(mlx_map_string_to_array), mlx_map_string_to_array_free
);
handle!(
    /// A function that computes values and gradients.
    ValueAndGrad(mlx_closure_value_and_grad), mlx_closure_value_and_grad_free, empty
);

impl Clone for ArrayHandle {
    fn clone(&self) -> Self {
        let _guard = enter();
        let mut copy = Self::empty();
        // SAFETY: both handles are live; the copy refers to the same node. The call fails only when
        // memory is exhausted or the source is empty, and then leaves the copy empty.
        unsafe { sys::mlx_array_set(&mut copy.0, self.0) };
        copy
    }
}

impl CArg for Array {
    type C = sys::mlx_array;
    fn c(&self) -> sys::mlx_array {
        self.handle.0
    }
}

impl CArg for Option<&Array> {
    type C = sys::mlx_array;
    fn c(&self) -> sys::mlx_array {
        self.map_or(ArrayHandle::empty().0, CArg::c)
    }
}

impl VectorArray {
    /// A list of references to `arrays`.
    pub(crate) fn new<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Self {
        let raw: Vec<sys::mlx_array> = arrays.into_iter().map(|a| a.handle.0).collect();
        let _guard = enter();
        // SAFETY: `raw` holds `raw.len()` live handles, which MLX copies.
        Self(unsafe { sys::mlx_vector_array_new_data(raw.as_ptr(), raw.len()) })
    }

    pub(crate) fn len(&self) -> usize {
        let _guard = enter();
        // SAFETY: `self` holds a live list.
        unsafe { sys::mlx_vector_array_size(self.0) }
    }

    /// New references to the arrays of the list.
    pub(crate) fn to_arrays(&self) -> Result<Vec<Array>> {
        // SAFETY: `self` holds a live list.
        unsafe { arrays_of(self.0) }
    }
}

/// New references to the arrays of a list that C owns.
///
/// # Safety
/// `list` must be a live list.
pub(super) unsafe fn arrays_of(list: sys::mlx_vector_array) -> Result<Vec<Array>> {
    let _guard = enter();
    // SAFETY: the caller vouches for `list`.
    let size = unsafe { sys::mlx_vector_array_size(list) };
    let get = |i: usize| {
        let mut out = ArrayHandle::empty();
        // SAFETY: `list` is live and `i` is within its size.
        let code = unsafe { sys::mlx_vector_array_get(&mut out.0, list, i) };
        super::check("vector_array_get", code).map(|()| Array::from_handle(out))
    };
    (0..size).map(get).collect()
}

/// New references to the entries of a map that C owns.
///
/// # Safety
/// `map` must be a live map.
pub(super) unsafe fn named_arrays_of(map: sys::mlx_map_string_to_array) -> Result<BTreeMap<String, Array>> {
    let mut out = BTreeMap::new();
    let _guard = enter();
    // SAFETY: the caller vouches for `map`; keys are copied while it lives, and the iterator is freed.
    unsafe {
        let iterator = sys::mlx_map_string_to_array_iterator_new(map);
        loop {
            let (mut key, mut value) = (std::ptr::null(), ArrayHandle::empty());
            if sys::mlx_map_string_to_array_iterator_next(&mut key, &mut value.0, iterator) != 0 {
                break;
            }
            out.insert(CStr::from_ptr(key).to_string_lossy().into_owned(), Array::from_handle(value));
        }
        sys::mlx_map_string_to_array_iterator_free(iterator);
    }
    Ok(out)
}

impl VectorString {
    pub(crate) fn new(strings: &[&CStr]) -> Self {
        let mut raw: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        let _guard = enter();
        // SAFETY: `raw` holds NUL-terminated strings, which MLX copies.
        Self(unsafe { sys::mlx_vector_string_new_data(raw.as_mut_ptr(), raw.len()) })
    }

    pub(crate) fn to_strings(&self) -> Vec<String> {
        let _guard = enter();
        // SAFETY: `self` holds a live list.
        let size = unsafe { sys::mlx_vector_string_size(self.0) };
        let get = |i| {
            let mut text: *mut c_char = std::ptr::null_mut();
            // SAFETY: `self` is live and `i` is within its size; on success `text` points into the
            // list, which outlives the copy made here.
            unsafe {
                (sys::mlx_vector_string_get(&mut text, self.0, i) == 0)
                    .then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        (0..size).filter_map(get).collect()
    }
}

impl StringHandle {
    pub(crate) fn text(&self) -> String {
        if self.0.ctx.is_null() {
            return String::new();
        }
        let _guard = enter();
        // SAFETY: the handle is live, and the data is copied before it can change.
        let text = unsafe { CStr::from_ptr(sys::mlx_string_data(self.0)) };
        text.to_string_lossy().into_owned()
    }
}

impl MapArrays {
    pub(crate) fn new<'a>(entries: impl IntoIterator<Item = (&'a CStr, &'a Array)>) -> Result<Self> {
        let _guard = enter();
        // SAFETY: no arguments.
        let map = Self(unsafe { sys::mlx_map_string_to_array_new() });
        for (key, value) in entries {
            // SAFETY: the map and the value are live, the key is copied.
            let code = unsafe { sys::mlx_map_string_to_array_insert(map.0, key.as_ptr(), value.handle.0) };
            super::check("map_string_to_array_insert", code)?;
        }
        Ok(map)
    }
}

/// `arrays`, traced by a transform, with the constants among their graph's leaves in row-major order.
pub(crate) fn dense_constants(arrays: &[Array]) -> Result<Vec<Array>> {
    let (arrays, mut out) = (VectorArray::new(arrays), VectorArray::empty());
    call!(mlxport_dense_constants; out.0; arrays)?;
    out.to_arrays()
}

/// The graph of `outputs` in DOT, with `names` for some of its arrays.
pub(crate) fn graph_dot(outputs: &VectorArray, names: &[(CString, &Array)]) -> Result<String> {
    handle!(
        /// Names of arrays.
        Namer(mlx_node_namer), mlx_node_namer_free, empty
    );
    let mut namer = Namer::empty();
    let _guard = enter();
    // SAFETY: no arguments.
    namer.0 = unsafe { sys::mlx_node_namer_new() };
    for (name, array) in names {
        let name = name.as_c_str();
        call!(mlx_node_namer_set_name;; namer, array, name)?;
    }
    let mut text = StringHandle::empty();
    call!(mlxport_graph_dot; text.0; namer, outputs)?;
    Ok(text.text())
}

/// MLX's own text for an array.
pub(crate) fn array_text(array: &Array) -> Result<String> {
    super::eval(&VectorArray::new([array]), false)?;
    let mut text = StringHandle::empty();
    call!(mlx_array_tostring; text.0; array)?;
    Ok(text.text())
}
