//! Reading and making arrays.

use super::{ArrayHandle, CArg, check, enter, op, sys};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};

/// An array with a copy of `bytes`; the caller has checked that they fit `shape` and `dtype`.
pub(crate) fn array_from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    let expected = crate::array::element_count(shape).map(|n| n * dtype.size());
    assert_eq!(expected, Some(bytes.len()));
    // MLX reads the elements through a pointer of their type.
    let mut aligned = vec![0u64; bytes.len().div_ceil(8).max(1)];
    let data: *const u8 = if bytes.as_ptr().align_offset(dtype.size()) == 0 && !bytes.is_empty() {
        bytes.as_ptr()
    } else {
        bytemuck::cast_slice_mut(&mut aligned)[..bytes.len()].copy_from_slice(bytes);
        aligned.as_ptr().cast()
    };
    let _guard = enter();
    // SAFETY: `data` holds as many aligned elements as the shape has, and MLX copies them.
    let handle =
        unsafe { sys::mlx_array_new_data(data.cast(), shape.as_ptr(), shape.len() as i32, dtype.code()) };
    if handle.ctx.is_null() {
        return Err(super::last_error("from_slice"));
    }
    Ok(Array::from_handle(ArrayHandle(handle)))
}

/// The output of an operation, if it is an array that can exist.
pub(crate) fn finish(op: &'static str, handle: ArrayHandle) -> Result<Array> {
    let array = Array::from_handle(handle);
    check_size(op, &array).map(|()| array)
}

/// Fails for a shape that is negative somewhere or does not fit into memory. MLX computes sizes modulo
/// 2^64 and does not look whether an allocation failed, so no such array may ever be computed.
pub(crate) fn check_size(op: &'static str, array: &Array) -> Result<()> {
    let _guard = enter();
    let (shape, dtype) = (array_shape(array), array_dtype(array));
    let bytes = crate::array::element_count(shape).and_then(|n| n.checked_mul(dtype.size()));
    if bytes.is_some_and(|bytes| bytes <= super::largest_array()) {
        return Ok(());
    }
    let op = op.strip_prefix("mlx_").unwrap_or(op);
    Err(Error::argument(
        op,
        format!("a result of shape {shape:?} of {dtype} is beyond this machine's memory"),
    ))
}

pub(crate) fn array_shape(array: &Array) -> &[i32] {
    let _guard = enter();
    // SAFETY: the handle is live. A shape never changes, and lives as long as the node that
    // `array` keeps alive.
    unsafe {
        let ndim = sys::mlx_array_ndim(array.c());
        match sys::mlx_array_shape(array.c()) {
            shape if ndim > 0 && !shape.is_null() => std::slice::from_raw_parts(shape, ndim),
            _ => &[],
        }
    }
}

pub(crate) fn array_dtype(array: &Array) -> Dtype {
    let _guard = enter();
    // SAFETY: the handle is live.
    let code = unsafe { sys::mlx_array_dtype(array.c()) };
    Dtype::from_code(code).expect("mlx-c has no other dtypes")
}

/// Computes `arrays`, and waits for them unless `asynchronous`. What has failed goes on failing.
pub(crate) fn eval(arrays: &super::VectorArray, asynchronous: bool) -> Result<()> {
    super::ready(crate::device::default_device())?;
    let _guard = enter();
    // SAFETY: a live list of live arrays.
    check("eval", unsafe { sys::mlxport_eval(arrays.0, asynchronous) })
}

/// The elements of `array`, computed, as bytes in row-major order.
pub(crate) fn array_bytes(array: &Array) -> Result<Vec<u8>> {
    let _guard = enter();
    let mut array = array.clone();
    eval(&super::VectorArray::new([&array]), false)?;
    let mut row_major = false;
    // SAFETY: a live, computed array.
    let code = unsafe { sys::_mlx_array_is_row_contiguous(&mut row_major, array.c()) };
    check("is_row_contiguous", code)?;
    if !row_major {
        let (source, col_major) = (array, false);
        array = op!(mlx_contiguous(source, col_major))?;
        eval(&super::VectorArray::new([&array]), false)?;
    }
    let nbytes = array.nbytes();
    if nbytes == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: computed and row-major, so its data are `nbytes` bytes from this pointer, and nobody
    // writes to them while the lock is held and `array` keeps them alive.
    unsafe {
        let data = sys::mlx_array_data_uint8(array.c());
        if data.is_null() {
            return Err(Error::argument("to_vec", "the array has no data: it was not computed"));
        }
        Ok(std::slice::from_raw_parts(data, nbytes).to_vec())
    }
}
