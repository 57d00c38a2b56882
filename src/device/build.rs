//! What the library was built with, and the machine it runs on.

use serde::{Deserialize, Serialize};

use super::Device;
use crate::error::Result;
use crate::ffi;

/// Versions, backends and hardware: what a report of speed has to name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// This library's version.
    pub mlxport: String,
    /// MLX's version.
    pub mlx: String,
    /// Backends of MLX that this build has: `cpu`, and `metal` or `cuda`.
    pub backends: Vec<String>,
    /// What the BLAS library says of itself.
    pub blas: String,
    /// Name of the processor; empty if the system does not tell.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Vector extensions that the processor has and kernels choose between.
    pub cpu_features: Vec<String>,
    /// The implementation of our CPU kernels that runs: see [`crate::kernels::active`].
    pub kernels: String,
    /// Main memory in bytes; 0 if the system does not tell.
    pub memory_bytes: u64,
}

impl Machine {
    /// This build on this machine.
    pub fn here() -> Result<Self> {
        let gpu = if cfg!(target_os = "macos") { "metal" } else { "cuda" };
        let mut backends = vec!["cpu".to_owned()];
        backends.extend(Device::gpu().is_available().then(|| gpu.to_owned()));
        Ok(Self {
            mlxport: env!("CARGO_PKG_VERSION").into(),
            mlx: ffi::mlx_version()?,
            backends,
            blas: ffi::blas_config(),
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_features: cpu_features().into_iter().map(str::to_owned).collect(),
            kernels: crate::kernels::active().to_string(),
            memory_bytes: memory_bytes(),
        })
    }
}

macro_rules! detected {
    ($detect:ident: $($feature:tt)*) => {{
        let mut found = Vec::new();
        $(if std::arch::$detect!($feature) {
            found.push($feature);
        })*
        found
    }};
}

fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return detected!(is_x86_feature_detected:
        "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    return detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "bf16" "i8mm" "sve");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Vec::new();
}

#[cfg(target_os = "linux")]
fn cpu_name() -> String {
    proc_value("/proc/cpuinfo", "model name").unwrap_or_default()
}

#[cfg(target_os = "linux")]
fn memory_bytes() -> u64 {
    let total = proc_value("/proc/meminfo", "MemTotal");
    let kib = total.and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

/// The first `key : value` of a file under `/proc`.
#[cfg(target_os = "linux")]
fn proc_value(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

#[cfg(not(target_os = "linux"))]
fn cpu_name() -> String {
    sysctl("machdep.cpu.brand_string")
}

#[cfg(not(target_os = "linux"))]
fn memory_bytes() -> u64 {
    sysctl("hw.memsize").parse().unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn sysctl(name: &str) -> String {
    let output = std::process::Command::new("sysctl").args(["-n", name]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}
