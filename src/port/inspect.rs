//! Step 1: what a checkpoint is, from its files alone. Nothing in it is run.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::step::hex;
use crate::checkpoint::{Config, Files, Gguf};
use crate::error::{Error, Result};
use crate::io::{TensorInfo, read};

/// The longest model card that is read, in bytes.
const MAX_CARD: u64 = 16 << 20;

/// What a source checkpoint is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inspection {
    /// `model_type` of `config.json`.
    pub model_type: String,
    /// `architectures` of `config.json`.
    pub architectures: Vec<String>,
    /// Elements in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Tensors as they lie in the files, by name.
    pub tensors: Vec<TensorInfo>,
    /// `license` of the model card, or the name of the licence file.
    pub license: Option<String>,
    /// Whether there is a `tokenizer.json`.
    pub tokenizer: bool,
    /// Python files that came along; they are never run.
    pub code: Vec<String>,
    /// Every file with its digest: the provenance of the port.
    pub files: Vec<FileInfo>,
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// Looks at a checkpoint's files.
pub(super) fn inspect(source: &Path) -> Result<Inspection> {
    let config = Config::load(source)?;
    let tensors = Files::open(source)?.tensors()?;
    let elements = |t: &TensorInfo| t.shape.iter().map(|&d| d as u64).product::<u64>();
    let files = file_infos(source)?;
    let architectures =
        config.json().get("architectures").and_then(|v| v.as_array().cloned()).unwrap_or_default();
    Ok(Inspection {
        model_type: config.model_type()?.to_owned(),
        architectures: architectures.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        parameters: tensors.iter().map(elements).sum(),
        weight_bytes: tensors.iter().map(|t| elements(t) * t.dtype.size() as u64).sum(),
        license: license(source, &files),
        tokenizer: files.iter().any(|f| f.name == "tokenizer.json"),
        code: files.iter().map(|f| f.name.clone()).filter(|name| name.ends_with(".py")).collect(),
        tensors,
        files,
    })
}

/// Names, sizes and times of a folder's files: whether it changed since it was looked at.
pub(super) fn fingerprint(folder: &Path) -> Result<String> {
    let mut out = String::new();
    for path in files(folder)? {
        let meta = fs::metadata(&path).map_err(|e| Error::io(&path, e))?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let nanos = modified.map_or(0, |t| t.as_nanos());
        out += &format!("{} {} {nanos}\n", name_of(&path), meta.len());
    }
    Ok(out)
}

/// The same of a folder or of one file.
pub(super) fn fingerprint_of(path: &Path) -> Result<String> {
    match path.parent() {
        Some(folder) if path.is_file() => {
            fingerprint(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        }
        _ => fingerprint(path),
    }
}

/// The plain files of a folder, sorted by name; of a GGUF file, its parts.
fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    if folder.is_file() {
        return Ok(Gguf::open(folder)?.parts().map(Path::to_path_buf).collect());
    }
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut paths: Vec<_> =
        entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.is_file()).collect();
    paths.sort();
    Ok(paths)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Digests of the files of a folder.
pub(super) fn file_infos(folder: &Path) -> Result<Vec<FileInfo>> {
    files(folder)?.iter().map(|path| file_info(path)).collect()
}

fn file_info(path: &Path) -> Result<FileInfo> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
        if n == 0 {
            return Ok(FileInfo { name: name_of(path), bytes, sha256: hex(&hasher.finalize()) });
        }
        bytes += n as u64;
        hasher.update(&buffer[..n]);
    }
}

/// The licence that the model card's front matter names, or else the licence file that lies there.
fn license(folder: &Path, files: &[FileInfo]) -> Option<String> {
    let card = read::text(&folder.join("README.md"), MAX_CARD).unwrap_or_default();
    let named = card.strip_prefix("---").and_then(|rest| {
        let front = &rest[..rest.find("\n---")?];
        let line = front.lines().find_map(|line| line.strip_prefix("license:"))?;
        Some(line.trim().to_owned())
    });
    named.or_else(|| {
        let file = files.iter().find(|f| f.name.to_uppercase().starts_with("LICEN"))?;
        Some(format!("see {}", file.name))
    })
}
