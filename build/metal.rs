//! Compiles our Metal shaders ahead of time, so that a broken one fails the build (macOS only).

use std::path::Path;
use std::process::Command;

use crate::mlx::run;

pub fn check_shaders(metal: &Path, out: &Path) -> Result<(), String> {
    let entries = std::fs::read_dir(metal).map_err(|e| format!("{}: {e}", metal.display()))?;
    for path in entries.filter_map(|e| e.ok().map(|e| e.path())) {
        if path.extension().is_none_or(|e| e != "metal") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut metal = Command::new("xcrun");
        metal
            .args(["-sdk", "macosx", "metal", "-std=metal3.1", "-Wall", "-c"])
            .arg(&path)
            .arg("-o")
            .arg(out.join(format!("{name}.air")));
        run(metal, &format!("compiling metal/{name}.metal"))?;
    }
    Ok(())
}
