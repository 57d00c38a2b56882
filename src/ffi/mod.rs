//! The only place that calls C.
//!
//! Three rules keep it sound:
//!
//! * Every call runs under one process-wide reentrant lock ([`enter`]), so MLX sees its callers one
//!   at a time, as if all of them were one thread (why: `docs/threads.md`).
//! * A call reports failure by its return code; the message is caught by an error handler into a
//!   thread-local slot. No output is read after a failure ([`check`]).
//! * A handle is owned by exactly one Rust value, freed once on drop.

#[cfg(feature = "cli")]
mod allocator;
mod arrays;
mod call;
mod closure;
mod custom_kernels;
mod device;
mod distributed;
mod fixed;
mod handles;
mod kernel;
mod mapped;
#[cfg(feature = "cli")]
mod signals;
mod streams;
/// Declarations that bindgen made from mlx-c's headers.
#[allow(non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code, missing_docs, clippy::all)]
pub(crate) mod sys {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::error::{Error, Result};

#[cfg(feature = "cli")]
pub use allocator::Allocator;
pub(crate) use arrays::*;
pub(crate) use call::{CArg, call, op, ops_vec, ops2};
pub(crate) use closure::*;
pub(crate) use custom_kernels::*;
pub(crate) use device::*;
pub(crate) use distributed::*;
pub(crate) use fixed::Fixed;
pub(crate) use handles::*;
pub(crate) use kernel::*;
pub(crate) use mapped::*;
#[cfg(feature = "cli")]
pub(crate) use signals::*;
pub(crate) use streams::*;

static LOCK: ReentrantMutex<()> = ReentrantMutex::new(());
static START: Once = Once::new();
/// MLX's memory limit before anyone has changed it: most of the machine's memory.
static LARGEST: AtomicUsize = AtomicUsize::new(isize::MAX as usize);

/// Bytes of freed arrays that are kept for others at least, unless someone sets another limit. Pages that go back to the system
/// come again one by one, zeroed, which takes longer than most of what works on them.
const KEPT: usize = 256 << 20;

thread_local! {
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
    /// What a Rust closure returned or panicked with, while C++ unwinds its own frames.
    static FROM_CLOSURE: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// Holds MLX for this thread. Taken by every call into C; reentrant, so closures may call back.
pub(crate) fn enter() -> ReentrantMutexGuard<'static, ()> {
    assert!(!kernel::must_not_enter(), "a kernel must not use arrays");
    let guard = LOCK.lock();
    START.call_once(|| {
        // SAFETY: no arguments.
        unsafe { sys::mlxport_start() };
        // SAFETY: the handler is a function of this module that lives as long as the process.
        unsafe { sys::mlx_set_error_handler(Some(keep_message), std::ptr::null_mut(), None) };
        let mut limit = 0;
        // SAFETY: `limit` is a live integer.
        if unsafe { sys::mlx_get_memory_limit(&mut limit) } == 0 {
            LARGEST.store(limit, Ordering::Relaxed);
        }
        // SAFETY: `limit` is a live integer.
        unsafe {
            // MLX has a larger limit for GPUs.
            if sys::mlx_set_cache_limit(&mut limit, KEPT) == 0 && limit > KEPT {
                sys::mlx_set_cache_limit(&mut limit, limit);
            }
        }
        if let Some(path) = option_env!("MLXPORT_METALLIB")
            && let Ok(path) = std::ffi::CString::new(path)
        {
            // SAFETY: a NUL-terminated string that MLX copies.
            unsafe { sys::mlx_metal_set_metallib_path(path.as_ptr()) };
        }
    });
    guard
}

/// Bytes of the largest array that is let through.
fn largest_array() -> usize {
    LARGEST.load(Ordering::Relaxed)
}

extern "C" fn keep_message(message: *const c_char, _data: *mut c_void) {
    // SAFETY: mlx-c passes a NUL-terminated string that is valid during this call.
    let message = unsafe { CStr::from_ptr(message) };
    let message = message.to_string_lossy().into_owned();
    let _ = MESSAGE.try_with(|slot| *slot.borrow_mut() = Some(message));
}

/// Keeps the error of a closure until the call that ran it returns.
fn keep_closure_error(error: Error) {
    let _ = FROM_CLOSURE.try_with(|slot| *slot.borrow_mut() = Some(error));
}

/// Turns a return code into a `Result`: the closure's own error if one failed, else MLX's message.
pub(crate) fn check(op: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    Err(last_error(op))
}

/// The error of a call that has just failed.
pub(crate) fn last_error(op: &'static str) -> Error {
    let message = MESSAGE.try_with(|slot| slot.borrow_mut().take()).ok().flatten();
    let from_closure = FROM_CLOSURE.try_with(|slot| slot.borrow_mut().take()).ok().flatten();
    let message = message.unwrap_or_else(|| "failed without a message".into());
    // mlx-c appends " at <file>:<line>" of its own source, which says nothing to our callers.
    let message = match message.rfind(" at ") {
        Some(at) if message[at..].contains(".cpp:") => message[..at].to_owned(),
        _ => message,
    };
    // What mlx-c says when a closure has failed; after another failure an error still kept is stale.
    match from_closure {
        Some(error) if message.ends_with("returned a non-zero value") => error,
        _ => Error::Mlx { op: short_name(op), message },
    }
}

/// The name of a C function without what only C needs.
fn short_name(op: &'static str) -> &'static str {
    let op =
        ["mlx_", "mlxport_", "closure_", "detail_"].iter().fold(op, |op, p| op.strip_prefix(p).unwrap_or(op));
    op.strip_suffix("_apply").unwrap_or(op)
}

/// Runs a call in which MLX walks a graph by recursion: on a stack for some million operations, of which
/// only what is used takes memory.
pub(crate) fn on_deep_stack<R>(call: impl FnOnce() -> R) -> R {
    const STACK: usize = 512 << 20;
    stacker::maybe_grow(STACK / 2, STACK, call)
}

/// Runs `f`, which may call MLX, in the midst of a failing call whose error is still to be read.
fn keeping_errors(f: impl FnOnce()) {
    let message = MESSAGE.try_with(|slot| slot.borrow_mut().take()).ok().flatten();
    let from_closure = FROM_CLOSURE.try_with(|slot| slot.borrow_mut().take()).ok().flatten();
    f();
    let _ = MESSAGE.try_with(|slot| *slot.borrow_mut() = message);
    let _ = FROM_CLOSURE.try_with(|slot| *slot.borrow_mut() = from_closure);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Array;

    #[test]
    fn a_closure_error_that_mlx_has_swallowed_does_not_pass_for_a_later_one() {
        keep_closure_error(Error::argument("mine", "stale"));
        let (a, b) = (Array::from_slice(&[1.0f32; 2], &[2]), Array::from_slice(&[1.0f32; 3], &[3]));
        assert!(matches!(crate::ops::add(a, b), Err(Error::Mlx { op: "add", .. })));
    }
}
