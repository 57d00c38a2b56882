//! The command `mlxport`.

/// Also of MLX, which makes every array on one thread and lets go of it on another: with glibc's allocator that was
/// a tenth of the time that a token takes.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    mlxport::cli::main()
}
