//! MLX's memory: what it uses, what it keeps, and how much it may.
//!
//! All figures are bytes, for the process.

use crate::error::Result;
use crate::ffi::call;

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name() -> Result<usize> {
            let mut out = 0usize;
            call!($f; out;)?;
            Ok(out)
        }
    )* };
}

getters! {
    /// Memory of live arrays.
    active_memory => mlx_get_active_memory;
    /// Memory of freed arrays, kept for reuse: on CPUs up to 256 MiB, unless [`set_cache_limit`] says otherwise.
    cache_memory => mlx_get_cache_memory;
    /// The limit above which MLX waits for running work before it allocates.
    memory_limit => mlx_get_memory_limit;
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident => $f:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// Returns the limit that held before.
        pub fn $name(limit: usize) -> Result<usize> {
            let mut out = 0usize;
            call!($f; out; limit)?;
            Ok(out)
        }
    )* };
}

setters! {
    /// Sets the limit of [`cache_memory`]; what is above it is freed.
    set_cache_limit => mlx_set_cache_limit;
    /// Sets the [`memory_limit`].
    set_memory_limit => mlx_set_memory_limit;
    /// Sets how much memory is kept resident for the GPU (macOS 15 and newer; no effect elsewhere).
    set_wired_limit => mlx_set_wired_limit;
}

/// The most that was active at once since the start, or since [`reset_peak_memory`]; what is active now counts.
pub fn peak_memory() -> Result<usize> {
    let mut out = 0usize;
    call!(mlx_get_peak_memory; out;)?;
    // MLX begins a new count at zero and raises it with the next allocation.
    Ok(out.max(active_memory()?))
}

/// Starts a new count of [`peak_memory`].
pub fn reset_peak_memory() -> Result<()> {
    call!(mlx_reset_peak_memory;;)
}

/// Frees the cached memory.
pub fn clear_cache() -> Result<()> {
    call!(mlx_clear_cache;;)
}
