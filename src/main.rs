//! The command `mlxport`.

#[global_allocator]
static ALLOCATOR: mlxport::cli::Allocator = mlxport::cli::Allocator;

fn main() -> std::process::ExitCode {
    mlxport::cli::main()
}
