//! Arrays over a memory-mapped file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::File;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use super::{ArrayHandle, array_from_bytes, check, enter, sys};
use crate::array::{Array, Dtype, element_count};
use crate::error::{Error, Result};

/// A file in memory, private to this process: writes go to copies of its pages, never to the file.
///
/// MLX may compute into the memory of an array that nobody else refers to. Two arrays over the same
/// bytes would then see each other's results, so each range is handed out as one array, which this
/// value keeps.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Arc<MmapRaw>,
    /// By first byte: the end, and the array over the range.
    arrays: RefCell<BTreeMap<usize, (usize, Array)>>,
}

impl Mapped {
    /// Maps a file that is not empty. Shortening the file later kills the process when a page that
    /// is gone is read (`SIGBUS`), as with every program that maps files.
    pub(crate) fn new(file: &File) -> std::io::Result<Self> {
        // SAFETY: the mapping is private and reached through raw pointers only, so that no Rust
        // reference assumes bytes that another process may change.
        let map = unsafe { MmapOptions::new().map_copy(file) }?;
        // Weights are read from end to end, at up to 1.4 times the speed where pages are large. A system
        // that has none for files says so, which changes nothing.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: Arc::new(map.into()), arrays: RefCell::default() })
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Gives the memory of these bytes back; who reads them again reads the file again. Whole pages only,
    /// and only where the system has such a call.
    pub(crate) fn release(&self, start: usize, end: usize) {
        const PAGE: usize = 1 << 16;
        let (start, end) = (start.next_multiple_of(PAGE), end.min(self.map.len()) / PAGE * PAGE);
        #[cfg(unix)]
        if start < end {
            // SAFETY: the range is inside the mapping. Nothing writes to it (an array over it is kept
            // here, so that MLX never computes into it): what is read next is what was there.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
            };
        }
    }

    /// The array over the bytes from `start`: the same one whenever it is asked for. On the CPU its
    /// elements stay in the file until they are read; elements that are not aligned are copied.
    ///
    /// Fails when the range is outside the file, overlaps the range of another array, begins within
    /// the first 8 bytes, or holds a `bool` that is neither 0 nor 1.
    pub(crate) fn array(&self, start: usize, shape: &[i32], dtype: Dtype) -> Result<Array> {
        const OP: &str = "map_array";
        let len = element_count(shape).and_then(|n| n.checked_mul(dtype.size()));
        let end = len.and_then(|len| start.checked_add(len)).filter(|&end| end <= self.map.len());
        let Some(end) = end.filter(|_| start >= size_of::<usize>()) else {
            return Err(Error::argument(
                OP,
                format!("bytes from {start} for {shape:?} of {dtype} are outside the file"),
            ));
        };
        if start == end {
            return array_from_bytes(&[], shape, dtype);
        }
        let mut arrays = self.arrays.borrow_mut();
        if let Some((before, (e, array))) = arrays.range(..end).next_back()
            && *e > start
        {
            if (*before, *e) == (start, end) && array.shape() == shape && array.dtype() == dtype {
                return Ok(array.clone());
            }
            return Err(Error::argument(OP, format!("bytes {start} to {end} belong to two arrays")));
        }
        // SAFETY: `start` is inside the mapping.
        let data = unsafe { self.map.as_mut_ptr().add(start) };
        // Bytes may be codes, which are looked at as words.
        let alignment = if matches!(dtype, Dtype::Uint8 | Dtype::Int8) { 4 } else { dtype.size() };
        let array = if data.align_offset(alignment) != 0 {
            // SAFETY: the range is inside the mapping and no array is over it. A copy is the caller's own.
            return array_from_bytes(unsafe { std::slice::from_raw_parts(data, end - start) }, shape, dtype);
        } else {
            // SAFETY: as above.
            if dtype == Dtype::Bool
                && unsafe { std::slice::from_raw_parts(data, end - start) }.iter().any(|&b| b > 1)
            {
                return Err(Error::argument(OP, "a bool that is neither 0 nor 1"));
            }
            let _guard = enter();
            let mut out = ArrayHandle::empty();
            let payload = Arc::into_raw(self.map.clone()).cast_mut().cast::<c_void>();
            // SAFETY: the bytes are aligned, writable and alive until `release` drops the payload,
            // nobody else reads or writes them, and the 8 bytes before them are in the mapping.
            let code = unsafe {
                sys::mlxport_array_over(
                    &mut out.0,
                    data.cast(),
                    shape.as_ptr(),
                    shape.len() as i32,
                    dtype.code(),
                    payload,
                    Some(release),
                )
            };
            check("mlxport_array_over", code)?;
            Array::from_handle(out)
        };
        arrays.insert(start, (end, array.clone()));
        Ok(array)
    }
}

/// Ends an array's share of the mapping. It runs on whichever thread drops the last reference to the
/// array's data, also on workers of MLX, so it takes no lock.
unsafe extern "C" fn release(payload: *mut c_void) {
    // SAFETY: the payload came from `Arc::into_raw`, and MLX releases it once.
    drop(unsafe { Arc::from_raw(payload.cast::<MmapRaw>()) });
}
