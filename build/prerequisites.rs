//! Looks for what the native build needs, before anything is built.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::mlx::runs;
use crate::plan::{Features, Need, Target, clang_runtime};

/// The first thing missing, as a message that says how to install it.
pub fn check(target: &Target, features: Features) -> Result<(), String> {
    for need in Need::all(target, features) {
        let found = match need {
            Need::Cmake => runs("cmake"),
            Need::Cxx => runs(&compiler()),
            Need::Libclang => clang_sys::load().is_ok(),
            Need::Blas => target.cross || preprocesses("#include <cblas.h>\n#include <lapack.h>\n"),
            Need::MetalToolchain => Command::new("xcrun")
                .args(["-sdk", "macosx", "-f", "metal"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success()),
            Need::CudaToolkit => runs("nvcc"),
        };
        if !found {
            return Err(need.message(target));
        }
    }
    Ok(())
}

/// The C++ compiler that CMake and `cc` will use.
pub fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

/// Version, target and predefined macros of the compiler with `flags`: what makes two builds differ.
pub fn compiler_identity(flags: Option<&str>) -> String {
    let mut command = Command::new(compiler());
    command.args(flags).args(["-x", "c++", "-dM", "-E", "-"]);
    command.stdin(Stdio::null());
    command.output().map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
}

/// Where clang keeps its run-time libraries.
pub fn clang_runtime_folder() -> Option<String> {
    let output = Command::new("clang").arg("--print-search-dirs").output().ok()?;
    clang_runtime(&String::from_utf8_lossy(&output.stdout))
}

fn preprocesses(source: &str) -> bool {
    let child = Command::new(compiler())
        .args(["-x", "c++", "-I/usr/include/openblas", "-E", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.is_ok_and(|mut child| {
        let stdin = child.stdin.take();
        let written = stdin.is_some_and(|mut s| s.write_all(source.as_bytes()).is_ok());
        child.wait().is_ok_and(|s| s.success()) && written
    })
}
