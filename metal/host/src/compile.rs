//! Runs the system's C++ compiler and keeps what it makes, by digest, in `target/metal-host`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use sha2::{Digest, Sha256};

use crate::ffi::Library;
use crate::{Error, Result};

const FLAGS: [&str; 11] = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-gdwarf-4",
    "-fPIC",
    "-w",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-math-errno",
];
const RUNTIME: &str = concat!(
    include_str!("runtime.cpp"),
    include_str!("runtime/machine.h"),
    include_str!("runtime/checks.h"),
    include_str!("runtime/schedule.h"),
);
const HEADERS: [&str; 7] = [
    include_str!("../include/runtime.h"),
    include_str!("../include/metal_host.h"),
    include_str!("../include/metal_scalar.h"),
    include_str!("../include/metal_vector.h"),
    include_str!("../include/metal_math.h"),
    include_str!("../include/metal_simd.h"),
    include_str!("../include/metal_sync.h"),
];

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| crate_folder().join("../../target")).join("metal-host")
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

fn compiler_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let output = Command::new(compiler()).arg("--version").output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
    })
}

fn io(what: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |e| Error::Io { what: what.display().to_string(), why: e.to_string() }
}

fn run(shader: &str, command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .map_err(|e| Error::Io { what: format!("the C++ compiler {}", compiler()), why: e.to_string() })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let log = String::from_utf8_lossy(&output.stderr);
    let log = log.lines().take(60).collect::<Vec<_>>().join("\n");
    Err(Error::Compile { shader: shader.into(), log })
}

/// The source with its includes and macros expanded; the headers of Metal's standard library are empty here.
pub fn preprocess(name: &str, text: &str, includes: &[PathBuf]) -> Result<String> {
    let folder = cache();
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let file = tempfile::Builder::new().suffix(".cpp").tempfile_in(&folder).map_err(io(&folder))?;
    let marked = format!("#line 1 \"{}\"\n{text}", name.replace(['"', '\\', '\n'], "_"));
    fs::write(file.path(), marked).map_err(io(file.path()))?;
    let mut command = Command::new(compiler());
    command.args(["-std=c++20", "-E", "-D__METAL__=1", "-D__METAL_VERSION__=310", "-D__METAL_MACOS__=1"]);
    command.arg("-I").arg(crate_folder().join("include/stubs"));
    for include in includes {
        command.arg("-I").arg(include);
    }
    let out = run(name, command.arg(file.path()))?;
    String::from_utf8(out).map_err(|e| Error::Source { shader: name.into(), why: e.to_string() })
}

fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts.iter().copied().chain(HEADERS).chain(FLAGS).chain([compiler_version()]) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Makes `path` by `make`, which writes to the path that it is given, unless it is there.
fn keep(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let staging = tempfile::tempdir_in(folder).map_err(io(folder))?;
    let made = staging.path().join("made");
    make(&made)?;
    fs::rename(&made, path).map_err(io(path))
}

fn runtime_object() -> Result<PathBuf> {
    let path = cache().join(format!("runtime-{}.o", digest(&[RUNTIME])));
    keep(&path, |out| {
        let source = crate_folder().join("src/runtime.cpp");
        let mut command = Command::new(compiler());
        command.args(["-std=c++20", "-O2", "-g1", "-fPIC", "-c"]).arg(source).arg("-o").arg(out);
        run("the runtime", &mut command).map(drop)
    })?;
    Ok(path)
}

/// The library of one kernel, compiled once and loaded once.
pub fn library(shader: &str, text: &str, launcher: &str) -> Result<Arc<Library>> {
    static LOADED: OnceLock<Mutex<HashMap<PathBuf, Arc<Library>>>> = OnceLock::new();
    let runtime = runtime_object()?;
    let path = cache().join(format!("{}.so", digest(&[RUNTIME, text, launcher])));
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
    if let Some(library) = loaded.get(&path) {
        return Ok(library.clone());
    }
    drop(loaded);
    keep(&path, |out| {
        let source = out.with_extension("cpp");
        fs::write(&source, format!("#include \"metal_host.h\"\n{text}\n{launcher}")).map_err(io(&source))?;
        let object = out.with_extension("o");
        let mut command = Command::new(compiler());
        command.args(FLAGS).arg("-fsanitize=thread,bounds").arg("-I").arg(crate_folder().join("include"));
        run(shader, command.arg("-c").arg(&source).arg("-o").arg(&object))?;
        let mut link = Command::new(compiler());
        link.arg("-shared");
        if cfg!(target_os = "linux") {
            link.arg("-Wl,-Bsymbolic");
        }
        run(shader, link.arg(&object).arg(&runtime).arg("-lm").arg("-o").arg(out)).map(drop)
    })?;
    loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
    if let Some(library) = loaded.get(&path) {
        return Ok(library.clone());
    }
    let library = Arc::new(Library::load(&path)?);
    loaded.insert(path, library.clone());
    Ok(library)
}

/// File and line of an offset into a library, where the tools that know are installed.
pub fn place(library: &Path, pc: u64) -> Option<String> {
    if pc == 0 {
        return None;
    }
    let output = Command::new("addr2line")
        .arg("-i")
        .arg("-e")
        .arg(library)
        .arg(format!("{:#x}", pc - 1))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // The innermost line outside of the headers here.
    let line = text.lines().find(|l| !l.contains("/include/metal_") && !l.starts_with('?'))?;
    let name = line.rsplit('/').next()?;
    Some(name.split(" (").next().unwrap_or(name).to_owned())
}
