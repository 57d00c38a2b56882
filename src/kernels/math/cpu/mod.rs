//! Implementations for CPUs.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(in crate::kernels) mod avx2;
