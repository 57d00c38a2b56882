//! The command `mlxport`.

fn main() -> std::process::ExitCode {
    mlxport::cli::main()
}
