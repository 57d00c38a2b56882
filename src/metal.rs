//! What only Metal has: recording what the GPU does, for Xcode.

use std::ffi::CString;
use std::path::Path;

use crate::error::{Error, Result};
use crate::ffi::call;

/// Whether MLX was built with Metal and the machine has it.
pub fn is_available() -> bool {
    let mut available = false;
    call!(mlx_metal_is_available; available;).is_ok() && available
}

/// Records all work of the GPU from now on into a new file, `*.gputrace`. The process must have been
/// started with `MTL_CAPTURE_ENABLED=1`. Fails without Metal.
pub fn start_capture(path: impl AsRef<Path>) -> Result<()> {
    check()?;
    let path = path.as_ref();
    let name = path.to_str().and_then(|path| CString::new(path).ok());
    let name = name.ok_or_else(|| Error::io(path, "not a path in UTF-8"))?;
    let name = name.as_c_str();
    call!(mlx_metal_start_capture;; name)
}

/// Ends the recording. Fails without Metal.
pub fn stop_capture() -> Result<()> {
    check()?;
    call!(mlx_metal_stop_capture;;)
}

fn check() -> Result<()> {
    if is_available() { Ok(()) } else { Err(Error::unsupported("a capture", "MLX has no Metal here")) }
}
