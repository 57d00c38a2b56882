//! How our Metal shaders are compiled ahead of time, so that a broken one fails the build (macOS only).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The shaders of a folder, without those of the folders in it, by name.
pub fn shaders(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(fail)?;
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let mut shaders: Vec<_> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "metal")).collect();
    shaders.sort();
    Ok(shaders)
}

/// The arguments of `xcrun` that compile `shader` into the folder `out`: the oldest language that MLX asks for, and
/// arithmetic as strict as MLX's.
pub fn arguments(shader: &Path, out: &Path) -> Vec<OsString> {
    let flags = ["-sdk", "macosx", "metal", "-std=metal3.1", "-fno-fast-math", "-Wall", "-Wextra", "-c"];
    let mut arguments: Vec<OsString> = flags.map(OsString::from).into();
    let object = out.join(shader.file_name().unwrap_or_default()).with_extension("air");
    arguments.extend([shader.into(), "-o".into(), object.into()]);
    arguments
}
