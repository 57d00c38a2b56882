//! Builds MLX and mlx-c with CMake and installs them into a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::plan::{Features, Target, cmake_definitions};
use crate::sources::Source;

pub struct Sources {
    pub mlx: Source,
    pub mlxc: Source,
    pub fmt: Source,
    pub json: Source,
    pub metal_cpp: Source,
}

/// Builds in `prefix/work`, installs `lib/` and `include/` into `prefix`, and removes the work.
pub fn build(
    prefix: &Path,
    sources: &Sources,
    native: &Path,
    target: &Target,
    features: Features,
    jobs: &str,
) -> Result<(), String> {
    let work = prefix.join("work");
    let unpacked = |name: &str, source: &Source| unpack(&source.path, &work.join(name));
    let fmt = unpacked("fmt", &sources.fmt)?;
    let json = unpacked("json", &sources.json)?;

    let tree = work.join("build");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&sources.mlxc.path).arg("-B").arg(&tree);
    if runs("ninja") {
        configure.args(["-G", "Ninja"]);
    }
    let mut define = |key: &str, value: &Path| {
        configure.arg(format!("-D{key}={}", value.display()));
    };
    define("FETCHCONTENT_SOURCE_DIR_MLX", &sources.mlx.path);
    define("FETCHCONTENT_SOURCE_DIR_FMT", &fmt);
    define("FETCHCONTENT_SOURCE_DIR_JSON", &json);
    if target.is_macos() {
        let metal_cpp = unpacked("metal_cpp", &sources.metal_cpp)?;
        define("FETCHCONTENT_SOURCE_DIR_METAL_CPP", &metal_cpp);
    }
    define("CMAKE_PROJECT_mlx.data_INCLUDE", &native.join("mlxc.cmake"));
    define("MLXPORT_NATIVE", native);
    define("CMAKE_INSTALL_PREFIX", prefix);
    define("CMAKE_INSTALL_LIBDIR", Path::new("lib"));
    for (key, value) in cmake_definitions(target, features) {
        configure.arg(format!("-D{key}={value}"));
    }
    run(configure, "configuring MLX")?;

    let mut compile = Command::new("cmake");
    compile.arg("--build").arg(&tree).args(["--target", "install", "--parallel", jobs]);
    run(compile, "compiling MLX")?;
    fs::remove_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))
}

/// Unpacks an archive and returns the folder that holds its files.
fn unpack(archive: &Path, into: &Path) -> Result<PathBuf, String> {
    let error = |e: std::io::Error| format!("{}: {e}", into.display());
    fs::create_dir_all(into).map_err(error)?;
    let mut tar = Command::new("cmake");
    tar.current_dir(into).args(["-E", "tar", "xf"]).arg(archive);
    run(tar, "unpacking")?;
    let entries: Vec<_> =
        fs::read_dir(into).map_err(error)?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    match entries.as_slice() {
        [only] if only.is_dir() => Ok(only.clone()),
        _ => Ok(into.to_path_buf()),
    }
}

/// Whether `program --version` can be run.
pub fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Runs a command; on failure the error carries the end of what it printed.
pub fn run(mut command: Command, what: &str) -> Result<(), String> {
    // Cargo's job server and flags mean nothing to CMake's own build.
    command.env_remove("MAKEFLAGS").env_remove("MFLAGS");
    let output = command.output().map_err(|e| format!("{what}: {:?}: {e}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(60)..].join("\n");
    Err(format!("{what} failed ({}):\n{tail}", output.status))
}
