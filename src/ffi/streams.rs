//! Streams: each thread computes on streams of its own, taken from a pool and given back.
//!
//! An MLX stream of the CPU is an operating-system thread that is never joined, so streams are reused:
//! a thread takes one per device when it first needs it and returns it when it ends.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

use parking_lot::Mutex;

use super::{check, enter, sys};
use crate::device::Device;
use crate::error::{Error, Result};

/// A stream that no thread uses at present.
struct Idle(Device, sys::mlx_stream);
// SAFETY: the handle points to a plain (device, index) pair on the heap; the stream behind it is of
// MLX's thread-unsafe kind, which may be used from any thread, one at a time, and calls are serialised.
unsafe impl Send for Idle {}

static POOL: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

/// A stream in use by one owner.
#[derive(Debug)]
pub(crate) struct StreamHandle {
    pub(crate) device: Device,
    pub(crate) raw: sys::mlx_stream,
    _not_send: PhantomData<*mut ()>,
}

impl StreamHandle {
    /// An idle stream of `device`, or a new one.
    pub(crate) fn take(device: Device) -> Result<Self> {
        let _guard = enter();
        let idle = {
            let mut pool = POOL.lock();
            pool.iter().position(|idle| idle.0 == device).map(|at| pool.swap_remove(at).1)
        };
        let raw = match idle {
            Some(raw) => raw,
            None => {
                let dev = DeviceHandle::new(device);
                // SAFETY: `dev` is a live device.
                let raw = unsafe { sys::mlx_stream_new_thread_unsafe(dev.0) };
                if raw.ctx.is_null() {
                    return Err(super::last_error("stream_new"));
                }
                raw
            }
        };
        Ok(Self { device, raw, _not_send: PhantomData })
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        let _guard = enter();
        // SAFETY: the stream is live.
        check("synchronize", unsafe { sys::mlxport_synchronize(self.raw) })
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        // What is still queued finishes, and an error nobody asked for goes with its owner.
        let _guard = enter();
        // SAFETY: the stream is live.
        unsafe { sys::mlxport_finish_stream(self.raw) };
        POOL.lock().push(Idle(self.device, self.raw));
    }
}

/// A C device.
pub(crate) struct DeviceHandle(pub(crate) sys::mlx_device);

impl DeviceHandle {
    pub(crate) fn new(device: Device) -> Self {
        let _guard = enter();
        // SAFETY: plain values.
        Self(unsafe { sys::mlx_device_new_type(device.code(), device.index) })
    }
}

impl Drop for DeviceHandle {
    fn drop(&mut self) {
        let _guard = enter();
        // SAFETY: this value owns the handle.
        unsafe { sys::mlx_device_free(self.0) };
    }
}

thread_local! {
    /// This thread's default streams, one per device used so far.
    static OWN: RefCell<Vec<StreamHandle>> = const { RefCell::new(Vec::new()) };
    /// The stream of the innermost `with_stream` or `with_device`.
    static SCOPED: Cell<Option<(Device, sys::mlx_stream)>> = const { Cell::new(None) };
    /// Whether the thread has had a stream.
    static STARTED: Cell<bool> = const { Cell::new(false) };
}

/// This thread's default stream of `device`. Fails when the thread's end has come for `OWN`: from then
/// on the thread can drop arrays, but not compute.
fn own_stream(device: Device) -> Result<sys::mlx_stream> {
    let gone = |_| Error::unsupported("an operation", "the thread is ending");
    if STARTED.get() {
        let found = |own: &RefCell<Vec<StreamHandle>>| {
            own.borrow().iter().find(|s| s.device == device).map(|s| s.raw)
        };
        if let Some(raw) = OWN.try_with(found).map_err(gone)? {
            return Ok(raw);
        }
    }
    let stream = StreamHandle::take(device)?;
    let raw = stream.raw;
    {
        // MLX itself asks for the thread's default stream in a few places.
        let _guard = enter();
        // SAFETY: the stream is live.
        check("set_default_stream", unsafe { sys::mlx_set_default_stream(raw) })?;
        // SAFETY: no arguments. Makes MLX's own thread-locals, before `OWN`, hence outliving it.
        unsafe { sys::mlxport_start_thread() };
    }
    STARTED.set(true);
    OWN.try_with(|own| own.borrow_mut().push(stream)).map_err(gone)?;
    Ok(raw)
}

/// Sees to it that this thread has a stream of `device`, for calls into MLX that need one unasked: it
/// would make one for each thread, and a CPU stream is an operating-system thread that never ends.
pub(crate) fn ready(device: Device) -> Result<()> {
    own_stream(device).map(|_| ())
}

/// The stream that operations of this thread go to now.
pub(crate) fn current_stream() -> sys::mlx_stream {
    match SCOPED.get() {
        Some((_, raw)) => raw,
        // An empty handle makes the call fail with a message, so nothing is hidden here.
        None => own_stream(crate::device::default_device())
            .unwrap_or(sys::mlx_stream { ctx: std::ptr::null_mut() }),
    }
}

/// The device that operations of this thread run on now.
pub(crate) fn current_device() -> Device {
    SCOPED.get().map_or_else(crate::device::default_device, |(device, _)| device)
}

/// Runs `f` with operations going to `stream`, or to this thread's default stream of `device`.
pub(crate) fn scoped<R>(target: Result<&StreamHandle, Device>, f: impl FnOnce() -> R) -> Result<R> {
    struct Restore(Option<(Device, sys::mlx_stream)>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPED.set(self.0);
        }
    }
    let next = match target {
        // An empty handle for a thread that is ending: see `own_stream`.
        Ok(stream) => match own_stream(stream.device) {
            Ok(_) => (stream.device, stream.raw),
            Err(_) => (stream.device, sys::mlx_stream { ctx: std::ptr::null_mut() }),
        },
        Err(device) => (device, own_stream(device)?),
    };
    let _restore = Restore(SCOPED.replace(Some(next)));
    Ok(f())
}

/// Waits for the current stream.
pub(crate) fn synchronize_current() -> Result<()> {
    let stream = current_stream();
    let _guard = enter();
    // SAFETY: the stream is live, or empty, which MLX reports.
    check("synchronize", unsafe { sys::mlxport_synchronize(stream) })
}
