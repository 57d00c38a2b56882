//! Devices and streams: where operations run.
//!
//! No operation takes a device or a stream; [`with_device`] and [`with_stream`] set them for a scope.

mod build;

use std::fmt;
use std::sync::OnceLock;

pub use build::Machine;

use crate::error::Result;
use crate::ffi::{self, StreamHandle, sys};

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// Metal or CUDA, whichever MLX was built with.
    Gpu,
}

/// A device of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// CPU or GPU.
    pub kind: DeviceKind,
    /// Which of that kind, from 0.
    pub index: i32,
}

impl Device {
    /// The processor.
    pub const fn cpu() -> Self {
        Self { kind: DeviceKind::Cpu, index: 0 }
    }

    /// The first GPU, which need not exist: see [`is_available`](Self::is_available).
    pub const fn gpu() -> Self {
        Self { kind: DeviceKind::Gpu, index: 0 }
    }

    /// Whether MLX was built for this device and the machine has it.
    pub fn is_available(self) -> bool {
        ffi::device_is_available(self)
    }

    /// Every device that is available here.
    pub fn all() -> Vec<Self> {
        let kinds = [DeviceKind::Cpu, DeviceKind::Gpu];
        let devices = kinds
            .into_iter()
            .flat_map(|kind| (0..ffi::device_count(kind)).map(move |index| Self { kind, index }));
        devices.filter(|d| d.is_available()).collect()
    }

    /// What MLX knows of the device: name, architecture, memory, ... by key.
    pub fn info(self) -> Result<Vec<(String, DeviceInfo)>> {
        ffi::device_info(self)
    }

    pub(crate) fn code(self) -> sys::mlx_device_type {
        self.kind.code()
    }
}

impl DeviceKind {
    pub(crate) fn code(self) -> sys::mlx_device_type {
        match self {
            DeviceKind::Cpu => sys::MLX_CPU,
            DeviceKind::Gpu => sys::MLX_GPU,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Gpu => "gpu",
        };
        write!(f, "{kind}:{}", self.index)
    }
}

/// One value of [`Device::info`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceInfo {
    /// A name.
    Text(String),
    /// A count, or a number of bytes.
    Size(usize),
}

/// Where operations run outside of any scope: the GPU if there is one, else the CPU.
pub fn default_device() -> Device {
    static DEFAULT: OnceLock<Device> = OnceLock::new();
    if let Some(&device) = DEFAULT.get() {
        return device;
    }
    // First MLX's lock, then this one: callers that hold MLX's come here too.
    let _guard = ffi::enter();
    *DEFAULT.get_or_init(|| if Device::gpu().is_available() { Device::gpu() } else { Device::cpu() })
}

/// Where operations of this thread run now.
pub fn current_device() -> Device {
    ffi::current_device()
}

/// Runs `f` with its operations on `device`. Fails if the device is not there.
pub fn with_device<R>(device: Device, f: impl FnOnce() -> R) -> Result<R> {
    ffi::scoped(Err(device), f)
}

/// A queue of work on a device. Operations of one stream run in order; those of several may overlap,
/// and MLX waits where one needs another's result. A stream belongs to its thread.
#[derive(Debug)]
pub struct Stream(StreamHandle);

impl Stream {
    /// A stream of `device`, apart from the default one. Fails if the device is not there.
    pub fn new(device: Device) -> Result<Self> {
        StreamHandle::take(device).map(Self)
    }

    /// The stream's device.
    pub fn device(&self) -> Device {
        self.0.device
    }

    /// Waits until all work of the stream is done. An error that a computation left there comes back.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }
}

/// Runs `f` with its operations going to `stream`.
pub fn with_stream<R>(stream: &Stream, f: impl FnOnce() -> R) -> R {
    ffi::scoped(Ok(&stream.0), f).expect("a stream in hand needs no creation")
}

/// Waits for the stream that operations of this thread go to now.
pub fn synchronize() -> Result<()> {
    ffi::synchronize_current()
}
