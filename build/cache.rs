//! The cache of native builds: one folder per digest, filled once, never half.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::sources::hex;

/// Where native builds are kept: `MLXPORT_CACHE_DIR`, or the user's cache folder.
pub fn folder(env: impl Fn(&str) -> Option<String>, macos: bool) -> Result<PathBuf, String> {
    let set = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("MLXPORT_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("mlxport")))
        .or_else(|| {
            let caches = if macos { "Library/Caches" } else { ".cache" };
            set("HOME").map(|p| p.join(caches).join("mlxport"))
        })
        .ok_or_else(|| "no folder for the native build: set HOME or MLXPORT_CACHE_DIR".into())
}

/// Digest of everything a build depends on, as named parts.
pub fn key(parts: &[(&str, &str)]) -> String {
    let mut hasher = Sha256::new();
    for (name, value) in parts {
        hasher.update(format!("{name} {}\n{value}\n", value.len()));
    }
    hex(&hasher.finalize())[..32].to_owned()
}

/// The folder of `key`, filled by `build` if it is not there yet. `build` writes into a staging
/// folder that is renamed when it succeeded, so an interrupted build leaves nothing behind that
/// a later one would take for whole.
pub fn get_or_build(
    cache: &Path,
    key: &str,
    build: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let done = cache.join(key);
    if done.is_dir() {
        return Ok(done);
    }
    let error = |e: std::io::Error| format!("{}: {e}", cache.display());
    fs::create_dir_all(cache).map_err(error)?;
    let lock_path = cache.join(format!("{key}.lock"));
    let lock = File::create(&lock_path).map_err(error)?;
    lock.lock().map_err(error)?; // another build of the same key finishes first
    if done.is_dir() {
        return Ok(done);
    }
    let staging = cache.join(format!("{key}.partial"));
    if staging.exists() {
        fs::remove_dir_all(&staging).map_err(error)?;
    }
    fs::create_dir_all(&staging).map_err(error)?;
    match build(&staging) {
        Ok(()) => {
            fs::rename(&staging, &done).map_err(error)?;
            Ok(done)
        }
        Err(e) => {
            let _ = fs::remove_dir_all(&staging);
            Err(e)
        }
    }
}
