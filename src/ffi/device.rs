//! Devices, memory counters and what the library was built with.

use std::ffi::CStr;

use super::{DeviceHandle, VectorString, check, enter, sys};
use crate::device::{Device, DeviceInfo, DeviceKind};
use crate::error::Result;

pub(crate) fn device_is_available(device: Device) -> bool {
    let dev = DeviceHandle::new(device);
    let mut available = false;
    let _guard = enter();
    // SAFETY: `dev` is live.
    let code = unsafe { sys::mlx_device_is_available(&mut available, dev.0) };
    code == 0 && available
}

pub(crate) fn device_count(kind: DeviceKind) -> i32 {
    let mut count = 0;
    let _guard = enter();
    // SAFETY: plain values.
    let code = unsafe { sys::mlx_device_count(&mut count, kind.code()) };
    if code == 0 { count } else { 0 }
}

pub(crate) fn device_info(device: Device) -> Result<Vec<(String, DeviceInfo)>> {
    struct Info(sys::mlx_device_info);
    impl Drop for Info {
        fn drop(&mut self) {
            // SAFETY: this value owns the handle, and the lock is held by the function around it.
            unsafe { sys::mlx_device_info_free(self.0) };
        }
    }
    let _guard = enter();
    let dev = DeviceHandle::new(device);
    // SAFETY: no arguments.
    let mut info = Info(unsafe { sys::mlx_device_info_new() });
    // SAFETY: live handles.
    check("device_info", unsafe { sys::mlx_device_info_get(&mut info.0, dev.0) })?;
    let mut keys = VectorString::empty();
    // SAFETY: live handles.
    check("device_info", unsafe { sys::mlx_device_info_get_keys(&mut keys.0, info.0) })?;
    let mut out = Vec::new();
    for key in keys.to_strings() {
        let Ok(name) = std::ffi::CString::new(key.clone()) else {
            continue;
        };
        let mut is_string = false;
        // SAFETY: live handles and a NUL-terminated key; a string is copied while `info` lives.
        let value = unsafe {
            check("device_info", sys::mlx_device_info_is_string(&mut is_string, info.0, name.as_ptr()))?;
            if is_string {
                let mut text = std::ptr::null();
                let code = sys::mlx_device_info_get_string(&mut text, info.0, name.as_ptr());
                check("device_info", code)?;
                DeviceInfo::Text(CStr::from_ptr(text).to_string_lossy().into_owned())
            } else {
                let mut size = 0;
                let code = sys::mlx_device_info_get_size(&mut size, info.0, name.as_ptr());
                check("device_info", code)?;
                DeviceInfo::Size(size)
            }
        };
        out.push((key, value));
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(out)
}

/// MLX's version.
pub(crate) fn mlx_version() -> Result<String> {
    let mut text = super::StringHandle::empty();
    super::call!(mlx_version; text.0;)?;
    Ok(text.text())
}

/// What the BLAS library says of itself.
pub(crate) fn blas_config() -> String {
    // SAFETY: a NUL-terminated string that lives as long as the process.
    let text = unsafe { CStr::from_ptr(sys::mlxport_blas_config()) };
    text.to_string_lossy().into_owned()
}

/// Whether MLX finds the C++ compiler that it builds fused operations with.
pub(crate) fn cpu_compiler_is_available() -> bool {
    let _guard = enter();
    // SAFETY: no arguments.
    unsafe { sys::mlxport_cpu_compiler_is_available() }
}
