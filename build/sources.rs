//! Finds the pinned sources of MLX and its dependencies and verifies their digests.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// One entry of `vendor/pins.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Pin {
    pub version: String,
    /// Folder under `vendor/` whose lock file pins the package.
    pub manifest: String,
    pub package: String,
    /// A file or folder inside the package.
    pub path: String,
    /// Of the file, or of the folder's sorted `sha256sum` list.
    pub sha256: String,
}

/// A verified source on this machine.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    pub sha256: String,
}

pub type Pins = BTreeMap<String, Pin>;

pub fn read_pins(vendor: &Path) -> Result<Pins, String> {
    let path = vendor.join("pins.json");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The source of `name`: the folder in the environment variable if it is set, else the pinned package.
pub fn locate(vendor: &Path, name: &str, pin: &Pin, over: Option<PathBuf>) -> Result<Source, String> {
    if let Some(path) = over {
        let sha256 = digest(&path)?;
        return Ok(Source { path, sha256 });
    }
    let path = package_folder(&vendor.join(&pin.manifest), &pin.package)?.join(&pin.path);
    let found = digest(&path)?;
    verify(name, pin, &path, &found)?;
    Ok(Source { path, sha256: found })
}

pub fn verify(name: &str, pin: &Pin, path: &Path, found: &str) -> Result<(), String> {
    if found == pin.sha256 {
        return Ok(());
    }
    Err(format!(
        "the sources of {name} {} were changed: {} has SHA-256 {found}, vendor/pins.json has {}. \
         Delete that package from Cargo's registry folder so that it is unpacked again, or point \
         MLXPORT_MLX_SOURCE / MLXPORT_MLXC_SOURCE at sources you mean to use.",
        pin.version,
        path.display(),
        pin.sha256,
    ))
}

/// Asks cargo for the folder of a locked package; without network if it is there already.
fn package_folder(manifest_dir: &Path, package: &str) -> Result<PathBuf, String> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        manifest_path: PathBuf,
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = manifest_dir.join("Cargo.toml");
    let run = |offline: bool| {
        let mut cmd = Command::new(&cargo);
        cmd.args(["metadata", "--format-version=1", "--locked", "--manifest-path"]).arg(&manifest);
        if offline {
            cmd.arg("--offline");
        }
        cmd.output().map_err(|e| format!("cargo metadata: {e}"))
    };
    let mut output = run(true)?;
    if !output.status.success() {
        output = run(false)?;
    }
    if !output.status.success() {
        return Err(format!(
            "the pinned package {package} could not be fetched (is the network reachable?):\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    metadata
        .packages
        .iter()
        .find(|p| p.name == package)
        .and_then(|p| p.manifest_path.parent())
        .map(Path::to_path_buf)
        .ok_or_else(|| format!("{} does not lock {package}", manifest.display()))
}

/// SHA-256 of a file, or of a folder's `sha256sum` list sorted by path (`LC_ALL=C`).
pub fn digest(path: &Path) -> Result<String, String> {
    if path.is_file() {
        return hash_file(path);
    }
    let mut files = Vec::new();
    list(path, String::new(), &mut files)?;
    files.sort();
    let mut hasher = Sha256::new();
    for name in files {
        hasher.update(format!("{}  {name}\n", hash_file(&path.join(&name))?));
    }
    Ok(hex(&hasher.finalize()))
}

fn list(dir: &Path, prefix: String, out: &mut Vec<String>) -> Result<(), String> {
    let error = |e: std::io::Error| format!("{}: {e}", dir.display());
    for entry in fs::read_dir(dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if name == ".git" {
            continue;
        }
        if entry.path().is_dir() {
            list(&entry.path(), format!("{name}/"), out)?;
        } else {
            out.push(name);
        }
    }
    Ok(())
}

fn hash_file(path: &Path) -> Result<String, String> {
    let error = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = fs::File::open(path).map_err(error)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).map_err(error)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
