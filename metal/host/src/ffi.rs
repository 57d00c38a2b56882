//! The loaded library of a kernel. The layouts are those of `runtime/machine.h`.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::{Error, Fault, Result};

#[repr(C)]
pub struct BufferArg {
    pub data: *mut u8,
    pub bytes: u64,
    pub index: i32,
    pub constant: u8,
    pub initialized: u8,
}

#[repr(C)]
pub struct ThreadgroupArg {
    pub bytes: u64,
    pub index: i32,
}

#[repr(C)]
pub struct LaunchArg {
    pub buffers: *const BufferArg,
    pub buffer_count: u64,
    pub threadgroup: *const ThreadgroupArg,
    pub threadgroup_count: u64,
    pub grid: [u32; 3],
    pub group: [u32; 3],
    pub order: u32,
    /// 1: lanes may meet at a simdgroup operation without the others; 2: threads may write equal values.
    pub flags: u32,
    pub seed: u64,
}

#[repr(C)]
struct Report {
    kind: u32,
    thread: [u32; 3],
    pc: u64,
    other_pc: u64,
    message: [u8; 1024],
}

type LaunchFn = unsafe extern "C" fn(*const LaunchArg, *mut Report);
type ConstantFn = unsafe extern "C" fn(i32, *const c_void, usize) -> bool;

/// A kernel's library. Its runtime keeps its state in globals, so that launches take turns.
#[derive(Debug)]
pub struct Library {
    path: PathBuf,
    library: Mutex<libloading::Library>,
}

impl Library {
    pub fn load(path: &Path) -> Result<Self> {
        // SAFETY: the library was compiled here, and loading it runs no code but empty constructors.
        let library = unsafe { libloading::Library::new(path) };
        let library =
            library.map_err(|e| Error::Io { what: path.display().to_string(), why: e.to_string() })?;
        Ok(Self { path: path.to_owned(), library: Mutex::new(library) })
    }

    /// Runs the kernel: `buffers` point to memory of the stated sizes that lives through the call.
    pub fn launch(
        &self,
        kernel: &str,
        constants: &[(i32, Vec<u8>)],
        buffers: &[BufferArg],
        threadgroup: &[ThreadgroupArg],
        mut arg: LaunchArg,
    ) -> Result<()> {
        let library = self.library.lock().unwrap_or_else(|e| e.into_inner());
        let missing =
            |e: libloading::Error| Error::Io { what: self.path.display().to_string(), why: e.to_string() };
        // SAFETY: both symbols are defined by runtime.cpp and the launcher with these types.
        let (launch, set) = unsafe {
            (
                library.get::<LaunchFn>(b"mtlhost_launch\0").map_err(missing)?,
                library.get::<ConstantFn>(b"mtlhost_set_constant\0").map_err(missing)?,
            )
        };
        // SAFETY: -1 sets all constants to zero.
        unsafe { set(-1, std::ptr::null(), 0) };
        for (index, value) in constants {
            // SAFETY: the callee checks the size and copies.
            if !unsafe { set(*index, value.as_ptr().cast(), value.len()) } {
                let why = format!("no function constant {index} of {} bytes", value.len());
                return Err(Error::Argument { kernel: kernel.into(), why });
            }
        }
        arg.buffers = buffers.as_ptr();
        arg.buffer_count = buffers.len() as u64;
        arg.threadgroup = threadgroup.as_ptr();
        arg.threadgroup_count = threadgroup.len() as u64;
        let mut report = Report { kind: 0, thread: [0; 3], pc: 0, other_pc: 0, message: [0; 1024] };
        // SAFETY: the slices and buffers outlive the call, and the lock keeps other launches out.
        unsafe { launch(&arg, &mut report) };
        let fault = match report.kind {
            0 => return Ok(()),
            1 => Fault::Bounds,
            2 => Fault::Race,
            3 => Fault::Divergence,
            4 => Fault::Uninitialized,
            5 => Fault::Wild,
            6 => Fault::Limit,
            _ => Fault::Other,
        };
        let length = report.message.iter().position(|&b| b == 0).unwrap_or(report.message.len());
        Err(Error::Fault {
            kernel: kernel.into(),
            fault,
            thread: report.thread,
            message: String::from_utf8_lossy(&report.message[..length]).into_owned(),
            place: crate::compile::place(&self.path, report.pc),
            other_place: crate::compile::place(&self.path, report.other_pc),
        })
    }
}
